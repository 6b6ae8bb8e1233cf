"""The work on a block of scores, in plain PyTorch; kernels for a device have the same names and signatures."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import PerRow, RowIndex, Scores

# Stands for "not an outcome". Finite: with -inf, the weighted score of such an outcome would be 0 * inf.
NOT_AN_OUTCOME = -1e30


@dataclass(frozen=True)
class Tilted:
    r"""A block of rows after exponential tilting.

    Args:
        weights: $e_{ij} = e^{(s_{ij} - \max_j s_{ij}) / \tau_i}$, not normalised.
        top: largest score of each row.
        total: sum of each row's weights, >= 1.
        excess: $\mathrm{E}_p[s] - \max s$ under p = weights / total, or None.
    """

    weights: Scores
    top: PerRow
    total: PerRow
    excess: PerRow | None


def tilt_(scores: Scores, tau: PerRow, *, excess: bool) -> Tilted:
    """Tilt a block of scores, in place.

    Args:
        scores: overwritten by the weights.
        tau: temperature of each row.
        excess: whether that is wanted, too.
    """
    top, total = (scores.new_empty(len(scores)) for _ in range(2))
    mean = torch.empty_like(top) if excess else None
    for rows in row_groups(scores):
        weights = scores[rows]
        torch.amax(weights, 1, out=top[rows])
        weights.sub_(top[rows, None])
        below = weights.clone() if excess else None
        weights.div_(tau[rows, None]).exp_()
        torch.sum(weights, 1, out=total[rows])
        if mean is not None and below is not None:
            mean[rows] = below.mul_(weights).sum(1) / total[rows]
    return Tilted(scores, top, total, mean)


def row_groups(scores: Scores) -> list[slice]:
    """Rows of a block, so few at a time that they stay in the processor's cache from pass to pass.

    All at once on a device, where launching costs more.
    """
    n, m = scores.shape
    step = max(2**18 // max(m, 1), 1) if scores.device.type == "cpu" else max(n, 1)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def moments(
    scores: Scores, target: RowIndex, target_in_support: bool, wanted: Collection[str]
) -> dict[str, PerRow]:
    """Those of max, mean, std and norm that are wanted, over the support."""
    found: dict[str, PerRow] = {}
    if not wanted:
        return found
    m = scores.shape[1]
    own = scores.gather(1, target[:, None]).squeeze(1)
    outside = torch.zeros_like(own) if target_in_support else own
    size = m - (0 if target_in_support else 1)
    if "max" in wanted:
        inside = scores if target_in_support else scores.scatter(1, target[:, None], NOT_AN_OUTCOME)
        found["max"] = inside.amax(1)
    if "mean" in wanted or "std" in wanted:
        found["mean"] = (scores.sum(1) - outside) / size
    if "norm" in wanted:
        found["norm"] = _root(torch.linalg.vector_norm(scores, dim=1).square() - outside.square())
    if "std" in wanted:
        # About the mean, not from the sum of squares: scores may lie far from zero.
        about = norm_about(scores, found["mean"]).square()
        if not target_in_support:
            about = about - (own - found["mean"]).square()
        found["std"] = _root(about) / size**0.5
    return {name: value for name, value in found.items() if name in wanted}


def _root(square: Tensor) -> Tensor:
    return square.clamp(min=0.0).sqrt()


def norm_about(scores: Scores, centre: PerRow) -> PerRow:
    """Norm of each row of `scores - centre`, a few rows at a time: no second block is needed."""
    step = max(2**20 // max(scores.shape[1], 1), 1)
    parts = [
        torch.linalg.vector_norm(scores[i : i + step] - centre[i : i + step, None], dim=1)
        for i in range(0, scores.shape[0], step)
    ]
    return torch.cat(parts) if parts else centre.clone()
