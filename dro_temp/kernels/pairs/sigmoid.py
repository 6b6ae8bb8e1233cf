r"""Logistic losses of all pairs, each a classification of its own (SigLIP), without the score matrix.

With logits $l_{ij} = s_{ij} / \tau_i + b$ and $y_{ij} = 1$ at the target, -1 elsewhere, row i's value is
$\sum_j \log(1 + e^{-y_{ij} l_{ij}})$. The derivative with respect to a
logit is $q_{ij} = \sigma(l_{ij}) - [j = t_i]$.

    forward    s = q k^T                                           [rows m]  product 1
               sums of the losses, of q and of q s, along rows; with a second tau and b, along columns as well
    backward   dL/dtau_i = -u_i sum_j q_ij s_ij / tau_i^2,  dL/db = sum_i u_i sum_j q_ij
               G_ij = u_i / tau_i q_ij + w_j / tau_j q'_ij         [rows m]  in place of the scores
               dq = G k,  dk += G^T q                                        products 2 and 3

No largest score is needed, so sums add over stripes, in a fixed order. Scores that fit the byte budget are stored from
forward to backward; otherwise they are computed twice, which makes four products. On a GPU tiles replace the stripes
(`backends.triton.sigmoid_tiles`). Between processes numbers per row are exchanged, as in `pairs.exchanged`: here two.

Both sides of 4,096 pairs of width 512, forward and backward, float32, over the three products alone (0.29 s), and peak
memory above the features (one thread of an Intel Xeon with AVX-512, torch 2.14, 2026-11-27; medians and quartiles of
nine interleaved rounds, processor time):

    |                                            | time              | memory |
    | score matrix and autograd, each side alone | 6.10 [6.03, 6.23] | 782 MB |
    | scores stored, one tau and one b           | 1.39 [1.36, 1.44] |  92 MB |
    | scores stored, a tau and b of either side  | 1.66 [1.61, 1.71] |        |
    | computed twice, one tau and one b          | 1.64 [1.61, 1.69] |  34 MB |
    | computed twice, a tau and b of either side | 1.93 [1.87, 1.99] |  28 MB |
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dro_temp._autograd import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp._checks import values_can_be_read
from dro_temp._tensors import row_groups, work_dtype
from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.functional import ScoreTransform
from dro_temp.functional.kl import IMPOSSIBLE
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import Backend, FusedSigmoid, Groups, SideLogits
from dro_temp.kernels.exclusions import Exclusions
from dro_temp.kernels.memory import acquire, block_rows, fits_cache, release, scratch
from dro_temp.kernels.pairs.local import STRIPE
from dro_temp.kernels.pairs.tiled import heights_of, multiply_written, multiply_written_by_keys
from dro_temp.kernels.products import empty_contiguous, gradient_dtype, product

# A group of rows, while it is in the CPU's cache


def _flip_(x: Scores, target: Tensor) -> Scores:
    """Change the sign at the targets, [rows 1]."""
    return x.scatter_(1, target, -x.gather(1, target))


def _add_sums(
    scores: Scores, target: Tensor, tau: Tensor, bias: Tensor, sums: Sequence[tuple[int, Tensor]]
) -> None:
    """Add a group's sums along each of the dimensions to [3 size] or, of the losses alone, to [1 size].

    Args:
        scores: [rows m].
        target: positive column of each row, [rows 1].
        tau: temperature of each row, [rows 1], or of each column, [m].
        bias: [1].
        sums: dimensions, and what to add to.
    """
    with scratch(scores) as (x,):
        torch.addcmul(-bias, scores, -1.0 / tau, out=x)  # -l
        log_likelihood = torch.nn.functional.logsigmoid(_flip_(x, target))
    for dim, total in sums:
        total[0].sub_(log_likelihood.sum(dim))
    if len(sums[0][1]) == 1:
        return
    # 1 - sigma(x) from log sigma(x), no digit lost at either end.
    negative_slopes = _flip_(log_likelihood.expm1_(), target)
    for dim, total in sums:
        total[1].sub_(negative_slopes.sum(dim))
    negative_slopes.mul_(scores)
    for dim, total in sums:
        total[2].sub_(negative_slopes.sum(dim))


def _slopes(scores: Scores, target: Tensor, tau: Tensor, bias: Tensor, out: Scores) -> Scores:
    """Derivatives of a group's losses with respect to the logits; see `_add_sums`."""
    torch.addcmul(bias, scores, 1.0 / tau, out=out)
    return _flip_(_flip_(out, target).sigmoid_(), target)


