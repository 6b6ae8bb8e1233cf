"""Hosts around another host: its encoders a few samples at a time, or its scores less those of a reference."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dro_temp._checks import check_count, check_kind
from dro_temp.hosts.pairs import pair_rows
from dro_temp.interfaces import HostAdapter, LinearScores, Rows


class InChunks(HostAdapter):
    r"""Gradient caching: batches beyond memory, with the loss and gradient of the whole batch.

    Encoders run chunk by chunk without storing activations; the loss of all pairs together, and its proposals to the
    estimators, are computed once; backward runs each chunk a second time with the gradients of its features. Memory
    is that of one chunk and of the features; time is that of one more forward.

    Random numbers (dropout) are drawn for each chunk, and the same ones again in backward. BatchNorm normalises over a
    chunk, not over the batch, and updates its running averages twice: freeze its statistics.

    Args:
        host: a host of pairs: `TwoTower`, `OpenCLIP`, `HFDualEncoder`. Any argument of its `rows` may be a tensor, or
            a mapping, list or tuple of tensors; those with one entry per sample are split. A mapping with "offsets",
            the input of sentence-transformers' `StaticEmbedding`, is split at the sample boundaries.
        size: samples in a chunk.

    Raises:
        TypeError: `host` is not a HostAdapter.
        ValueError: a host whose views are not the two sides of pairs, or size < 1; at a call, no tensor to split.

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
        self.views = self.mirrored = host.mirrored  # type: ignore[misc]  # a wrapper has those of what it wraps
        self.host, self.size = host, check_count("size", size)
        self.train(host.objective_trains)

    @property
    def takes_groups(self) -> bool:
        """Whether the inner host's `rows` does."""
        return self.host.takes_groups

    def train(self, mode: bool = True) -> "InChunks":
        """The inner host never gathers over processes: it sees chunks only, and this one gathers."""
        super().train(mode)
        self.host.objective_trains = False
        return self

    def rows(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Rows of the whole batch; arguments are the host's own."""
        lengths = _lengths((*args, *batch.values()))
        if not lengths:
            raise ValueError(
                "expected at least one tensor with a row per sample among the arguments, received none. Pass batches "
                "of tensors, or mappings of them, as a processor returns with return_tensors='pt'."
            )
        n, parts = lengths[0], []
        for start in range(0, max(n, 1), self.size):  # a process without samples takes part in the gathering
            chunk = slice(start, start + self.size)
            inputs = _cut(args, chunk, n), _cut(batch, chunk, n)
            run = (
                partial(checkpoint, self._features, use_reentrant=False)
                if torch.is_grad_enabled()
                else self._features
            )
            parts.append(run(*inputs))
        first, second, numbers, groups, other_groups = zip(*parts, strict=True)
        index = None if numbers[0] is None else torch.cat(numbers)
        (one, other), gathers = self.views, self.objective_trains
        group: Any = None
        if groups[0] is not None:
            group = torch.cat(groups)
            if any(a is not b for a, b in zip(groups, other_groups, strict=True)):
                group = group, torch.cat(other_groups)
        views: Any = {"views": (one, other), "gathers": gathers}
        return pair_rows(torch.cat(first), torch.cat(second), index, group=group, **views)

    def _features(self, args: Any, batch: Any) -> tuple[Tensor | None, ...]:
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
        groups = (rows[view].group for view in self.views)
        return first.queries, second.queries, rows[self.views[0]].index, *groups


def _lengths(value: Any) -> list[int]:
    """Of the tensors inside; of a bag of tokens, that of its offsets."""
    if isinstance(value, Tensor):
        return [len(value)] if value.dim() > 0 else []
    if isinstance(value, Mapping):
        value = [value["offsets"]] if _is_bag(value) else list(value.values())
    return [n for part in value for n in _lengths(part)] if isinstance(value, list | tuple) else []


def _cut(value: Any, chunk: slice, n: int) -> Any:
    """The chunk's part of whatever has n entries."""
    if hasattr(value, "__array__"):  # a tensor, or one of NumPy's
        return value[chunk] if value.ndim > 0 and len(value) == n else value
    if isinstance(value, Mapping):
        bag = _cut_bag(value["input_ids"], value["offsets"], chunk) if _is_bag(value) else {}
        return {name: bag[name] if name in bag else _cut(part, chunk, n) for name, part in value.items()}
    if isinstance(value, list | tuple):
        if value and len(value) == n and not any(isinstance(part, Tensor) for part in value):
            return value[chunk]
        return (list if isinstance(value, list) else tuple)(_cut(part, chunk, n) for part in value)
    return value


def _is_bag(value: Mapping[str, Any]) -> bool:
    """Whether the tokens of all samples stand in one row, [total], each sample's from its offset on, [n]."""
    parts = value.get("input_ids"), value.get("offsets")
    return all(isinstance(part, Tensor) and part.dim() == 1 for part in parts)


def _cut_bag(tokens: Tensor, offsets: Tensor, chunk: slice) -> dict[str, Tensor]:
    starts, following = offsets[chunk], offsets[chunk.stop :][:1]
    end = int(following) if len(following) else len(tokens)
    first = int(starts[0]) if len(starts) else end
    return {"input_ids": tokens[first:end], "offsets": starts - first}


class WithReference(HostAdapter):
    r"""$s_{ij} - s^{\mathrm{ref}}_{ij}$: scores of a host less those of a frozen reference on the same batch.

    Margins become $h_{ij} - h^{\mathrm{ref}}_{ij}$, so a loss on these rows is the DRRho risk: an outcome gets a large
    weight where the model does worse on it than the reference. Where both scores are products, so is their
    difference, $[q, -q^{\mathrm{ref}}] \cdot [k, k^{\mathrm{ref}}]$, and is streamed like any other. Predictors read
    the host's own features.

    The reference runs in eval mode without gradient, and its parameters have `requires_grad=False`. Its weights *are*
    in `state_dict`, so that a run resumes bit for bit; to keep checkpoints small, leave out the keys that start with
    "reference." and load with strict=False. Each view is scored separately (`mirrored` is None).

    Args:
        host: what is trained.
        reference: a host with `frozen=True` and the same views, that takes the same batch; widths may differ.

    Raises:
        TypeError: `host` or `reference` is not a HostAdapter.
        ValueError: a reference that is not frozen, has other views, or shares parameters with the host; at a call,
            rows, targets or supports that differ.

    Example:
        >>> import copy, torch, dro_temp as dt
        >>> image, text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
        >>> reference = dt.hosts.TwoTower(copy.deepcopy(image), copy.deepcopy(text), frozen=True)
        >>> host = dt.hosts.WithReference(dt.hosts.TwoTower(image, text), reference)
        >>> rows = host(torch.randn(8, 6), torch.randn(8, 5))
        >>> bool(rows["image"].dense_scores.abs().max() < 1e-6)   # so far the two are one model
        True

    Source: arXiv 2505.06699 (DRRho).
    """

    def __init__(self, host: HostAdapter, reference: HostAdapter) -> None:
        check_kind("host", host, HostAdapter, "Wrap the model: dro_temp.hosts.TwoTower(...).")
        check_kind("reference", reference, HostAdapter, "Wrap it: dro_temp.hosts.TwoTower(..., frozen=True).")
        super().__init__(frozen=host.frozen)
        if not reference.frozen:
            raise ValueError(
                "expected a frozen reference, received one that would train. Build it with frozen=True, for example "
                "TwoTower(image_encoder, text_encoder, frozen=True)."
            )
        if reference.views != host.views:
            raise ValueError(
                f"expected a reference with the host's views {list(host.views)}, received one with "
                f"{list(reference.views)}. Wrap both models in the same kind of host."
            )
        ours = {id(p) for p in host.parameters()}
        if any(id(p) in ours for p in reference.parameters()):
            raise ValueError(
                "expected a reference with parameters of its own, received one that shares some with the host, which "
                "would be frozen with it. Pass copy.deepcopy of the encoders."
            )
        self.views = host.views  # type: ignore[misc]  # a wrapper has those of what it wraps
        self.host, self.reference = host, reference.requires_grad_(False)
        self.train(host.objective_trains)

    def rows(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """The host's rows, less the reference's scores."""
        ours, theirs = self.host(*args, **batch), self.reference(*args, **batch)
        return {view: _less(view, rows, theirs[view]) for view, rows in ours.items()}

    @property
    def takes_groups(self) -> bool:
        """Whether the host's `rows` does, and the reference's."""
        return self.host.takes_groups and self.reference.takes_groups

    def train(self, mode: bool = True) -> "WithReference":
        """Set the mode of both; each knows whether it is frozen."""
        super().train(mode)
        self.host.train(mode)
        self.reference.train(mode)
        return self


def _less(view: str, rows: Rows, reference: Rows) -> Rows:
    if rows.scores.shape != reference.scores.shape:
        raise ValueError(
            f"expected a reference with scores of shape {list(rows.scores.shape)} in view {view!r}, received "
            f"{list(reference.scores.shape)}. Both must score the same rows against the same outcomes."
        )
    differ = rows.target_in_support != reference.target_in_support
    if differ or (not torch.compiler.is_compiling() and bool((rows.target != reference.target).any())):
        raise ValueError(
            f"expected a reference with the host's targets and support in view {view!r}, received others. Wrap "
            "both models in the same kind of host, and pass both the same batch."
        )
    s, r = rows.scores, reference.scores
    if not isinstance(s, LinearScores) or not isinstance(r, LinearScores) or s.transform or r.transform:
        return replace(rows, scores=rows.dense_scores - reference.dense_scores)
    queries, keys = torch.cat([s.queries, -r.queries], 1), torch.cat([s.keys, r.keys], 1)
    bias = s.bias if r.bias is None else -r.bias if s.bias is None else s.bias - r.bias
    return replace(rows, scores=LinearScores(queries, keys, bias))
