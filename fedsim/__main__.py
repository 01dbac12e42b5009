"""`python -m fedsim` is the command `fedsim`."""

import sys

from fedsim.cli import main

sys.exit(main())
