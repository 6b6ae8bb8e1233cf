"""`python -m dro_temp.cli`, for launchers that start a module."""

import sys

from dro_temp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
