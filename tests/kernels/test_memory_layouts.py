"""Gradients do not depend on how factors lie in memory, nor on what uninitialised memory holds.

Libraries of products, and C, may read beyond the columns of a row: whatever lies there must not reach a result. Scratch
memory is NaN before it is written here, and so is all that surrounds the factors.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

import dro_temp as dt
from dro_temp.kernels import empty_cache, memory, pair_log_sums
from dro_temp.kernels.backends import reference
from dro_temp.kernels.dispatch import cpu_runs_on, streaming_backend

# The interpreter computes both branches of a `where`.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

LOW = (torch.bfloat16, torch.float16)
DTYPES = [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_compiler = pytest.mark.skipif(
    not cpu_runs_on(torch.device("cpu"), torch.float32), reason="there is no C compiler"
)
# In C on processors; in Triton on a GPU, and else in its interpreter, for which the others' sizes are too many.
BACKENDS = ["reference", "torch", "triton"] + (
    [pytest.param("cpu", marks=needs_compiler)] if DEVICE == "cpu" else []
)
FEW = DEVICE == "cpu"
# No multiples of 2, 16, 32 and 64, and those beside them; one row, and more than AMX's tiles have.
WIDTHS = [3, 17, 31, 33, 50, 63, 65, 129, 1001, 1024]
HEIGHTS = [1, 19, 40]


class PoisonedPieces(dict):
    """Scratch memory that is NaN whenever it is given back."""

    def __setitem__(self, key: object, piece: Tensor) -> None:
        super().__setitem__(key, piece.fill_(torch.nan))


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is not initialised is NaN: torch does that to new memory in its deterministic mode."""
    empty_cache()
    monkeypatch.setattr(memory._free, "pieces", PoisonedPieces())
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def contiguous(x: Tensor) -> Tensor:
    return x.clone()


def strided(x: Tensor) -> Tensor:
    """Between columns of NaN."""
    n, m = x.shape
    return x.new_full((n, 2 * m + 3), torch.nan)[:, 1 : m + 1].copy_(x)


def strided_by_even_rows(x: Tensor) -> Tensor:
    """As `strided`, in rows that C's pairs of bfloat16 numbers take."""
    n, m = x.shape
    return x.new_full((n, 2 * m + 4), torch.nan)[:, :m].copy_(x)


def column_major(x: Tensor) -> Tensor:
    """A transposed weight."""
    return x.T.contiguous().T


def column_major_strided(x: Tensor) -> Tensor:
    """A transposed weight inside of a larger one."""
    return strided(x.T.contiguous()).T


LAYOUTS = [contiguous, strided, strided_by_even_rows, column_major, column_major_strided]


def gradients(
    factors: tuple[Tensor, Tensor], lay: tuple[Callable[[Tensor], Tensor], ...], run: Callable[..., Tensor]
) -> list[Tensor]:
    """Of both factors, laid out so."""
    leaves = [x.clone().requires_grad_() for x in factors]
    placed = [into(leaf.detach()).requires_grad_() for leaf, into in zip(leaves, lay, strict=True)]
    run(*placed).backward()
    return [x.grad for x in placed]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]


def tolerance(dtype: torch.dtype) -> float:
    # Weights and results are rounded once each to the factors' precision; sums are not.
    return 4 * torch.finfo(dtype).eps if dtype in LOW else 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows(backend, dtype, layout):
    loss, eager = dt.KLRobustLoss(0.2, backend=backend), dt.KLRobustLoss(0.2, backend="reference")
    g = torch.Generator().manual_seed(0)
    for m in [33, 129] if backend == "triton" and FEW else WIDTHS:
        for n in [19] if backend == "triton" and FEW else HEIGHTS:
            factors = [torch.randn(k, 34, generator=g).div(6).to(DEVICE, dtype) for k in (n, m)]
            target = torch.randint(m, (n,), generator=g).to(DEVICE)

            def run(queries, keys, target=target):
                return loss(dt.Rows(dt.LinearScores(queries, keys), target), 1.0).mean()

            def eagerly(queries, keys, target=target):
                return eager(dt.Rows(dt.LinearScores(queries, keys), target), 1.0).mean()

            exact = gradients([x.double() for x in factors], (contiguous, contiguous), eagerly)
            for lay in ((layout, contiguous), (contiguous, layout), (layout, layout)):
                found = gradients(factors, lay, run)
                assert all(e < tolerance(dtype) for e in errors(found, exact)), (m, n, lay)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [0, 2**20])
def test_pairs(backend, dtype, layout, budget):
    g = torch.Generator().manual_seed(0)
    tau = (0.5 + torch.rand(2, 65, generator=g)).to(DEVICE)
    for n in [33] if backend == "triton" and FEW else [2, 17, 33, 65]:
        factors = [torch.randn(n, 34, generator=g).div(6).to(DEVICE, dtype) for _ in range(2)]

        def run(queries, keys, n=n, way=backend):
            if way == "reference":
                sums = reference.pair_log_sums(queries, keys, *tau[:, :n])
            else:
                kernels = streaming_backend(
                    way, queries.device, torch.float32 if dtype != torch.float64 else dtype
                )
                sums = pair_log_sums(queries, keys, *tau[:, :n], backend=kernels)
            return (sums.rows * tau[1, :n]).mean() + sums.columns.mean()

        eagerly = partial(run, way="reference")
        exact = gradients([x.double() for x in factors], (contiguous, contiguous), eagerly)
        with dt.kernels.byte_budget(budget):
            for lay in ((layout, contiguous), (contiguous, layout), (layout, layout)):
                found = gradients(factors, lay, run)
                assert all(e < tolerance(dtype) for e in errors(found, exact)), (n, lay)


@needs_compiler
def test_c_is_never_given_a_matrix_that_one_stride_does_not_describe():
    from dro_temp.kernels.backends.cpu.ops import matrix

    with pytest.raises(AssertionError, match="strides"):
        matrix(torch.empty(3, 4).T)
    matrix(torch.empty(3, 4)[:, :2])
    matrix(torch.empty(1, 3).T)
