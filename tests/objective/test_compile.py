"""One graph each: functional, losses, and a whole objective's forward and backward."""

from functools import partial

import pytest
import torch
from cases import LOSSES, PREDICTORS
from torch._dynamo.testing import CompileCounterWithBackend

import dro_temp as dt
from dro_temp import functional as F
from dro_temp.functional.statistics import STATISTICS
from dro_temp.losses import log_mean_exp

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SOFT_CAP, SCALE = F.SoftCap(2.0), F.Scale(2.0)

# Of scores [n m], temperatures [n], a mask [n m] and sample numbers [n]. A few steps of a solver tell as much as forty.
FUNCTIONS = {
    "margins": lambda h, tau, mask, index: F.margins(h, index),
    "log_mean_exp": lambda h, tau, mask, index: F.log_mean_exp(h, mask),
    "log_mean_exp_of_all": lambda h, tau, mask, index: F.log_mean_exp(h),
    "kl_dual": lambda h, tau, mask, index: F.kl_dual(h, tau, rho=0.5, mask=mask),
    "kl_dual_held": lambda h, tau, mask, index: F.kl_dual(h, tau, rho=0.5, mask=mask, log_u=tau.log()),
    "kl_weights": lambda h, tau, mask, index: F.kl_weights(h, tau, mask),
    "kl_divergence": lambda h, tau, mask, index: F.kl_divergence(h, tau, mask),
    "optimal_tau": lambda h, tau, mask, index: F.optimal_tau(
        h, rho=0.5, tau_min=0.01, tau_max=10.0, mask=mask, iterations=6
    ),
    "log_average": lambda h, tau, mask, index: F.log_average(tau.log(), tau, 0.3),
    "log_mirror_average": lambda h, tau, mask, index: F.log_mirror_average(tau.log(), tau, 0.5),
    "compositional_log_mean": lambda h, tau, mask, index: F.compositional_log_mean(tau),
    "compositional_log_mean_held": lambda h, tau, mask, index: F.compositional_log_mean(tau, tau.log()),
    "combine_duplicates": lambda h, tau, mask, index: F.combine_duplicates(index, tau),
    "mean_duplicates": lambda h, tau, mask, index: F.mean_duplicates(index, tau),
    "sigmoid_between": lambda h, tau, mask, index: F.sigmoid_between(h, 0.1, 1.0),
    "clip_between": lambda h, tau, mask, index: F.clip_between(h, 0.1, 1.0),
    "exp_between": lambda h, tau, mask, index: F.exp_between(h, 0.1, 1.0),
    "dual_value": lambda h, tau, mask, index: F.dual_value(tau, tau, rho=0.1),
    "expected_margins": lambda h, tau, mask, index: F.expected_margins(h, h.softmax(1)),
    "smoothed_distribution": lambda h, tau, mask, index: F.smoothed_distribution(index, h.shape[1], 0.1),
    "shares": lambda h, tau, mask, index: F.shares(tau, tau),
    "shares_all_alike": lambda h, tau, mask, index: F.shares(tau),
    "weighted_log_mean_exp": lambda h, tau, mask, index: F.weighted_log_mean_exp(tau, tau),
    "mean_under": lambda h, tau, mask, index: F.mean_under(tau, tau),
    "tilted_mean": lambda h, tau, mask, index: F.tilted_mean(tau, tau, tilt=-0.5),
    "cvar_weights": lambda h, tau, mask, index: F.cvar_weights(tau, tau, alpha=0.4),
    "chi_square_weights": lambda h, tau, mask, index: F.chi_square_weights(tau, tau, rho=0.4),
    "kl_ball_weights": lambda h, tau, mask, index: F.kl_ball_weights(tau, tau, rho=0.4, iterations=6),
    "excluded_by_group": lambda h, tau, mask, index: F.excluded_by_group(
        index, torch.arange(h.shape[1]), index
    ),
    "support_sizes": lambda h, tau, mask, index: F.support_sizes(
        index, torch.arange(h.shape[1]), index, target_in_support=False
    ),
    "rows_by_sample": lambda h, tau, mask, index: F.rows_by_sample(h[:, 0], tau, index)[:3],
    "SoftCap": lambda h, tau, mask, index: SOFT_CAP(h),
    "Scale": lambda h, tau, mask, index: SCALE(h),
}
VARIANTS = ("_held", "_of_all", "_all_alike")
# What a data loader without drop_last and a bucket of texts hand over: the first number of rows, then others.
SIZES = (4, 7, 5, 9)
ONE_OF_A_KIND = ("learnable", "tempnet-embeddings", "tempnet-statistics")


