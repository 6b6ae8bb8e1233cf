"""A loss over the keys of this batch and of earlier ones, and their queue."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dro_temp import _faults, distributed
from dro_temp import functional as F
from dro_temp._autograd import outside_graphs
from dro_temp._checks import check_count, check_flag, check_kind
from dro_temp._faults import is_capturing
from dro_temp._typing import Features, PerRow, RowIndex, RowMask
from dro_temp.interfaces import (
    BackendChoice,
    LinearScores,
    LossOutput,
    RobustLoss,
    Rows,
    TemperaturePredictor,
)
from dro_temp.interfaces.rows import same_memory
from dro_temp.kernels import Statistic
from dro_temp.kernels.memory import acquire, release
from dro_temp.losses.likelihood import InfoNCELoss
from dro_temp.losses.log_mean_exp import Taus
from dro_temp.state import Staged, staged_modules

_JOINED = "queued keys"


#: The number of a key whose sample has none.
_UNNUMBERED = -1


class KeyQueue(Staged):
    """Keys of the last `size` samples, with the samples' numbers; an optimizer step appends the staged ones.

    Args:
        size: number of keys.
        features: width of a key.
        queries: whether to store each key's query as well; zeros where there is none.

    Raises:
        ValueError: a size or a width below one.

    Example:
        >>> import torch
        >>> queue = KeyQueue(3, 2)
        >>> queue.stage(torch.randn(5, 2), torch.arange(5))
        >>> len(queue), queue.commit(), sorted(queue.number.tolist())
        (0, None, [2, 3, 4])

    Source: arXiv 1911.05722 (MoCo).
    """

    expects_proposals = False  # rows whose scores are a matrix propose nothing
    appends = True

    keys: Features
    queries: Features
    number: RowIndex
    group: RowIndex
    query_group: RowIndex
    seen: Tensor

    def __init__(self, size: int, features: int, *, queries: bool = False) -> None:
        super().__init__()
        self.size, self.features = check_count("size", size), check_count("features", features)
        check_flag("queries", queries)
        #: Buffers with an entry per sample, in the order in which they are staged.
        self.entries = ("keys", "queries", "number") if queries else ("keys", "number")
        self.groups = ("group", "query_group") if queries else ("group",)
        self.memory = (*self.entries, *self.groups, "seen")
        for name in self.entries[:-1]:
            self.register_buffer(name, torch.zeros(size, features))
        for name in ("number", *self.groups):
            self.register_buffer(name, torch.full((size,), _UNNUMBERED))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._known: tuple[Tensor, int, int] | None = None
        self._remember(0)

    def __len__(self) -> int:
        return min(self.count, self.size)

    @property
    def count(self) -> int:
        """Number of keys seen, `seen`, remembered on the host: reading it would wait for a device at every step."""
        known = self._known
        if known is None or known[0] is not self.seen or known[1] != self.seen._version or is_capturing():
            self._remember(int(self.seen))
            assert self._known is not None
            known = self._known
        return known[2]

    def _remember(self, count: int) -> None:
        self._known = self.seen, self.seen._version, count

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": None}

    def check(self, index: Tensor) -> None:
        """Nothing to check: a sample number is not a position in the queue."""

    def stage(self, *proposal: Tensor) -> None:
        """Stage keys, queries if they are stored, and samples' numbers; and groups, which without are nobody's."""
        if len(proposal) == len(self.entries):
            alone = torch.full_like(proposal[-1], F.UNGROUPED)
            proposal = (*proposal, *[alone for _ in self.groups])
        super().stage(*proposal)

    def write(self, *parts: Tensor) -> None:
        """Overwrite the oldest entries by the newest."""
        if not parts:
            return
        total, count = len(parts[0]), self.count
        newest = [x[-self.size :] for x in parts]
        first = self.seen + total - len(newest[0])
        position = (first + torch.arange(len(newest[0]), device=first.device)) % self.size
        for name, x in zip((*self.entries, *self.groups), newest, strict=True):
            buffer: Tensor = getattr(self, name)
            buffer[position] = x.to(buffer)
        self.seen += total
        self._remember(count + total)

    def of_samples(self, number: RowIndex) -> Tensor:
        """True for keys of these samples."""
        if not len(number):
            return torch.zeros_like(self.number, dtype=torch.bool)
        ordered = number.long().sort().values  # `isin` looks for unique numbers, which waits for a device
        place = torch.searchsorted(ordered, self.number).clamp(max=len(ordered) - 1)
        return (ordered[place] == self.number) & (self.number != _UNNUMBERED)

    def drawn(self, count: int) -> RowIndex:
        """Positions of at most `count` distinct samples that have a query; see `draw`, which waits for no device."""
        position, counts = self.draw(count)
        return position[counts]

    def draw(self, count: int) -> tuple[RowIndex, RowMask]:
        """At most `count` positions, and which of them are of distinct samples that have a query.

        The same on every process and after a resume, without using the global generator: the seed is the number of keys
        seen.
        """
        generator = torch.Generator().manual_seed(self.count)
        draws = sorted(set(torch.randint(self.size, (count,), generator=generator).tolist()))
        device = self.number.device
        on_host = torch.tensor(draws, dtype=torch.long, pin_memory=device.type == "cuda")
        position: RowIndex = on_host.to(device, non_blocking=True)
        number = self.number[position]
        repeated = (number[:, None] == number).tril(-1).any(1) & (number != _UNNUMBERED)
        return position, ~repeated & self.queries[position].any(1)

    def extra_repr(self) -> str:
        """Size and width."""
        return f"size={self.size}, features={self.features}"


def _reading_waits(x: Tensor) -> bool:
    return x.is_cuda or _faults.everywhere


class QueuedLoss(RobustLoss):
    r"""Another loss, over this batch's columns and the keys of the last `size` samples before it.

    A batch of pairs contains B - 1 of the N - 1 outcomes of a row. The temperature that is optimal for those few is not
    optimal for all: with radius rho the worst case rests on a share of about $e^{-\rho}$ of the outcomes, which in a
    batch may be ten. Keys change slowly, so those of earlier batches replace the missing outcomes; they carry no
    gradient. Meant as the `tau_loss` of an `Objective`, from which only temperatures learn: no encoder learns from
    outdated keys.

    As the main loss of an `Objective` a row without outcomes in its batch does not count, whatever the queue holds.

    Until the queue is full every value is zero, and temperatures do not change. After that, earlier keys of the
    batch's own samples are left out by their numbers, and those of a row's own group (`Rows.group`), whose number must
    mean the same in every batch. Scores stream, and no step waits for a device.

    With `replay` a network learns from earlier rows as well. The remaining gap between a network that learns from the
    queue and the optimum is the noise of a batch's few rows, and a replayed row costs no encoder: its query is stored.

    Args:
        loss: the loss to evaluate, for example `KLRobustLoss(rho)` with the radius of the main loss.
        size: number of stored keys, those of all processes together. Half of the data set is plenty.
        features: width d of the keys.
        replay: number of rows drawn from the queue at each step, at most, from which the predictor learns besides the
            batch's own; for predictors that read features or nothing, and rows that are plain products (no bias, no
            transform) whose features are their queries. An `Objective` refuses it for a view that takes its
            temperatures from another (`tau_from`), and with a `LevelTemperature`.

    Memory: 4 size (d + 4) bytes per view, 4 size (2 d + 6) with `replay`.

    Raises:
        TypeError: `loss` is not a RobustLoss.
        ValueError: a size or a width below one, more rows than the queue has, `replay` with a loss that has memory;
            at a call, keys of another width, or rows that cannot be replayed.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> rows = host(torch.randn(5, 6), torch.randn(5, 5), index=torch.arange(5))["image"]
        >>> loss = dt.QueuedLoss(dt.KLRobustLoss(rho=1.0), size=6, features=4)
        >>> loss(rows, 0.1).shape, len(loss.queue)
        (torch.Size([5]), 0)
        >>> loss.queue.commit(); len(loss.queue)  # an optimizer step writes what the forward saw
        5

    Source: this library; queues of keys are those of arXiv 1911.05722 (MoCo) and 1912.06798 (XBM).
    """

    def __init__(self, loss: RobustLoss, *, size: int, features: int, replay: int = 0) -> None:
        super().__init__()
        check_kind("loss", loss, RobustLoss, "Pass KLRobustLoss(rho), with the radius of the main loss.")
        if any(isinstance(part, QueuedLoss) for part in loss.modules()):
            raise TypeError(
                "expected a loss without a queue of its own, received a QueuedLoss, whose keys would count twice. Pass "
                "the loss inside it, KLRobustLoss(rho), and one size."
            )
        self.loss = loss
        self.replay = check_count("replay", replay, minimum=0)
        self.replays = self.replay > 0
        self.queue = KeyQueue(size, features, queries=self.replays)
        if replay > size:
            raise ValueError(
                f"expected replay of at most {size}, the size of the queue, received {replay}. Pass a smaller one, or "
                "a larger queue."
            )
        if replay and staged_modules(loss.modules()):
            raise ValueError(
                f"expected a loss without memory for replay={replay}, received {loss!r}, which would remember a row "
                "twice. Pass KLRobustLoss(rho), without an estimator."
            )

    def check_rows(self, rows: Rows) -> None:
        """Check rows without keys; others are checked together with the queue, by the inner loss."""
        if self.choose_backend(rows).name == "reference":
            self.loss.check_rows(rows)

    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """The inner loss of rows whose scores are a matrix, which have no keys to store."""
        return self.loss.values(rows, tau)

    def choose_backend(self, rows: Rows) -> BackendChoice:
        """The queue is used if scores are products and outcomes are samples: a vocabulary is complete."""
        if isinstance(rows.scores, LinearScores) and not rows.target_in_support:
            return BackendChoice("torch", "the keys of earlier batches join those of this one")
        return BackendChoice("reference", "there are no keys of samples")

    @outside_graphs
    def replayed(self, predictor: TemperaturePredictor) -> LossOutput | None:
        """Values of rows drawn from a full queue, over the keys of all others."""
        learns = predictor.reads <= {"features"} and any(p.requires_grad for p in predictor.parameters())
        if not (self.replay and learns and self._learning and self._full):
            return None
        queue = self.queue
        position, counts = queue.draw(self.replay)
        weight: PerRow | None = None
        if _reading_waits(queue.number):
            weight = counts.to(queue.queries.dtype)  # how many count is known on the device alone
        else:
            position = position[counts]
            counts = counts[counts]
        queries, number = queue.queries[position], queue.number[position]
        keys, target = queue.keys, position
        # A drawn row's sample has earlier keys.
        same_sample = queue.of_samples(number)
        same_sample = same_sample.scatter(0, position, same_sample[position] & ~counts)
        groups: dict[str, Tensor] = {}
        if _reading_waits(number) or bool((queue.group != F.UNGROUPED).any()):
            column_group = queue.group.masked_fill(same_sample, F.LEFT_OUT)
            groups = {"group": queue.query_group[position], "column_group": column_group}
        elif bool(same_sample.any()):
            keys, target = keys[~same_sample], (~same_sample).cumsum(0)[position] - 1
        products = LinearScores(queries, keys)
        rows = Rows(products, target, queries, target_in_support=False, weight=weight, **groups)
        return replace(self.loss.evaluate(rows, predictor, check=False), weight=weight)

    @property
    def _learning(self) -> bool:
        return self.training and torch.is_grad_enabled()

    @property
    def _full(self) -> bool:
        return len(self.queue) == self.queue.size

    @outside_graphs
    def _streamed(
        self,
        rows: Rows,
        tau: Taus,
        statistics: Collection[Statistic],
        differentiable: bool,
        backend: BackendChoice,
    ) -> LossOutput:
        scores = rows.scores
        assert isinstance(scores, LinearScores)
        if scores.keys.shape[1] != self.queue.features:
            raise ValueError(
                f"expected keys of width {self.queue.features}, received {scores.keys.shape[1]}. Build "
                f"QueuedLoss(..., features={scores.keys.shape[1]}), the width of what the host embeds into."
            )
        number = _numbers(rows, len(scores.keys))
        if self._full:
            if isinstance(tau, TemperaturePredictor):
                # From the rows' own outcomes, which are those that the main loss and an evaluation show it.
                tau = InfoNCELoss().evaluate(rows, tau, check=False).tau
            joined_rows = self._joined(rows, scores, number)
            joined = joined_rows.scores
            assert isinstance(joined, LinearScores)
            output = self.loss.evaluate(
                joined_rows, tau, statistics=statistics, differentiable=differentiable, check=False
            )
            if isinstance(tau, Tensor) and not scores.requires_grad:
                # For temperatures that are an input, backward needs their slopes alone.
                release(_JOINED, joined.keys)
        else:
            # No gradient is better than that of a batch's few outcomes, for which the radius may not even be feasible.
            tau = tau.predict(rows) if isinstance(tau, TemperaturePredictor) else tau
            values = (0.0 * tau).masked_fill(~rows.valid, 0.0)
            output = LossOutput(values, tau, BackendChoice("reference", "the queue is not full yet"))
        if self._learning:
            queries = [_queries(rows, scores)] if self.replay else []
            groups = [] if rows.column_group is None else [rows.column_group.long()]
            if groups and self.replay:
                groups.append(_of_targets(rows, rows.group, len(scores.keys), F.UNGROUPED))
            self.queue.stage(scores.keys, *queries, number, *groups)
        return output

    def _joined(self, rows: Rows, scores: LinearScores, number: RowIndex) -> Rows:
        """Rows over the queue's keys and the batch's own, whose sample numbers are `number`."""
        queue, column_group = self.queue.keys, None
        same_sample = self.queue.of_samples(number)
        if rows.column_group is not None:
            group, column_group = (
                self.queue.group.masked_fill(same_sample, F.LEFT_OUT),
                rows.column_group.long(),
            )
        elif _reading_waits(same_sample):
            group = torch.where(same_sample, F.LEFT_OUT, F.UNGROUPED)
            column_group = group.new_full((len(number),), F.UNGROUPED)
        elif bool(same_sample.any()):  # cheaper than keys that are in nobody's support
            queue = queue[~same_sample]
        queue = queue.to(scores.keys)
        keys, out = scores.keys, None
        if not scores.requires_grad:
            out = acquire(_JOINED, len(queue) + len(keys), keys.shape[1], keys, keys.dtype)
        bias = None if scores.bias is None else torch.cat([scores.bias.new_zeros(len(queue)), scores.bias])
        joined = replace(scores, keys=torch.cat([queue, keys], out=out), bias=bias, local_keys=None)
        groups: dict[str, Any] = {}
        if column_group is not None:
            of_rows = torch.full_like(rows.target.long(), F.UNGROUPED) if rows.group is None else rows.group
            groups = {"group": of_rows, "column_group": torch.cat([group, column_group])}
        return replace(rows, scores=joined, target=rows.target + len(queue), **groups)


def _numbers(rows: Rows, columns: int) -> RowIndex:
    """Sample number of each column's key, of all processes."""
    return _of_targets(rows, rows.index, columns, _UNNUMBERED)


