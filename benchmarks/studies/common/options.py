"""The command line that the studies share."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.studies.common.runs import TUNING_SEED


def parser(
    doc: str | None,
    out: str,
    *,
    methods: Iterable[str] = (),
    default: Iterable[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    workers: int | None = 2,
) -> argparse.ArgumentParser:
    """A parser with the options that every study has.

    Args:
        doc: shown by --help.
        out: default folder of runs and tables.
        methods: what --methods may name; none: there is no such option.
        default: its default; all methods if None.
        seeds: default seeds.
        workers: default number of processes; None for a study that runs in one.
    """
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--seeds",
        nargs="+",
        type=_seed,
        default=list(seeds),
        help="seeds of the test runs, each with its own data split and model (default: %(default)s)",
    )
    if workers is not None:
        result.add_argument(
            "--workers",
            type=int,
            default=workers,
            help="processes, each with one thread; 1 runs in this process (default: %(default)s)",
        )
    if names := list(methods):
        wanted = names if default is None else list(default)
        said = "all" if wanted == names else " ".join(wanted)
        result.add_argument(
            "--methods",
            nargs="+",
            choices=names,
            default=wanted,
            metavar="METHOD",
            help=f"methods to compare (default: {said}), of: {'; '.join(names)}",
        )
    result.add_argument(
        "--out", type=Path, default=Path(out), help="folder for runs and tables (default: %(default)s)"
    )
    result.add_argument(
        "--results",
        type=Path,
        help="folder for the summary, such as benchmarks/results (default: that of --out)",
    )
    return result


def _seed(text: str) -> int:
    if text == str(TUNING_SEED):
        raise argparse.ArgumentTypeError(
            f"expected a seed that is not used for tuning, received {text}. Type for example 0"
        )
    return int(text)
