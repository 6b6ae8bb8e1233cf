"""The encoders of a TempNet: from its inputs to similarities, by transformation and projection."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from dro_temp._checks import check_count, check_dropout, check_flag, check_kind, check_several, check_tensor
from dro_temp._typing import Features
from dro_temp.interfaces import PredictorInputs, ScoreStatistics
from dro_temp.interfaces.predictor import Reader

_Kind = TypeVar("_Kind")


class TempNetEncoder(Reader, nn.Module, ABC):
    """Transformation and projection: from inputs to `width` similarities per row.

    Constructors raise ValueError for sizes below one and a dropout outside [0, 1); calls, for inputs of another width.
    """

    #: Number of similarities per row.
    width: int
    #: Initial log of the pooling's sharpness.
    log_sharpness: float = 0.0
    #: Number of logits that a row must have; None: any.
    outcomes: int | None = None
    #: Width that features must have; None: any.
    features: int | None = None

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON, for a checkpoint."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], known: Iterable[type["TempNetEncoder"]]
    ) -> "TempNetEncoder":
        """The encoder that has this `config`, which may contain others of the known classes."""
        return cls(**config)

    @abstractmethod
    def forward(self, inputs: PredictorInputs) -> Features:
        """Similarities v, [n width], from which the pooling computes weights."""

    def pooled(self, similarities: Features) -> Features:
        """The values averaged under those weights, [n width]; by default the similarities."""
        return similarities

    def set_prototypes(self, embeddings: Features) -> None:
        """Initialise prototypes from embeddings of the other side; by default there are none."""

    @final
    @property
    def description(self) -> dict[str, Any]:
        """`config` and the name of the class."""
        return {"class": type(self).__name__, **self.config}


def encoder_of(description: Mapping[str, Any], known: Iterable[type[TempNetEncoder]]) -> TempNetEncoder:
    """The encoder that has this `TempNetEncoder.description`, which may name the known classes."""
    known = tuple(known)
    config = {k: v for k, v in description.items() if k != "class"}
    return class_named("an encoder", description["class"], known).from_config(config, known)


def class_named(what: str, name: str, known: Sequence[type[_Kind]]) -> type[_Kind]:
    """The class that a checkpoint names, "an encoder" or "a readout"; raises ValueError if it is not known."""
    for kind in known:
        if kind.__name__ == name:
            return kind
    raise ValueError(
        f"expected {what} of one of the classes {', '.join(kind.__name__ for kind in known)}, received one of "
        f"{name!r}. Pass your own class, from_pretrained(..., {what.split()[1]}s=({name},)), or update dro-temp."
    )


class PrototypeEncoder(TempNetEncoder):
    r"""Similarities of an embedding with learned prototypes of the other side.

    $x = \mathrm{dropout}(\sigma(A f + b))$, $v_k = x^\top c_k / \|c_k\|$.

    Args:
        features: width d of the embedding.
        prototypes: number of prototypes.
        dropout: share of x that is dropped in training, in [0, 1).

    Example:
        >>> import torch, dro_temp as dt
        >>> encoder = dt.predictors.PrototypeEncoder(512, prototypes=64)
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

    def forward(self, inputs: PredictorInputs) -> Features:
        """Dot products with the normalised prototypes."""
        features = inputs.features.to(self.prototypes.dtype)
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
        """Initialise the prototypes from the directions of embeddings of the *other* side, repeated if too few.

        Raises:
            ValueError: a different width, or no embedding.
        """
        check_tensor("embeddings", embeddings)
        if embeddings.dim() != 2 or embeddings.shape[1] != self.prototypes.shape[1] or len(embeddings) == 0:
            raise ValueError(
                f"expected embeddings of shape [k >= 1, {self.prototypes.shape[1]}], received "
                f"{list(embeddings.shape)}. Pass features of the other tower, one per line."
            )
        index = torch.arange(self.width, device=embeddings.device) % len(embeddings)
        self.prototypes.copy_(nn.functional.normalize(embeddings[index], dim=1))


class _TwoLayers(TempNetEncoder):
    """An encoder that ends in `rest(first(x))`; its arguments are its attributes."""

    def _build(self, inputs: int, width: int, dropout: float, activation: nn.Module) -> None:
        check_dropout(dropout)
        self.width, self.dropout = check_count("width", width), dropout
        self.first = nn.Linear(inputs, width)
        self.rest = nn.Sequential(activation, nn.Dropout(dropout), nn.Linear(width, width))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


