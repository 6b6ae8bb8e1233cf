r"""The pass over chunks of rows on a GPU: one kernel between the products, and nothing before or after them.

    scores  = scale * queries @ keys.T                   [rows m]  product 1
    tau     = predictor(scores)                          [rows]    or an input; statistics take one more read
    G       = scale u / tau (softmax(s / tau) - onehot)  [rows m]  the kernel, in the precision of products 2 and 3
    dq      = G @ keys                                   [rows d]  product 2
    dk     += G.T @ queries                              [m d]     product 3, adding inside the product

On a GPU a pass over [rows m] costs a tenth of a product, and one over [m d] (the float32 gradient of a head) not much
less. So the row's share, the target's term, a bias and a soft cap are inside the kernel; the scale is a factor of
product 1; product 3 adds to the gradient itself; blocks are as large as memory allows (`memory.device_block`).

The kernel needs dL/dlog_g of its rows before it has summed them, to do both in one launch. Where that depends on log_g
(`GradOutput.affine`), it is launched twice.

float16 alone is scaled by a power of two, since u may be below its smallest number.
"""

import math
from dataclasses import replace

import torch

from dro_temp._tensors import LOW
from dro_temp._typing import PerRow, Scores
from dro_temp.functional.statistics import tilted_statistics
from dro_temp.functional.transforms import Scale, SoftCap
from dro_temp.kernels.backends.protocol import Coefficients, RowBlock
from dro_temp.kernels.memory import acquire, acquire_block, block_rows, release
from dro_temp.kernels.products import gradient_dtype, multiply
from dro_temp.kernels.rows.chunked import ChunkedForward, GradMask, GradOutput

_MOMENTS = {"max", "mean", "std", "norm"}


