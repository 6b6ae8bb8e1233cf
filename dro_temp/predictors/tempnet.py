"""The temperature network."""

import torch
from torch import nn

from dro_temp import functional as F
from dro_temp._checks import check_within
from dro_temp._typing import Features, PerRow
from dro_temp.interfaces import Decoder, FrozenHead, Reading, TemperaturePredictor
from dro_temp.predictors.decoding import logit_decoder
from dro_temp.predictors.encoders import LogitEncoder, PrototypeEncoder, TempNetEncoder


class TempNet(TemperaturePredictor):
    r"""A small network that reads each row and returns its temperature: transform, project, pool.

    With similarities $v$ from the encoder, $a = \mathrm{softmax}(v / e^\varphi)$ and

    $$\tau = \tau_{\min} + (\tau_{\max} - \tau_{\min})\,
    \sigma\left(w^\top \left[(a - \tfrac1K) \odot y\right] + b\right),$$

    $y$ what the encoder pools. The form follows from the closed-form optimum: a softmax-weighted mean of
    similarities, whose sharpness $\varphi$ is trained.

    Args:
        encoder: a `TempNetEncoder`, or the width of the embedding for the paper's `PrototypeEncoder`.
        tau_min: lower bound, > 0, in units of the scores.
        tau_max: upper bound.
        prototypes: number of prototypes, if `encoder` is a width.
        dropout: dropout in training, if `encoder` is a width.
        tau_init: the temperature of a row whose pooled sum is zero, strictly between the bounds; the middle
            (readout bias 0, as in the paper) if None.

    Raises:
        ValueError: bounds that are no interval, or a start outside it.

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(512, tau_min=0.005, tau_max=0.05)
        >>> tau = tempnet(torch.randn(8, 512))
        >>> tau.shape, bool((tau >= 0.005).all() and (tau <= 0.05).all())
        (torch.Size([8]), True)

    Source: arXiv 2404.04575, section 4.
    """

    def __init__(
        self,
        encoder: int | TempNetEncoder,
        *,
        tau_min: float,
        tau_max: float,
        prototypes: int = 256,
        dropout: float = 0.5,
        tau_init: float | None = None,
    ) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        if isinstance(encoder, int):
            encoder = PrototypeEncoder(encoder, prototypes=prototypes, dropout=dropout)
        self.encoder = encoder
        self.reads = encoder.reads
        self.log_sharpness = nn.Parameter(torch.tensor(encoder.log_sharpness))
        self.readout = nn.Linear(encoder.width, 1)
        nn.init.ones_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)
        if tau_init is not None:
            margin = 1e-6 * (tau_max - tau_min)
            check_within("tau_init", tau_init, tau_min + margin, tau_max - margin)
            nn.init.constant_(self.readout.bias, F.logit_between(tau_init, tau_min, tau_max))

    @classmethod
    def for_logits(
        cls,
        outcomes: int,
        *,
        tau_min: float,
        tau_max: float,
        width: int = 256,
        dropout: float = 0.5,
        centred: bool = False,
        tau_init: float | None = None,
    ) -> "TempNet":
        """The paper's network over the logits of a classifier or language model.

        Args:
            outcomes: number of logits.
            tau_min: lower bound, > 0.
            tau_max: upper bound.
            width: hidden width.
            dropout: dropout in training.
            centred: subtract each row's maximum first, see `LogitEncoder`.
            tau_init: see `TempNet`.

        Example:
            >>> import torch, dro_temp as dt
            >>> tempnet = dt.TempNet.for_logits(10, tau_min=0.1, tau_max=4.0)
            >>> tempnet.of(dt.Rows(torch.randn(5, 10), torch.zeros(5, dtype=torch.long))).shape
            torch.Size([5])
        """
        encoder = LogitEncoder(outcomes, width=width, dropout=dropout, centred=centred)
        return cls(encoder, tau_min=tau_min, tau_max=tau_max, tau_init=tau_init)

    def start_prototypes(self, others: Features) -> None:
        """Start the encoder's prototypes, if it has any, from features of the other side."""
        self.encoder.set_prototypes(others)

    def decoder(self, head: FrozenHead) -> Decoder:
        """See `TemperaturePredictor.decoder`; over logits the first layer is folded into the head."""
        self._refuse_training()
        if not isinstance(self.encoder, LogitEncoder):
            return super().decoder(head)
        return logit_decoder(self, self.encoder, head)

    def raw(self, reading: Reading) -> PerRow:
        """The readout, before it is squashed into the bounds."""
        similarities: Features = self.encoder(reading)
        weights = (similarities / self.log_sharpness.exp()).softmax(1)
        pooled = (weights - 1.0 / self.encoder.width) * self.encoder.pooled(similarities)
        raw: PerRow = self.readout(pooled).squeeze(1)
        return raw