class LogitEncoder(_TwoLayers):
    r"""A projection of the normalised logits.

    $v = B\,\mathrm{dropout}(\sigma(A z / \|z\| + a)) + b$, outcomes that cannot happen (see `ScoreStatistics`) left
    out of z.

    Args:
        outcomes: number of logits (vocabulary, classes).
        width: hidden width.
        dropout: share of the hidden units that is dropped in training, in [0, 1).
        centred: True to subtract each row's maximum first. The paper's code trains on raw logits and centres
            them in generation; say which a checkpoint was trained with.

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(dt.predictors.LogitEncoder(10, width=32, centred=True), tau_min=0.1, tau_max=4.0)
        >>> tempnet(support=dt.Support(torch.randn(5, 10))).shape
        torch.Size([5])

    Source: arXiv 2404.04575, section 4.1 and appendix.
    """

    reads = frozenset({"statistics"})

    def __init__(
        self, outcomes: int, *, width: int = 256, dropout: float = 0.5, centred: bool = False
    ) -> None:
        super().__init__()
        self.outcomes = check_count("outcomes", outcomes)
        check_flag("centred", centred)
        self.centred = centred
        self._build(outcomes, width, dropout, nn.Sigmoid())

    def forward(self, inputs: PredictorInputs) -> Features:
        """Hidden projection of the normalised logits."""
        statistics = inputs.statistics
        if statistics.outcomes != self.first.in_features:
            raise ValueError(
                f"expected rows of {self.first.in_features} logits, received {statistics.outcomes}. "
                f"Build TempNet.for_logits({statistics.outcomes}, ...); for pairs, whose support is the batch, "
                "use TempNet(width of the embedding, ...)."
            )
        top = statistics.max if self.centred else None
        # Projected, then divided by the length: the projection of scores that are products is one of queries.
        length = statistics.norm_about(top).clamp(min=1e-12)
        hidden = statistics.project(self.first.weight, top) / length[:, None]
        similarities: Tensor = self.rest(hidden.to(self.first.weight.dtype) + self.first.bias)
        return similarities