class FusedForward(ChunkedForward):
    """A pass over rows of products on a GPU; see `ChunkedForward`."""

    @staticmethod
    def knows(transform: object) -> bool:
        """Whether the kernel can apply a transform of scores."""
        return isinstance(transform, SoftCap | Scale | None)

    def _start(self, n: int, mask: GradMask) -> None:
        assert self.plan.backend.fused_rows is not None
        self._kernel = self.plan.backend.fused_rows
        self.score_dtype = self.plan.score_dtype
        # Products of half-precision factors; those of float32 keep their digits unless scores need not.
        low = self.score_dtype in LOW
        self._factor = self.score_dtype if low else gradient_dtype(self.keys)
        super()._start(n, mask)
        self._narrow_keys = self.keys.to(self._factor)
        # Of product 1, [m d]; the same copy wherever it may be.
        exact = low or self._factor == self.keys.dtype
        self._keys = self._narrow_keys if exact else self.keys.to(self.dtype)
        predictor = self.plan.predictor
        reads = predictor is not None and predictor.reads_scores and self.tau is None
        #: Whether bias and cap are applied to the scores in memory, since others than the kernel read them.
        self._finishes = reads or self.plan.reads_label or bool(_MOMENTS & set(self.plan.statistics))

    def _allocate_block(self, n: int, mask: GradMask) -> None:
        m, device = len(self.keys), self.queries.device
        beside = mask.scores and self._factor != self.score_dtype
        row_bytes = m * (self.score_dtype.itemsize + (self._factor.itemsize if beside else 0))
        rows = block_rows(n, row_bytes, device)
        rounds = self._factor == torch.bfloat16 == self.keys.dtype
        # All rows at once need no gradient of the keys in float32, which takes memory and a pass of its own.
        saved = self.keys.numel() * self.dtype.itemsize if mask.keys and rounds else 0
        if n * row_bytes <= rows * row_bytes + saved and device.type == "cuda":
            rows = max(n, 1)
        self._buffer = acquire_block(rows, m, self.queries, self.score_dtype)  # [rows m]
        if rounds and len(self._buffer) >= n:
            self._grad_dtype = torch.bfloat16

    def _score(self, chunk: slice, scores: Scores) -> None:
        multiply(self.queries[chunk].to(self._keys.dtype), self._keys.T, scores, scale=self.scale)
        if self._finishes:
            if self.bias is not None:
                scores.add_(self.bias)
            if self.transform is not None:
                self.transform.apply_(scores)

    def _reduce(self, chunk: slice, scores: Scores, mask: GradMask, grad_output: GradOutput | None) -> None:
        kernel, plan, result, target = self._kernel, self.plan, self._result, self.plan.target[chunk]
        statistics, label, profile = {}, None, None
        if plan.exclusions is not None and self._finishes:  # others than the kernel read the scores
            plan.exclusions.fill_(scores, chunk)
        if plan.reads_label:
            label, profile = self._label(scores, scores.gather(1, target[:, None]).squeeze(1))
        if _MOMENTS & set(plan.statistics):
            statistics = self.backend.moments(scores, target, plan.target_in_support, plan.statistics)
        if self.tau is not None:
            tau = self.tau[chunk].to(self.dtype)
        else:
            assert self._temperatures is not None
            tau = self._temperatures.predict(chunk, scores, profile)
        log_m = math.log(max(plan.support_size, 1))
        log_sizes = None if plan.log_support_sizes is None else plan.log_support_sizes[chunk]
        block = RowBlock(
            scores,
            target,
            plan.target_in_support,
            log_m if log_sizes is None else 0.0,
            None if self._finishes else self.bias,
            self.transform.cap if isinstance(self.transform, SoftCap) else None,
            self._finishes,
            None if plan.exclusions is None else plan.exclusions.groups(chunk),
        )
        known, weights, u = None, None, None
        of_scores = None
        if grad_output is not None and grad_output.of_scores is not None:
            of_scores = grad_output.of_scores(chunk)
        if mask.scores:
            weights = scores
            if self._factor != scores.dtype:
                weights = acquire("weights", len(scores), scores.shape[1], scores, self._factor)
            u = torch.ones_like(tau) if grad_output is None else grad_output.of_log_g(tau, chunk)
            known = None if u is None else self._coefficients(u, of_scores)
        rows = kernel.tilt_rows(block, tau, variance=plan.differentiable, known=known, out=weights)
        if log_sizes is not None:
            rows = replace(rows, log_g=rows.log_g - log_sizes)
        slope = -(rows.mean - rows.target_score) / tau.square()  # dlog_g / dtau
        if grad_output is None:
            u, v = torch.ones_like(tau), torch.zeros_like(tau)
        else:
            standing = (label,) if grad_output.reads_label else ()
            u, v = grad_output.function(rows.log_g, tau, chunk, *standing)
        if weights is not None:
            if known is None:
                known = self._coefficients(u, of_scores)
                kernel.write_gradient(block, tau, rows, known, out=weights)
            self._accumulate_weights(chunk, weights)
            if weights is not scores:
                release("weights", weights)
        grad_tau = u * slope + v
        if rows.variance is not None:
            mean_slope = -rows.variance / tau.square()
            if of_scores is not None:
                grad_tau = grad_tau + of_scores[0] * mean_slope
            assert result.mean_score is not None
            assert result.mean_slope is not None
            assert result.target_score is not None
            result.mean_score[chunk], result.mean_slope[chunk] = rows.mean, mean_slope
            result.target_score[chunk] = rows.target_score
        if self._temperatures is not None:
            self._temperatures.accumulate(grad_tau)
        result.log_g[chunk], result.tau[chunk], result.slope[chunk] = rows.log_g, tau, slope
        if label is not None:
            statistics |= label._asdict()
        if plan.statistics:
            statistics |= tilted_statistics(
                rows.log_g,
                rows.target_score / tau,
                rows.mean / tau,
                log_m if log_sizes is None else log_sizes,
                plan.statistics,
            )
            for name, value in statistics.items():
                result.statistics[name][chunk] = value

    def _coefficients(self, u: PerRow, of_scores: tuple[PerRow, PerRow] | None) -> Coefficients:
        """What the kernel multiplies into the gradient of each row."""
        parts, self._unit = [x * self.scale for x in (u, *(of_scores or ()))], None
        if self._factor == torch.float16:
            largest = torch.stack([x.abs().amax() for x in parts]).amax().clamp(min=torch.finfo(u.dtype).tiny)
            self._unit = torch.exp2(largest.log2().ceil())
            parts = [x / self._unit for x in parts]
        return Coefficients(*parts)

    def _accumulate_weights(self, chunk: slice, weights: Scores) -> None:
        """Products 2 and 3 of a chunk, from the gradient of its scores."""
        result, unit = self._result, self._unit
        if result.bias is not None:
            part = weights.sum(0, dtype=self.dtype)  # [m]
            result.bias.add_(part if unit is None else part * unit)
        if result.queries is not None:
            dq = multiply(weights, self._narrow_keys, result.queries[chunk])  # [rows d]
            if unit is not None:
                dq.mul_(unit)
        if result.keys is not None:
            queries = self.queries[chunk].to(self._factor)  # [rows d]
            first = chunk.start == 0
            if unit is None:
                multiply(weights.T, queries, result.keys, add=not first)  # [m d]
            else:
                part = multiply(weights.T, queries, torch.empty_like(result.keys)).mul_(unit)
                result.keys.copy_(part) if first else result.keys.add_(part)
