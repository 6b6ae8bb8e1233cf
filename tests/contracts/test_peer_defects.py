"""What other implementations get wrong, with their own formula beside it: the number differs, and ours is right."""

import math

import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp import functional as F


def _units(n: int, d: int = 6, seed: int = 0, dtype=torch.float64):
    both = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return nn.functional.normalize(both, dim=2)


def _tau(value: float):
    return torch.tensor(value, dtype=torch.float64)


def _scores(n: int, seed: int = 0):
    x, y = _units(n, seed=seed)
    return x @ y.T


def _rows(scores, target=None, index=None) -> dt.Rows:
    n = len(scores)
    target = torch.arange(n) if target is None else target
    index = torch.arange(n) if index is None else index
    return dt.Rows(scores, target, index=index, target_in_support=False)


def _mean_exp(scores, tau):
    """Mean over the others of exp(h / tau), by a mask and a sum."""
    n = len(scores)
    e = ((scores - scores.diagonal()[:, None]) / tau).exp() * (1 - torch.eye(n, dtype=scores.dtype))
    return e.sum(1) / (n - 1)


def _gcl(num_samples=64, gamma=0.5, rho=0.0):
    return dt.KLRobustLoss(rho, estimator=dt.LogMovingAverage(num_samples, gamma=gamma)).double()


def _gradient(value, of):
    return torch.autograd.grad(value, of)[0]


def test_a_sum_in_the_loss_and_a_mean_in_the_memory_is_b_minus_1_times_too_large():
    """LibAUC v2: 15 times, at a batch of 16."""
    n, tau = 16, _tau(0.3)
    scores = _scores(n).requires_grad_()
    ours = _gradient(_gcl()(_rows(scores), tau).mean(), scores)
    u = _mean_exp(scores, tau).detach()
    e = ((scores - scores.diagonal()[:, None]) / tau).exp() * (1 - torch.eye(n, dtype=torch.float64))
    right = torch.autograd.grad((tau * e.sum(1) / (n - 1) / u).mean(), scores, retain_graph=True)[0]
    peer = _gradient((tau * e.sum(1) / u).mean(), scores)
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(peer, 15 * ours, rtol=1e-10, atol=1e-14)


def _dual_slope(scores, tau, rho):
    """rho, mean log u, and mean E_w[h / tau]."""
    h = scores - scores.diagonal()[:, None]
    n = len(scores)
    w = (h / tau).exp() * (1 - torch.eye(n, dtype=scores.dtype))
    u = w.sum(1) / (n - 1)
    return rho, u.log().mean(), (w * h / tau).sum(1).div((n - 1) * u).mean(), u.mean()


def test_the_temperatures_gradient_adds_log_u_not_u():
    """LibAUC's global learnable temperature adds u."""
    scores, rho, tau = _scores(8), 0.3, torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    ours = _gradient(_gcl(rho=rho)(_rows(scores), tau).mean(), tau)
    rho, log_u, tilted, u = _dual_slope(scores, tau.detach(), rho)
    assert ours.item() == pytest.approx((rho + log_u - tilted).item(), rel=1e-10)
    peer = rho + u - tilted
    assert (peer - ours).item() == pytest.approx((u - log_u).item(), rel=1e-10)
    assert abs(peer - ours) > 0.5 * abs(ours)


def test_the_positive_of_a_later_process_sits_at_its_offset():
    """A block of 4 rows and 8 columns: LibAUC subtracts the score at column i, not at offset + i."""
    scores, tau, offset = _scores(8), _tau(0.2), 4
    block = scores[offset:]
    target = torch.arange(offset, 8)
    ours = _gcl()(_rows(block, target, target), tau)
    whole = _gcl()(_rows(scores), tau)
    torch.testing.assert_close(ours, whole[offset:], rtol=1e-12, atol=0)

    def at(columns):
        h = (block - block.gather(1, columns[:, None])) / tau
        keep = torch.ones_like(block).scatter(1, columns[:, None], 0.0)
        return (tau * ((h.exp() * keep).sum(1) / 7).log()).mean().item()

    assert ours.mean().item() == pytest.approx(at(target), rel=1e-10)
    assert at(torch.arange(4)) != pytest.approx(at(target), rel=0.1)


