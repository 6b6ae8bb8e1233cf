"""The contract of an encoder, and how one is built from what was saved."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import nn

from dro_temp._typing import Features
from dro_temp.interfaces import Readable, Reading
from dro_temp.predictors.named import class_named


class TempNetEncoder(nn.Module, ABC):
    """Transformation and projection: from what is read to `width` similarities per row."""

    #: What `forward` needs of a reading.
    reads: frozenset[Readable]
    #: Number of similarities per row.
    width: int
    #: Where the log of the pooling's sharpness starts.
    log_sharpness: float = 0.0
    #: Number of logits that a row must have; None: any.
    outcomes: int | None = None
    #: Width that features must have; None: any.
    features: int | None = None

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON knows them: what a checkpoint says of this encoder."""

    @classmethod
    def of_config(
        cls, config: Mapping[str, Any], known: Iterable[type["TempNetEncoder"]]
    ) -> "TempNetEncoder":
        """The encoder that has this `config`.

        Args:
            config: its constructor's arguments.
            known: classes that it may consist of.
        """
        return cls(**config)

    @abstractmethod
    def forward(self, reading: Reading) -> Features:
        """Similarities v, [n width], which the pooling weighs."""

    def pooled(self, similarities: Features) -> Features:
        """What is averaged under those weights, [n width]: the similarities, unless a leaf says otherwise."""
        return similarities

    def set_prototypes(self, embeddings: Features) -> None:
        """Start from embeddings of the other side, if this encoder has prototypes; else do nothing."""

    @final
    @property
    def description(self) -> dict[str, Any]:
        """`config` and the name of the class."""
        return {"class": type(self).__name__, **self.config}


def encoder_of(description: Mapping[str, Any], known: Iterable[type[TempNetEncoder]]) -> TempNetEncoder:
    """The encoder of this description.

    Args:
        description: what `TempNetEncoder.description` said.
        known: classes that it may name.

    Raises:
        ValueError: it names another class.
    """
    known = tuple(known)
    name, config = description["class"], {k: v for k, v in description.items() if k != "class"}
    instead = f"Pass your own class, from_pretrained(..., encoders=({name},)), or update dro-temp."
    return class_named("an encoder", name, known, instead).of_config(config, known)
