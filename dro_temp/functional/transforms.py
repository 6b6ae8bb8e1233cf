"""Elementwise transforms of products of queries and keys into scores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from dro_temp._checks import check_positive


class ScoreTransform(ABC):
    """An elementwise, increasing function of scores with a derivative, so that it can be streamed."""

    @abstractmethod
    def __call__(self, scores: Tensor) -> Tensor:
        """The transformed scores."""

    @abstractmethod
    def apply_(self, scores: Tensor) -> Tensor:
        """As `__call__`, in place and without gradient."""

    @abstractmethod
    def slope_(self, transformed: Tensor) -> Tensor:
        """Derivative, from the *transformed* scores, in place and without gradient."""


@dataclass(frozen=True)
class SoftCap(ScoreTransform):
    r"""$c \tanh(s / c)$: scores that cannot leave $(-c, c)$, as Gemma's.

    Args:
        cap: c, > 0.

    Raises:
        ValueError: a cap that is not a finite positive number.

    Example:
        >>> import torch
        >>> SoftCap(30.0)(torch.tensor([1.0, 1e4]))
        tensor([ 0.9996, 30.0000])
    """

    cap: float

    def __post_init__(self) -> None:
        check_positive("cap", self.cap)

    def __call__(self, scores: Tensor) -> Tensor:
        """Capped scores."""
        return (scores / self.cap).tanh() * self.cap

    def apply_(self, scores: Tensor) -> Tensor:
        """In place."""
        return scores.div_(self.cap).tanh_().mul_(self.cap)

    def slope_(self, transformed: Tensor) -> Tensor:
        """1 - tanh^2."""
        return transformed.div_(self.cap).square_().neg_().add_(1.0)


@dataclass(frozen=True)
class Scale(ScoreTransform):
    r"""$a\,s$, as Cohere's and Granite's logits.

    Args:
        factor: a, > 0.

    Raises:
        ValueError: a factor that is not a finite positive number.

    Example:
        >>> import torch
        >>> Scale(0.5)(torch.tensor([1.0, 4.0]))
        tensor([0.5000, 2.0000])
    """

    factor: float

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)

    def __call__(self, scores: Tensor) -> Tensor:
        """Scaled scores."""
        return scores * self.factor

    def apply_(self, scores: Tensor) -> Tensor:
        """In place."""
        return scores.mul_(self.factor)

    def slope_(self, transformed: Tensor) -> Tensor:
        """The factor."""
        return transformed.fill_(self.factor)
