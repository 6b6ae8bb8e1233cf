"""Problems for the streaming kernels, blocks so small that many are needed, and a record of passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
from hypothesis import strategies as st
from strategies import scales, seeds
from torch import Tensor, nn

import dro_temp as dt
from dro_temp.functional import Scale, SoftCap
from dro_temp.kernels import STATISTICS, memory
from dro_temp.kernels.backends import reference
from dro_temp.kernels.rows.chunked import ChunkedForward

float64 = torch.float64
LEAVES = ("queries", "keys", "bias", "tau", "weight", "slope")
TRANSFORMS = (None, SoftCap(2.0), Scale(0.3))


@contextmanager
def blocks_of(rows: int) -> Iterator[None]:
    """ChunkedForwards take so many rows at a time, or nearly: blocks are made even."""
    with mock.patch.multiple(memory, _CPU_ROWS=rows, _CPU_CACHE=0, _CPU_MIN_ROWS=1):
        yield


@dataclass
class Seen:
    """One pass: what was wanted, how many rows it saw, what it found."""

    needs: object
    rows: int
    found: object


@contextmanager
def recorded_passes() -> Iterator[list[Seen]]:
    """Every pass over rows inside."""
    seen, run = [], ChunkedForward.run

    def recorded(self, mask, grad_output, **options):
        found = run(self, mask, grad_output, **options)
        seen.append(Seen(mask, len(self.queries), replace(found)))
        return found

    with mock.patch.object(ChunkedForward, "run", recorded):
        yield seen


class Read(dt.TemperaturePredictor):
    """Temperatures from the scores: a projection over the norm, between two bounds."""

    reads = frozenset({"support", "statistics"})

    def __init__(self, weight: Tensor, slope: Tensor, low: float) -> None:
        super().__init__(tau_min=0.5 * low, tau_max=2.5 * low)
        self.weight, self.slope, self.low = nn.Parameter(weight), nn.Parameter(slope), low

    def raw(self, inputs):
        support = inputs.support
        scores = support.scores if support.mask is None else support.scores * support.mask
        hidden = inputs.statistics.project(self.weight, scores.amax(1)) / (1 + scores.norm(dim=1))[:, None]
        return self.low * (1.5 + (self.slope * hidden.tanh()).mean(1).tanh())

    def bound(self, raw):
        return raw


def product_rows(queries, keys, target, bias=None, transform=None, target_in_support=True) -> dt.Rows:
    """Rows whose scores are products."""
    scores = dt.LinearScores(queries, keys, bias, transform)
    return dt.Rows(scores, target, target_in_support=target_in_support)


@dataclass
class RowProblem:
    """Rows, and how their temperatures are given: as numbers, or from the scores."""

    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    tau: Tensor
    weight: Tensor
    slope: Tensor
    target: Tensor
    transform: object
    target_in_support: bool
    reads: bool
    low: float

    def to(self, dtype, names=("queries", "keys", "bias")) -> "RowProblem":
        """In another precision."""
        cast = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if x is None else x.to(dtype) for name, x in cast.items()})

    @property
    def size(self) -> float:
        """No score is larger."""
        longest = [float(x.double().norm(dim=1).max()) if len(x) else 0.0 for x in (self.queries, self.keys)]
        scale = self.transform.factor if isinstance(self.transform, Scale) else 1.0
        return scale * (
            longest[0] * longest[1] + (0.0 if self.bias is None else float(self.bias.abs().max()))
        )

    def fresh(self) -> tuple[dict[str, Tensor | None], dt.Rows, object]:
        """New leaves by name, the rows over them, and the temperatures, or what predicts them."""
        leaves = {
            name: None
            if getattr(self, name) is None
            else getattr(self, name).detach().clone().requires_grad_()
            for name in LEAVES
        }
        factors = leaves["queries"], leaves["keys"], self.target, leaves["bias"]
        rows = product_rows(*factors, self.transform, self.target_in_support)
        tau = leaves["tau"]
        if self.reads:
            tau = Read(leaves["weight"], leaves["slope"], self.low)
            leaves |= {"weight": tau.weight, "slope": tau.slope}
        return leaves, rows, tau

    def run(self, kernel, upstream, *, expected=None, statistics=STATISTICS) -> dict[str, Tensor | None]:
        """Values, statistics and every gradient of `sum(upstream[0] log_g + upstream[1] tau)`."""
        leaves, rows, tau = self.fresh()
        found = kernel(rows, tau, assumed_grad_output=expected, statistics=statistics)
        u, v = (x.to(found.log_g.dtype) for x in upstream)
        (u @ found.log_g + v @ found.tau).backward()
        grads = {f"d{name}": x.grad for name, x in leaves.items() if x is not None and x.grad is not None}
        return {"log_g": found.log_g.detach(), "taus": found.tau.detach(), **found.statistics, **grads}

    def magnitudes(self, upstream) -> dict[str, float]:
        """How large each result can be: what its rounding is measured against."""
        low, n, m = self.low, max(len(self.target), 1), len(self.keys)
        u = float(upstream[0].abs().max()) + float(upstream[1].abs().max()) if len(self.target) else 0.0
        q, k = (float(x.double().abs().max()) if x.numel() else 0.0 for x in (self.queries, self.keys))
        size, one = self.size, 1 + self.size / low
        scale = self.transform.factor if isinstance(self.transform, Scale) else 1.0
        by_tau = 2 * n * u * (1 + 2 * size / low**2) * low
        return {
            "log_g": 1.0, "taus": low, "log_sum_exp": 1.0, "kl": 1.0, "entropy": 1.0,
            "max": size, "mean": size, "std": size, "norm": size * m**0.5,
            "dqueries": 2 * u * k / low * scale, "dkeys": 2 * n * u * q / low * scale,
            "dbias": 2 * n * u / low * scale,
            "dtau": u * (1 + 2 * size / low**2), "dweight": by_tau * max(size, 1.0), "dslope": by_tau,
        } | {"one": one}  # fmt: skip


@st.composite
def row_problems(draw, heights=(0, 1, 2, 5, 9), reads=None, scale=scales) -> RowProblem:
    """Float64 rows of random shape, seed, scale, bias, transform and support."""
    g = torch.Generator().manual_seed(draw(seeds))
    n, m, d = draw(st.sampled_from(heights)), draw(st.integers(2, 12)), draw(st.integers(1, 4))
    low = draw(st.sampled_from([0.005, 0.07, 1.0, 50.0]))

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=float64)

    return RowProblem(
        draw(scale) * normal(n, d),
        normal(m, d),
        normal(m) if draw(st.booleans()) else None,
        low * (1 + torch.rand(n, generator=g, dtype=float64)),
        normal(3, m),
        normal(3),
        torch.randint(m, (n,), generator=g),
        draw(st.sampled_from(TRANSFORMS)),
        draw(st.booleans()),
        draw(st.booleans()) if reads is None else reads,
        low,
    )


def upstream_of(problem: RowProblem, seed: int) -> tuple[Tensor, Tensor]:
    """What comes back, different for each row."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(len(problem.target), generator=g, dtype=float64) for _ in range(2))


