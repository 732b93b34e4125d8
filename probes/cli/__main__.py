"""`python -m probes.cli`: the command line where the script `probe` is not on the path."""

from probes.cli import main

main()
