"""The temperature of every token of a text, and the most likely tokens in its place."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp._modes import evaluating
from dro_temp._typing import PerRow
from dro_temp.interfaces import HostAdapter, Rows, TemperaturePredictor

_BYTES = 4  # of the longest character


class TokenTemperatures(NamedTuple):
    """The first arguments of `text_page`.

    Attributes:
        tokens: the text, token by token; empty for all but the last of the tokens that are one character together.
        tau: the temperature that each token was predicted with; NaN for the first, which nothing predicts.
        candidates_before: the most likely tokens in each place at temperature 1, (token, probability).
        candidates_after: the same at the token's own temperature.

    Example:
        >>> read = TokenTemperatures(["a", "b"], [float("nan"), 0.5], [[], [("b", 0.6)]], [[], [("b", 0.9)]])
        >>> tokens, tau, before, after = read
        >>> read.candidates_after[1]
        [('b', 0.9)]
    """

    tokens: list[str]
    tau: list[float]
    candidates_before: list[list[tuple[str, float]]]
    candidates_after: list[list[tuple[str, float]]]


def token_temperatures(
    host: HostAdapter,
    tokenizer: Any,
    predictor: TemperaturePredictor,
    text: str,
    *,
    k: int = 5,
    window: int = 512,
) -> TokenTemperatures:
    """Temperatures that a predictor gives to the tokens of a text, and the most likely tokens in each place.

    A text longer than `window` is read in windows that overlap by half, so that every token but the first few has
    at least half a window before it. Model and predictor run in evaluation mode, which is then undone.

    Args:
        host: the language model, `dt.hosts.CausalLM(model)`.
        tokenizer: the model's own, of transformers.
        predictor: any predictor that is not indexed by sample.
        text: at least two tokens.
        k: number of candidates; the token that is there is added where it is not among them.
        window: tokens that the model reads at once, at least 2: at most as many as it has positions.

    Returns:
        What `text_page` takes: `text_page(*token_temperatures(host, tokenizer, tempnet, text))`.

    Raises:
        ValueError: a text of fewer than two tokens, k below 1, or a window below 2.

    Example:
        >>> import dro_temp as dt, transformers
        >>> from dro_temp.datasets import PythonText
        >>> from dro_temp.plotting import text_page, token_temperatures
        >>> config = transformers.GPT2Config(vocab_size=1024, n_embd=16, n_layer=1, n_head=2)
        >>> host = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config), frozen=True)
        >>> tempnet = dt.TempNet(16, tau_min=0.1, tau_max=2.0)
        >>> read = token_temperatures(host, PythonText(size=400_000).tokenizer(1024), tempnet, "import os")
        >>> "".join(read.tokens), "<h1>" in text_page(*read)
        ('import os', True)
    """
    check_count("k", k)
    check_count("window", window, minimum=2)
    numbers = tokenizer(text, return_tensors="pt")["input_ids"][0].long()
    if len(numbers) < 2:
        raise ValueError(
            f"expected a text of at least two tokens, received {text!r}, which is {len(numbers)}. Pass a longer text."
        )
    spelled = _spelled(tokenizer, numbers.tolist())
    word = cache(lambda number: _inside(tokenizer, [number]))
    # Without a temperature: the first token, and more where the model's labels are not shifted.
    read = TokenTemperatures(spelled, [math.nan] * len(spelled), [[] for _ in spelled], [[] for _ in spelled])

    def most_likely(rows: Rows, tau: PerRow, own: list[str]) -> list[list[tuple[str, float]]]:
        """In falling order; the actual token last, if it is not among them."""
        p = (rows.dense_scores / tau[:, None]).softmax(1)
        best, target = p.topk(min(k, p.shape[1]), dim=1), rows.target.long()
        columns = best.indices, best.values, target, p.gather(1, target[:, None])[:, 0]
        listed = []
        for text, ids, top, actual, share in zip(own, *(column.tolist() for column in columns), strict=True):
            pairs = [*zip(ids, top, strict=True), *[(actual, share)] * (actual not in ids)]
            # Alone, some tokenizers drop the space that a token begins with.
            listed.append([(text if n == actual else word(n), x) for n, x in pairs])
        return listed

    with evaluating(host, predictor):
        for first, rows in _windows(host, numbers, window):
            places, tau = slice(first, first + len(rows)), predictor.predict(rows)
            read.tau[places] = tau.double().tolist()
            read.candidates_before[places] = most_likely(rows, torch.ones_like(tau), spelled[places])
            read.candidates_after[places] = most_likely(rows, tau, spelled[places])
    return read


def _windows(host: HostAdapter, numbers: Tensor, window: int) -> Iterator[tuple[int, Rows]]:
    """The rows of a text, each once, and the place of the token that the first of them predicts."""
    device = next((p.device for p in host.parameters()), torch.device("cpu"))
    step, done = max(1, window // 2), 0
    for start in range(0, max(1, len(numbers) - window + step), step):
        part = numbers[start : start + window]
        if len(part) < 2:
            break
        (rows,) = host(input_ids=part[None].to(device)).values()
        end = start + len(part)
        first = max(done, end - len(rows))
        if first < end:
            yield first, rows.select(slice(first - end + len(rows), None)).dense()
        done = end


def _spelled(tokenizer: Any, numbers: list[int]) -> list[str]:
    """The text, token by token; a character of several tokens stands at the last of them."""
    spelled, pending = [], []
    for n in numbers:
        pending.append(n)
        word = _inside(tokenizer, pending)
        unfinished = word.endswith("\ufffd") and len(pending) < _BYTES
        spelled.append("" if unfinished else word)
        pending = pending if unfinished else []
    return spelled


def _inside(tokenizer: Any, numbers: list[int]) -> str:
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    text: str = tokenizer.decode([*anchor, *numbers])
    return text[len(tokenizer.decode(anchor)) :]
