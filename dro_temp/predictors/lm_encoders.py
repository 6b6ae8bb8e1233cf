"""What a TempNet reads of a language model, by name."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from dro_temp.predictors.encoders import (
    HiddenEncoder,
    LogitEncoder,
    StatisticsEncoder,
    SumEncoder,
    TempNetEncoder,
)
from dro_temp.predictors.language_head import LanguageHead

#: What a TempNet may read of a language model's token.
LmInput: TypeAlias = Literal["hidden", "logits", "statistics"]


#: Hidden width of the paper's network, and of those that read something better: 256 gain them 0.1 % of the optimum.
PAPERS_WIDTH, WIDTH = 256, 64


def is_the_papers(inputs: LmInput | Sequence[LmInput]) -> bool:
    """Whether a network of these inputs is the paper's own: one that reads logits alone."""
    return _names(inputs) == ("logits",)


def _names(inputs: LmInput | Sequence[LmInput]) -> tuple[str, ...]:
    return (inputs,) if isinstance(inputs, str) else tuple(inputs)


def encoder_for_lm(
    head: LanguageHead,
    inputs: LmInput | Sequence[LmInput],
    *,
    width: int | None,
    dropout: float | None,
    centred: bool,
) -> TempNetEncoder:
    """The encoder of these inputs.

    Args:
        head: whose sizes count.
        inputs: one, or several different ones.
        width: hidden width of each; None: `PAPERS_WIDTH` for the paper's own network, else `WIDTH`.
        dropout: of each; None: 0.5 for the paper's own network, else none, which fits better.
        centred: see `LogitEncoder`.

    Raises:
        ValueError: unknown, repeated or no inputs; `centred` without logits.
    """
    assert head.outcomes is not None
    assert head.width is not None
    outcomes, features = head.outcomes, head.width
    wanted, papers = _names(inputs), is_the_papers(inputs)
    dropout = (0.5 if papers else 0.0) if dropout is None else dropout
    width = (PAPERS_WIDTH if papers else WIDTH) if width is None else width
    build: dict[str, Callable[[], TempNetEncoder]] = {
        "hidden": lambda: HiddenEncoder(features, width=width, dropout=dropout),
        "logits": lambda: LogitEncoder(outcomes, width=width, dropout=dropout, centred=centred),
        "statistics": lambda: StatisticsEncoder(width=width, dropout=dropout),
    }
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(build):
        raise ValueError(
            f"expected inputs of {', '.join(build)}, one or several different ones, received {inputs!r}. "
            "Pass inputs='hidden', say, or inputs=('hidden', 'statistics')."
        )
    if centred and "logits" not in wanted:
        raise ValueError(
            f"expected 'logits' among the inputs with centred=True, received {inputs!r}: the others are not changed "
            "by it. Leave centred out, or pass inputs='logits'."
        )
    encoders = [build[name]() for name in wanted]
    return encoders[0] if len(encoders) == 1 else SumEncoder(encoders)
