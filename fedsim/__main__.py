"""The command `fedsim` as a process of its own, also `python -m fedsim`."""

from __future__ import annotations

import gc
import sys

from fedsim.cli import main


def run() -> None:
    """Run the command line and end the process with its exit code."""
    code = main()
    # The process ends here. A last garbage collection would walk every torch module, for a second
    # in which Ctrl-C has not ended the run yet.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    run()
