"""What TempNet reads, and how it turns it into a set of similarities for its pooling layer."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from dro_temp._checks import check_count, check_within
from dro_temp._typing import Features
from dro_temp.interfaces import Readable, Reading


class TempNetEncoder(nn.Module, ABC):
    """Transformation and projection: from what is read to `width` similarities per row."""

    #: What `forward` needs of a reading.
    reads: frozenset[Readable]
    #: Number of similarities per row.
    width: int
    #: Where the log of the pooling's sharpness starts.
    log_sharpness: float = 0.0

    @abstractmethod
    def forward(self, reading: Reading) -> Features:
        """Similarities v, [n width], which the pooling weighs."""

    def set_prototypes(self, embeddings: Features) -> None:
        """Start from embeddings of the other side, if this encoder has prototypes; else do nothing."""

    @abstractmethod
    def pooled(self, similarities: Features) -> Features:
        """What is averaged under those weights, [n width]."""


class PrototypeEncoder(TempNetEncoder):
    r"""Similarities of an embedding with learned prototypes of the other side.

    $x = \mathrm{dropout}(\sigma(A f + b))$, $v_k = x^\top c_k / \|c_k\|$.

    Args:
        features: width d of the embedding.
        prototypes: number of prototypes.
        dropout: share of x that is dropped in training, in [0, 1).

    Example:
        >>> import torch, dro_temp as dt
        >>> encoder = dt.PrototypeEncoder(512, prototypes=64)
        >>> encoder.set_prototypes(torch.randn(200, 512))  # embeddings of the other side
        >>> dt.TempNet(encoder, tau_min=0.005, tau_max=0.05)(torch.randn(8, 512)).shape
        torch.Size([8])

    Source: arXiv 2404.04575, section 4.2 and appendix.
    """

    reads = frozenset({"features"})
    log_sharpness = math.log(0.01)

    def __init__(self, features: int, *, prototypes: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        check_count("features", features)
        check_count("prototypes", prototypes)
        check_within("dropout", dropout, 0.0, 1.0)
        self.width = prototypes
        self.transform = nn.Sequential(nn.Linear(features, features), nn.Sigmoid(), nn.Dropout(dropout))
        self.prototypes = nn.Parameter(torch.randn(prototypes, features))

    def forward(self, reading: Reading) -> Features:
        """Dot products with the normalised prototypes."""
        assert reading.features is not None
        features = reading.features.to(self.prototypes.dtype)
        if features.shape[1] != self.prototypes.shape[1]:
            raise ValueError(
                f"expected features of width {self.prototypes.shape[1]}, received {features.shape[1]}. "
                f"Build TempNet({features.shape[1]}, ...), the width of what the host embeds into."
            )
        directions = nn.functional.normalize(self.prototypes, dim=1)
        similarities: Tensor = self.transform(features) @ directions.T
        return similarities

    def pooled(self, similarities: Features) -> Features:
        """Squashed, so that no single prototype dominates."""
        return similarities.sigmoid()

    @torch.no_grad()
    def set_prototypes(self, embeddings: Features) -> None:
        """Start the prototypes from embeddings of the *other* side, repeated if there are too few.

        Args:
            embeddings: at least one vector of width d; lengths do not matter.

        Raises:
            ValueError: the width is another one, or there is no embedding.
        """
        if embeddings.dim() != 2 or embeddings.shape[1] != self.prototypes.shape[1] or len(embeddings) == 0:
            raise ValueError(
                f"expected embeddings of shape [k >= 1, {self.prototypes.shape[1]}], received "
                f"{list(embeddings.shape)}. Pass features of the other tower, one per line."
            )
        take = torch.arange(self.width, device=embeddings.device) % len(embeddings)
        chosen = nn.functional.normalize(embeddings[take], dim=1)
        self.prototypes.copy_(chosen)


class LogitEncoder(TempNetEncoder):
    r"""A projection of the normalised logits.

    $v = B\,\mathrm{dropout}(\sigma(A z / \|z\| + a)) + b$.

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
        check_count("outcomes", outcomes)
        check_count("width", width)
        check_within("dropout", dropout, 0.0, 1.0)
        self.width, self.centred = width, centred
        self.first = nn.Linear(outcomes, width)
        self.rest = nn.Sequential(nn.Sigmoid(), nn.Dropout(dropout), nn.Linear(width, width))

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

    def pooled(self, similarities: Features) -> Features:
        """The projection itself."""
        return similarities
