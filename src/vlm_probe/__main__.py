"""`python -m vlm_probe`: the command line where the script `probe` is not on the path, and for launchers of several processes."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # `python -m` puts the working directory first, where a file of the user's may have the name of a module that is imported later.
    if not sys.flags.safe_path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
    from vlm_probe.probes.cli import main

    main()
