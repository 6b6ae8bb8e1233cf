"""A random sample of the rows of one view, and their robust losses at several temperatures."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.evaluation._batches import SCORES_AT_A_TIME, weight_of, with_progress
from dro_temp.functional import UNGROUPED
from dro_temp.functional.kl import IMPOSSIBLE, log_tau_at
from dro_temp.functional.resampling import generator
from dro_temp.interfaces import LinearScores, Rows, TemperaturePredictor

_UNDERFLOWS = -800.0  # exp of it is 0 in float64; minus infinity times that zero would be NaN
_STEPS = 100  # ten are usual; halving alone takes 60 from any bounds to rounding
_SMALL_STEP = 1e-9  # in log tau: the loss is then at rounding

OUTCOMES_AT_A_TIME = 2**20  # 8 MiB in float64; a few copies of it are needed


class Part(NamedTuple):
    """Rows of one batch that are in the sample so far, and their predicted temperatures."""

    key: Tensor  # a random number of each, float64, on the CPU: the sample is the rows of the smallest keys
    rows: Rows
    tau: PerRow

    def up_to(self, highest: float) -> "Part":
        """Those with keys that are not higher."""
        kept = (self.key <= highest).nonzero()[:, 0]
        index = kept.to(self.tau.device)
        same = len(kept) == len(self.key)
        return self if same else Part(self.key[kept], self.rows.select(index), self.tau[index])


class RowSample:
    """A number of rows without replacement, from a stream of unknown length.

    Scores that are products stay products. Score matrices, where a host gives these, are stored for the sampled rows
    alone. Rows of pairs are scored against the keys of all batches, so these are stored. Temperatures are predicted
    from the rows of a batch, as in training. How rows are cut into batches does not change which are drawn.
    """

    def __init__(self, view: str, predictor: TemperaturePredictor, size: int, seed: int) -> None:
        self.view, self.predictor, self.size = view, predictor, size
        self.available = 0
        self._parts: list[Part] = []
        self._rng = generator(seed)
        self._batches: list[LinearScores] = []  # without queries: the keys of all pairs
        self._groups: list[Tensor] = []  # of these keys, where a batch has any

    def offer(self, rows: Rows) -> None:
        """Sample from the rows of a batch."""
        # A pair that is a batch of its own has others in the data set.
        single = not (rows.target_in_support or self.predictor.reads_scores)
        number = (weight_of(rows) > 0 if single else rows.valid).nonzero()[:, 0]
        self.available += len(number)
        key = torch.rand(len(number), generator=self._rng, dtype=torch.float64)
        keys = torch.cat([key, *(part.key for part in self._parts)])
        highest = float(keys.kthvalue(self.size).values) if len(keys) > self.size else 1.0
        self._parts = [part for before in self._parts if len((part := before.up_to(highest)).key)]
        taken = key <= highest
        chosen = rows.select(number[taken.to(number.device)])
        placed = chosen if rows.target_in_support else self._placed_in_all_batches(chosen)
        if len(chosen):
            self._parts.append(Part(key[taken], self._sharing_keys(placed), self._temperatures(chosen)))

    def drawn(self) -> tuple[list[Rows], PerRow]:
        """The rows, each over its whole support, and their temperatures."""
        if not self._parts:
            raise ValueError(
                f"expected batches with at least one row that counts in view {self.view!r}, received none. Pass "
                "batches that are not empty, with labels other than -100."
            )
        rows = [part.rows for part in self._parts]
        tau = torch.cat([part.tau for part in self._parts])
        return [self._over_all_keys(rows)] if self._batches else rows, tau

    def _temperatures(self, rows: Rows) -> PerRow:
        if not self.predictor.reads_scores:
            # As `predict` does, which would treat a pair without others in its batch as invalid.
            tau: PerRow = self.predictor(rows.features, index=rows.index, shape=rows.target.shape)
            return tau
        step = max(1, SCORES_AT_A_TIME // max(1, rows.scores.shape[1]))
        blocks = (slice(start, start + step) for start in range(0, len(rows), step))
        return torch.cat([self.predictor.predict(rows.select(block)) for block in blocks])

    def _sharing_keys(self, rows: Rows) -> Rows:
        """The same rows; keys that equal those of the previous rows are stored once."""
        before, own = self._parts[-1].rows.scores if self._parts else None, rows.scores
        if not isinstance(before, LinearScores) or not isinstance(own, LinearScores):
            return rows
        copied = own.keys.data_ptr() != before.keys.data_ptr() and torch.equal(own.keys, before.keys)
        return replace(rows, scores=replace(own, keys=before.keys)) if copied else rows

    def _placed_in_all_batches(self, pairs: Rows) -> Rows:
        """Pairs of a batch, with targets that count over the keys of all batches, which are stored."""
        scores = pairs.scores
        if not isinstance(scores, LinearScores):
            raise TypeError(
                f"expected products (LinearScores) in view {self.view!r}, since the support is the whole data set, "
                f"received a matrix of scores {list(scores.shape)}. Pass an Objective of a host of pairs, such as "
                "hosts.TwoTower."
            )
        before = sum(batch.shape[1] for batch in self._batches)
        self._batches.append(scores.select(slice(0)))
        alone = pairs.target.new_full((scores.shape[1],), UNGROUPED, dtype=torch.long)
        self._groups.append(alone if pairs.column_group is None else pairs.column_group.long())
        return replace(pairs, target=pairs.target.long() + before)

    def _over_all_keys(self, parts: list[Rows]) -> Rows:
        """Those pairs, scored against the keys of all batches."""
        biases = [scores.bias for scores in self._batches if scores.bias is not None]
        scores = LinearScores(
            torch.cat([rows.scores.queries for rows in parts if isinstance(rows.scores, LinearScores)]),
            torch.cat([scores.keys for scores in self._batches]),
            torch.cat(biases) if biases else None,
            self._batches[0].transform,
        )
        target, weight = torch.cat([r.target for r in parts]), torch.cat([weight_of(r) for r in parts])
        rows = Rows(scores, target, target_in_support=False, weight=weight)
        if all(part.group is None for part in parts):
            return rows
        alone = [torch.full_like(part.target.long(), UNGROUPED) for part in parts]
        group = torch.cat(
            [a if part.group is None else part.group.long() for a, part in zip(alone, parts, strict=True)]
        )
        rows = replace(rows, group=group, column_group=torch.cat(self._groups))
        # A row without outcomes in the whole data set says nothing of its temperature.
        valid = rows.valid
        return replace(rows, group=torch.where(valid, group, UNGROUPED), weight=weight * valid)


class Margins:
    """Margins of some rows over their support; a temperature costs one exponential per outcome.

    `functional.optimal_tau` finds the same optimum in a fixed number of steps, which compiles; here rows that have
    converged drop out, which takes a twentieth of the time.
    """

    def __init__(self, rows: Rows, rho: float) -> None:
        dtype = torch.float32 if rows.target.device.type == "mps" else torch.float64
        h, excluded = replace(rows, scores=rows.dense_scores.to(dtype)).margins, rows.excluded
        h = h if excluded is None else h.masked_fill_(excluded, IMPOSSIBLE)
        if not rows.target_in_support:  # the last outcome takes the target's place
            h = h.scatter_(1, rows.target.long()[:, None], h[:, -1:].clone())[:, :-1]
        self.rho, self.log_size = rho, h.new_full((len(h),), math.log(h.shape[1]))
        if rows.group is not None:
            self.log_size = rows.log_support_sizes(h)
        self.top = h.amax(1)
        self._below: Scores = h.sub_(self.top[:, None])

    def at(self, tau: PerRow, rows: Tensor | None = None) -> tuple[PerRow, PerRow, PerRow]:
        """F = tau (log mean_j exp(h_j / tau) + rho), KL(p||U) and -dKL/dlog(tau) = Var_p(h / tau) of the rows.

        One temperature each; `rows` are the numbers of some of them.
        """
        parts = (self._below, self.top, self.log_size)
        below, top, log_size = parts if rows is None else (x[rows] for x in parts)
        z = (below / tau[:, None]).clamp_(min=_UNDERFLOWS)
        p = z.exp()
        total = p.sum(1)
        mean = torch.linalg.vecdot(p, z) / total
        square = torch.linalg.vecdot(p.mul_(z), z) / total
        log_g = total.log() - log_size
        return tau * (log_g + self.rho) + top, mean - log_g, (square - mean.square()).clamp_(min=0)

    def optimum(self, tau_min: float, tau_max: float) -> PerRow:
        """The temperature of each row that minimises its loss within the bounds."""
        floor, ceiling = (torch.full_like(self.top, bound) for bound in (tau_min, tau_max))
        too_high, too_low = self.at(floor)[1] <= self.rho, self.at(ceiling)[1] >= self.rho
        # Right for normally distributed margins: KL = variance / (2 tau^2).
        spread = self._below.std(1, correction=0)
        start = (spread / math.sqrt(2 * max(self.rho, 1e-12))).clamp(tau_min, tau_max).log()
        kl_and_slope, bounds = lambda tau, rows: self.at(tau, rows)[1:], (floor.log(), ceiling.log())
        tau = log_tau_at(self.rho, kl_and_slope, *bounds, _STEPS, start=start, tolerance=_SMALL_STEP).exp()
        return tau.clamp_(tau_min, tau_max).masked_fill_(too_high, tau_min).masked_fill_(too_low, tau_max)


@dataclass(frozen=True)
class RobustLosses:
    """Temperatures of rows and their robust losses at these, float64 on the CPU."""

    weight: PerRow
    tau: PerRow  # predicted
    optimum: PerRow
    constant: float  # the best constant on these rows
    at: dict[str, PerRow]  # by the names that `AmortisationGap` has for their means

    def mean(self, x: PerRow) -> float:
        """Weighted mean over rows."""
        return float(self.weight @ x) / float(self.weight.sum())


def robust_losses(
    view: str, rows: list[Rows], tau: PerRow, rho: float, bounds: tuple[float, float], title: str | None
) -> RobustLosses:
    """Losses of batches of rows with these predicted temperatures; margins exist a block at a time."""
    tau = tau.detach().cpu().double()
    weight = torch.cat([weight_of(r) for r in rows]).detach().cpu().double()
    share, blocks, columns = weight / weight.sum(), [], []
    for batch in rows:
        step = max(1, OUTCOMES_AT_A_TIME // batch.scores.shape[1])
        blocks += [batch.select(slice(first, first + step)) for first in range(0, len(batch), step)]
    parts = zip(blocks, torch.split(tau, [len(block) for block in blocks]), strict=True)
    for block, predicted in with_progress(list(parts), title):
        margins = Margins(block, rho)
        best = margins.optimum(*bounds)
        taus = best, predicted.to(best), torch.full_like(best, float(share @ tau))
        columns.append(torch.stack([best, *(margins.at(t)[0] for t in taus)]).cpu().double())
    optimum, at_optimum, at_tau, at_mean = torch.cat(columns, 1)
    bad = ~torch.stack([tau, optimum, at_optimum, at_tau]).isfinite().all(0)
    if bool(bad.any()):
        raise FloatingPointError(
            f"expected finite scores and temperatures in view {view!r}, received NaN or infinity in {int(bad.sum())} "
            f"of {len(bad)} sampled rows. Look at the inputs, or load a checkpoint from before the model diverged."
        )
    constant, at_constant = _best_constant(blocks, share, optimum, rho)
    names = "loss", "loss_optimum", "loss_same_mean", "loss_constant"
    losses = dict(zip(names, (at_tau, at_optimum, at_mean, at_constant), strict=True))
    return RobustLosses(weight, tau, optimum, constant, losses)


def _best_constant(blocks: list[Rows], share: PerRow, optimum: PerRow, rho: float) -> tuple[float, PerRow]:
    """The constant of lowest mean loss, between the lowest and the highest optimum by convexity; and its losses."""

    def at(tau: float) -> Tensor:
        margins = (Margins(block, rho) for block in blocks)
        return torch.cat([torch.stack(m.at(torch.full_like(m.top, tau))).cpu().double() for m in margins], 1)

    def kl_and_slope(tau: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        _, kl, slope = at(float(tau)) @ share
        return kl[None], slope[None]

    ends = optimum.aminmax()
    low, high = (end.log()[None] for end in ends)
    start = (share @ optimum.log())[None].clamp(low, high)
    # A step of 1e-7 is below what the mean loss, flat there, can show. A minimum at an end is approached in such steps.
    best = math.exp(float(log_tau_at(rho, kl_and_slope, low, high, _STEPS, start=start, tolerance=1e-7)))
    best = next((float(end) for end in ends if math.isclose(end, best, rel_tol=1e-6)), best)
    return best, at(best)[0]
