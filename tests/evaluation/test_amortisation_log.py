"""The gap over training: what is kept, and that training does not notice."""

import copy
import io
import json
import math

import pytest
import torch
from small import N, assert_same_state, data, objective, optimizer
from torch.utils.data import DataLoader, TensorDataset

import dro_temp as dt
from dro_temp.evaluation import GapLog, amortisation_gap


def loader(seed=0, size=6):
    return DataLoader(
        TensorDataset(*data(seed=seed), torch.arange(N)), batch_size=size, shuffle=True, drop_last=True
    )


def run(steps, every=None, start=None, predictor="dropout", log=None):
    """Some steps with dropout and a shuffled loader, both of which draw from torch's own generator."""
    torch.manual_seed(7)
    obj = objective("individual" if predictor == "individual" else "tempnet")
    if predictor == "dropout":
        for part in obj.predictors.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.5
    opt = optimizer(obj)
    if every:
        log = GapLog(obj, loader(seed=9), every=every, rows=10, resamples=20)
    losses, found = [], []
    while len(losses) < steps:
        for images, texts, index in loader():
            output = obj(images, texts, index=index)
            opt.zero_grad()
            output.loss.backward()
            opt.step()
            losses.append(float(output.loss.detach()))
            if log is not None:
                found.append(log.step())
            if len(losses) == steps:
                break
    return obj, opt, log, losses, found


@pytest.mark.parametrize("predictor", ["dropout", "individual"])
def test_a_run_with_the_log_is_the_run_without(predictor):
    plain, plain_opt, _, plain_losses, _ = run(9, predictor=predictor)
    chance = torch.get_rng_state()
    logged, logged_opt, log, losses, found = run(9, every=2, predictor=predictor)
    assert losses == plain_losses
    assert_same_state(logged, plain)
    assert torch.equal(torch.get_rng_state(), chance)
    for ours, theirs in zip(plain_opt.state.values(), logged_opt.state.values(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [gaps is not None for gaps in found] == [step % 2 == 0 for step in range(1, 10)]
    assert log.history["step"] == [2, 4, 6, 8]


def test_notes_what_amortisation_gap_finds():
    obj, _, log, _, found = run(4, every=4)
    (gaps,) = (gaps for gaps in found if gaps)
    again = amortisation_gap(obj, loader(seed=9, size=N), rows=10, resamples=20)
    assert list(gaps) == list(again) == ["image", "text"]
    torch.manual_seed(0)
    fixed = [data(seed=9)]
    log = GapLog(obj, fixed, every=1, rows=10, resamples=20)
    assert log.step() == amortisation_gap(obj, fixed, rows=10, resamples=20)
    gap = log.measure()["text"]  # twice the same, since nothing was trained
    for name in ("loss", "gap", "recovered", "rank_correlation", "constant", "loss_same_mean"):
        assert log.history[f"text/{name}"] == [getattr(gap, name)] * 2
    for name in ("gap", "recovered", "rank_correlation"):
        low, high = getattr(gap, f"{name}_interval")
        assert log.history[f"text/{name}_low"] == [low] * 2
        assert log.history[f"text/{name}_high"] == [high] * 2
    assert log.history["text/tau_mean"][0] == gap.tau.mean
    assert log.history["text/optimum_std"][0] == gap.optimum.std
    step, tau = log.temperatures[0]
    assert (step, len(tau["text"])) == (1, 10)
    assert float(tau["text"].double().mean()) == pytest.approx(gap.tau.mean)


def test_saved_and_resumed():
    _, _, log, _, _ = run(5, every=2)
    file = io.BytesIO()
    torch.save(log.state_dict(), file)
    file.seek(0)
    resumed = GapLog(log.objective, log.batches, every=2, rows=10, resamples=20)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.steps == 5
    before = copy.deepcopy(log.history)
    chance = torch.get_rng_state()
    assert log.step() is not None
    torch.set_rng_state(chance)  # the loader shuffles
    assert resumed.step() is not None
    assert resumed.history == log.history
    assert {name: values[:-1] for name, values in resumed.history.items()} == before
    for (step, tau), (other, theirs) in zip(resumed.temperatures, log.temperatures, strict=True):
        assert step == other
        assert all(torch.equal(tau[view], theirs[view]) for view in tau)


def test_history_is_what_json_and_the_plots_take():
    pytest.importorskip("matplotlib")
    _, _, log, _, _ = run(4, every=2)
    assert json.loads(json.dumps(log.history)) == log.history
    views = {view: {"gap": log.history[f"{view}/gap"]} for view in ("image", "text")}
    (axes,) = dt.plotting.training_curves(views, step="measurement").axes
    assert [len(line.get_ydata()) for line in axes.get_lines()] == [2, 2]
    panels = dt.plotting.temperature_history(log.temperatures).axes
    assert [axes.get_title(loc="left") for axes in panels][:2] == ["image", "text"]


def test_training_narrows_the_gap():
    """The network is trained on the loss whose gap is measured."""
    images, texts = data()
    obj = objective("tempnet", estimator=dt.estimators.Exact)
    obj.host.requires_grad_(False)
    opt = optimizer(obj)
    log = GapLog(obj, [(images, texts)], every=40, resamples=20)
    log.measure()
    for _ in range(120):
        obj(images, texts).loss.backward()
        opt.step()
        opt.zero_grad()
        log.step()
    assert log.history["step"] == [0, 40, 80, 120]
    for view in ("image", "text"):
        gaps = log.history[f"{view}/gap"]
        assert gaps[-1] < gaps[1] < gaps[0]
        assert gaps[-1] < 0.25 * gaps[0]
        assert all(math.isfinite(x) for x in log.history[f"{view}/recovered"])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"every": 0}, ValueError, "every >= 1"),
        ({"rows": 0}, ValueError, "rows >= 1"),
        ({"resamples": 0}, ValueError, "resamples >= 1"),
        ({"seed": -1}, ValueError, "seed >= 0"),
        ({"confidence": 0.0}, ValueError, "confidence between 0.0 and 1.0"),
        ({"batches": data()[0]}, TypeError, "as several batches"),
        ({"batches": iter([data()])}, TypeError, "more than once"),
        ({"objective": torch.nn.Linear(2, 2)}, TypeError, "to be an Objective"),
    ],
)
def test_refuses(change, error, said):
    given = {"objective": objective(), "batches": [data()]} | change
    with pytest.raises(error, match=said):
        GapLog(given.pop("objective"), given.pop("batches"), **given)
