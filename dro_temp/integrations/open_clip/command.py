"""open_clip's own command with this package's loss: `python -m dro_temp.integrations.open_clip`."""

import os
import sys
from collections.abc import Sequence

from dro_temp._optional import optional_module
from dro_temp.integrations.open_clip.options import COMMAND, help_text, parsed
from dro_temp.integrations.open_clip.training import Training


def main(argv: Sequence[str] | None = None) -> int:
    """Run open_clip's main with another loss; the exit status.

    Args:
        argv: options of this package and of open_clip, in any order; those of the process if None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        theirs = optional_module("open_clip_train.main", "whose training this command runs", extra="clip")
        # open_clip's parser takes these abbreviations for --help as well.
        if {"-h", "--he", "--hel", "--help"} & set(words):
            print(help_text(theirs.parse_args))
            return 0
        options, rest = parsed(words)
        zero_shot = optional_module("open_clip_train.zero_shot", "which evaluates", extra="clip")
        with Training(options).inside(theirs, zero_shot):
            # Where main stops early it prints why, and returns -1.
            return abs(int(theirs.main(rest) or 0))
    except (ImportError, TypeError, ValueError) as error:
        if not str(error).startswith("expected ") or os.environ.get("DRO_TEMP_TRACEBACK", "0") != "0":
            raise
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 2
