"""The paper's network over logits."""

from typing import Any

from torch import Tensor, nn

from dro_temp._checks import check_count, check_dropout, check_flag
from dro_temp._typing import Features
from dro_temp.interfaces import Reading
from dro_temp.predictors.encoders.base import TempNetEncoder


class LogitEncoder(TempNetEncoder):
    r"""A projection of the normalised logits.

    $v = B\,\mathrm{dropout}(\sigma(A z / \|z\| + a)) + b$, outcomes that cannot happen (see `Summary`) left out of z.

    Args:
        outcomes: number of logits (vocabulary, classes).
        width: hidden width.
        dropout: share of the hidden units that is dropped in training, in [0, 1).
        centred: True to subtract each row's maximum first. The paper's code trains on raw logits and centres
            them in generation; say which a checkpoint was trained with.

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(dt.LogitEncoder(10, width=32, centred=True), tau_min=0.1, tau_max=4.0)
        >>> tempnet(support=dt.Support(torch.randn(5, 10))).shape
        torch.Size([5])

    Source: arXiv 2404.04575, section 4.1 and appendix.
    """

    reads = frozenset({"summary"})

    def __init__(
        self, outcomes: int, *, width: int = 256, dropout: float = 0.5, centred: bool = False
    ) -> None:
        super().__init__()
        self.outcomes = check_count("outcomes", outcomes)
        check_dropout(dropout)
        check_flag("centred", centred)
        self.width, self.dropout, self.centred = check_count("width", width), dropout, centred
        self.first = nn.Linear(outcomes, width)
        self.rest = nn.Sequential(nn.Sigmoid(), nn.Dropout(dropout), nn.Linear(width, width))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "outcomes": self.outcomes,
            "width": self.width,
            "dropout": self.dropout,
            "centred": self.centred,
        }

    def forward(self, reading: Reading) -> Features:
        """Hidden projection of the normalised logits."""
        summary = reading.summary
        assert summary is not None
        if summary.outcomes != self.first.in_features:
            raise ValueError(
                f"expected rows of {self.first.in_features} logits, received {summary.outcomes}. "
                f"Build TempNet.for_logits({summary.outcomes}, ...); for pairs, whose support is the batch, "
                "use TempNet(width of the embedding, ...)."
            )
        top = summary.max if self.centred else None
        # Projected, then divided by the length: the projection of scores that are products is one of queries.
        length = summary.norm_about(top).clamp(min=1e-12)
        hidden = summary.project(self.first.weight, top) / length[:, None]
        similarities: Tensor = self.rest(hidden.to(self.first.weight.dtype) + self.first.bias)
        return similarities
