"""Train two encoders on glyph-caption pairs with a temperature per input; see `--help`."""

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import torch
import tyro
from glyphs import report
from glyphs.checkpoint import Checkpoints
from glyphs.config import EXAMPLES, Config
from glyphs.data import Data, load
from glyphs.progress import Progress
from glyphs.training import Run
from rich.console import Console


@contextlib.contextmanager
def listening_for_ctrl_c() -> Iterator[threading.Event]:
    """Let the first Ctrl-C stop training after the current step; a second one stops immediately."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def train_all(config: Config, data: Data, checkpoints: Checkpoints, console: Console) -> list[Run]:
    """Train every method with every seed, or restore finished runs.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        ValueError: --resume with options other than the checkpoints'.
    """
    # Build all before training the first, so that invalid options fail early.
    runs = [Run(method, seed, config, data) for seed in config.seeds for method in config.methods]
    restored = [checkpoints.restore(run) for run in runs]
    if config.resume and not any(restored):
        console.print(f"no checkpoint of these runs in {checkpoints.folder}: starting from the beginning")
    with listening_for_ctrl_c() as asked:
        for run in runs:
            with Progress(run, console) as progress:
                run.fit(save=checkpoints.save, should_stop=asked.is_set, watch=progress)
    return runs


def main(args: Sequence[str] | None = None) -> int:
    """Run the example.

    Returns:
        Exit code: 0; 130 after Ctrl-C; 2 where options do not fit the data or the checkpoints.
    """
    typed = sys.orig_argv if args is None else ["python", __file__, *args]
    args = sys.argv[1:] if args is None else args
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width
    try:
        config = tyro.cli(Config, args=args, prog="clip_glyphs.py")
    except SystemExit:
        if {"-h", "--help"} & set(args):
            print(EXAMPLES)
        raise
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    checkpoints = Checkpoints(config.out / "checkpoints", resume=config.resume)
    try:
        with console.status("rendering glyphs (once; cached)"):
            data = load(config)
        runs = train_all(config, data, checkpoints, console)
        report.write(config, runs, data, console)
    except KeyboardInterrupt:
        again = ["--resume"] if checkpoints.ours and not config.resume else []
        console.print("\nstopped. To continue, type:", highlight=False)
        console.print(f"  {shlex.join([*typed, *again])}", highlight=False, soft_wrap=True)
        return 130
    except ValueError as error:
        print(f"clip_glyphs.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
