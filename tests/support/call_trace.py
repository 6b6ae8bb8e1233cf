"""How far one forward of an objective goes: files of the package that it enters, calls, changes of file.

    python tests/support/call_trace.py            # both scenarios
    python tests/support/call_trace.py --list     # and every function entered, in order

A call is the entry of a named function of the package. Comprehensions and generator expressions are no calls (from
Python 3.12 on they are not even frames), nor is the resumption of a generator. The third forward is counted: libraries
are built and first-time checks are done by then.
"""

import argparse
import dis
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import dro_temp as dt

PACKAGE = Path(dt.__file__).parent


@dataclass(frozen=True)
class Trace:
    """Functions of the package in the order in which they were entered, as (file, name)."""

    calls: list[tuple[str, str]]

    @property
    def files(self) -> int:
        """How many files a reader opens."""
        return len({file for file, _ in self.calls})

    @property
    def changes(self) -> int:
        """How often one has to go to another file."""
        return sum(a[0] != b[0] for a, b in zip(self.calls, self.calls[1:], strict=False))

    def __str__(self) -> str:
        """The three numbers."""
        return f"{self.files} files, {len(self.calls)} calls, {self.changes} changes of file"


def language_rows() -> tuple[dt.Objective, tuple[Any, ...]]:
    """64 tokens of a vocabulary of 50,000, streamed; temperatures from hidden states and statistics."""
    width, vocabulary = 32, 50_000
    encoder = dt.predictors.SumEncoder(
        [dt.predictors.HiddenEncoder(width, width=16), dt.predictors.StatisticsEncoder(width=16)]
    )
    host = dt.hosts.Classifier(torch.nn.Identity(), torch.nn.Linear(width, vocabulary))
    tempnet = dt.TempNet(encoder, tau_min=0.1, tau_max=2.0)
    objective = dt.Objective(host, tempnet, dt.KLRobustLoss(rho=8.0))
    return objective, (torch.randn(64, width), torch.randint(vocabulary, (64,)))


def pairs() -> tuple[dt.Objective, tuple[Any, ...]]:
    """600 pairs, streamed, with a TempNet and moving averages for both sides."""
    host = dt.hosts.TwoTower(torch.nn.Linear(6, 8), torch.nn.Linear(5, 8))
    predictor = {view: dt.TempNet(8, tau_min=0.01, tau_max=1.0) for view in host.views}
    loss = {view: dt.KLRobustLoss(2.0, estimator=dt.LogMovingAverage(2000)) for view in host.views}
    return dt.Objective(host, predictor, loss), (torch.randn(600, 6), torch.randn(600, 5), torch.arange(600))


SCENARIOS = {"language rows": language_rows, "pairs": pairs}


def trace(build: Callable[[], tuple[dt.Objective, tuple[Any, ...]]]) -> Trace:
    """The third forward of an objective in training mode."""
    objective, batch = build()
    for _ in range(2):
        objective(*batch)
        objective.discard()
    calls: list[tuple[str, str]] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(PACKAGE)):
            return
        comprehension = code.co_name.startswith("<") and code.co_name != "<lambda>"
        if not comprehension and frame.f_lasti <= _start(code):
            file = str(Path(code.co_filename).relative_to(PACKAGE))
            calls.append((file, getattr(code, "co_qualname", code.co_name)))

    sys.setprofile(profile)
    try:
        objective(*batch)
    finally:
        sys.setprofile(None)
    return Trace(calls)


@cache
def _start(code: CodeType) -> int:
    """Offset of the instruction with which a frame starts; a generator that is resumed is beyond it."""
    if sys.version_info < (3, 11):
        return -1
    return next(i.offset for i in dis.get_instructions(code) if i.opname == "RESUME")


def main() -> None:
    """Print what the docstring says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="every function entered, in order")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, build in SCENARIOS.items():
        found = trace(build)
        print(f"{name}: {found}")
        if arguments.list:
            print("\n".join(f"    {file:40} {function}" for file, function in found.calls))


if __name__ == "__main__":
    main()
