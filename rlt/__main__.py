"""`python -m rlt`: the command `rlt`."""

import sys

from rlt.cli import main

if __name__ == "__main__":
    sys.exit(main())