def assert_close(ours: dict, theirs: dict, problem: RowProblem, upstream, roundings: float = 64.0) -> None:
    """Equal up to so many roundings of the scores over tau."""
    assert ours.keys() == theirs.keys()
    magnitudes = problem.magnitudes(upstream)
    slack = roundings * torch.finfo(float64).eps * magnitudes["one"]
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name],
            value,
            rtol=slack,
            atol=slack * magnitudes[name],
            msg=lambda text, name=name: f"{name}: {text}",
        )


def linear_rows(
    n=9, m=11, d=3, *, seed=0, pairs=False, bias=True, transform=None, dtype=float64, scale=1.0, **more
):
    """Rows of `LinearScores` with leaves that want gradients; (rows, leaves)."""
    g = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(k, d, generator=g, dtype=dtype) * scale for k in (n, m))
    head = torch.randn(m, generator=g, dtype=dtype) if bias else None
    leaves = [x.requires_grad_() for x in (queries, keys, head) if x is not None]
    target = torch.arange(n) % m if pairs else torch.randint(m, (n,), generator=g)
    scores = dt.LinearScores(queries, keys, head, transform)
    options = {"features": queries, "index": torch.arange(n), "target_in_support": not pairs} | more
    return dt.Rows(scores, target, **options), leaves


def assert_no_worse_than_eager(ours, problem, upstream):
    """Against float64 on the same numbers of low precision."""
    truth = problem.to(torch.float64).run(reference.log_mean_exp_rows, upstream)
    theirs = problem.run(reference.log_mean_exp_rows, upstream)
    magnitudes = problem.magnitudes(upstream)
    for name, value in truth.items():
        error, allowed = ((x[name].double() - value.double()).abs().max() for x in (ours, theirs))
        assert ours[name].dtype == theirs[name].dtype, name
        # Eager's error, one rounding of the result, and some roundings of float32 scores over tau.
        allowed += torch.finfo(ours[name].dtype).eps * value.abs().max()
        allowed += 16 * torch.finfo(torch.float32).eps * magnitudes["one"] * magnitudes[name]
        assert error <= allowed, f"{name}: off by {error:.3g}, eager may be off by {allowed:.3g}"
