"""A network over a few statistics of the scores."""

from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._checks import check_count, check_dropout
from dro_temp._typing import Features
from dro_temp.interfaces import Reading, Summary
from dro_temp.predictors.encoders.base import TempNetEncoder


class StatisticsEncoder(TempNetEncoder):
    r"""A small network over four statistics of each row's scores.

    With $\bar s$ the mean of a row over its m outcomes that can happen (see `Summary`), v is a two-layer projection of

    $$\frac{H}{\log m}, \quad \log(1 + \max_j s_j - \bar s), \quad \log(1 + \mathrm{std}\,s), \quad
    \log\left(1 + \log \tfrac1m \textstyle\sum_j e^{s_j - \bar s}\right),$$

    $H$ the entropy of the softmax at temperature 1. They do not change when a constant is added to a row, do not
    depend on the number of outcomes in kind, and keep the scale of the scores, which normalised logits lose.
    Whatever the vocabulary, the network has the same few parameters.

    Args:
        width: hidden width.
        dropout: share of the hidden units that is dropped in training, in [0, 1).

    Raises:
        ValueError: a width below one, dropout outside [0, 1).

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(dt.StatisticsEncoder(), tau_min=0.1, tau_max=2.0)
        >>> tempnet(support=dt.Support(torch.randn(5, 1000))).shape
        torch.Size([5])

    Source: this library; the pooling is that of arXiv 2404.04575.
    """

    reads = frozenset({"summary"})

    def __init__(self, *, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        check_dropout(dropout)
        self.width, self.dropout = check_count("width", width), dropout
        self.first = nn.Linear(4, width)
        self.rest = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"width": self.width, "dropout": self.dropout}

    def forward(self, reading: Reading) -> Features:
        """Projection of the statistics."""
        assert reading.summary is not None
        read = comparable_statistics(reading.summary).to(self.first.weight.dtype)
        similarities: Tensor = self.rest(self.first(read))
        return similarities


def comparable_statistics(summary: Summary) -> Features:
    """The four statistics of `StatisticsEncoder`, [n 4]."""
    mean, log_m = summary.mean, summary.possible.clamp(min=2.0).log()
    # Each is >= 0 but for rounding.
    above = (summary.max - mean, summary.std, summary.log_sum_exp - mean - log_m)
    return torch.stack([summary.entropy / log_m, *(x.clamp(min=0.0).log1p() for x in above)], dim=1)
