"""The page: pieces of HTML, one style sheet, one script, and what the hover card shows as data."""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib import resources

import torch
from torch import Tensor

from dro_temp.plotting.token_page import markup
from dro_temp.plotting.token_page.markup import as_json, escaped, shown

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
        >>> from dro_temp.plotting import text_page
        >>> before, after = [[], [("b", 0.5), ("c", 0.5)]], [[], [("b", 0.9), ("c", 0.1)]]
        >>> page = text_page(["a", "b"], [float("nan"), 0.4], before, after)
        >>> page.startswith("<!doctype html>"), "https:" in page
        (True, False)
    """
    taus = torch.as_tensor(tau).detach().cpu().double().flatten().tolist()
    _check(tokens, taus, candidates_before, candidates_after)
    scale = markup.ColourScale.from_temperatures([t for t in taus if not math.isnan(t)])
    script = _file("page.js")
    data = [_card(*row) for row in zip(tokens, taus, candidates_before, candidates_after, strict=True)]
    body = [markup.header(title, taus), markup.legend(scale), markup.text(tokens, taus, scale)]
    body += [markup.histogram(taus, scale), markup.extremes(tokens, taus, scale)]
    # Only the script with this hash may run, and nothing may be loaded: a text that is shown cannot do anything.
    return _file("page.html").format(
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=escaped(title),
        style=_file("page.css") + scale.style(),
        content="\n".join(body),
        data=as_json(data),
        script=script,
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _card(token: str, tau: float, *candidates: Candidates) -> dict[str, object]:
    """Content of the hover card."""
    before, after = (
        [(shown(word), round(float(p), 4), int(word == token)) for word, p in listed] for listed in candidates
    )
    known = None if math.isnan(tau) else markup.number(tau)
    return {"token": shown(token), "tau": known, "before": before, "after": after}


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
