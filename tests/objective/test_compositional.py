"""The compositional gradient: right where the plug-in is biased, and written once per step."""

import copy
import itertools
import math

import pytest
import small
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dro_temp as dt

M = 8  # pairs, few enough to enumerate every minibatch


class Embeddings(nn.Module):
    """The simplest encoder: a free vector per sample."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(M, 3, generator=g, dtype=torch.float64))

    def forward(self, index):
        return self.table[index]


def _objective(estimator, tau: float = 0.1) -> dt.Objective:
    host = dt.hosts.TwoTower(Embeddings(0), Embeddings(1))
    predictor = dt.LearnableTemperature(tau)
    loss = {view: dt.KLRobustLoss(0.3, estimator=estimator()) for view in host.views}
    return dt.Objective(host, predictor, loss).double()


def _gradient(objective, index):
    objective.zero_grad()
    objective(index, index, index=index).loss.backward()
    objective.discard()
    return torch.cat([p.grad.flatten().clone() for p in objective.parameters()])


def _full_gradient():
    return _gradient(_objective(dt.estimators.Exact), torch.arange(M))


def _exact_log_g(objective):
    rows = objective.host(torch.arange(M), torch.arange(M))
    tau = objective.predictors["image"](shape=torch.Size([M]))
    return {
        view: dt.functional.log_mean_exp(r.margins / tau[:, None], r.mask).detach()
        for view, r in rows.items()
    }


def _mean_gradient_over_all_minibatches(objective, size):
    every = [torch.tensor(c) for c in itertools.combinations(range(M), size)]
    return torch.stack([_gradient(objective, index) for index in every]).mean(0)


@pytest.mark.parametrize("size", [2, 3])
def test_with_the_true_inner_mean_the_minibatch_gradient_is_unbiased(size):
    """The mean over every minibatch there is equals the full-data gradient."""
    objective = _objective(lambda: dt.LogMovingAverage(M, gamma=1e-12))
    for view, log_g in _exact_log_g(objective).items():
        objective.losses[view].estimator.log_u.copy_(log_g)
    ours = _mean_gradient_over_all_minibatches(objective, size)
    torch.testing.assert_close(ours, _full_gradient(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_the_plug_in_is_biased(size):
    plug_in = _mean_gradient_over_all_minibatches(_objective(lambda: dt.LogMovingAverage(M, gamma=1.0)), size)
    full = _full_gradient()
    assert (plug_in - full).norm() > 0.2 * full.norm()


@pytest.mark.slow
def test_the_estimate_converges_to_the_full_data_value_when_the_model_is_held_still():
    objective = _objective(lambda: dt.LogMovingAverage(M, gamma=0.02), tau=0.5)
    truth = _exact_log_g(objective)
    g = torch.Generator().manual_seed(0)
    total = dict.fromkeys(truth, 0.0)
    for step in range(1500):
        index = torch.randperm(M, generator=g)[:4]
        objective(index, index, index=index).loss.backward()
        objective.commit()
        if step >= 500:
            for view in truth:
                total[view] = total[view] + objective.losses[view].estimator.log_u.exp() / 1000
    for view, log_g in truth.items():
        torch.testing.assert_close(total[view], log_g.exp(), rtol=0.08, atol=0)


def test_gamma_one_and_the_full_batch_equal_the_exact_loss():
    everything = torch.arange(M)
    exact, averaged = _objective(dt.estimators.Exact), _objective(lambda: dt.LogMovingAverage(M, gamma=1.0))
    for _ in range(2):
        a = exact(everything, everything, index=everything)
        b = averaged(everything, everything, index=everything)
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-14, atol=0)
        torch.testing.assert_close(
            _gradient(exact, everything), _gradient(averaged, everything), rtol=1e-12, atol=1e-15
        )
        averaged(everything, everything, index=everything).loss.backward()
        averaged.commit()


def test_against_the_formula_written_out_with_plain_averages():
    """SogCLR step by step without logarithms: u <- (1-g)u + g*mean exp, gradient weights exp / ((B-1) u)."""
    images, texts = small.data()
    objective = small.objective("constant", gamma=0.4)
    u = {view: torch.zeros(small.N, dtype=torch.float64) for view in ("image", "text")}
    tau, rho = 0.2, 0.5
    for index in small.batches(6):
        objective.zero_grad()
        objective(images[index], texts[index], index=index).loss.backward()
        ours = [p.grad.clone() for p in objective.host.parameters()]
        objective.commit()

        objective.zero_grad()
        x, y = objective.host.encode_image(images[index]), objective.host.encode_text(texts[index])
        s, b = x @ y.T, len(index)
        surrogate = 0.0
        for view, scores in (("image", s), ("text", s.T)):
            e = ((scores - scores.diagonal()[:, None]) / tau).exp()
            mean = (e.sum(1) - 1.0) / (b - 1)
            old = u[view][index]
            new = torch.where(old == 0, mean, 0.6 * old + 0.4 * mean).detach()
            u[view][index] = new
            surrogate = surrogate + 0.5 * (tau * mean / new).mean()
            torch.testing.assert_close(objective.losses[view].estimator.log_u[index], new.log())
        surrogate.backward()
        for a, p in zip(ours, objective.host.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, rtol=1e-12, atol=1e-14)
    assert rho  # rho adds a constant at a fixed temperature


def test_weights_never_exceed_one_over_gamma():
    """A margin that jumps by thousands between visits cannot blow up the gradient."""
    gamma = 0.1
    log_u = torch.tensor([-5000.0, 0.0], dtype=torch.float64)
    log_g = torch.tensor([5000.0, 300.0], dtype=torch.float64, requires_grad=True)
    new = dt.functional.log_average(log_u, log_g.detach(), gamma)
    dt.functional.dual_value(log_g, torch.ones(2, dtype=torch.float64), rho=0.1, log_u=new).sum().backward()
    assert bool((log_g.grad <= 1 / gamma + 1e-9).all())
    assert bool(log_g.grad.isfinite().all())


# Forward reads, step writes ------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", small.PREDICTORS)
def test_any_number_of_forwards_before_a_step_is_one(predictor):
    images, texts = small.data()
    results = []
    for extra in (0, 3):
        objective = small.objective(predictor)
        opt = small.optimizer(objective)
        for index in small.batches(4):
            for _ in range(extra):
                objective(images[index], texts[index], index=index)  # recomputed, as by gradient caching
                with torch.no_grad():
                    objective(images[index], texts[index], index=index)
                objective.eval()(images[index.flip(0)], texts[index.flip(0)], index=index.flip(0))
                objective.train()
            objective(images[index], texts[index], index=index).loss.backward()
            opt.step()
            opt.zero_grad()
        results.append(objective)
    small.assert_same_state(*results, digits=1e-15)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("predictor", small.PREDICTORS)
def test_activation_checkpointing_changes_nothing(predictor, reentrant):
    images, texts = small.data()
    results = []
    for recompute in (False, True):
        objective = small.objective(predictor)
        opt = small.optimizer(objective)
        for index in small.batches(4):

            def loss(x, y, index=index, objective=objective):
                return objective(x, y, index=index).loss

            inputs = (images[index].requires_grad_(), texts[index])
            value = checkpoint(loss, *inputs, use_reentrant=reentrant) if recompute else loss(*inputs)
            value.backward()
            opt.step()
            opt.zero_grad()
        results.append(objective)
    small.assert_same_state(*results, digits=1e-15)


@pytest.mark.parametrize("predictor", small.PREDICTORS)
def test_accumulation_commits_once_and_steps_on_the_mean(predictor):
    """Two half batches: the gradient is the mean of theirs, every sample is written once."""
    images, texts = small.data()
    objective = small.objective(predictor)
    opt = small.optimizer(objective)
    first, second = torch.arange(6), torch.arange(6, 12)
    grads = []
    for half in (first, second):
        one = copy.deepcopy(objective)
        one(images[half], texts[half], index=half).loss.backward()
        grads.append([p.grad for p in one.parameters() if p.grad is not None])
    for half in (first, second):
        (objective(images[half], texts[half], index=half).loss / 2).backward()
        assert bool(objective.losses["image"].estimator.log_u.isneginf().all())
    for p, a, b in zip([p for p in objective.parameters() if p.grad is not None], *grads, strict=True):
        torch.testing.assert_close(p.grad, (a + b) / 2)
    opt.step()
    seen = objective.losses["image"].estimator.log_u.isfinite()
    assert seen.nonzero().flatten().tolist() == list(range(12))
    assert int(objective.losses["image"].estimator.steps) == 1


def test_count_makes_accumulation_of_unequal_parts_exact():
    """Sum divided by the count of the whole window, as trainers that count tokens do."""
    images, texts = small.data()
    objective = small.objective("tempnet", estimator=dt.estimators.Exact)
    parts = (torch.arange(4), torch.arange(4, 10))
    for part in parts:
        objective(images[part], texts[part], count=10.0).loss.backward()
    accumulated = [p.grad.clone() for p in objective.parameters()]
    objective.zero_grad()
    values = [objective(images[part], texts[part]).values for part in parts]
    (sum(v[view].sum() for v in values for view in v) / 2 / 10).backward()
    for a, p in zip(accumulated, objective.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_seen_and_unseen_rows_mixed():
    objective = small.objective("constant", gamma=0.5)
    images, texts = small.data()
    objective(images[:4], texts[:4], index=torch.arange(4)).loss.backward()
    objective.commit()
    held = objective.losses["image"].estimator.log_u.clone()
    mixed = torch.tensor([2, 3, 10, 11])
    objective(images[mixed], texts[mixed], index=mixed).loss.backward()
    rows = objective.host(images[mixed], texts[mixed])["image"]
    log_g = dt.functional.log_mean_exp(rows.margins / 0.2, rows.mask).detach()
    objective.commit()
    new = objective.losses["image"].estimator.log_u[mixed]
    expected = torch.cat([torch.logaddexp(held[mixed[:2]], log_g[:2]) - math.log(2), log_g[2:]])
    torch.testing.assert_close(new, expected)
