"""For which language model a TempNet was made."""

from dataclasses import dataclass

from torch import Tensor, nn

from dro_temp._checks import check_count, check_kind


@dataclass(frozen=True)
class LanguageHead:
    """The last layer of a language model, by its sizes.

    Args:
        outcomes: size of the vocabulary as the head has it (padding included); None: any.
        width: width d of the hidden states that it is given; None: any.
        name: what the model calls itself; never compared, since one model has many paths.
    """

    outcomes: int | None
    width: int | None
    name: str | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "LanguageHead":
        """Of a Hugging Face causal language model.

        Args:
            model: the model, or anything with `get_output_embeddings()`.

        Raises:
            TypeError: it has no head with a weight [outcomes, d].
        """
        find = getattr(model, "get_output_embeddings", None)
        head = find() if callable(find) else None
        weight = getattr(head, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or _is_packed(head, weight):
            found = "no head" if head is None else f"the head {type(head).__name__}"
            shape = f" with a weight of shape {list(weight.shape)}" if isinstance(weight, Tensor) else ""
            raise TypeError(
                "expected a causal language model, whose get_output_embeddings() has a weight [outcomes, d], received "
                f"{type(model).__name__} with {found}{shape}. Load it with AutoModelForCausalLM, its head neither "
                "packed by quantisation nor sharded; or give the sizes yourself: "
                "TempNet(HiddenEncoder(d), ...), TempNet.for_logits(outcomes, ...)."
            )
        outcomes, width = weight.shape
        name = getattr(getattr(model, "config", None), "_name_or_path", None)
        return cls(outcomes, width, name or None)

    def checked(self) -> "LanguageHead":
        """Itself, if its sizes are sizes.

        Raises:
            TypeError: they, or the name, are of another kind.
            ValueError: they are below one.
        """
        for what, size in (("outcomes", self.outcomes), ("width", self.width)):
            if size is not None:
                check_count(what, size)
        if self.name is not None:
            check_kind("name", self.name, str, "Pass the model's name, or None.")
        return self

    def check(self, other: "LanguageHead") -> None:
        """Raise unless the other head has these sizes."""
        same_outcomes = None in (self.outcomes, other.outcomes) or self.outcomes == other.outcomes
        same_width = None in (self.width, other.width) or self.width == other.width
        if not (same_outcomes and same_width):
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


def _is_packed(head: object, weight: Tensor) -> bool:
    """A quantised layer keeps its numbers in another shape than it says it has."""
    return isinstance(head, nn.Linear) and tuple(weight.shape) != (head.out_features, head.in_features)
