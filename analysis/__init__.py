"""Trial tables to statistics, figures and reports. Knows trial rows and run.json only; never imports torch."""
