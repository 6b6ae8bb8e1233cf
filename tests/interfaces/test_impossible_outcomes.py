"""Outcomes that cannot happen: banned by -inf, the least number of a precision or -1e4, put there or added."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp.functional.statistics import IMPOSSIBLE_BELOW, impossible
from dro_temp.kernels.backends import cpu
from dro_temp.kernels.dispatch import cpu_runs_on
from dro_temp.predictors import logit_decoder

BOUNDS = {"tau_min": 0.1, "tau_max": 2.0}
MASKS = {
    "-inf": -math.inf,
    "float32": torch.finfo(torch.float32).min,
    "bfloat16": torch.finfo(torch.bfloat16).min,
    "float16": torch.finfo(torch.float16).min,
    "-1e4": -1e4,
    "-1e4 in bfloat16": torch.tensor(-1e4, dtype=torch.bfloat16).item(),
}
BANNED = [2, 7, 11]  # of 13


def _network(encoder: str, outcomes: int = 13) -> dt.TempNet:
    torch.manual_seed(1)
    build = {
        "logits": lambda: dt.predictors.LogitEncoder(13, width=8, dropout=0.0),
        "centred": lambda: dt.predictors.LogitEncoder(13, width=8, dropout=0.0, centred=True),
        "statistics": lambda: dt.predictors.StatisticsEncoder(width=8),
    }
    network = dt.TempNet(build[encoder](), **BOUNDS)
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)  # temperatures that differ
    if encoder != "statistics" and outcomes < 13:
        first = nn.Linear(outcomes, 8)
        with torch.no_grad():
            first.weight.copy_(network.encoder.first.weight[:, _possible()])
            first.bias.copy_(network.encoder.first.bias)
        network.encoder.first, network.encoder.outcomes = first, outcomes
    return network.eval()


def _possible() -> list[int]:
    return [j for j in range(13) if j not in BANNED]


def _masked(scores: torch.Tensor, mask: float, added: bool = False) -> torch.Tensor:
    banned = torch.zeros(13, dtype=torch.bool)
    banned[BANNED] = True
    return torch.where(banned, scores + mask if added else mask, scores)


PREDICTORS = {
    "logits": _network,
    "centred": _network,
    "statistics": _network,
    "dynatemp": lambda *_: dt.EntropyTemperature(dt.predictors.DynatempRule(0.5, 1.5)),
    "edt": lambda *_: dt.EntropyTemperature(dt.predictors.EdtRule()),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("name", PREDICTORS)
def test_a_row_is_read_as_it_is_without_them(name, mask, added):
    torch.manual_seed(0)
    scores = 3.0 * torch.randn(5, 13)
    without = PREDICTORS[name](name, 10)(support=dt.Support(scores[:, _possible()]))
    tau = PREDICTORS[name](name, 13)(support=dt.Support(_masked(scores, MASKS[mask], added)))
    torch.testing.assert_close(tau, without, rtol=1e-5, atol=1e-6)
    assert tau.std().item() > 1e-3


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pairs", [False, True])
def test_statistics_are_those_of_the_others(mask, pairs):
    torch.manual_seed(0)
    scores = torch.randn(4, 13)
    masked = _masked(scores, MASKS[mask])
    inside = torch.ones(4, 13, dtype=torch.bool)
    if pairs:
        inside[:, 0] = False
    possible = _possible()[1:] if pairs else _possible()
    found = dt.interfaces.ScoreStatistics(masked, inside if pairs else None)
    wanted = dt.interfaces.ScoreStatistics(scores[:, possible])
    assert found.possible.tolist() == [len(possible)] * 4
    for name in ("max", "mean", "std", "norm", "log_sum_exp", "entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), msg=name)
    centre = torch.randn(4)
    torch.testing.assert_close(found.norm_about(centre), wanted.norm_about(centre))
    weight = torch.randn(3, 13)
    for shift in (None, centre):
        ours = dt.interfaces.ScoreStatistics(masked).project(weight, shift)
        theirs = dt.interfaces.ScoreStatistics(scores[:, _possible()]).project(weight[:, _possible()], shift)
        torch.testing.assert_close(ours, theirs)


def test_a_row_is_judged_by_its_own_best():
    """Scores may lie anywhere, and 8000 apart: it is the distance from the best that tells."""
    scores = torch.tensor([[0.0, -8000.0, -9500.0], [-20000.0, -20001.0, -28000.0], [5.0, 4.0, 3.0]])
    assert dt.interfaces.ScoreStatistics(scores).possible.tolist() == [2.0, 3.0, 3.0]
    assert impossible(scores[1:]) is None
    assert dt.interfaces.ScoreStatistics(scores - 1e6).possible.tolist() == [2.0, 3.0, 3.0]


def test_nan_is_no_impossible_outcome():
    summary = dt.interfaces.ScoreStatistics(torch.tensor([[0.0, math.nan, -1e4], [0.0, 1.0, -1e4]]))
    assert summary.mean.isnan().tolist() == [True, False]
    assert summary.std.isnan().tolist() == [True, False]


def test_the_number_is_the_same_in_c():
    header = Path(cpu.__file__).parent / "numbers.h"
    (number,) = re.findall(r"#define IMPOSSIBLE_BELOW (\S+)f", header.read_text())
    assert float(number) == IMPOSSIBLE_BELOW


# Paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("inputs", ["logits", "statistics", ("logits", "statistics"), ("hidden", "logits")])
@pytest.mark.parametrize("centred", [False, True])
def test_paths_agree_on_a_head_with_a_bias_that_bans(inputs, mask, centred):
    """Values, temperatures, and the gradients of queries, keys and network; against the head without those columns."""
    names = (inputs,) if isinstance(inputs, str) else inputs
    if centred and "logits" not in names:
        pytest.skip("nothing to centre")
    torch.manual_seed(0)
    encoders = {
        "logits": lambda m: dt.predictors.LogitEncoder(m, width=8, dropout=0.0, centred=centred),
        "statistics": lambda _: dt.predictors.StatisticsEncoder(width=8),
        "hidden": lambda _: dt.predictors.HiddenEncoder(6, width=8),
    }
    built = [encoders[name](13) for name in names]
    network = dt.TempNet(built[0] if len(built) == 1 else dt.predictors.SumEncoder(built), **BOUNDS)
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)
    hidden, keys = torch.randn(11, 6), torch.randn(13, 6)
    bias = _masked(torch.randn(13), MASKS[mask])
    target = torch.tensor(_possible())[torch.arange(11) % 10]
    found = {}
    native = ["cpu"] if cpu_runs_on(hidden.device, torch.float32) else []
    for backend in ("reference", "torch", *native):
        q, k = hidden.clone().requires_grad_(), keys.clone().requires_grad_()
        network.zero_grad()
        rows = dt.Rows(dt.LinearScores(q, k, bias), target, hidden)
        evaluated = dt.LikelihoodLoss(backend=backend).evaluate(rows, network)
        evaluated.values.mean().backward()
        gradients = [q.grad, k.grad, *(p.grad.clone() for p in network.parameters())]
        found[backend] = [evaluated.values.detach(), evaluated.tau.detach(), *gradients]
    for path in found:
        for ours, eager in zip(found[path], found["reference"], strict=True):
            assert bool(ours.isfinite().all())
            torch.testing.assert_close(ours, eager, rtol=2e-4, atol=2e-5)
    assert float(found["reference"][1].std()) > 1e-3
    assert not bool(found["reference"][3][BANNED].any())
    scores = (hidden @ keys.T + bias)[:, _possible()]
    for encoder in (m for m in network.modules() if isinstance(m, dt.predictors.LogitEncoder)):
        assert not bool(encoder.first.weight.grad[:, BANNED].any())
        encoder.first.weight = nn.Parameter(encoder.first.weight[:, _possible()].detach())
        encoder.first.in_features = encoder.outcomes = 10
    without = network(hidden, support=dt.Support(scores))
    torch.testing.assert_close(found["reference"][1], without.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_paths_agree_on_statistics(mask):
    torch.manual_seed(0)
    hidden, keys, bias = torch.randn(5, 6), torch.randn(13, 6), _masked(torch.randn(13), MASKS[mask])
    rows = dt.Rows(dt.LinearScores(hidden, keys, bias), torch.arange(3, 8) % 6)
    wanted = dt.interfaces.ScoreStatistics((hidden @ keys.T + bias)[:, _possible()])
    native = ["cpu"] if cpu_runs_on(hidden.device, torch.float32) else []
    for backend in ("reference", "torch", *native):
        names = ("max", "mean", "std", "norm", "entropy")
        found = dt.KLRobustLoss(0.5, backend=backend).evaluate(rows, 1.0, statistics=names).statistics
        for name in names:
            torch.testing.assert_close(found[name], getattr(wanted, name), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("in_c", [False, True])
def test_generation_agrees_with_training(mask, centred, in_c, monkeypatch):
    torch.manual_seed(0)
    network = _network("centred" if centred else "logits")
    head = nn.Linear(6, 13)
    with torch.no_grad():
        head.bias.copy_(_masked(head.bias, MASKS[mask]))
    hidden = torch.randn(6, 6)
    logits = head(hidden).detach()
    if not in_c:
        monkeypatch.setattr(logit_decoder, "cpu_runs_on", lambda *_: False)
    decode = network.decoder(dt.interfaces.FrozenHead(head.weight, head.bias))
    one_by_one = torch.cat([decode(hidden[i : i + 1], logits[i : i + 1]) for i in range(6)])
    wanted = network(support=dt.Support(logits)).detach()
    for found in (one_by_one, decode(hidden, logits)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# Rules and reports ------------------------------------------------------------------------------------------


def test_dynatemp_counts_the_candidates_that_are_left():
    """llama.cpp's: of 4 candidates, one of which is banned, entropy is divided by log 3."""
    scores = torch.tensor([[1.0, 0.0, 0.5, -math.inf]])
    p = scores[0, :3].softmax(0)
    share = float(torch.special.entr(p).sum()) / math.log(3)
    tau = dt.EntropyTemperature(dt.predictors.DynatempRule(0.5, 1.5))(support=dt.Support(scores))
    assert tau.item() == pytest.approx(0.5 + share, rel=1e-5)


