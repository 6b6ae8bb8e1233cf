"""From an encoder's similarities to one number per row."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from dro_temp._typing import Features, PerRow
from dro_temp.predictors.encoders import TempNetEncoder


class TempNetReadout(nn.Module, ABC):
    """The last part of a TempNet: the similarities of a row become the number that the bounds squash.

    Args:
        encoder: whose similarities they are; nothing of it is kept.
    """

    def __init__(self, encoder: TempNetEncoder) -> None:
        super().__init__()
        self.last = nn.Linear(encoder.width, 1)

    @abstractmethod
    def forward(self, encoder: TempNetEncoder, similarities: Features) -> PerRow:
        """One unbounded number per row."""

    @final
    def start_at(self, raw: float) -> None:
        """Let a row whose similarities say nothing have this number."""
        nn.init.constant_(self.last.bias, raw)


class PooledReadout(TempNetReadout):
    r"""The paper's: $w^\top [(a - \frac1K) \odot y] + b$ with $a = \mathrm{softmax}(v / e^\varphi)$.

    $w$ starts at 1. The pooled sum is then a covariance of $a$ and $y$ over the similarities, which is never
    negative: at the start temperatures can rise above `tau_init`, not fall below it.

    Example:
        >>> import dro_temp as dt
        >>> tempnet = dt.TempNet(8, tau_min=0.1, tau_max=1.0)  # the default
        >>> type(tempnet.readout).__name__, tempnet.readout.last.bias.tolist()
        ('PooledReadout', [0.0])

    Source: arXiv 2404.04575, section 4.
    """

    def __init__(self, encoder: TempNetEncoder) -> None:
        super().__init__(encoder)
        self.log_sharpness = nn.Parameter(
            torch.tensor([encoder.log_sharpness])
        )  # [1]: FSDP shards no scalars
        nn.init.ones_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, encoder: TempNetEncoder, similarities: Features) -> PerRow:
        """The pooled sum, read out."""
        weights = (similarities / self.log_sharpness.exp()).softmax(1)
        pooled: Tensor = (weights - 1.0 / encoder.width) * encoder.pooled(similarities)
        raw: PerRow = self.last(pooled).squeeze(1)
        return raw


class ResidualReadout(TempNetReadout):
    r"""One temperature for all rows, and what a row departs from it: $b + w^\top \mathrm{GELU}(v)$.

    $w$ starts at 0: training begins with exactly one learnable temperature, from which rows go either way. In the
    measurements of the docs it comes closer to the optimal temperatures than the pooled form, from any start.

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(
        ...     dt.predictors.HiddenEncoder(8), tau_min=0.1, tau_max=1.0, tau_init=0.25,
        readout=dt.predictors.ResidualReadout ... )
        >>> tempnet(torch.randn(3, 8))
        tensor([0.2500, 0.2500, 0.2500], grad_fn=<...>)

    Source: this library.
    """

    def __init__(self, encoder: TempNetEncoder) -> None:
        super().__init__(encoder)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, encoder: TempNetEncoder, similarities: Features) -> PerRow:
        """The common number and the row's departure."""
        raw: PerRow = self.last(nn.functional.gelu(similarities)).squeeze(1)
        return raw


#: What a checkpoint may name without further ado.
READOUTS = (PooledReadout, ResidualReadout)