def _of_targets(rows: Rows, number: RowIndex | None, columns: int, missing: int) -> Tensor:
    """A number of the row whose target each column is, of all processes."""
    unnumbered = rows.target.new_full((columns + 1,), missing, dtype=torch.long)
    if number is None:
        return unnumbered[:columns]
    # A row of weight zero may have any negative target, such as -100: its number goes behind the last column.
    ignored = ~rows.has_weight & (rows.target < 0)
    targets, _ = distributed.gather_rows(rows.target.long().masked_fill(ignored, columns))
    numbers, _ = distributed.gather_rows(number.long())
    return unnumbered.scatter(0, targets, numbers)[:columns]


def _queries(rows: Rows, scores: LinearScores) -> Features:
    """The query whose target each column is, of all processes; zeros where there is none."""
    features, plain = rows.features, scores.bias is None and scores.transform is None
    if not (plain and features is not None and features.dtype == scores.queries.dtype):
        raise _not_replayed()
    if not same_memory(features, scores.queries):
        same = (features == scores.queries).all() if features.shape == scores.queries.shape else None
        if same is None or not (_reading_waits(same) or bool(same)):
            raise _not_replayed()
        if _reading_waits(same):
            _faults.check(same, lambda is_same: None if is_same else _not_replayed())
    columns = len(scores.keys)
    queries, _ = distributed.gather_rows(scores.queries.detach())
    # Those of rows that do not count go behind the last column.
    targets, _ = distributed.gather_rows(rows.target.long().masked_fill(~rows.has_weight, columns))
    return queries.new_zeros(columns + 1, queries.shape[1]).index_copy(0, targets, queries)[:columns]


def _not_replayed() -> ValueError:
    return ValueError(
        "expected rows that are plain products, and whose features are their queries, as those of pairs are; "
        "received others. Pass QueuedLoss(..., replay=0): what else a row needs is not kept."
    )
