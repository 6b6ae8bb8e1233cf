"""The paper's network over embeddings."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._checks import check_count, check_dropout, check_tensor
from dro_temp._typing import Features
from dro_temp.interfaces import Reading
from dro_temp.predictors.encoders.base import TempNetEncoder


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
        self.features = check_count("features", features)
        self.width = check_count("prototypes", prototypes)
        check_dropout(dropout)
        self.dropout = dropout
        self.transform = nn.Sequential(nn.Linear(features, features), nn.Sigmoid(), nn.Dropout(dropout))
        self.prototypes = nn.Parameter(torch.randn(prototypes, features))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"features": self.features, "prototypes": self.width, "dropout": self.dropout}

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
        check_tensor("embeddings", embeddings)
        if embeddings.dim() != 2 or embeddings.shape[1] != self.prototypes.shape[1] or len(embeddings) == 0:
            raise ValueError(
                f"expected embeddings of shape [k >= 1, {self.prototypes.shape[1]}], received "
                f"{list(embeddings.shape)}. Pass features of the other tower, one per line."
            )
        take = torch.arange(self.width, device=embeddings.device) % len(embeddings)
        chosen = nn.functional.normalize(embeddings[take], dim=1)
        self.prototypes.copy_(chosen)
