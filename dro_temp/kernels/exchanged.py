"""Both sides of pairs that several processes share, where only features and per-row numbers travel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, Scores
from dro_temp.kernels import pair_passes
from dro_temp.kernels.budget import block_rows, fits_cache
from dro_temp.kernels.passes import NOT_AN_OUTCOME, row_groups
from dro_temp.kernels.products import product, score_dtype, work_dtype
from dro_temp.kernels.refusals import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp.kernels.stripes import Coupling, PairBlock, PairPasses
from dro_temp.kernels.workspace import borrow, give_back

#: This process's rows -> those of all processes, in rank order; no gradient.
Gather: TypeAlias = Callable[[Tensor], Tensor]


def log_sums_of_both_sides(
    sides: tuple[Features, Features],
    everyone: tuple[Features, Features],
    taus: tuple[PerRow, PerRow],
    *,
    offset: int,
    gather: Gather,
    passes: PairPasses = pair_passes,
) -> tuple[PerRow, PerRow]:
    r"""$\log \sum_{j \neq i} e^{(s_{ij} - s_{ii}) / \tau_i}$ of this process's rows on both sides.

    A feature gets gradient from its own row, and as a column from every row of the other side, wherever that row is.
    The second part needs no other process to form it: with this process's features x and all features y,

    $$\frac{\partial L}{\partial x_i}
    = \sum_j \left(\frac{u_i}{\tau_i} p_{ij} + \frac{w_j}{\tau_j} p'_{ij}\right) y_j,$$

    where of each row j elsewhere three numbers are wanted: its temperature, its largest score, and
    $w_j / (\tau_j \sum_i e_{ij})$. Gathering those replaces the sum over processes of both sides' gradients.

    Args:
        sides: this process's rows of each side, [n d].
        everyone: all processes' rows of each side, [m d], without gradient.
        taus: temperature of each row, of each side.
        offset: where this process's rows start among all.
        gather: brings rows of all processes together; called once in backward, on every process.
        passes: the elementwise passes.

    Raises:
        RuntimeError: under `torch.func` transforms, or where a second derivative is asked for.

    Example:
        >>> import torch
        >>> x, y, tau = torch.eye(3), torch.eye(3), torch.ones(3)
        >>> log_sums_of_both_sides((x, y), (x, y), (tau, tau), offset=0, gather=lambda rows: rows)[0]
        tensor([-0.3069, -0.3069, -0.3069])

    Source: arXiv 2407.01445 (FastCLIP), section 4, there with a constant number per row.
    """
    refuse_transforms()
    block = PairBlock(offset, passes, torch.is_grad_enabled())
    work = work_dtype(*sides)
    first, second = _BothSides.apply(  # type: ignore[no-untyped-call]
        block, gather, *sides, *(x.detach() for x in everyone), *(tau.to(work) for tau in taus)
    )
    return first, second


@dataclass(frozen=True)
class _Summed:
    """Sums of one side's rows; scores that were kept, or None."""

    own: Tensor
    top: Tensor
    total: Tensor
    excess: Tensor
    kept: Scores | None

    def log_sums(self, tau: PerRow) -> PerRow:
        return (self.top - self.own) / tau + self.total.log()

    def slope(self, tau: PerRow) -> PerRow:
        return -(self.excess + (self.top - self.own)) / tau.square()


def _sum(block: PairBlock, queries: Tensor, keys: Tensor, tau: PerRow, purpose: str | None) -> _Summed:
    """Sweep this process's rows of one side; with a purpose the scores are kept."""
    n, m, work = len(queries), len(keys), tau.dtype
    wide, keeps = keys.to(score_dtype(keys)), purpose is not None
    height = n if keeps else block_rows(n, m, work, queries.device)
    buffer = borrow(purpose or "scores", height, m, queries, work)
    own, top, total, excess = (queries.new_empty(n, dtype=work) for _ in range(4))
    for rows, column in block.stripes(queries, keys, kept=keeps):
        scores = product(queries[rows], wide.T, buffer[rows] if keeps else buffer[: rows.stop - rows.start])
        own[rows] = scores.gather(1, column).squeeze(1)
        scores.scatter_(1, column, NOT_AN_OUTCOME)
        for group in row_groups(scores):
            at = slice(rows.start + group.start, rows.start + group.stop)
            found = block.passes.sum_rows(scores[group], tau[at])
            top[at], total[at], excess[at] = found.top, found.total, found.excess
    if not keeps:
        give_back("scores", buffer)
    return _Summed(own, top, total, excess, buffer if keeps else None)


class _BothSides(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: PairBlock,
        gather: Gather,
        x: Tensor,
        y: Tensor,
        all_x: Tensor,
        all_y: Tensor,
        tau_x: Tensor,
        tau_y: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.block, ctx.gather, work = block, gather, tau_x.dtype
        coupled_later = block.records and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3])
        keeps = coupled_later and fits_cache(2 * len(x) * len(all_x), work)
        first = _sum(block, x, all_y, tau_x, "kept" if keeps else None)
        second = _sum(block, y, all_x, tau_y, "kept too" if keeps else None)
        ctx.kept = (first.kept, second.kept)
        sums = (first.top, first.total, second.top, second.total)
        ctx.save_for_backward(
            x, y, all_x, all_y, tau_x, tau_y, *sums, first.slope(tau_x), second.slope(tau_y)
        )
        return first.log_sums(tau_x), second.log_sums(tau_y)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, all_x, all_y, tau_x, tau_y, top_x, total_x, top_y, total_y, slope_x, slope_y = ctx.saved_tensors
        u, w = grads
        a, b = u / tau_x, w / tau_y
        to_x: Tensor | None = None
        to_y: Tensor | None = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            mine = torch.stack([tau_x, top_x, a / total_x, tau_y, top_y, b / total_y], 1)
            theirs = ctx.gather(mine).unbind(1)
            of_x, of_y = tuple(mine.unbind(1)[:3]), tuple(mine.unbind(1)[3:])
            (kept_x, kept_y), ctx.kept = ctx.kept, (None, None)
            # Each pair's own score is in both of its rows, and both are here.
            to_x = Coupling(-(a + b), *of_x, *theirs[3:]).pull(ctx.block, x, all_y, kept_x)
            to_y = Coupling(-(a + b), *of_y, *theirs[:3]).pull(ctx.block, y, all_x, kept_y)
            for purpose, kept in (("kept", kept_x), ("kept too", kept_y)):
                if kept is not None:
                    give_back(purpose, kept)
        return None, None, to_x, to_y, None, None, u * slope_x, w * slope_y
