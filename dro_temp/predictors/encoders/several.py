"""Several encoders as one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dro_temp._checks import check_kind
from dro_temp._typing import Features
from dro_temp.interfaces import Reading
from dro_temp.predictors.encoders.base import TempNetEncoder, encoder_of


class SeveralEncoder(TempNetEncoder):
    r"""The sum of several encoders' similarities, $v = \sum_k v^{(k)}$: each contributes to every one of them.

    Args:
        encoders: at least two, all of one width.

    Raises:
        ValueError: fewer than two, or widths that differ.
        TypeError: something that is no encoder.

    Example:
        >>> import torch, dro_temp as dt
        >>> encoder = dt.SeveralEncoder([dt.HiddenEncoder(64), dt.StatisticsEncoder()])
        >>> tempnet = dt.TempNet(encoder, tau_min=0.1, tau_max=2.0)
        >>> tempnet(torch.randn(5, 64), support=dt.Support(torch.randn(5, 1000))).shape
        torch.Size([5])

    Source: this library; the pooling is that of arXiv 2404.04575.
    """

    def __init__(self, encoders: Sequence[TempNetEncoder]) -> None:
        super().__init__()
        if not isinstance(encoders, Iterable):
            raise TypeError(
                f"expected encoders as a sequence, received {type(encoders).__name__}. Pass [HiddenEncoder(d), "
                "StatisticsEncoder()], say."
            )
        encoders = list(encoders)
        for encoder in encoders:
            check_kind("each of the encoders", encoder, TempNetEncoder, "Pass HiddenEncoder(d), or the like.")
        widths = [encoder.width for encoder in encoders]
        if len(widths) < 2 or len(set(widths)) > 1:
            raise ValueError(
                f"expected at least two encoders of one width, received {len(widths)} of widths {widths}. "
                "Build each with the same width=...; a single encoder needs no SeveralEncoder around it."
            )
        self.encoders = nn.ModuleList(encoders)
        self.width = widths[0]
        self.reads = frozenset[Any]().union(*(encoder.reads for encoder in encoders))
        self.outcomes = next((e.outcomes for e in encoders if e.outcomes is not None), None)
        self.features = next((e.features for e in encoders if e.features is not None), None)

    @property
    def config(self) -> dict[str, Any]:
        """What each of them is."""
        return {"encoders": [encoder.description for encoder in self._encoders]}

    @classmethod
    def of_config(cls, config: Mapping[str, Any], known: Iterable[type[TempNetEncoder]]) -> "SeveralEncoder":
        """Build each of them."""
        known = tuple(known)
        return cls([encoder_of(description, known) for description in config["encoders"]])

    def forward(self, reading: Reading) -> Features:
        """Sum of what each makes of the reading."""
        return torch.stack([encoder(reading) for encoder in self._encoders]).sum(0)

    def set_prototypes(self, embeddings: Features) -> None:
        """For those that have prototypes."""
        for encoder in self._encoders:
            encoder.set_prototypes(embeddings)

    @property
    def _encoders(self) -> Iterable[TempNetEncoder]:
        return self.encoders  # type: ignore[return-value]  # a ModuleList knows its members as modules only
