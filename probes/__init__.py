"""Models, readouts, the run loop and trial logs. Importing this package imports neither torch nor a simulator."""
