"""The truth: the same signatures as the streaming kernels, the score matrix in memory, ordinary autograd."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from dro_temp import functional as F
from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.kernels.pairs import LogSums
from dro_temp.kernels.passes import moments, profile, projected
from dro_temp.kernels.products import work_dtype
from dro_temp.kernels.rows import (
    Block,
    Expected,
    LogMeanExp,
    Products,
    Statistic,
    TauOf,
    support_mask,
    tilted_statistics,
)


def dense_scores(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The score matrix, in float32 or better: at tau = 0.005 a bfloat16 product is off by 0.4 in the exponent."""
    work = work_dtype(queries, keys)
    scores = queries.to(work) @ keys.to(work).T
    if bias is not None:
        scores = scores + bias
    return scores if transform is None else transform(scores)


def log_mean_exp_rows(
    products: Products,
    tau: PerRow | TauOf,
    *,
    expected: Expected | None = None,
    statistics: Collection[Statistic] = (),
) -> LogMeanExp:
    """Log-mean-exp of each row's margins over tau; see `streaming.log_mean_exp_rows`."""
    p = products
    scores = dense_scores(p.queries, p.keys, p.bias, p.transform)
    target = p.target.long()
    mask = support_mask(scores, target, p.target_in_support)
    if not isinstance(tau, Tensor):
        held = scores.detach()

        def project(weight: Tensor, shift: PerRow | None) -> Tensor:
            return projected(held, weight, shift)

        block = Block(slice(0, len(scores)), held, mask, project, lambda: profile(held, mask))
        tau = tau(block, tau.parameters)
    tau = tau.to(scores.dtype)
    margins = F.margins(scores, target)
    log_g = F.log_mean_exp(margins / tau[:, None], mask)
    found = statistics_of(scores, target, tau, p.target_in_support, statistics)
    return LogMeanExp(log_g, tau, found)


@torch.no_grad()
def statistics_of(
    scores: Scores, target: RowIndex, tau: PerRow, target_in_support: bool, wanted: Collection[Statistic]
) -> dict[str, PerRow]:
    """Statistics of rows whose scores are in memory."""
    if not wanted:
        return {}
    mask = support_mask(scores, target, target_in_support)
    own = scores.gather(1, target[:, None]).squeeze(1)
    margins = F.margins(scores, target)
    mean = own + (F.kl_weights(margins, tau, mask) * margins).sum(1)
    log_g = F.log_mean_exp(margins / tau[:, None], mask)
    size = scores.shape[1] - (0 if target_in_support else 1)
    found = moments(scores, target, target_in_support, wanted)
    return found | tilted_statistics(log_g, own / tau, mean / tau, size, wanted)


def log_sums_of_pairs(
    queries: Features,
    keys: Features,
    tau_rows: PerRow,
    tau_columns: Tensor,
    *,
    offset: int = 0,
    own_columns: Tensor | None = None,
) -> LogSums:
    """Log-sums of both sides of a block of pairs; see `pairs.log_sums_of_pairs`."""
    scores = dense_scores(queries, keys)
    mine = torch.arange(len(scores), device=scores.device)
    inside = torch.ones_like(scores, dtype=torch.bool)
    inside[mine, mine + offset] = False
    own = scores[mine, mine + offset]
    own_columns = own if own_columns is None else own_columns
    rows = (scores - own[:, None]) / tau_rows[:, None]
    columns = (scores - own_columns) / tau_columns
    # log-mean-exp, since it knows what the gradient of an empty support is
    count_rows, count_columns = (inside.sum(side).clamp(min=1).to(scores.dtype).log() for side in (1, 0))
    return LogSums(
        F.log_mean_exp(rows, inside) + count_rows, F.log_mean_exp(columns.T, inside.T) + count_columns
    )
