"""The head of a language model: the problem, and those who solve it.

To add a peer: one entry in `CONTENDERS` (contenders.py), and a function from an `LmProblem` to a step.
"""

from lm.contenders import CONTENDERS
from lm.problem import LmProblem, make_problem

__all__ = ["CONTENDERS", "LmProblem", "make_problem"]