def _numbers(n):
    generator = torch.Generator().manual_seed(n)
    h = torch.randn(n, n + 2, generator=generator)
    mask = torch.ones_like(h, dtype=torch.bool).scatter(1, torch.arange(n)[:, None], False)
    tau = torch.tensor([0.5, 1.0, 2.0, 0.1]).repeat(n)[:n]
    return h, tau, mask, torch.tensor([3, 1, 3, 0]).repeat(n)[:n]


def _whole(function, counter=None):
    # "aot_eager" traces forward and backward but generates no code: no C++ compiler is needed.
    return torch.compile(function, fullgraph=True, backend=counter or "aot_eager")


@pytest.fixture
def counter():
    """Counts graphs; the compiler makes the first for one size and, if nothing hinders it, the second for all."""
    torch.compiler.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()


def test_every_function_is_here():
    named = {next((name.removesuffix(v) for v in VARIANTS if name.endswith(v)), name) for name in FUNCTIONS}
    assert named | {"logit_between", "ScoreTransform", "UNGROUPED", "LEFT_OUT"} == set(F.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compile_whole(name, counter):
    compiled = _whole(FUNCTIONS[name], counter)
    for n in SIZES:
        torch.testing.assert_close(compiled(*_numbers(n)), FUNCTIONS[name](*_numbers(n)))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("pairs", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_losses_compile_whole_with_gradients(case, pairs, counter):
    eager, compiled = case.build(), case.build()

    def value(loss, scores, rows, tau):
        return loss(
            dt.Rows(scores, rows.target, index=rows.index, target_in_support=rows.target_in_support), tau
        ).sum()

    whole = _whole(partial(value, compiled), counter)
    for n in SIZES:
        grads = []
        for call in (partial(value, eager), whole):
            rows, tau = case.rows(n, pairs=pairs), case.tau(n).requires_grad_()
            scores = rows.dense_scores.clone()
            learned = (*case.learned(scores), tau)
            result = call(scores, rows, tau)
            result.backward()
            grads.append((result.detach(), *(x.grad for x in learned)))
        torch.testing.assert_close(grads[0], grads[1])
        for staged in dt.state.staged_modules([*eager.modules(), *compiled.modules()]):
            staged.commit()
    assert counter.frame_count <= 2


def test_statistics_are_one_graph(counter):
    loss = dt.KLRobustLoss(1.0)

    def statistics(scores, target):
        rows = dt.Rows(scores, target, target_in_support=False)
        return loss.evaluate(rows, 1.0, statistics=STATISTICS).statistics

    whole = _whole(statistics, counter)
    for n in SIZES:
        scores, target = _numbers(n)[0], torch.arange(n)
        torch.testing.assert_close(whole(scores, target), statistics(scores, target))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("pairs", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "case", [c for c in PREDICTORS if c.name in ONE_OF_A_KIND], ids=lambda case: case.name
)
def test_predictors_take_any_number_of_rows(case, pairs, counter):
    predictor = case.build().eval()
    whole = _whole(lambda rows: predictor.predict(rows), counter)
    for n in (*SIZES, 600):  # more than are taken at a time outside of graphs
        generator = torch.Generator().manual_seed(n)
        outcomes = n if pairs else 12
        rows = dt.Rows(
            torch.randn(n, outcomes, generator=generator),
            torch.arange(n) % outcomes,
            torch.randn(n, 8, generator=generator),
            target_in_support=not pairs,
            weight=(torch.arange(n) > 0).float(),
        )
        torch.testing.assert_close(whole(rows), predictor.predict(rows))
    assert counter.frame_count <= 2


# --- Whole objectives: twelve numbers of rows, and one graph or two ---------------------------------------------


def _classes(predictor, **options):
    host = dt.hosts.Classifier(torch.nn.Linear(6, 16), torch.nn.Linear(16, 10))
    return dt.Objective(host, predictor, dt.KLRobustLoss(1.0), **options)


def _class_batch(n):
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(10, (n,), generator=generator)
    labels[0] = -100
    return {"inputs": torch.randn(n, 6, generator=generator), "labels": labels}


def _pairs(loss, predictor=None):
    host = dt.hosts.TwoTower(torch.nn.Linear(6, 8), torch.nn.Linear(7, 8))
    return dt.Objective(host, predictor or dt.LearnableTemperature(0.1), {"image": loss(), "text": loss()})


def _pair_batch(n):
    generator = torch.Generator().manual_seed(n)
    images, texts = torch.randn(n, 6, generator=generator), torch.randn(n, 7, generator=generator)
    return {"images": images, "texts": texts, "index": torch.randint(40, (n,), generator=generator)}


def _tokens():
    import transformers

    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config)
    predictor = dt.TempNet.for_lm(model, inputs=("hidden", "statistics"), width=8, tau_min=0.1, tau_max=2.0)
    return dt.Objective(dt.hosts.CausalLM(model), predictor, dt.KLRobustLoss(1.0))


def _text_batch(n):
    """Texts of several lengths, and another number of them in every batch."""
    generator = torch.Generator().manual_seed(n)
    tokens = torch.randint(50, (2 + n % 3, n), generator=generator)
    mask = torch.ones_like(tokens)
    mask[0, n // 2 :] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def _averaging():
    return dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(40))


OBJECTIVES = {
    "classes": (lambda: _classes(dt.ConstantTemperature(1.0)), _class_batch),
    "classes-logits": (
        lambda: _classes(dt.predictors.TempNet.for_logits(10, dropout=0.0, tau_min=0.1, tau_max=2.0)),
        _class_batch,
    ),
    "classes-embeddings": (
        lambda: _classes(dt.TempNet(16, prototypes=8, dropout=0.0, tau_min=0.1, tau_max=2.0)),
        _class_batch,
    ),
    "classes-risk": (
        lambda: _classes(dt.ConstantTemperature(1.0), risk=dt.KLRisk(0.1, tau=dt.ConstantTemperature(0.8))),
        _class_batch,
    ),
    "pairs": (lambda: _pairs(lambda: dt.KLRobustLoss(1.0)), _pair_batch),
    "pairs-infonce": (lambda: _pairs(dt.InfoNCELoss), _pair_batch),
    "pairs-moving-average": (lambda: _pairs(_averaging), _pair_batch),
    "pairs-statistics": (
        lambda: _pairs(
            lambda: dt.KLRobustLoss(1.0),
            dt.TempNet(dt.predictors.StatisticsEncoder(width=8), tau_min=0.05, tau_max=1.0),
        ),
        _pair_batch,
    ),
    "tokens": (_tokens, _text_batch),
}


def _step(objective, call, batch):
    """One training step: its loss, its temperatures and the gradients."""
    objective.zero_grad()
    output = call(**batch)
    output.loss.backward()
    objective.commit()
    return output.loss.detach(), output.tau, [p.grad for p in objective.parameters()]


# One of each kind of target; the others take minutes together.
QUICK = {("classes", None), ("tokens", None)}


# "Automatic" is torch's own default: sizes that change are found out.
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        pytest.param(name, dynamic, marks=[] if (name, dynamic) in QUICK else pytest.mark.slow)
        for name, dynamic in [*((name, None) for name in OBJECTIVES), ("classes", True), ("pairs", True)]
    ],
)
def test_twelve_numbers_of_rows_are_two_graphs_at_most(name, dynamic, counter):
    build, batch = OBJECTIVES[name]
    torch.manual_seed(0)
    eager = build()
    torch.manual_seed(0)
    compiled = build()
    whole = torch.compile(compiled, backend=counter, fullgraph=True, dynamic=dynamic)
    for n in range(5, 17):
        torch.testing.assert_close(
            _step(compiled, whole, batch(n)), _step(eager, eager, batch(n)), rtol=1e-4, atol=1e-6
        )
    assert counter.frame_count <= 2


# The compiler itself looks, when it goes on after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_streamed_losses_are_a_fixed_number_of_graphs(counter, monkeypatch):
    monkeypatch.setattr(log_mean_exp, "SMALL_MATRIX", 0)
    torch.manual_seed(0)
    objective = _classes(dt.TempNet(16, prototypes=8, dropout=0.0, tau_min=0.1, tau_max=2.0))
    whole, graphs = torch.compile(objective, backend=counter), []
    for n in range(5, 13):
        assert whole(**_class_batch(n)).backend["class"].name != "reference"
        found = _step(objective, whole, _class_batch(n))
        torch.testing.assert_close(found, _step(objective, objective, _class_batch(n)), rtol=1e-4, atol=1e-6)
        graphs.append(counter.frame_count)
    assert graphs[1:] == [graphs[1]] * 7
