"""Losses that need no more of a row's scores than their log-mean-exp."""

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import replace
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from dro_temp import functional as F
from dro_temp import kernels
from dro_temp._compiler import outside_graphs
from dro_temp._typing import PerRow
from dro_temp.functional import ScoreTransform
from dro_temp.interfaces.from_scores import TauFromScores
from dro_temp.interfaces.loss import Choice, Evaluated, RobustLoss
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import Rows
from dro_temp.interfaces.scores import LinearScores
from dro_temp.kernels import LogMeanExp, Products, Statistic
from dro_temp.kernels.paths import PATHS, check_impl, fastest_path

Impl: TypeAlias = Literal["auto", "eager", "chunked", "native", "triton"]

# Below this, the score matrix costs less than the Python that avoids it.
SMALL_MATRIX = 2**20


class LogMeanExpLoss(RobustLoss):
    r"""A loss of the form $\varphi(\log g_i, \tau_i)$ with $\log g_i$ the log-mean-exp of row i's margins over tau.

    A leaf writes `of_log_mean_exp`. Where scores are products (`LinearScores`) the base then streams over them,
    with closed-form gradients, and the score matrix never exists.

    Args:
        impl: "eager" holds the score matrix and is ordinary autograd; "chunked" streams, on any device; "native"
            streams with passes in C, for float32 scores on processors, built by the machine's compiler in a
            second when first wanted; "triton" streams with fused kernels on NVIDIA GPUs; "auto" takes the fastest
            that there is where the matrix would be larger than a megabyte. Scores that are given as a matrix take
            "eager" whatever is said here.
    """

    def __init__(self, *, impl: Impl = "auto") -> None:
        super().__init__()
        self.impl = check_impl(impl)

    @abstractmethod
    def of_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """One value per row; the rows' scores are not to be touched."""

    @property
    def row_by_row(self) -> bool:
        """True if a row's value depends on that row alone and remembers nothing: gradients need one sweep."""
        return True

    @final
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """From the score matrix."""
        log_g = F.log_mean_exp(rows.margins / tau[:, None], rows.mask)
        # Rows without outcomes have log g = -inf; finite numbers keep them inert.
        return self.of_log_mean_exp(rows, log_g.masked_fill(~rows.valid, 0.0), tau)

    @final
    def choose(self, rows: Rows) -> Choice:
        """The path that these rows would take.

        Raises:
            ValueError: a path was asked for that these rows cannot take.
        """
        scores = rows.scores
        if not isinstance(scores, LinearScores):
            return Choice("eager", "the scores were given as a matrix")
        if self.impl == "eager":
            return Choice("eager", "impl='eager'")
        if rows.target_distribution is not None:
            if self.impl == "auto":
                return Choice("eager", "target distributions are as large as the score matrix")
            raise ValueError(
                f"expected one target per row for impl={self.impl!r}, received target distributions, which are as "
                "large as the score matrix that it avoids. Pass impl='auto', or class numbers."
            )
        if rows.support_size == 0:
            return Choice("eager", "there are no outcomes")
        if not (scores.transform is None or isinstance(scores.transform, ScoreTransform)):
            if self.impl == "auto":
                return Choice("eager", "the transform does not know its slope")
            raise ValueError(
                f"expected a ScoreTransform for impl={self.impl!r}, received {scores.transform!r}, whose slope is "
                "not known. Pass SoftCap(cap), Scale(factor) or a ScoreTransform of your own, or impl='eager'."
            )
        if self.impl != "auto":
            return Choice(self.impl, f"impl={self.impl!r}")
        n, m = scores.shape
        size = n * m * scores.dtype.itemsize
        # A graph that held its number of bytes as text would serve that number alone.
        exactly = not torch.compiler.is_compiling()
        if size <= SMALL_MATRIX:
            return Choice("eager", f"the score matrix takes {size if exactly else 'few'} bytes only")
        path = fastest_path(scores.queries, scores.keys)
        return Choice(path, f"the score matrix would take {size if exactly else 'too many'} bytes")

    @final
    @outside_graphs
    def _streamed(
        self,
        rows: Rows,
        tau: Tensor | TemperaturePredictor,
        statistics: Collection[Statistic],
        choice: Choice,
    ) -> Evaluated:
        n, counted, given = len(rows), None, tau
        if rows.weight is not None:
            counted = rows.valid.nonzero()[:, 0]
            rows = replace(rows.select(counted), weight=rows.weight[counted])
            tau = tau[counted] if isinstance(tau, Tensor) else tau
        scores = rows.scores
        assert isinstance(scores, LinearScores)
        assert not callable(scores.transform) or isinstance(scores.transform, ScoreTransform)
        products = Products(
            scores.queries,
            scores.keys,
            rows.target.long(),
            scores.bias,
            scores.transform,
            rows.target_in_support,
        )
        expected = self._expected(rows) if self.row_by_row else None

        def stream(tau: Tensor | TauFromScores) -> LogMeanExp:
            return PATHS[choice.impl](products, tau, expected=expected, statistics=statistics)

        found: LogMeanExp
        if isinstance(tau, Tensor):
            found = stream(tau)
        else:
            predictor = tau
            found = predictor(within=lambda: stream(TauFromScores(predictor, rows)))
        values = self.of_log_mean_exp(rows, found.log_g, found.tau)
        noted = found.statistics
        # Temperatures that were given are handed on as they came: hooks may read their gradient.
        taus = given if isinstance(given, Tensor) else found.tau
        if counted is not None:
            values = _spread(values, counted, n, 0.0)
            noted = {name: _spread(x, counted, n, 0.0) for name, x in noted.items()}
            if not isinstance(given, Tensor):
                taus = _spread(taus, counted, n, given.tau_min)
        return Evaluated(values, taus, choice, noted)

    def _expected(self, rows: Rows) -> kernels.Expected:
        """The gradient of a mean over rows, up to a factor."""

        def expected(log_g: PerRow, tau: PerRow, block: slice) -> tuple[PerRow, PerRow]:
            with torch.enable_grad():
                log_g, tau = log_g.detach().requires_grad_(), tau.detach().requires_grad_()
                values = self.of_log_mean_exp(rows.select(block), log_g, tau)
                weight = (
                    torch.ones_like(values) if rows.weight is None else rows.weight[block].to(values.dtype)
                )
                u, v = torch.autograd.grad(
                    values, (log_g, tau), weight, allow_unused=True, materialize_grads=True
                )
            return u, v

        return expected


def _spread(x: PerRow, rows: Tensor, n: int, otherwise: float) -> PerRow:
    return x.new_full((n,), otherwise).index_copy(0, rows, x)
