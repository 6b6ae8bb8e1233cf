"""A network over hidden states."""

from typing import Any

from torch import Tensor, nn

from dro_temp._checks import check_count, check_dropout
from dro_temp._typing import Features
from dro_temp.interfaces import Reading
from dro_temp.predictors.encoders.base import TempNetEncoder


class HiddenEncoder(TempNetEncoder):
    r"""A projection of the hidden state that a head turns into logits.

    $v = B\,\mathrm{dropout}(\mathrm{GELU}(A\,\mathrm{LayerNorm}(f) + a)) + b$. Unlike the normalised logits, a
    hidden state still holds the scale of the logits, on which the optimal temperature depends. Temperatures are
    known before any logit is.

    Args:
        features: width d of the hidden state.
        width: hidden width.
        dropout: share of the hidden units that is dropped in training, in [0, 1).

    Raises:
        ValueError: a width or a count below one, dropout outside [0, 1); at a call, features of another width.

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(dt.HiddenEncoder(64), tau_min=0.1, tau_max=2.0)
        >>> tempnet(torch.randn(2, 7, 64)).shape  # [batch, length, d]
        torch.Size([2, 7])

    Source: this library; the pooling is that of arXiv 2404.04575.
    """

    reads = frozenset({"features"})

    def __init__(self, features: int, *, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = check_count("features", features)
        check_dropout(dropout)
        self.width, self.dropout = check_count("width", width), dropout
        self.norm = nn.LayerNorm(features)
        self.first = nn.Linear(features, width)
        self.rest = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"features": self.features, "width": self.width, "dropout": self.dropout}

    def forward(self, reading: Reading) -> Features:
        """Projection of the normalised hidden state."""
        assert reading.features is not None
        features = reading.features
        if features.shape[1] != self.features:
            raise ValueError(
                f"expected features of width {self.features}, received {features.shape[1]}. "
                f"Build HiddenEncoder({features.shape[1]}, ...), or TempNet.for_lm(model, inputs='hidden', ...)."
            )
        similarities: Tensor = self.rest(self.first(self.norm(features.to(self.first.weight.dtype))))
        return similarities