@pytest.mark.parametrize("scaled", [True, False], ids=["v3", "v0"])
def test_anchors_and_columns_apart_count_the_temperature_twice(scaled):
    """FastCLIP: the towers' gradient is right, but tau's comes in by both halves."""
    n, rho = 8, 0.3 if scaled else 0.0
    x, y = (side.clone().requires_grad_() for side in _units(n))
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    loss = _gcl(rho=rho) if scaled else dt.EntropicRiskLoss(estimator=dt.LogMovingAverage(64)).double()
    ours = torch.autograd.grad(loss(_rows(x @ y.T), tau).mean(), (x, y, tau))

    def g(anchors, columns):
        own = (anchors * y).sum(1)[:, None] if anchors is x else (anchors * y.detach()).sum(1)[:, None]
        off = 1 - torch.eye(n, dtype=torch.float64)
        return ((((anchors @ columns.T) - own) / tau).exp() * off).sum(1) / (n - 1)

    u = g(x, y).detach()
    halves = (g(x, y.detach()) / u + g(x.detach(), y) / u).mean()
    if scaled:
        halves = halves * tau.detach() + tau * (rho + u.log().mean())
    peer = torch.autograd.grad(halves, (x, y, tau))
    for a, b in zip(ours[:2], peer[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    _, log_u, tilted, _ = _dual_slope((x @ y.T).detach(), tau.detach(), rho)
    once, outside = (-tilted, rho + log_u) if scaled else (-tilted / tau.detach(), 0.0)
    assert ours[2].item() == pytest.approx((outside + once).item(), rel=1e-10)
    assert peer[2].item() == pytest.approx((outside + 2 * once).item(), rel=1e-10)


def test_without_its_factor_tau_a_row_weighs_one_over_tau():
    """FastCLIP v2: the coldest rows pull hardest."""
    scores = _scores(6).requires_grad_()
    tau = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    ours = _gradient(_gcl()(_rows(scores), tau).sum(), scores)
    peer = _gradient(_mean_exp(scores, tau[:, None]).log().sum(), scores)
    torch.testing.assert_close(peer, ours / tau[:, None], rtol=1e-10, atol=1e-14)
    weight = ours.masked_fill(torch.eye(6, dtype=torch.bool), 0.0).sum(1)
    torch.testing.assert_close(
        weight, torch.ones_like(weight), rtol=1e-10, atol=0
    )  # a distribution, for each row


def test_a_first_visit_is_not_damped():
    """With u = 0 for "never seen", the first gradient after epoch 0 is 1 / gamma times too large."""
    gamma, tau = 0.2, _tau(0.3)
    scores = _scores(6).requires_grad_()
    ours = _gradient(_gcl(gamma=gamma)(_rows(scores), tau).mean(), scores)
    g = _mean_exp(scores, tau)
    right = torch.autograd.grad((tau * g / g.detach()).mean(), scores, retain_graph=True)[0]
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-14)
    peer = _gradient((tau * g / (0.8 * 0 + gamma * g.detach())).mean(), scores)
    torch.testing.assert_close(peer, ours / gamma, rtol=1e-10, atol=1e-14)


def test_a_running_maximum_that_never_decays_freezes_rows():
    """Margins that were 80 tau once and are -20 tau now: the reference's weight stays at nothing, ours comes back."""
    gamma, b, u, eps = 0.8, -math.inf, 0.0, 1e-14
    estimator, one = dt.LogMovingAverage(1, gamma=gamma), torch.tensor([True])
    for visit in range(100):
        level = 80.0 if visit == 0 else -20.0
        new_b = max(b, level)
        e = math.exp(level - new_b)
        u = e if visit == 0 else (1 - gamma) * u * math.exp(b - new_b) + gamma * e
        b = new_b
        peer = e / (u + eps)
        log_g = torch.tensor([level], requires_grad=True)
        log_u = estimator.propose(torch.tensor([0]), log_g, one)
        ours = _gradient(F.compositional_log_mean(log_g, log_u).sum(), log_g).item()
        estimator.commit()
    assert peer < 1e-20
    assert ours == pytest.approx(1.0, rel=1e-4)


def test_duplicates_do_not_depend_on_who_comes_last():
    log_g, index = torch.tensor([0.0, 2.0]), torch.tensor([3, 3])
    results, peers = [], []
    for order in ([0, 1], [1, 0]):
        estimator = dt.LogMovingAverage(8)
        estimator.propose(index[order], log_g[order], torch.tensor([True, True]))
        estimator.commit()
        results.append(estimator.log_u[3].item())
        table = torch.zeros(8)
        for i, value in zip(index[order].tolist(), log_g[order].exp().tolist(), strict=True):
            table[i] = value  # last write wins
        peers.append(table[3].item())
    assert results[0] == results[1] == pytest.approx(math.log((1 + math.exp(2)) / 2), rel=1e-6)
    assert peers[0] != pytest.approx(peers[1])


def test_a_small_temperature_is_no_nan():
    scores = _scores(6).float().requires_grad_()
    tau = 0.005
    values = _gcl().float()(_rows(scores), tau)
    assert bool(values.isfinite().all())
    assert bool(_gradient(values.sum(), scores).isfinite().all())
    off = 1 - torch.eye(6)
    e = ((scores - scores.diagonal()[:, None]) / tau).exp() * off
    u = e.detach().sum(1) / 5
    peer = _gradient((tau * e.sum(1) / 5 / u).sum(), scores)
    assert not bool(peer.isfinite().all())


@pytest.mark.parametrize("loss", [_gcl, dt.EntropicRiskLoss, dt.InfoNCELoss, dt.SigmoidLoss])
def test_a_batch_of_one_is_zero_and_harmless(loss):
    """A mean over B - 1 = 0 others is NaN; a `squeeze` loses the batch."""
    scores = _scores(1).requires_grad_()
    values = loss()(_rows(scores), 0.1)
    assert values.tolist() == [0.0]
    assert _gradient(values.sum(), scores).tolist() == [[0.0]]
    assert bool(_mean_exp(scores, 0.1).isnan().all())


def test_a_rows_temperature_scales_its_own_row():
    """The personalised CLIP loss of the reference divides column j by tau_j, which is the other side's item."""
    scores, tau = _scores(6), torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    ours = dt.InfoNCELoss()(_rows(scores), tau)
    label = torch.arange(6)
    right = nn.functional.cross_entropy(scores / tau[:, None], label, reduction="none")
    peer = nn.functional.cross_entropy(scores / tau[None, :], label, reduction="none")
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(peer, right, rtol=0.05)


def test_what_is_remembered_keeps_no_graph_alive():
    """LibAUC v1 adds a tensor with its graph to the table, and with it every batch before."""
    scores, loss = _scores(6).requires_grad_(), _gcl()
    peer = torch.zeros(6, dtype=torch.float64)
    for _ in range(2):
        loss(_rows(scores), 0.2).sum().backward()
        loss.estimator.commit()
        peer = 0.5 * peer + 0.5 * _mean_exp(scores, 0.2)
    assert loss.estimator.log_u.grad_fn is None
    assert peer.grad_fn is not None
