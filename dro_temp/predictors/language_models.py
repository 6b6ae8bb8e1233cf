"""TempNets of language models: the head that one was made for, and what it reads of a token."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor, nn

from dro_temp._checks import check_count, check_kind

#: What a TempNet may read of a language model's token.
LmInput: TypeAlias = Literal["hidden", "logits", "statistics"]


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a language model's head, by which a TempNet knows whether a model is the one that it was made for.

    Args:
        outcomes: size of the vocabulary as the head has it (padding included); None: any.
        width: width d of the hidden states that it is given; None: any.
        name: what the model calls itself; never compared, since one model has many paths.

    Raises:
        TypeError: a size or the name is of another type.
        ValueError: a size below one.
    """

    outcomes: int | None
    width: int | None
    name: str | None = None

    def __post_init__(self) -> None:
        for what, size in (("outcomes", self.outcomes), ("width", self.width)):
            if size is not None:
                check_count(what, size)
        if self.name is not None:
            check_kind("name", self.name, str, "Pass the model's name, or None.")

    @classmethod
    def from_model(cls, model: nn.Module) -> "HeadShape":
        """Of a Hugging Face causal language model, or anything with `get_output_embeddings()`.

        Raises:
            TypeError: it has no head with a weight [outcomes, d].
        """
        find = getattr(model, "get_output_embeddings", None)
        head = find() if callable(find) else None
        weight = getattr(head, "weight", None)
        shape = list(weight.shape) if isinstance(weight, Tensor) else []
        # A quantised layer keeps its numbers in another shape than it says it has.
        packed = isinstance(head, nn.Linear) and shape != [head.out_features, head.in_features]
        if len(shape) != 2 or packed:
            received = "no head" if head is None else f"the head {type(head).__name__}"
            received += f" with a weight of shape {shape}" if isinstance(weight, Tensor) else ""
            raise TypeError(
                "expected a causal language model, whose get_output_embeddings() has a weight [outcomes, d], received "
                f"{type(model).__name__} with {received}. Load it with AutoModelForCausalLM, its head neither "
                "packed by quantisation nor sharded; or give the sizes yourself: "
                "TempNet(HiddenEncoder(d), ...), TempNet.for_logits(outcomes, ...)."
            )
        name = getattr(getattr(model, "config", None), "_name_or_path", None)
        outcomes, width = shape
        return cls(outcomes, width, name or None)

    def check(self, other: "HeadShape") -> None:
        """Raise unless the other head has these sizes."""
        sizes = ((self.outcomes, other.outcomes), (self.width, other.width))
        if any(None not in pair and pair[0] != pair[1] for pair in sizes):
            raise ValueError(
                f"expected a model with {self}, for which this TempNet was made, received one with {other}. Load the "
                "TempNet that was trained with this model, or train one: TempNet.for_lm(model, tau_min=..., "
                "tau_max=...)."
            )

    def __str__(self) -> str:
        """For error messages."""
        outcomes = "any number of" if self.outcomes is None else self.outcomes
        width = "any width" if self.width is None else f"width {self.width}"
        name = "" if self.name is None else f" ({self.name})"
        return f"{outcomes} outcomes and hidden states of {width}{name}"
