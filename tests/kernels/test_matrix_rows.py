"""Rows of a score matrix by one kernel in each direction, against ordinary autograd: as on a GPU, or interpreted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

import dro_temp as dt
from dro_temp.kernels.rows import matrix

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if DEVICE.type == "cpu":
        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
            pytest.skip("the interpreter of this release does not know NumPy 2.4")
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def _rows(seed, n, m, in_support, dtype=torch.float64, scale=1.0, weighted=False):
    g = torch.Generator().manual_seed(seed)
    scores = (scale * torch.randn(n, m, generator=g, dtype=dtype)).to(DEVICE)
    target = torch.randint(m, (n,), generator=g).to(DEVICE)
    weight = (torch.rand(n, generator=g) > 0.3).to(DEVICE, dtype) if weighted else None
    tau = (0.05 + torch.rand(n, generator=g, dtype=dtype)).to(DEVICE)
    return dt.Rows(scores, target, target_in_support=in_support, weight=weight), tau


def _run(loss, rows, tau):
    scores, tau = rows.scores.detach().requires_grad_(), tau.detach().requires_grad_()
    output = loss.evaluate(
        dt.Rows(scores, rows.target, target_in_support=rows.target_in_support, weight=rows.weight), tau
    )
    upstream = torch.linspace(-1.0, 2.0, len(tau), dtype=scores.dtype, device=DEVICE)
    return [output.values, *torch.autograd.grad(output.values @ upstream, (scores, tau))]


@given(
    seed=seeds,
    n=st.sampled_from([1, 5]),
    m=st.sampled_from([3, 7, 2049]),
    in_support=st.booleans(),
    scale=st.sampled_from([1e-2, 1.0, 30.0]),
    weighted=st.booleans(),
)
@settings(max_examples=25)
def test_equals_ordinary_autograd(seed, n, m, in_support, scale, weighted):
    rows, tau = _rows(seed, n, m, in_support, scale=scale, weighted=weighted)
    for make in (dt.KLRobustLoss, dt.LikelihoodLoss):
        options = {"rho": 0.1} if make is dt.KLRobustLoss else {}
        if make is dt.LikelihoodLoss and not in_support:
            continue
        ours, theirs = (_run(make(**options, backend=name), rows, tau) for name in ("triton", "reference"))
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * (1 + scale))


def test_the_kernel_is_taken(monkeypatch):
    def never(*_, **__):
        raise AssertionError

    rows, tau = _rows(0, 3, 5, True)
    monkeypatch.setattr(matrix._LogMeanExp, "apply", never)
    with pytest.raises(AssertionError):
        dt.InfoNCELoss(backend="triton")(rows, tau)
    dt.InfoNCELoss(backend="reference")(rows, tau)


def test_outcomes_that_cannot_happen():
    rows, tau = _rows(0, 4, 9, True)
    rows.scores[:, 3] = -math.inf
    rows.scores[:, 5] = -1e4
    target = torch.tensor([0, 1, 2, 4], device=DEVICE)
    rows = dt.Rows(rows.scores, target)
    ours, theirs = (_run(dt.LikelihoodLoss(backend=name), rows, tau) for name in ("triton", "reference"))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", ["transposed", "strided", "no rows"])
def test_any_layout(layout):
    rows, tau = _rows(0, 6, 6, True)
    wide = torch.full((6, 12), torch.nan, dtype=torch.float64, device=DEVICE)
    wide[:, 3:9] = rows.scores
    views = {"transposed": rows.scores.T.contiguous().T, "strided": wide[:, 3:9], "no rows": rows.scores[:0]}
    scores, n = views[layout], len(views[layout])
    ours, theirs = (
        _run(dt.InfoNCELoss(backend=name), dt.Rows(scores, rows.target[:n]), tau[:n])
        for name in ("triton", "reference")
    )
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


def test_second_derivatives_are_refused_with_the_way_that_has_them():
    rows, tau = _rows(0, 3, 5, True)
    scores = rows.scores.requires_grad_()
    values = dt.InfoNCELoss(backend="triton")(dt.Rows(scores, rows.target), tau)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(values.sum(), scores, create_graph=True)


def test_transforms_of_functions_use_ordinary_autograd():
    rows, tau = _rows(0, 3, 5, True)
    loss = dt.InfoNCELoss(backend="triton")
    found = torch.func.grad(lambda s: loss(dt.Rows(s, rows.target), tau).sum())(rows.scores)
    expected = _run(dt.InfoNCELoss(backend="reference"), rows, tau)
    assert found.shape == expected[1].shape
