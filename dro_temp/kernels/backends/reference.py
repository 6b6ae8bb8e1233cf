"""Reference implementation: the signatures of the streaming kernels, the score matrix in memory, ordinary autograd."""

from collections.abc import Collection

import torch
from torch import Tensor

from dro_temp import functional as F
from dro_temp._typing import Features, PerRow
from dro_temp.functional.statistics import Statistic, row_statistics
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import LinearScores, Rows
from dro_temp.kernels.pairs.local import PairLogSums
from dro_temp.kernels.rows.autograd import LogMeanExp
from dro_temp.kernels.rows.chunked import GradOutput


def log_mean_exp_rows(
    rows: Rows,
    tau: PerRow | TemperaturePredictor,
    *,
    assumed_grad_output: GradOutput | None = None,
    statistics: Collection[Statistic] = (),
) -> LogMeanExp:
    """Log-mean-exp of each row's margins over tau; see `rows.log_mean_exp_rows`."""
    rows = rows.dense()
    scores, target = rows.dense_scores, rows.target.long()
    tau = (tau if isinstance(tau, Tensor) else tau.predict(rows)).to(scores.dtype)
    log_g = F.log_mean_exp(rows.margins / tau[:, None], rows.mask)
    with torch.no_grad():
        found = row_statistics(scores, target, tau, rows.target_in_support, statistics, rows.excluded)
    return LogMeanExp(log_g, tau, found)


def pair_log_sums(
    queries: Features,
    keys: Features,
    tau_rows: PerRow,
    tau_columns: Tensor,
    *,
    offset: int = 0,
    own_columns: Tensor | None = None,
) -> PairLogSums:
    """Log-sums of both sides of a block of pairs; see `pairs.pair_log_sums`."""
    scores = LinearScores(queries, keys).dense()
    row = torch.arange(len(scores), device=scores.device)
    others = torch.ones_like(scores, dtype=torch.bool)
    others[row, row + offset] = False
    paired_score = scores[row, row + offset]
    rows = (scores - paired_score[:, None]) / tau_rows[:, None]
    columns = (scores - (paired_score if own_columns is None else own_columns)) / tau_columns
    # log-mean-exp, which defines the gradient of an empty support
    count_rows, count_columns = (others.sum(side).clamp(min=1).to(scores.dtype).log() for side in (1, 0))
    return PairLogSums(
        F.log_mean_exp(rows, others) + count_rows, F.log_mean_exp(columns.T, others.T) + count_columns
    )