def test_one_outcome_that_is_left_has_no_entropy():
    tau = dt.EntropyTemperature(dt.predictors.DynatempRule(0.5, 1.5))(
        support=dt.Support(torch.tensor([[1.0, -1e4]]))
    )
    assert tau.item() == pytest.approx(0.5)


def test_a_classifier_with_masked_classes_is_evaluated():
    torch.manual_seed(0)
    logits, label = torch.randn(60, 4), torch.randint(4, (60,))
    masked = torch.cat([logits, torch.full((60, 1), -math.inf)], 1)
    host = dt.hosts.Classifier(nn.Identity())
    with_them, without = (
        dt.evaluation.evaluate_classifier(
            host, [(x, label)], validation=[(x, label)], predictors=dt.ConstantTemperature(0.7)
        )
        for x in (masked, logits)
    )
    assert with_them.accuracy == without.accuracy
    for name in ("tau = 1", "best constant", "predictor"):
        for number in ("nll", "ece", "brier", "tau_mean"):
            assert getattr(with_them[name], number) == pytest.approx(getattr(without[name], number), rel=1e-6)
    for bad in (math.nan, math.inf):
        broken = masked.clone()
        broken[3, 4] = bad
        with pytest.raises(FloatingPointError, match="expected finite scores"):
            dt.evaluation.evaluate_classifier(host, [(broken, label)], validation=[(masked, label)])
    with pytest.raises(FloatingPointError, match="masked and no label"):
        dt.evaluation.evaluate_classifier(
            host, [(masked, label.clone().fill_(4))], validation=[(masked, label)]
        )
