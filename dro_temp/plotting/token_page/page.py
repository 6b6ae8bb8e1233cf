"""A text as a web page: what its template shows."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dro_temp.plotting.pages.rendering import ColourScale, bars, harmless, number, rendered

_EXTREMES = 10
_BEFORE, _AFTER = 6, 3  # tokens of context in the tables,
_CONTEXT = 32  # and characters of either side
_LONGEST = 40  # characters of a token in a card or table
_VISIBLE = str.maketrans("\n\t\r", "↵⇥␍")

#: The most likely tokens at one place: (token, probability), in falling order.
Candidates = Sequence[tuple[str, float]]


def text_page(
    tokens: Sequence[str],
    tau: Tensor | Sequence[float],
    candidates_before: Sequence[Candidates],
    candidates_after: Sequence[Candidates],
    *,
    title: str = "Temperature of every token",
) -> str:
    """One self-contained HTML page: the text, each token coloured by its temperature.

    Pointing at a token, or moving there with the keyboard, shows a card with the most likely tokens in its place,
    before and after the temperature. Below the text are a histogram and the tokens of lowest and highest temperature.
    The page has a light and a dark theme, loads nothing, and runs no script but its own.

    Args:
        tokens: the text, token by token; joined, they are what is shown.
        tau: temperature that each token was predicted with, > 0; NaN for a token that was not predicted.
        candidates_before: for each token, the most likely tokens in its place at temperature 1, with probabilities.
            Empty where there are none.
        candidates_after: the same, at the token's own temperature.
        title: heading of the page.

    Returns:
        The page. Write it with `Path("page.html").write_text(page, encoding="utf-8")`.

    Raises:
        ValueError: no tokens, not as many temperatures and candidates as tokens, a temperature that is not
            positive, or a probability outside [0, 1].

    Example:
        >>> before, after = [[], [("b", 0.5), ("c", 0.5)]], [[], [("b", 0.9), ("c", 0.1)]]
        >>> page = text_page(["a", "b"], [float("nan"), 0.4], before, after)
        >>> page.startswith("<!doctype html>"), "https:" in page
        (True, False)
    """
    taus = torch.as_tensor(tau).detach().cpu().double().flatten().tolist()
    _check(tokens, taus, candidates_before, candidates_after)
    ranked = sorted((i for i, t in enumerate(taus) if not math.isnan(t)), key=taus.__getitem__)
    known, k = [taus[i] for i in ranked], min(_EXTREMES, len(ranked) // 2)
    ends = {"Lowest temperatures": ranked[:k], "Highest temperatures": ranked[::-1][:k]}
    cards = [_card(*row) for row in zip(tokens, taus, candidates_before, candidates_after, strict=True)]
    return rendered(
        __package__,
        cards,
        {"shown": shown},
        title=title,
        tokens=list(zip(tokens, taus, strict=True)),
        known=known,
        scale=ColourScale(known),
        bars=bars(known) if known else [],
        extremes={heading: [(i, *_context(tokens, i)) for i in rows] for heading, rows in ends.items() if k},
    )


def _check(
    tokens: Sequence[str], taus: list[float], before: Sequence[Candidates], after: Sequence[Candidates]
) -> None:
    if isinstance(tokens, str):
        raise TypeError(
            f"expected a list of tokens, received one string ({tokens[:20]!r}). Pass it token by token: "
            "token_temperatures(host, tokenizer, predictor, text) does that."
        )
    if len(tokens) == 0 or not (len(tokens) == len(taus) == len(before) == len(after)):
        raise ValueError(
            "expected one temperature and two lists of candidates for each of at least one token, received "
            f"{len(tokens)} tokens, {len(taus)} temperatures, {len(before)} and {len(after)} lists. Pass NaN and [] "
            "for a token that was not predicted."
        )
    wrong = [t for t in taus if not (math.isnan(t) or 0 < t < math.inf)]
    if wrong:
        raise ValueError(
            f"expected temperatures > 0, or NaN for none, received {wrong[0]}. Pass what a predictor returned."
        )
    for word, p in (candidate for row in (*before, *after) for candidate in row):
        if not 0 <= p <= 1 + 1e-6:
            raise ValueError(
                f"expected probabilities in [0, 1], received {p} for {word!r}. Pass (logits / tau).softmax(-1)."
            )


def _card(token: str, tau: float, *candidates: Candidates) -> dict[str, object]:
    """Content of the hover card."""
    before, after = (
        [(shown(word), round(float(p), 4), int(word == token)) for word, p in listed] for listed in candidates
    )
    known = None if math.isnan(tau) else number(tau)
    return {"token": shown(token), "tau": known, "before": before, "after": after}


def _context(tokens: Sequence[str], i: int) -> tuple[str, str]:
    """What stands before and after a token, on one line."""
    sides = tokens[max(0, i - _BEFORE) : i], tokens[i + 1 : i + 1 + _AFTER]
    before, after = (re.sub(r"\s+", " ", "".join(side)) for side in sides)
    return before[-_CONTEXT:].lstrip(), after[:_CONTEXT]


def shown(token: str) -> str:
    """A token on one line, with its whitespace made visible and its end cut where it is long."""
    marked = re.sub(r"\A\s+|\s+\Z", lambda end: end[0].replace(" ", "·"), token)
    visible = marked.translate(_VISIBLE)
    cut = visible if len(visible) <= _LONGEST else visible[: _LONGEST - 1] + "…"
    return harmless(cut) or "∅"
