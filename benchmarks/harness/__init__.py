"""Shared by the timings: contenders, memory in fresh processes, targets, tables, plots and results files.

`contender.py` is the interface; a benchmark is a `Suite` (suite.py) of contenders on one kind of problem.
"""

from benchmarks.harness.bars import Bar
from benchmarks.harness.case import Case
from benchmarks.harness.contender import Contender, Problem, Step, compiler, cuda
from benchmarks.harness.options import arguments, shape
from benchmarks.harness.suite import Plan, Suite, run

__all__ = [
    "Bar",
    "Case",
    "Contender",
    "Plan",
    "Problem",
    "Step",
    "Suite",
    "arguments",
    "compiler",
    "cuda",
    "run",
    "shape",
]
