"""Log-mean-exp of scores that are products, without the score matrix; each kernel beside its eager twin.

`eager` is the truth; `streaming` takes a block of rows at a time and forms gradients in closed form; `triton`
is the same sweep with fused elementwise passes for NVIDIA GPUs. All have one signature.
"""

from dro_temp.kernels.budget import byte_budget
from dro_temp.kernels.fold import Fold
from dro_temp.kernels.pairs import LogSums, log_sums_of_pairs, own_scores
from dro_temp.kernels.rows import STATISTICS, Block, Expected, LogMeanExp, Products, Statistic, TauOf
from dro_temp.kernels.streaming import log_mean_exp_rows
from dro_temp.kernels.workspace import free_workspace

__all__ = [
    "STATISTICS",
    "Block",
    "Expected",
    "Fold",
    "LogMeanExp",
    "LogSums",
    "Products",
    "Statistic",
    "TauOf",
    "byte_budget",
    "free_workspace",
    "log_mean_exp_rows",
    "log_sums_of_pairs",
    "own_scores",
]
