"""What a notebook shows of predictors, rows and outputs: one line, no tensor, no wait."""

import pytest
import small
import torch
from torch import nn

import dro_temp as dt

BOUNDS = {"tau_min": 0.1, "tau_max": 2.0}


@pytest.mark.parametrize(
    ("predictor", "text"),
    [
        (dt.ConstantTemperature(0.07), "ConstantTemperature(tau=0.07)"),
        (dt.LearnableTemperature(0.07), "LearnableTemperature(tau=0.0700, tau_min=0.01, tau_max=1.0)"),
        (dt.LearnableTemperature(0.07).to("meta"), "LearnableTemperature(tau_min=0.01, tau_max=1.0)"),
        (
            dt.IndividualTemperature(9, update=None, **BOUNDS),
            "IndividualTemperature(9, tau_min=0.1, tau_max=2.0, update=None)",
        ),
        (
            dt.OptimalTemperature(0.5, outcomes=7, **BOUNDS),
            "OptimalTemperature(rho=0.5, outcomes=7, tau_min=0.1, tau_max=2.0)",
        ),
        (
            dt.EntropyTemperature(dt.predictors.DynatempRule(0.1, 2.0)),
            "EntropyTemperature(DynatempRule(tau_min=0.1, tau_max=2.0, exponent=1.0), tau_min=0.1, tau_max=2.0)",
        ),
    ],
)
def test_a_predictor_shows_its_value_and_its_bounds(predictor, text):
    assert repr(predictor) == text


def test_a_network_shows_its_bounds_before_its_layers():
    first, second, *_ = repr(dt.TempNet(4, **BOUNDS)).splitlines()
    assert (first, second) == ("TempNet(", "  tau_min=0.1, tau_max=2.0")


def test_a_value_past_its_bound_is_shown_as_it_is_used():
    predictor = dt.LearnableTemperature(0.5)
    with torch.no_grad():
        predictor.log_tau.fill_(3.0)
    assert "tau=1.0000" in repr(predictor)


def test_rows_and_scores_show_shapes():
    scores = dt.LinearScores(
        torch.zeros(4, 3), torch.zeros(10, 3, dtype=torch.bfloat16), transform=dt.functional.SoftCap(30.0)
    )
    assert (
        repr(scores)
        == "LinearScores(queries=float32[4, 3], keys=bfloat16[10, 3], transform=SoftCap(cap=30.0))"
    )
    rows = dt.Rows(scores, torch.arange(4), target_in_support=False)
    assert repr(rows) == f"Rows(scores={scores!r}, target=int64[4], target_in_support=False)"
    elsewhere = dt.Rows(torch.zeros(4, 10, device="meta"), torch.zeros(4, dtype=torch.int32, device="meta"))
    assert repr(elsewhere) == "Rows(scores=float32[4, 10] on meta, target=int32[4] on meta)"
    assert repr(dt.Support(torch.zeros(2, 3))) == "Support(scores=float32[2, 3])"


def test_outputs_show_shapes():
    images, texts = small.data()
    out = small.objective("constant")(images, texts, index=torch.arange(small.N))
    text = repr(out)
    assert text.startswith(
        "ObjectiveOutput(loss=float64[], values={'image': float64[24], 'text': float64[24]}, tau={"
    )
    assert f"metrics={{{len(out.metrics)} numbers}}" in text
    assert "tensor" not in text
    found = dt.KLRobustLoss(0.5).evaluate(dt.Rows(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long)), 1.0)
    assert repr(found).startswith(
        "LossOutput(values=float32[2], tau=float32[2], backend=BackendChoice(name='reference'"
    )
    assert "\n" not in text + repr(found)


def test_a_whole_objective_can_be_printed():
    host = dt.hosts.Classifier(nn.Linear(3, 4))
    text = repr(dt.Objective(host, dt.LearnableTemperature(0.5), dt.KLRobustLoss(0.5)))
    assert "LearnableTemperature(tau=0.5000, tau_min=0.01, tau_max=1.0)" in text
