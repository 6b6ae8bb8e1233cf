"""`python -m dro_temp.integrations.open_clip`."""

import sys

from dro_temp.integrations.open_clip.command import main

if __name__ == "__main__":
    sys.exit(main())
