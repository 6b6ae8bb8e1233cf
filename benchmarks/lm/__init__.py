"""Loss over the vocabulary of a language model: the problem and its contenders.

To add a peer: one entry in `CONTENDERS` (contenders.py), and a function from an `LmProblem` to a step.
"""

from benchmarks.lm.contenders import CONTENDERS
from benchmarks.lm.problem import LmProblem, make_problem

__all__ = ["CONTENDERS", "LmProblem", "make_problem"]
