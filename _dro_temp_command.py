"""Where the console script `dro-temp` starts: outside the package, whose import takes seconds.

A Ctrl-C in those seconds ends with one sentence and exit code 130, as it does later on.
"""

import os
import signal


def main() -> int:
    """Import the command line, then run it; the exit status."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a background job ignores Ctrl-C
    if ours:
        signal.signal(signal.SIGINT, _stop)
    from dro_temp.cli.main import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _stop(*_: object) -> None:
    # Nothing is open yet, and an exception would be swallowed or shown by whichever import it fell into.
    os.write(2, b"\nstopped before anything was done\n")
    os._exit(130)
