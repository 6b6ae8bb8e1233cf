"""Contrastive loss on pairs: the problem and its contenders.

To add a peer: one entry in `CONTENDERS` (contenders.py), and a function from a `PairsProblem` to a step.
"""

from benchmarks.pairs.contenders import CONTENDERS
from benchmarks.pairs.problem import PairsProblem, make_problem

__all__ = ["CONTENDERS", "PairsProblem", "make_problem"]
