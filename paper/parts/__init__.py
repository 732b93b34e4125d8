"""The parts of the paper, one file each: a function from the study to a `Part`."""
