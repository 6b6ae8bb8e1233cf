"""From an encoder's similarities to one number per row."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from dro_temp import _faults
from dro_temp._typing import Features, PerRow
from dro_temp.kernels import readout
from dro_temp.kernels.dispatch import replaces_operations
from dro_temp.predictors.encoders import TempNetEncoder


class TempNetReadout(nn.Module, ABC):
    """The last part of a TempNet: maps the similarities of a row to the number that is squashed into the bounds.

    Args:
        encoder: the encoder of the similarities; the readout stores no reference to it.
    """

    def __init__(self, encoder: TempNetEncoder) -> None:
        super().__init__()
        self.last = nn.Linear(encoder.width, 1)

    @abstractmethod
    def forward(self, encoder: TempNetEncoder, similarities: Features) -> PerRow:
        """One unbounded number per row."""

    @final
    def start_at(self, raw: float) -> None:
        """Set the number of a row whose similarities contribute nothing."""
        nn.init.constant_(self.last.bias, raw)


class PooledReadout(TempNetReadout):
    r"""The paper's: $w^\top [(a - \frac1K) \odot y] + b$ with $a = \mathrm{softmax}(v / e^\varphi)$.

    $w$ starts at 1. The pooled sum is then a covariance of $a$ and $y$ over the similarities, which is never
    negative: initial temperatures are at or above `tau_init`.

    Example:
        >>> import dro_temp as dt
        >>> tempnet = dt.TempNet(8, tau_min=0.1, tau_max=1.0)  # the default
        >>> type(tempnet.readout).__name__, tempnet.readout.last.bias.tolist()
        ('PooledReadout', [0.0])

    Source: arXiv 2404.04575, section 4.
    """

    def __init__(self, encoder: TempNetEncoder) -> None:
        super().__init__(encoder)
        self.log_sharpness = nn.Parameter(torch.tensor([encoder.log_sharpness]))  # FSDP shards no scalars
        nn.init.ones_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, encoder: TempNetEncoder, similarities: Features) -> PerRow:
        """The pooled sum, read out."""
        if (similarities.is_cuda or _faults.everywhere) and _is_plain(self.last):
            inputs = (
                similarities,
                encoder.pooled(similarities),
                self.log_sharpness,
                self.last.weight,
                self.last.bias,
            )
            # An encoder of one's own may pool numbers of another shape, which are broadcast.
            same = inputs[1].shape == similarities.shape
            if same and replaces_operations(*inputs) and readout.takes(*inputs):
                raw: PerRow = readout.FusedPooledReadout.apply(*inputs)  # type: ignore[no-untyped-call]
                return raw
        weights = (similarities / self.log_sharpness.exp()).softmax(1)
        pooled: Tensor = (weights - 1.0 / encoder.width) * encoder.pooled(similarities)
        return self.last(pooled).squeeze(1)  # type: ignore[no-any-return]


def _is_plain(layer: nn.Module) -> bool:
    """Whether the layer's weights are all that it does: hooks prune, normalise weights, or look at what it returns."""
    hooks = (
        layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks
    )
    return type(layer) is nn.Linear and not hooks and "forward" not in vars(layer)


class ResidualReadout(TempNetReadout):
    r"""One temperature for all rows, and each row's deviation from it: $b + w^\top \mathrm{GELU}(v)$.

    $w$ starts at 0: training begins with one learnable temperature, from which rows deviate in either direction. In the
    measurements of the docs it comes closer to the optimal temperatures than the pooled form, from any start.

    Example:
        >>> import torch, dro_temp as dt
        >>> encoder, readout = dt.predictors.HiddenEncoder(8), dt.predictors.ResidualReadout
        >>> tempnet = dt.TempNet(encoder, tau_min=0.1, tau_max=1.0, tau_init=0.25, readout=readout)
        >>> tempnet(torch.randn(3, 8))
        tensor([0.2500, 0.2500, 0.2500], grad_fn=<...>)

    Source: this library.
    """

    def __init__(self, encoder: TempNetEncoder) -> None:
        super().__init__(encoder)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, encoder: TempNetEncoder, similarities: Features) -> PerRow:
        """The common number plus the row's deviation."""
        raw: PerRow = self.last(nn.functional.gelu(similarities)).squeeze(1)
        return raw


#: Built-in readouts that a checkpoint may name.
READOUTS = (PooledReadout, ResidualReadout)
