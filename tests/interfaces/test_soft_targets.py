"""Targets that are distributions: Mixup, CutMix, label smoothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dro_temp as dt

N, M = 6, 5


def rows_of(seed=0, dtype=torch.float64, **more):
    g = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(N, M, generator=g, dtype=dtype)
    spread = torch.randn(N, M, generator=g, dtype=dtype).mul(2).softmax(1)
    return dt.Rows(scores, spread.argmax(1), target_distribution=spread, **more)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_the_likelihood_is_torch_cross_entropy_with_probabilities(seed, tau):
    rows = rows_of(seed)
    expected = nn.functional.cross_entropy(rows.scores / tau, rows.target_distribution, reduction="none")
    torch.testing.assert_close(dt.LikelihoodLoss()(rows, tau), expected)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_the_robust_loss_is_tau_times_cross_entropy_and_a_constant(seed, tau):
    rows, rho = rows_of(seed), 0.7
    entropy = nn.functional.cross_entropy(rows.scores / tau, rows.target_distribution, reduction="none")
    torch.testing.assert_close(dt.KLRobustLoss(rho)(rows, tau), tau * (entropy + rho - math.log(M)))


@pytest.mark.parametrize("loss", [dt.LikelihoodLoss(), dt.KLRobustLoss(0.5), dt.EntropicRiskLoss()])
def test_certainty_is_a_class_number(loss):
    rows = rows_of()
    certain = nn.functional.one_hot(rows.target, M).double()
    hard, soft = (dt.Rows(rows.scores, rows.target, target_distribution=q) for q in (None, certain))
    torch.testing.assert_close(loss(soft, 0.7), loss(hard, 0.7))


@pytest.mark.parametrize("loss", [dt.LikelihoodLoss(), dt.KLRobustLoss(0.5), dt.SigmoidLoss(0.0).double()])
def test_gradients(loss):
    rows = rows_of()
    tau = torch.linspace(0.5, 2.0, N, dtype=torch.float64, requires_grad=True)

    def value(scores, tau):
        return loss(dt.Rows(scores, rows.target, target_distribution=rows.target_distribution), tau)

    assert torch.autograd.gradcheck(value, (rows.scores.requires_grad_(), tau))


def test_the_robust_gradient_is_the_worst_case_minus_the_target_distribution():
    rows = rows_of()
    scores = rows.scores.requires_grad_()
    dt.KLRobustLoss(0.5)(rows, 0.7).sum().backward()
    torch.testing.assert_close(scores.grad, (scores / 0.7).softmax(1).detach() - rows.target_distribution)


def test_sigmoid_loss_of_certainty_is_that_of_the_class():
    rows, loss = rows_of(), dt.SigmoidLoss(-1.0).double()
    certain = nn.functional.one_hot(rows.target, M).double()
    soft, hard = (
        loss(dt.Rows(rows.scores, rows.target, target_distribution=q), 2.0) for q in (certain, None)
    )
    torch.testing.assert_close(soft, hard)


def test_impossible_outcomes_of_probability_zero_do_no_harm():
    scores = torch.tensor([[1.0, -math.inf, 2.0]], requires_grad=True)
    rows = dt.Rows(scores, torch.tensor([0]), target_distribution=torch.tensor([[0.75, 0.0, 0.25]]))
    loss = dt.LikelihoodLoss()(rows, 1.0)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([math.log(math.e + math.e**2) - 1.25]))
    assert scores.grad.isfinite().all()


def test_rows_that_do_not_count_are_inert():
    rows = rows_of(weight=torch.tensor([1.0, 0, 1, 1, 1, 1]))
    spoilt = rows.target_distribution.clone()
    spoilt[1] = math.nan
    bad = dt.Rows(rows.scores, rows.target, weight=rows.weight, target_distribution=spoilt)
    torch.testing.assert_close(dt.KLRobustLoss(0.5)(bad, 1.0), dt.KLRobustLoss(0.5)(rows, 1.0))


def test_selecting_rows_takes_their_distributions():
    rows = rows_of()
    number = torch.tensor([4, 0])
    torch.testing.assert_close(rows.select(number).margins, rows.margins[number])
    torch.testing.assert_close(rows.select(slice(1, 3)).margins, rows.margins[1:3])


def test_temperatures_do_not_see_the_distribution():
    """dF/dtau of classes does not depend on the label, and so not on how sure the label is."""
    rows = rows_of()
    best = dt.OptimalTemperature(0.5, tau_min=0.01, tau_max=100.0)
    torch.testing.assert_close(best.predict(rows), best.predict(dt.Rows(rows.scores, rows.target)))


# Hosts ---------------------------------------------------------------------------------------------------


def host_of(**options):
    torch.manual_seed(0)
    return dt.hosts.Classifier(nn.Linear(6, 8), nn.Linear(8, M), **options)


INPUTS, LABELS = torch.randn(N, 6), torch.tensor([0, 1, 2, 3, 4, 0])


def test_label_smoothing_is_that_of_torch():
    host = host_of(label_smoothing=0.2)
    logits = host.head(host.model(INPUTS))
    expected = nn.functional.cross_entropy(logits, LABELS, label_smoothing=0.2)
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), dt.LikelihoodLoss())
    torch.testing.assert_close(objective(INPUTS, LABELS).loss, expected)
    objective.eval()
    torch.testing.assert_close(objective(INPUTS, LABELS).loss, nn.functional.cross_entropy(logits, LABELS))


def test_smoothed_labels_may_be_ignored():
    host, labels = host_of(label_smoothing=0.2), LABELS.clone()
    labels[2] = -100
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), dt.LikelihoodLoss())
    logits = host.head(host.model(INPUTS))
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(objective(INPUTS, labels).loss, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mixup_of_timm(dtype):
    timm_data = pytest.importorskip("timm.data")
    mixup = timm_data.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=M, label_smoothing=0.1)
    images, soft = mixup(torch.randn(N, 3, 8, 8), LABELS)
    host = dt.hosts.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, M)))
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), dt.LikelihoodLoss())
    loss = objective(images, soft.to(dtype)).loss
    expected = pytest.importorskip("timm.loss").SoftTargetCrossEntropy()(host.model(images), soft.float())
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-6)  # the labels' own rounding
    torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("head", [nn.Linear(8, M), nn.Sequential(nn.Linear(8, M))])
def test_a_linear_head_gives_what_a_matrix_gives(head):
    host = dt.hosts.Classifier(nn.Linear(6, 8), head)
    soft = torch.rand(N, M).softmax(1)
    rows = host(INPUTS, soft)["class"]
    expected = nn.functional.cross_entropy(head(host.model(INPUTS)), soft, reduction="none")
    torch.testing.assert_close(dt.LikelihoodLoss()(rows, 1.0), expected)
    assert dt.LikelihoodLoss().choose_backend(rows).name == "reference"


@pytest.mark.parametrize(
    "soft",
    [
        torch.full((N, M), 0.3),
        torch.zeros(N, M),
        torch.full((N, M), math.nan),
        torch.eye(M)[LABELS] * 3 - 0.4,
    ],
)
def test_soft_labels_that_are_no_probabilities(soft):
    with pytest.raises(ValueError, match=r"expected soft labels that are probabilities.*received a row"):
        host_of()(INPUTS, soft)


def test_soft_labels_over_other_classes():
    with pytest.raises(ValueError, match="expected soft labels over the model's 5 classes, received 7"):
        host_of()(INPUTS, torch.rand(N, 7).softmax(1))


def test_distributions_want_outcomes():
    spread = torch.rand(N, M).softmax(1)
    with pytest.raises(ValueError, match=r"expected one target per row.*received a target_distribution"):
        dt.Rows(torch.rand(N, M), torch.arange(N) % M, target_in_support=False, target_distribution=spread)
    with pytest.raises(
        ValueError, match=r"expected target_distribution of shape \[6, 5\].*received \[6, 4\]"
    ):
        dt.Rows(torch.rand(N, M), torch.arange(N) % M, target_distribution=spread[:, :4])


def test_streaming_of_distributions_is_refused_where_it_was_asked_for():
    soft = torch.rand(N, M).softmax(1)
    rows = host_of()(INPUTS, soft)["class"]
    with pytest.raises(ValueError, match=r"expected one target per row for backend='torch'.*backend='auto'"):
        dt.KLRobustLoss(0.5, backend="torch")(rows, 1.0)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_smoothing_outside_its_range(smoothing):
    with pytest.raises(ValueError, match=r"expected label_smoothing between 0.0 and 1.0, received"):
        host_of(label_smoothing=smoothing)
