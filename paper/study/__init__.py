"""A study: one file that declares an experiment, and what makes, runs and watches its cells."""
