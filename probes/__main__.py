"""`python -m probes`: the command line, in the form in which launchers of several processes can start it."""

from probes.cli import main

main()
