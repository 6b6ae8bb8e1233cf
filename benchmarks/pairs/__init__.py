"""Contrastive learning on pairs: the problem, and those who solve it.

To add a peer: one entry in `CONTENDERS` (contenders.py), and a function from a `PairsProblem` to a step.
"""

from pairs.contenders import CONTENDERS
from pairs.problem import PairsProblem, make_problem

__all__ = ["CONTENDERS", "PairsProblem", "make_problem"]