class HiddenEncoder(_TwoLayers):
    r"""A projection of the hidden state that a head turns into logits.

    $v = B\,\mathrm{dropout}(\mathrm{GELU}(A\,\mathrm{LayerNorm}(f) + a)) + b$. Unlike the normalised logits, a
    hidden state still holds the scale of the logits, on which the optimal temperature depends. Temperatures are
    known before any logit is.

    Args:
        features: width d of the hidden state.
        width: hidden width.
        dropout: share of the hidden units that is dropped in training, in [0, 1).

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(dt.predictors.HiddenEncoder(64), tau_min=0.1, tau_max=2.0)
        >>> tempnet(torch.randn(2, 7, 64)).shape  # [batch, length, d]
        torch.Size([2, 7])

    Source: this library; the pooling is that of arXiv 2404.04575.
    """

    reads = frozenset({"features"})

    def __init__(self, features: int, *, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = check_count("features", features)
        self.norm = nn.LayerNorm(features)
        self._build(features, width, dropout, nn.GELU())

    def forward(self, inputs: PredictorInputs) -> Features:
        """Projection of the normalised hidden state."""
        features = inputs.features
        if features.shape[1] != self.features:
            raise ValueError(
                f"expected features of width {self.features}, received {features.shape[1]}. "
                f"Build HiddenEncoder({features.shape[1]}, ...), or TempNet.for_lm(model, inputs='hidden', ...)."
            )
        similarities: Tensor = self.rest(self.first(self.norm(features.to(self.first.weight.dtype))))
        return similarities


class StatisticsEncoder(_TwoLayers):
    r"""A small network over four statistics of each row's scores.

    With $\bar s$ the mean of a row over its m outcomes that can happen (see `ScoreStatistics`), v is a two-layer
    projection of

    $$\frac{H}{\log m}, \quad \log(1 + \max_j s_j - \bar s), \quad \log(1 + \mathrm{std}\,s), \quad
    \log\left(1 + \log \tfrac1m \textstyle\sum_j e^{s_j - \bar s}\right),$$

    $H$ the entropy of the softmax at temperature 1. They do not change when a constant is added to a row, do not
    depend on the number of outcomes in kind, and keep the scale of the scores, which normalised logits lose.
    Whatever the vocabulary, the network has the same few parameters.

    Args:
        width: hidden width.
        dropout: share of the hidden units that is dropped in training, in [0, 1).

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(dt.predictors.StatisticsEncoder(), tau_min=0.1, tau_max=2.0)
        >>> tempnet(support=dt.Support(torch.randn(5, 1000))).shape
        torch.Size([5])

    Source: this library; the pooling is that of arXiv 2404.04575.
    """

    reads = frozenset({"statistics"})

    def __init__(self, *, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self._build(4, width, dropout, nn.GELU())

    def forward(self, inputs: PredictorInputs) -> Features:
        """Projection of the statistics."""
        x = shift_invariant_statistics(inputs.statistics).to(self.first.weight.dtype)
        similarities: Tensor = self.rest(self.first(x))
        return similarities


def shift_invariant_statistics(statistics: ScoreStatistics) -> Features:
    """The four statistics of `StatisticsEncoder`, [n 4]."""
    p = statistics.profile
    log_m, log_sum = p.possible.clamp(min=2.0).log(), p.sum_exp.log()
    entropy = log_sum - p.mean_excess
    # Each is >= 0 but for rounding.
    above = (p.row_max - p.mean, p.std, p.row_max + log_sum - p.mean - log_m)
    return torch.stack([entropy / log_m, *(x.clamp(min=0.0).log1p() for x in above)], dim=1)


class SumEncoder(TempNetEncoder):
    r"""The sum of several encoders' similarities, $v = \sum_k v^{(k)}$: each contributes to every one of them.

    Args:
        encoders: at least two, all of one width.

    Raises:
        ValueError: fewer than two, or widths that differ.
        TypeError: an argument that is not a TempNetEncoder.

    Example:
        >>> import torch, dro_temp as dt
        >>> encoder = dt.predictors.SumEncoder([dt.predictors.HiddenEncoder(64), dt.predictors.StatisticsEncoder()])
        >>> tempnet = dt.TempNet(encoder, tau_min=0.1, tau_max=2.0)
        >>> tempnet(torch.randn(5, 64), support=dt.Support(torch.randn(5, 1000))).shape
        torch.Size([5])

    Source: this library; the pooling is that of arXiv 2404.04575.
    """

    def __init__(self, encoders: Sequence[TempNetEncoder]) -> None:
        super().__init__()
        check_several("encoders", encoders, "Pass [HiddenEncoder(d), StatisticsEncoder()], say.")
        encoders = list(encoders)
        for encoder in encoders:
            check_kind("each of the encoders", encoder, TempNetEncoder, "Pass HiddenEncoder(d), or the like.")
        widths = [encoder.width for encoder in encoders]
        if len(widths) < 2 or len(set(widths)) > 1:
            raise ValueError(
                f"expected at least two encoders of one width, received {len(widths)} of widths {widths}. "
                "Build each with the same width=...; a single encoder needs no SumEncoder around it."
            )
        self.encoders: Sequence[TempNetEncoder] = nn.ModuleList(encoders)  # type: ignore[assignment]
        self.width = widths[0]
        self.reads = frozenset[Any]().union(*(encoder.reads for encoder in encoders))
        self.outcomes = next((e.outcomes for e in encoders if e.outcomes is not None), None)
        self.features = next((e.features for e in encoders if e.features is not None), None)

    @property
    def config(self) -> dict[str, Any]:
        """Their descriptions."""
        return {"encoders": [encoder.description for encoder in self.encoders]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], known: Iterable[type[TempNetEncoder]]) -> "SumEncoder":
        """Build each of them."""
        known = tuple(known)
        return cls([encoder_of(description, known) for description in config["encoders"]])

    def forward(self, inputs: PredictorInputs) -> Features:
        """Sum of their similarities."""
        return torch.stack([encoder(inputs) for encoder in self.encoders]).sum(0)

    def set_prototypes(self, embeddings: Features) -> None:
        """For those that have prototypes."""
        for encoder in self.encoders:
            encoder.set_prototypes(embeddings)
