"""Train a backbone on two augmented views of each glyph, without names, and evaluate its features; see `--help`."""

import shlex
import sys
from collections.abc import Sequence

import torch
import tyro
from clip_glyphs import listening_for_ctrl_c
from rich.console import Console
from two_views import report
from two_views.bar import train
from two_views.config import HELP, Options
from two_views.data import load
from two_views.evaluation import evaluate, pixels
from two_views.model import Encoder
from two_views.training import Run


def trained(o: Options, console: Console) -> dict[int, Run]:
    """Train one run per seed.

    Raises:
        KeyboardInterrupt: Ctrl-C; the checkpoint was saved.
        ValueError: options that do not fit the data, or the checkpoints.
    """
    runs = {seed: Run(o, seed, load(o.names, seed).train.images) for seed in o.seeds}
    with listening_for_ctrl_c() as asked:
        for run in runs.values():
            if o.resume:
                run.restore(o.out / "checkpoints")
            train(run, console, asked.is_set)
    return runs


def evaluated(o: Options, runs: dict[int, Run], console: Console) -> report.Results:
    """Accuracies of the trained features and of the baselines."""
    results: report.Results = {o.scheme: [], "untrained": [], "pixels": []}
    for seed, run in runs.items():
        with console.status(f"evaluating seed {seed}"):
            torch.manual_seed(seed)
            encoders = run.encoder.backbone, Encoder(o.backbone).backbone, pixels
            for name, encode in zip(results, encoders, strict=True):
                results[name].append(evaluate(encode, load(o.names, seed)))
    return results


def main(args: Sequence[str] | None = None) -> int:
    """Run the example.

    Returns:
        Exit code: 0; 130 after Ctrl-C; 2 where options do not fit the data or the checkpoints.
    """
    typed = sys.orig_argv if args is None else ["python", __file__, *args]
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width
    try:
        o = tyro.cli(Options, args=args, prog="self_supervised.py", description=HELP)
        runs = trained(o, console)
        report.write(o, evaluated(o, runs, console), runs[o.seeds[0]].temperatures(), console)
    except KeyboardInterrupt:
        again = [] if "--resume" in typed else ["--resume"]
        console.print(
            f"\nstopped. To continue, type:\n  {shlex.join([*typed, *again])}",
            highlight=False,
            soft_wrap=True,
        )
        return 130
    except ValueError as error:
        print(f"self_supervised.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
