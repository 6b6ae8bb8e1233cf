"""What the benchmarks share: contenders, fresh processes for memory, bars, tables and plots.

`contender.py` is the interface; a benchmark is a `Suite` (suite.py) of contenders on one kind of problem.
"""

from harness.bars import Bar
from harness.case import Case
from harness.contender import Contender, Problem, Step, compiler, cuda
from harness.options import arguments, shape
from harness.suite import Plan, Suite, run

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
