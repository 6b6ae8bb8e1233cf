"""Both sides of a batch of pairs by the GPU's kernels, against float64 computed in blocks of rows."""

import pytest
import torch
import torch.nn.functional as F

import dro_temp as dt
from benchmarks.pairs.problem import UnitFeatures
from dro_temp.kernels.dispatch import triton_backend
from dro_temp.kernels.exclusions import Exclusions
from dro_temp.kernels.pairs import exchanged_log_sums, pair_log_sums

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

BLOCK = 2048


def features(size, dtype):
    """Unit vectors of matching pairs, temperatures and upstream gradients of both sides."""
    g = torch.Generator(size.device).manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, device=size.device, generator=g)

    x = F.normalize(normal(size.pairs, size.dimension), dim=1)
    y = F.normalize(x + normal(size.pairs, size.dimension) * size.dimension**-0.5, dim=1)
    taus = [0.03 + 0.07 * normal(size.pairs).sigmoid() for _ in range(2)]
    return x.to(dtype), y.to(dtype), *taus, *(normal(size.pairs) / size.pairs for _ in range(2))


def truth(x, y, tau_x, tau_y, u, w, group=None):
    """Log-sums of both sides and gradients of features and temperatures, by autograd on blocks of float64 scores."""
    leaves = [t.double().requires_grad_() for t in (x, y, tau_x, tau_y)]
    x, y, tau_x, tau_y = leaves
    sides = []
    for queries, keys, tau, upstream in ((x, y, tau_x, u), (y, x, tau_y, w)):
        parts = []
        for start in range(0, len(x), BLOCK):
            at = slice(start, min(start + BLOCK, len(x)))
            scores = queries[at] @ keys.T
            own = torch.arange(at.start, at.stop, device=x.device)[:, None]
            paired = scores.gather(1, own)
            margins = (scores - paired) / tau[at, None]
            margins = margins.scatter(1, own, -torch.inf)
            if group is not None:
                same = (group[at, None] == group) & (group >= 0)
                margins = margins.masked_fill(same, -torch.inf)
            part = margins.logsumexp(1)
            (part * upstream[at]).sum().backward()
            parts.append(part.detach())
        sides.append(torch.cat(parts))
    return sides, [leaf.grad for leaf in leaves]


def assert_near(found, expected, dtype):
    """Values to float32 roundings of scores over tau; gradients to the rounding of their precision."""
    for ours, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)
    relative = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-4
    for name, ours, theirs in zip(("x", "y", "tau_x", "tau_y"), found[1], expected[1], strict=True):
        error = float((ours.double() - theirs).norm() / theirs.norm())
        assert error <= (relative if name in "xy" else 1e-3), f"{name}: relative error {error:.3g}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_both_sides(size, dtype):
    x, y, tau_x, tau_y, u, w = features(size, dtype)
    leaves = [t.clone().requires_grad_() for t in (x, y, tau_x, tau_y)]
    sums = pair_log_sums(*leaves, backend=triton_backend(size.device))
    ((sums.rows * u).sum() + (sums.columns * w).sum()).backward()
    found = (sums.rows.detach(), sums.columns.detach()), [leaf.grad for leaf in leaves]
    assert_near(found, truth(x, y, tau_x, tau_y, u, w), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_both_sides_without_false_negatives(size, dtype):
    x, y, tau_x, tau_y, u, w = features(size, dtype)
    n = size.pairs
    place = torch.arange(n, device=size.device)
    group = torch.where(place % 5 == 0, -1, place % (n // 3))  # threes, and a fifth alone
    leaves = [t.clone().requires_grad_() for t in (x, y, tau_x, tau_y)]
    exclusions = Exclusions(group, group, place)
    sums = pair_log_sums(*leaves, exclusions=exclusions, backend=triton_backend(size.device))
    ((sums.rows * u).sum() + (sums.columns * w).sum()).backward()
    found = (sums.rows.detach(), sums.columns.detach()), [leaf.grad for leaf in leaves]
    assert_near(found, truth(x, y, tau_x, tau_y, u, w, group), dtype)


@pytest.mark.parametrize("processes", [1, 4])
def test_shares_of_several_processes(size, processes):
    """Each process's rows in turn; what it would gather from the others is recorded in a first round."""
    x, y, tau_x, tau_y, u, w = features(size, torch.bfloat16)
    share = len(x) // processes
    sent: dict[int, torch.Tensor] = {}

    def run(rank, gather):
        at = slice(rank * share, (rank + 1) * share)
        leaves = [t[at].clone().requires_grad_() for t in (x, y, tau_x, tau_y)]
        first, second = exchanged_log_sums(
            (leaves[0], leaves[1]),
            (x, y),
            (leaves[2], leaves[3]),
            offset=at.start,
            gather=gather,
            backend=triton_backend(size.device),
        )
        ((first * u[at]).sum() + (second * w[at]).sum()).backward()
        return [first.detach(), second.detach(), *(leaf.grad for leaf in leaves)]

    for rank in range(processes):

        def record(rows, rank=rank):
            sent[rank] = rows.clone()
            return rows.repeat(processes, 1)

        run(rank, record)
    gathered = torch.cat([sent[rank] for rank in range(processes)])
    parts = [run(rank, lambda rows: gathered) for rank in range(processes)]
    first, second, *gradients = (torch.cat(part) for part in zip(*parts, strict=True))
    assert_near(((first, second), gradients), truth(x, y, tau_x, tau_y, u, w), torch.bfloat16)


def test_moving_averages_with_duplicates(size):
    """Two steps of the objective, with a sample that the batch has twice, beside plain PyTorch in float64."""
    x, y, *_ = features(size, torch.float32)
    index = torch.arange(size.pairs, device=size.device)
    index[-1] = index[0]
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        loss = {
            view: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(size.pairs, gamma=0.6), backend=backend)
            for view in UnitFeatures.views
        }
        objective = dt.Objective(UnitFeatures(), dt.ConstantTemperature(0.07), loss).to(size.device)
        for scale in (1.0, 0.5):
            leaves = [(scale * t).to(dtype).requires_grad_() for t in (x, y)]
            value = objective(*leaves, index=index).loss
            value.backward()
            objective.commit()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours.double() - theirs.double()).norm() <= 1e-3 * theirs.double().norm()