def _have_same_logits(rows: SideLogits, columns: SideLogits) -> bool:
    """Whether one temperature and one bias serve both sides; False where that cannot be read without waiting."""
    parts = (rows.tau, columns.tau, rows.bias, columns.bias)
    if not values_can_be_read(*parts) or not len(rows.tau):
        return False
    one = rows.tau[:1]
    return all(bool((a == b).all()) for a, b in ((rows.tau, one), (columns.tau, one), parts[2:]))


# Stripes of some rows by all columns


@dataclass(frozen=True)
class SigmoidBlock:
    """A pass over a block of pairs, without its differentiable tensors.

    Args:
        target: positive column of each row, [n].
        backend: what computes on a stripe.
        transform: of the products and their bias, or None.
        exclusions: pairs without a term, or None.
        records_graph: whether autograd does.
    """

    target: RowIndex
    backend: Backend
    transform: ScoreTransform | None = None
    exclusions: Exclusions | None = None
    records_graph: bool = field(default_factory=torch.is_grad_enabled)

    #: False if a pass would not read scores that were stored by an earlier one.
    stores: ClassVar[bool] = True

    def sums(
        self,
        queries: Tensor,
        keys: Tensor,
        key_bias: Tensor | None,
        rows: SideLogits,
        columns: SideLogits | None,
        *,
        slopes: bool,
        store: str | None,
    ) -> tuple[Tensor, Tensor | None, Scores | None]:
        """Sums of each row, of each column (see `FusedSigmoid.sum_sigmoid_tiles`), and the scores if they are stored.

        Args:
            queries: [n d].
            keys: [m d].
            key_bias: added to the products, [m], or None.
            rows: the rows' logits.
            columns: the columns'; None: only rows have values.
            slopes: whether to sum what gradients of tau and bias need.
            store: purpose (see `acquire`) of scores that are stored for a second pass; None: none are.
        """
        n, m, count = len(queries), len(keys), 3 if slopes else 1
        row_sums = rows.tau.new_zeros(count, n)
        column_sums = None if columns is None else rows.tau.new_zeros(count, m)
        together = columns is not None and _have_same_logits(rows, columns)
        stored = None if store is None else acquire(store, n, m, queries, rows.tau.dtype)
        for at, scores in self._stripes(queries, keys, key_bias, rows.tau.dtype, stored, computed=False):
            of_rows, tau = row_sums[:, at], rows.tau[at, None]
            for group in row_groups(scores):
                part, target = scores[group], self.target[at][group, None]
                along_rows = [(1, of_rows[:, group])]
                if column_sums is not None and together:
                    _add_sums(part, target, tau[group], rows.bias, [*along_rows, (0, column_sums)])
                    continue
                _add_sums(part, target, tau[group], rows.bias, along_rows)
                if column_sums is not None and columns is not None:
                    _add_sums(part, target, columns.tau, columns.bias, [(0, column_sums)])
        return row_sums, column_sums, stored

    def gradients(
        self,
        queries: Tensor,
        keys: Tensor,
        key_bias: Tensor | None,
        rows: SideLogits,
        columns: SideLogits | None,
        scores: Scores | None,
        *,
        wanted: tuple[bool, bool, bool] = (True, False, False),
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of queries, keys and their bias; stored scores are overwritten, others are computed again."""
        dtype, (of_queries, of_keys, of_bias) = rows.tau.dtype, wanted
        narrow = keys.to(gradient_dtype(keys))
        queries_grad = empty_contiguous(queries, dtype) if of_queries else None
        keys_grad = empty_contiguous(keys, dtype) if of_keys else None
        bias_grad = rows.tau.new_zeros(len(keys)) if of_bias else None
        if keys_grad is not None and not len(queries):
            keys_grad.zero_()  # no stripe will overwrite it
        together = columns is not None and _have_same_logits(rows, columns)
        computed = scores is not None
        for at, stripe in self._stripes(queries, keys, key_bias, dtype, scores, computed=computed):
            for group in row_groups(stripe):
                inside = slice(at.start + group.start, at.start + group.stop)
                self._to_gradient_(stripe[group], inside, rows, columns, together=together)
            if queries_grad is not None:
                product(stripe, narrow, queries_grad[at])
            if keys_grad is not None:
                x = queries[at].to(dtype)
                self.backend.accumulate_(keys_grad, stripe, x, narrow.dtype, first=at.start == 0)
            if bias_grad is not None:
                bias_grad.add_(stripe.sum(0))
        return (
            None if queries_grad is None else queries_grad.to(queries.dtype),
            None if keys_grad is None else keys_grad.to(keys.dtype),
            bias_grad,
        )

    def _to_gradient_(
        self, scores: Scores, at: slice, rows: SideLogits, columns: SideLogits | None, *, together: bool
    ) -> None:
        """The gradient of a group's scores, in their place."""
        assert rows.share is not None
        target, share = self.target[at, None], rows.share[at, None]
        slope = None if self.transform is None else self.transform.slope_(scores.clone())
        if slope is not None and self.exclusions is not None:
            self.exclusions.fill_(slope, at, 0.0)
        with scratch(scores) as (other,):
            if columns is not None:
                assert columns.share is not None
                if together:
                    torch.add(share, columns.share, out=other)
                else:
                    _slopes(scores, target, columns.tau, columns.bias, other).mul_(columns.share)
            _slopes(scores, target, rows.tau[at, None], rows.bias, scores)
            if together:
                scores.mul_(other)
            else:
                scores.mul_(share)
                if columns is not None:
                    scores.add_(other)
        if slope is not None:
            scores.mul_(slope)

    def _stripes(
        self,
        queries: Tensor,
        keys: Tensor,
        key_bias: Tensor | None,
        dtype: torch.dtype,
        stored: Scores | None,
        *,
        computed: bool,
    ) -> Iterator[tuple[slice, Scores]]:
        """Rows and their scores, [rows m]: in `stored` if it is given, where they may be `computed` already."""
        n, m = len(queries), len(keys)
        step = block_rows(n, m * dtype.itemsize, queries.device, stored=stored is not None, most=STRIPE)
        buffer = acquire("scores", step, m, queries, dtype) if stored is None else stored
        score = None if computed else self.backend.scorer(queries, keys)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            scores = buffer[: rows.stop - start] if stored is None else buffer[rows]
            if score is not None:
                score(queries[rows], scores)
                self._finish_(scores, key_bias, self.target[rows, None])
                if self.exclusions is not None:  # loss, slope and gradient are zero there
                    self.exclusions.fill_(scores, rows)
            yield rows, scores
        if stored is None:
            release("scores", buffer)

    def _finish_(self, scores: Scores, key_bias: Tensor | None, target: Tensor) -> None:
        """Scores of products, in their place."""
        if key_bias is not None:
            scores.add_(key_bias)
        if self.transform is not None:
            self.transform.apply_(scores)
        if key_bias is not None or self.transform is not None:
            # An outcome that cannot happen counts nothing: zero times -inf would be NaN. A target that cannot happen
            # keeps its infinite value.
            of_target = scores.gather(1, target)
            scores.clamp_(min=IMPOSSIBLE).scatter_(1, target, of_target)


class TiledSigmoidBlock(SigmoidBlock):
    """A pass by tiles, on a GPU; see `SigmoidBlock`."""

    stores = False

    @property
    def _kernels(self) -> FusedSigmoid:
        assert self.backend.fused_sigmoid is not None
        return self.backend.fused_sigmoid

    def _groups(self, rows: slice) -> Groups | None:
        return None if self.exclusions is None else self.exclusions.groups(rows)

    def sums(
        self,
        queries: Tensor,
        keys: Tensor,
        key_bias: Tensor | None,
        rows: SideLogits,
        columns: SideLogits | None,
        *,
        slopes: bool,
        store: str | None,
    ) -> tuple[Tensor, Tensor | None, None]:
        """See `SigmoidBlock.sums`; nothing is stored."""
        assert key_bias is None
        assert store is None
        count = 3 if slopes else 1
        row_sums = rows.tau.new_zeros(count, len(queries))
        column_sums = None if columns is None else rows.tau.new_zeros(count, len(keys))
        for at in heights_of(queries, keys):
            part = SideLogits(rows.tau[at], rows.bias)
            row_sums[:, at], of_columns = self._kernels.sum_sigmoid_tiles(
                queries[at], keys, self.target[at], part, columns, slopes=slopes, groups=self._groups(at)
            )
            if column_sums is not None and of_columns is not None:
                column_sums.add_(of_columns)
        return row_sums, column_sums, None

    def gradients(
        self,
        queries: Tensor,
        keys: Tensor,
        key_bias: Tensor | None,
        rows: SideLogits,
        columns: SideLogits | None,
        scores: Scores | None,
        *,
        wanted: tuple[bool, bool, bool] = (True, False, False),
    ) -> tuple[Tensor | None, Tensor | None, None]:
        """See `SigmoidBlock.gradients`."""
        assert scores is None
        assert key_bias is None
        heights = heights_of(queries, keys)
        written = self._written(queries, keys, rows, columns, heights)
        if not wanted[1]:
            return multiply_written_by_keys(written, queries, keys, unit=None), None, None
        return *multiply_written(written, queries, keys, once=len(heights) == 1, unit=None), None

    def _written(
        self,
        queries: Tensor,
        keys: Tensor,
        rows: SideLogits,
        columns: SideLogits | None,
        heights: list[slice],
    ) -> Iterator[tuple[slice, Scores]]:
        """Rows, and the gradient with respect to their scores, [rows m], in the features' precision."""
        height = max((at.stop - at.start for at in heights), default=0)
        buffer = acquire("scores", height, len(keys), queries, queries.dtype)
        assert rows.share is not None
        for at in heights:
            part, out = SideLogits(rows.tau[at], rows.bias, rows.share[at]), buffer[: at.stop - at.start]
            options: Any = {"out": out, "groups": self._groups(at)}
            self._kernels.write_sigmoid_gradient(queries[at], keys, self.target[at], part, columns, **options)
            yield at, out
        release("scores", buffer)


def _block(
    queries: Features,
    keys: Features,
    target: RowIndex,
    backend: Backend,
    transform: ScoreTransform | None = None,
    exclusions: Exclusions | None = None,
    *,
    only_products: bool = True,
) -> SigmoidBlock:
    """The pass for these features: by tiles where the backend has kernels that are faster for them."""
    fused = backend.fused_sigmoid
    # Where pairs are classified well all gradients of scores are small, and float16 has no room for them.
    only_products = only_products and queries.dtype != torch.float16
    if fused is not None and only_products and fused.takes(queries, keys):
        return TiledSigmoidBlock(target, backend, exclusions=exclusions)
    return SigmoidBlock(target, backend, transform, exclusions)


# Nodes of the autograd graph


def sigmoid_losses(
    queries: Features,
    keys: Features,
    target: RowIndex,
    rows: tuple[PerRow, Tensor],
    columns: tuple[Tensor, Tensor] | None = None,
    *,
    key_bias: Tensor | None = None,
    transform: ScoreTransform | None = None,
    exclusions: Exclusions | None = None,
    backend: Backend = torch_backend,
) -> tuple[PerRow, Tensor | None]:
    r"""$-\sum_j \log \sigma(y_{ij} (s_{ij} / \tau_i + b))$ of each row and, with `columns`, $-\sum_i$ of each column.

    Args:
        queries: [n d].
        keys: [m d].
        target: positive column of each row, [n]; $y_{ij} = 1$ there and -1 elsewhere, for rows and for columns.
        rows: temperature of each row, [n], and their bias b, [1].
        columns: those of the columns, [m] and [1]; None: only rows have values.
        key_bias: added to the products $q k^\top$, [m].
        transform: elementwise function of them.
        exclusions: pairs without a term, in rows and in columns, or None.
        backend: what computes on a stripe.

    Raises:
        RuntimeError: under `torch.func` transforms, or for a second derivative.

    Example:
        >>> import torch
        >>> x, y, zero = torch.tensor([[2.0]]), torch.tensor([[1.0], [0.0]]), torch.zeros(1)
        >>> sigmoid_losses(x, y, torch.tensor([0]), (torch.ones(1), zero))[0]  # log(1 + e^-2) + log 2
        tensor([0.8201])

    Source: arXiv 2303.15343 (SigLIP).
    """
    refuse_transforms()
    only_products = key_bias is None and transform is None
    block = _block(queries, keys, target.long(), backend, transform, exclusions, only_products=only_products)
    dtype = work_dtype(queries, keys)
    numbers = [None if x is None else x.to(dtype) for x in (key_bias, *rows, *(columns or (None, None)))]
    return _Values.apply(block, queries, keys, *numbers)  # type: ignore[no-untyped-call, no-any-return]


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: SigmoidBlock,
        queries: Tensor,
        keys: Tensor,
        key_bias: Tensor | None,
        tau_rows: Tensor,
        bias_rows: Tensor,
        tau_columns: Tensor | None,
        bias_columns: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        # Leaves require gradients even where no graph is recorded: nothing is stored for a backward that cannot come.
        has_backward = block.records_graph and any(ctx.needs_input_grad[1:4])
        slopes = block.records_graph and any(ctx.needs_input_grad[4:])
        stores = has_backward and block.stores and fits_cache(len(queries) * len(keys), tau_rows.dtype)
        rows, columns = SideLogits(tau_rows, bias_rows), None
        if tau_columns is not None and bias_columns is not None:
            columns = SideLogits(tau_columns, bias_columns)
        store = "pair scores" if stores else None
        row_sums, column_sums, ctx.scores = block.sums(
            queries, keys, key_bias, rows, columns, slopes=slopes, store=store
        )
        ctx.block = block
        inputs = (queries, keys, key_bias, tau_rows, bias_rows, tau_columns, bias_columns)
        ctx.save_for_backward(*inputs, row_sums[1:], None if column_sums is None else column_sums[1:])
        return row_sums[0].clone(), None if column_sums is None else column_sums[0].clone()

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        queries, keys, key_bias, tau_rows, bias_rows, tau_columns, bias_columns, *slopes = ctx.saved_tensors
        rows, columns = SideLogits(tau_rows, bias_rows, grads[0] / tau_rows), None
        if tau_columns is not None:
            columns = SideLogits(tau_columns, bias_columns, grads[1] / tau_columns)
        of_features: tuple[Tensor | None, ...] = (None, None, None)
        if any(ctx.needs_input_grad[1:4]):
            # Overwritten here: a second backward through a retained graph computes the scores again.
            scores, ctx.scores = ctx.scores, None
            wanted = ctx.needs_input_grad[1:4]
            of_features = ctx.block.gradients(queries, keys, key_bias, rows, columns, scores, wanted=wanted)
            if scores is not None:
                release("pair scores", scores)
        of_columns = (None, None) if columns is None else _of_logits(columns, slopes[1])
        return None, *of_features, *_of_logits(rows, slopes[0]), *of_columns


def _of_logits(side: SideLogits, slopes: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of temperatures and bias, from the sums of q and of q s, [2 n]; None where these were not wanted."""
    if not len(slopes):
        return None, None
    assert side.share is not None
    return -side.share * slopes[1] / side.tau, (side.share * side.tau * slopes[0]).sum().view(1)


def exchanged_sigmoid_losses(
    sides: tuple[Features, Features],
    everyone: tuple[Features, Features],
    target: RowIndex,
    logits: tuple[tuple[PerRow, Tensor], tuple[PerRow, Tensor]],
    *,
    gather: Callable[[Tensor], Tensor],
    exclusions: tuple[Exclusions, Exclusions] | None = None,
    backend: Backend = torch_backend,
) -> tuple[PerRow, PerRow]:
    r"""Values of this process's rows on both sides, of pairs that several processes share; see `pairs.exchanged`.

    What a feature gets as a column of the rows elsewhere is formed here, from two numbers of each of these rows: its
    temperature and $w_j / \tau_j$.

    Args:
        sides: this process's rows of each side, [n d].
        everyone: all processes' rows of each side, [m d], without gradient.
        target: number of each of this process's pairs among all, [n].
        logits: temperature of each row, [n], and their bias, [1], of each side; a bias is the same on all processes.
        gather: concatenates the rows of all processes; called once in backward, on every process.
        exclusions: pairs without a term, of either side's rows, or None; on all processes alike.
        backend: what computes on a stripe.

    Raises:
        RuntimeError: under `torch.func` transforms, or for a second derivative.

    Example:
        >>> import torch
        >>> x, target, logits = torch.zeros(1, 2), torch.tensor([0]), (torch.ones(1), torch.zeros(1))
        >>> exchanged_sigmoid_losses((x, x), (x, x), target, (logits, logits), gather=lambda rows: rows)[0]
        tensor([0.6931])
    """
    refuse_transforms()
    of_sides = (None, None) if exclusions is None else exclusions
    blocks = [
        _block(sides[0], everyone[1], target.long(), backend, exclusions=of_side) for of_side in of_sides
    ]
    dtype = work_dtype(*sides)
    numbers = [x.to(dtype) for side in logits for x in side]
    first, second = _BothSides.apply(  # type: ignore[no-untyped-call]
        blocks, gather, *sides, *(x.detach() for x in everyone), *numbers
    )
    return first, second


# Purposes of stored scores, see `memory.acquire`.
_PURPOSES = ("scores of x", "scores of y")


class _BothSides(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        blocks: list[SigmoidBlock],
        gather: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        all_x: Tensor,
        all_y: Tensor,
        *numbers: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.blocks, ctx.gather, block = blocks, gather, blocks[0]
        has_backward = block.records_graph and any(ctx.needs_input_grad[2:4])
        slopes = block.records_graph and any(ctx.needs_input_grad[6:])
        stores = has_backward and block.stores and fits_cache(2 * len(x) * len(all_x), numbers[0].dtype)
        sides = (x, all_y, SideLogits(*numbers[:2])), (y, all_x, SideLogits(*numbers[2:]))
        values, sums, ctx.scores = [], [], []
        for purpose, block, (rows, columns, logits) in zip(_PURPOSES, blocks, sides, strict=True):
            store = purpose if stores else None
            found, _, scores = block.sums(rows, columns, None, logits, None, slopes=slopes, store=store)
            values.append(found[0].clone())
            sums.append(found[1:])
            ctx.scores.append(scores)
        ctx.save_for_backward(x, y, all_x, all_y, *numbers, *sums)
        return tuple(values)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, all_x, all_y, tau_x, bias_x, tau_y, bias_y, *slopes = ctx.saved_tensors
        of_x = SideLogits(tau_x, bias_x, grads[0] / tau_x)
        of_y = SideLogits(tau_y, bias_y, grads[1] / tau_y)
        features_grad: list[Tensor | None] = [None, None]
        if any(ctx.needs_input_grad[2:4]):
            numbers = torch.stack([tau_x, tau_y, grads[0] / tau_x, grads[1] / tau_y], 1)
            all_tau_x, all_tau_y, share_x, share_y = ctx.gather(numbers).unbind(1)  # four of [m]
            others = SideLogits(all_tau_y, bias_y, share_y), SideLogits(all_tau_x, bias_x, share_x)
            stored, ctx.scores = ctx.scores, (None, None)
            passes = zip(((x, all_y, of_x), (y, all_x, of_y)), others, stored, _PURPOSES, strict=True)
            for k, ((rows, columns, own), other, scores, purpose) in enumerate(passes):
                features_grad[k] = ctx.blocks[k].gradients(rows, columns, None, own, other, scores)[0]
                if scores is not None:
                    release(purpose, scores)
        of_logits = *_of_logits(of_x, slopes[0]), *_of_logits(of_y, slopes[1])
        return None, None, *features_grad, None, None, *of_logits
