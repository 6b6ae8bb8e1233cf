"""Log-mean-exp of scores that are products, without the score matrix.

`rows` serves tokens and classes, `pairs` both sides of image-text pairs; `backends` compute on a block of scores,
`dispatch` says which, `memory` how much is used. `backends.reference`, which holds the matrix and is ordinary autograd,
is the standard that the others are tested against.
"""

from dro_temp.functional.statistics import STATISTICS, Statistic
from dro_temp.kernels.memory import byte_budget, empty_cache
from dro_temp.kernels.pairs import PairLogSums, exchanged_log_sums, pair_log_sums, paired_scores
from dro_temp.kernels.rows import GradOutput, LogMeanExp, log_mean_exp_rows

__all__ = [
    "STATISTICS",
    "GradOutput",
    "LogMeanExp",
    "PairLogSums",
    "Statistic",
    "byte_budget",
    "empty_cache",
    "exchanged_log_sums",
    "log_mean_exp_rows",
    "pair_log_sums",
    "paired_scores",
]
