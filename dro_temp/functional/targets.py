"""Targets that are distributions over the outcomes."""

import torch

from dro_temp._checks import check_count, check_integers, check_within
from dro_temp._typing import RowIndex, Scores


def smoothed_distribution(target: RowIndex, outcomes: int, smoothing: float) -> Scores:
    r"""$q_{ij} = (1 - \epsilon)\, 1[j = t_i] + \epsilon / m$: label smoothing.

    Args:
        target: column of each row's target.
        outcomes: m.
        smoothing: $\epsilon$, the share that all outcomes get alike, in [0, 1].

    Returns:
        Distributions in float32, rows that sum to one.

    Example:
        >>> smoothed_distribution(torch.tensor([1]), 4, 0.2)
        tensor([[0.0500, 0.8500, 0.0500, 0.0500]])

    Source: arXiv 1512.00567, section 7.
    """
    check_integers("target", target)
    outcomes = check_count("outcomes", outcomes, minimum=0)
    check_within("smoothing", smoothing, 0.0, 1.0)
    spread = torch.full((len(target), outcomes), smoothing / max(outcomes, 1), device=target.device)
    return spread.scatter_add_(1, target.long()[:, None], torch.full_like(spread[:, :1], 1.0 - smoothing))
