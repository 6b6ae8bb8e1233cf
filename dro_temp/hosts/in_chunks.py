"""A host whose encoders see a few samples at a time, while its loss sees the whole batch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dro_temp._checks import check_count, check_kind
from dro_temp.hosts._pairs import pair_rows
from dro_temp.interfaces import HostAdapter, LinearScores, Rows


class InChunks(HostAdapter):
    r"""Gradient caching: batches beyond memory, with the loss and gradient of the whole batch.

    Encoders run without keeping activations, chunk by chunk; the loss is that of all pairs together, computed once,
    and so are its proposals to the estimators; backward runs each chunk a second time with its features' gradients.
    Memory is that of one chunk and of the features; time is that of one more forward.

    Random numbers (dropout) are drawn anew for each chunk, and the same ones again in backward. BatchNorm normalises
    over a chunk, not over the batch, and moves its running averages twice; encoders with it want statistics that are
    frozen or shared between processes.

    Args:
        host: a host of pairs: `TwoTower`, `OpenCLIP`, `HFDualEncoder`. Any argument of its `rows` may be a tensor, or
            a mapping, list or tuple of tensors; those with one entry per sample are cut. Of a mapping with "offsets",
            as sentence-transformers' `StaticEmbedding` takes it, the samples' own tokens are cut.
        size: samples in a chunk.

    Raises:
        TypeError: `host` is no host.
        ValueError: a host whose views are not the two sides of pairs, or size < 1; at a call, no tensor to cut.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> rows = dt.hosts.InChunks(host, size=16)(torch.randn(100, 6), torch.randn(100, 5))
        >>> rows["image"].support_size
        99

    Source: arXiv 2101.06983 (GradCache).
    """

    def __init__(self, host: HostAdapter, size: int) -> None:
        check_kind("host", host, HostAdapter, "Wrap the model: dro_temp.hosts.TwoTower(...).")
        super().__init__(frozen=host.frozen)
        if host.mirrored is None:
            raise ValueError(
                f"expected a host of pairs, whose two views score each other, received {type(host).__name__} with "
                f"{list(host.views)}: the rows of others do not depend on the batch. Accumulate gradients instead."
            )
        self.views = host.mirrored  # type: ignore[misc]  # a wrapper has those of what it wraps
        self.mirrored = host.mirrored  # type: ignore[misc]
        self.host, self.size = host, check_count("size", size)
        self.train(host.objective_trains)

    def train(self, mode: bool = True) -> "InChunks":
        """The host inside sees chunks only: what is gathered over processes is gathered here."""
        super().train(mode)
        self.host.objective_trains = False
        return self

    def rows(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Rows of the whole batch; arguments are the host's own."""
        args, batch = _per_sample(args), _per_sample(batch)
        n = _number_of_samples((*args, *batch.values()))
        parts = []
        for start in range(0, max(n, 1), self.size):  # a process without samples takes part in the gathering
            chunk = slice(start, start + self.size)
            ours, named = _cut(args, chunk, n), _cut(batch, chunk, n)
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._features, ours, named, use_reentrant=False))
            else:
                parts.append(self._features(ours, named))
        first, second, numbers = zip(*parts, strict=True)
        index = None if numbers[0] is None else torch.cat(numbers)
        together = pair_rows(torch.cat(first), torch.cat(second), index, gathers=self.objective_trains)
        return dict(zip(self.views, together.values(), strict=True))

    def _features(self, args: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        rows = self.host(*args, **batch)
        first, second = (rows[view].scores for view in self.views)
        assert isinstance(first, LinearScores)
        assert isinstance(second, LinearScores)
        if not first.is_transpose_of(second):
            raise ValueError(
                f"expected views {list(self.views)} that score each other and nothing else, received "
                f"{list(first.shape)} and {list(second.shape)} scores. Leave hard negatives out, or train without "
                "InChunks."
            )
        return first.queries, second.queries, rows[self.views[0]].index


@dataclass(frozen=True)
class _Bags:
    """Tokens of several samples in one row, and where each sample starts: what an `EmbeddingBag` takes.

    Args:
        tokens: [total] of all samples.
        offsets: [n] where each sample's begin.
    """

    tokens: Tensor
    offsets: Tensor

    def cut(self, chunk: slice) -> dict[str, Tensor]:
        """The tokens of some samples alone."""
        starts = self.offsets[chunk]
        following = self.offsets[chunk.stop :][:1]
        end = int(following) if len(following) else len(self.tokens)
        first = int(starts[0]) if len(starts) else end
        return {"input_ids": self.tokens[first:end], "offsets": starts - first}


def _per_sample(value: Any) -> Any:
    """The value, with bags of tokens in place of tensors that have no entry per sample."""
    if isinstance(value, Mapping):
        tokens, offsets = value.get("input_ids"), value.get("offsets")
        named = {name: _per_sample(part) for name, part in value.items()}
        if isinstance(tokens, Tensor) and isinstance(offsets, Tensor) and tokens.dim() == offsets.dim() == 1:
            del named["input_ids"], named["offsets"]
            return {**named, _BAGS: _Bags(tokens, offsets)}
        return named
    if isinstance(value, list | tuple) and any(isinstance(part, Mapping | Tensor) for part in value):
        again: Callable[[Any], Any] = type(value) if type(value) in (list, tuple) else tuple
        return again(_per_sample(part) for part in value)
    return value


_BAGS = "bags of tokens"


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, _Bags):
        yield value.offsets
    elif isinstance(value, Mapping):
        yield from _leaves(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def _number_of_samples(values: Any) -> int:
    for tensor in _leaves(values):
        if tensor.dim() > 0:
            return len(tensor)
    raise ValueError(
        "expected at least one tensor with a row per sample among the arguments, received none. Pass batches of "
        "tensors, or mappings of them, as a processor returns with return_tensors='pt'."
    )


def _cut(value: Any, chunk: slice, n: int) -> Any:
    """The chunk's part of whatever has n entries."""
    if hasattr(value, "__array__"):  # a tensor, or one of NumPy's
        return value[chunk] if value.ndim > 0 and len(value) == n else value
    if isinstance(value, Mapping):
        whole = {name: _cut(part, chunk, n) for name, part in value.items() if name != _BAGS}
        return {**whole, **value[_BAGS].cut(chunk)} if _BAGS in value else whole
    if isinstance(value, list | tuple):
        again: Callable[[Any], Any] = type(value) if type(value) in (list, tuple) else tuple
        if value and len(value) == n and not any(isinstance(part, Tensor) for part in value):
            return value[chunk]
        return again(_cut(part, chunk, n) for part in value)
    return value
