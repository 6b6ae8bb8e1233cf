"""The report against formulas by hand, torchmetrics, scikit-learn and scipy, none of which share code with it."""

import json
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dro_temp as dt
from dro_temp.evaluation import (
    _batches,
    evaluate_classifier,
    expected_calibration_error,
    reliability,
)

torchmetrics = pytest.importorskip("torchmetrics.classification")
optimize = pytest.importorskip("scipy.optimize")

LOGITS = dt.hosts.Classifier(nn.Identity())


def drawn(seed, n=300, classes=5, scale=2.0, sure=1.0):
    """Logits, and labels drawn from their softmax at temperature `sure`."""
    chance = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=chance, dtype=torch.float64)
    label = torch.multinomial((logits / sure).softmax(1), 1, generator=chance)[:, 0]
    return logits, label


TEST, VALIDATION = drawn(0, sure=2.0), drawn(1, sure=2.0)


def per_row(predictor, logits):
    return predictor.predict(dt.Rows(logits, torch.zeros(len(logits), dtype=torch.long)))


@pytest.fixture(scope="module")
def tempnet():
    torch.manual_seed(0)
    tempnet = dt.TempNet(dt.predictors.StatisticsEncoder(width=8), tau_min=0.3, tau_max=5.0).eval()
    return tempnet.double()


@pytest.fixture(scope="module")
def report(tempnet):
    return evaluate_classifier(LOGITS, [TEST], validation=[VALIDATION], predictors={"tempnet": tempnet})


# --- By hand -------------------------------------------------------------------------------------------------


def test_three_rows_by_hand():
    p = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]]
    labels = [0, 2, 2]  # right, wrong, right
    batch = (torch.tensor(p, dtype=torch.float64).log(), torch.tensor(labels))
    report = evaluate_classifier(LOGITS, [batch], validation=[batch], bins=2)
    one = report["tau = 1"]
    assert (report.samples, report.classes) == (3, 3)
    assert report.accuracy == pytest.approx(200 / 3)
    assert report.balanced_accuracy == pytest.approx(
        75.0
    )  # all of class 0, half of class 2; class 1 has no rows
    assert one.nll == pytest.approx(-(math.log(0.5) + math.log(0.1) + math.log(0.6)) / 3)
    by_row = 0.5**2 + 0.25**2 * 2, 0.1**2 + 0.8**2 + 0.9**2, 0.3**2 + 0.1**2 + 0.4**2
    assert one.brier == pytest.approx(sum(by_row) / 3)
    # 0.5 belongs to the bin above it, with 0.8 and 0.6: 1.9 were claimed, 2 were right.
    assert one.reliability.count == (0.0, 3.0)
    assert one.ece == pytest.approx(0.1 / 3)
    assert one.tau_mean == 1.0


# --- Independent references ----------------------------------------------------------------------------------


def test_agrees_with_torchmetrics_and_sklearn(report, tempnet):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, label = TEST
    taus = {"tau = 1": torch.ones(300), "best constant": torch.full((300,), report["best constant"].tau_mean)}
    taus["tempnet"] = per_row(tempnet, logits).detach()
    assert [scheme.name for scheme in report.schemes] == list(taus)
    for name, tau in taus.items():
        p = (logits / tau.double()[:, None]).softmax(1)
        scheme = report[name]
        assert scheme.nll == pytest.approx(metrics.log_loss(label, p, labels=range(5)), rel=1e-6)
        brier = metrics.brier_score_loss(label, p, labels=range(5), scale_by_half=False)
        assert scheme.brier == pytest.approx(brier, rel=1e-6)
        ece = torchmetrics.MulticlassCalibrationError(5, n_bins=15)(p, label)
        assert scheme.ece == pytest.approx(float(ece), abs=1e-6)  # theirs sums in float32
        assert scheme.tau_mean == pytest.approx(float(tau.mean()), rel=1e-6)
    found = logits.argmax(1)
    assert report.accuracy == pytest.approx(100 * metrics.accuracy_score(label, found))
    assert report.balanced_accuracy == pytest.approx(100 * metrics.balanced_accuracy_score(label, found))


def test_best_constant_is_scipys(report):
    logits, label = VALIDATION

    def nll(log_tau):
        return float(nn.functional.cross_entropy(logits / math.exp(log_tau), label))

    found = optimize.minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10})
    assert report["best constant"].tau_mean == pytest.approx(math.exp(found.x), rel=1e-4)


def test_one_learned_temperature_ends_at_the_best_constant(report):
    one = dt.LearnableTemperature(1.0, tau_min=0.1, tau_max=10.0)
    objective = dt.Objective(LOGITS, one, dt.LikelihoodLoss())
    optimizer = torch.optim.LBFGS(one.parameters(), line_search_fn="strong_wolfe", max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = objective(*VALIDATION).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(one.log_tau.detach().exp()) == pytest.approx(report["best constant"].tau_mean, rel=1e-3)
    own = evaluate_classifier(objective, [VALIDATION], validation=[VALIDATION])
    assert own["predictor"].nll == pytest.approx(own["best constant"].nll, rel=1e-6)


# --- Theorems ------------------------------------------------------------------------------------------------


def test_labels_drawn_from_the_model_are_calibrated():
    """The temperature that labels were drawn at is the best one, and calibrated; tau = 1 claims too much."""
    test, validation = (drawn(seed, n=40_000, sure=2.0) for seed in (2, 3))
    report = evaluate_classifier(LOGITS, [test], validation=[validation])
    assert report["best constant"].tau_mean == pytest.approx(2.0, rel=0.02)
    assert report["best constant"].ece < 0.01  # its mean over seeds is 0.006, from sampling alone
    assert report["tau = 1"].ece > 0.1
    bins = report["tau = 1"].reliability
    claimed = [c - r for c, r, n in zip(bins.confidence, bins.correct, bins.count, strict=True) if n > 100]
    assert min(claimed) > 0


def test_temperatures_do_not_move_accuracy(report, tempnet):
    logits, label = TEST
    scaled = logits / per_row(tempnet, logits).detach()[:, None]
    other = evaluate_classifier(LOGITS, [(scaled, label)], validation=[VALIDATION])
    assert (other.accuracy, other.balanced_accuracy) == (report.accuracy, report.balanced_accuracy)
    assert other["tau = 1"].nll == pytest.approx(report["tempnet"].nll, rel=1e-6)


@pytest.mark.parametrize("sizes", [[1, 299], [100, 100, 100], [7] * 42 + [6]])
def test_neither_batches_nor_blocks_matter(sizes, report, tempnet, monkeypatch):
    monkeypatch.setattr(_batches, "SCORES_AT_A_TIME", 5 * 13)
    batches = list(zip(*(x.split(sizes) for x in TEST), strict=True))
    other = evaluate_classifier(
        LOGITS, batches, validation=[VALIDATION], predictors={"tempnet": tempnet}
    ).asdict()
    same = report.asdict()
    for a, b in zip(same.pop("schemes"), other.pop("schemes"), strict=True):
        assert a["reliability"]["count"] == b["reliability"]["count"]
        for key in ("nll", "ece", "brier", "tau_mean"):
            assert a[key] == pytest.approx(b[key], rel=1e-9)
    assert same == other


def test_ignored_labels_do_not_count(report, tempnet):
    logits, label = TEST
    more = torch.cat([logits, 9 * torch.randn(50, 5).double()])
    labels = torch.cat([label, torch.full((50,), -100)])
    order = torch.randperm(350, generator=torch.Generator().manual_seed(0))
    nothing = (logits[:3], torch.full((3,), -100))
    other = evaluate_classifier(
        LOGITS, [nothing, (more[order], labels[order])], validation=[VALIDATION], predictors=tempnet
    )
    assert other.samples == report.samples
    assert other.accuracy == report.accuracy
    for key in ("nll", "ece", "brier"):
        assert getattr(other["predictor"], key) == pytest.approx(getattr(report["tempnet"], key), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_rounded_once(dtype):
    """As if the rounded logits had come in float64: nothing more is lost in float32's own sums."""
    half = [(logits.to(dtype), label) for logits, label in (TEST, VALIDATION)]
    whole = [(logits.double(), label) for logits, label in half]
    low, high = (evaluate_classifier(LOGITS, [a], validation=[b]) for a, b in (half, whole))
    assert low.accuracy == high.accuracy
    for name in ("tau = 1", "best constant"):
        for key in ("nll", "brier", "tau_mean"):
            assert getattr(low[name], key) == pytest.approx(getattr(high[name], key), rel=1e-5)


def test_scores_of_any_size_give_finite_numbers():
    logits, label = TEST
    report = evaluate_classifier(LOGITS, [(1e4 * logits.float(), label)], validation=[VALIDATION])
    one = report["tau = 1"]
    assert one.ece == pytest.approx(1 - report.accuracy / 100, abs=1e-3)  # all are certain
    assert one.brier == pytest.approx(2 * (1 - report.accuracy / 100), abs=1e-2)
    assert math.isfinite(one.nll)


# --- Use -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:expected the best constant")  # an untrained model knows nothing
def test_hosts_objectives_and_loaders():
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5)), nn.Linear(8, 5)
    host = dt.hosts.Classifier(body, head).train()
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(8, dropout=0.5), tau_min=0.1, tau_max=4.0).train()
    objective = dt.Objective(host, tempnet, dt.KLRobustLoss(1.0))
    inputs, label = TEST[0].float(), TEST[1]
    loader = DataLoader(TensorDataset(inputs, label), batch_size=64)
    named = [{"inputs": inputs, "labels": label}]
    ways = [
        evaluate_classifier(objective, loader, validation=named),
        evaluate_classifier(host, named, validation=loader, predictors=tempnet),
    ]
    assert ways[0]["predictor"].nll == pytest.approx(ways[1]["predictor"].nll, rel=1e-6)
    assert body[1].training
    assert tempnet.training
    assert all(p.grad is None for p in objective.parameters())
    assert len(evaluate_classifier(objective, loader, validation=loader, predictors={}).schemes) == 2


def test_asdict_table_and_names(report):
    plain = json.loads(json.dumps(report.asdict(), allow_nan=False))
    assert plain["schemes"][2]["nll"] == report["tempnet"].nll
    assert plain["schemes"][0]["reliability"]["count"] == list(report["tau = 1"].reliability.count)
    lines = report.table().splitlines()
    assert len(lines) == 2 + len(report.schemes)
    assert len({len(line) for line in lines}) == 1
    assert f"{report['tempnet'].brier:.4f}" in lines[-1]
    assert str(report).startswith(f"300 rows, 5 classes: accuracy {report.accuracy:.2f} %")
    assert list(report.reliability) == ["tau = 1", "best constant", "tempnet"]
    with pytest.raises(KeyError, match=r"expected one of tau = 1, .* received 'optimum'"):
        report["optimum"]


def test_progress_bars(capsys):
    pytest.importorskip("rich")
    evaluate_classifier(LOGITS, [TEST], validation=[VALIDATION], progress=True)
    said = capsys.readouterr().out
    assert "constant" in said
    assert "test" in said


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"test": []}, ValueError, "at least one label"),
        ({"validation": []}, ValueError, "at least one label"),
        ({"test": [(TEST[0], TEST[1] * 0 - 100)]}, ValueError, "at least one label"),
        ({"test": TEST[0]}, TypeError, "several batches"),
        ({"test": [TEST[0]]}, TypeError, r"Pass \[\(inputs, labels\)\]"),
        ({"validation": (x for x in [TEST])}, TypeError, "more than once.*received generator"),
        ({"test": [(TEST[0], TEST[1] + 3)]}, ValueError, "labels from 0 to 4"),
        ({"test": [(TEST[0] / 0, TEST[1])]}, FloatingPointError, "finite scores"),
        ({"predictors": {"tau = 1": dt.ConstantTemperature(1.0)}}, ValueError, "names other than"),
        ({"tau_min": 4.0, "tau_max": 2.0}, ValueError, "tau_min < tau_max"),
        ({"bins": 0}, ValueError, "bins >= 1"),
        ({"host": nn.Linear(2, 2)}, TypeError, "host to be a HostAdapter"),
        ({"host": dt.hosts.TwoTower(nn.Linear(2, 2), nn.Linear(2, 2))}, ValueError, "one view"),
    ],
)
def test_refuses(change, error, said):
    given = {"host": LOGITS, "test": [TEST], "validation": [VALIDATION]} | change
    with pytest.raises(error, match=said):
        evaluate_classifier(given.pop("host"), given.pop("test"), **given)


def test_refuses_weighted_rows():
    class Weighted(dt.HostAdapter):
        views = ("class",)

        def rows(self, logits, label):
            return {"class": dt.Rows(logits, label, weight=torch.full((len(label),), 0.5))}

    with pytest.raises(ValueError, match="each of weight 1"):
        evaluate_classifier(Weighted(), [TEST], validation=[VALIDATION])


def test_without_torchmetrics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.classification", None)
    batch = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    with pytest.raises(ImportError, match=r"pip install 'dro-temp\[vision\]'"):
        evaluate_classifier(dt.hosts.Classifier(torch.nn.Identity()), batch, validation=batch)


# --- Calibration error beside torchmetrics' ------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 0.999), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([2, 4, 8, 16]),  # their edges are exact in binary: neither side rounds
)
def test_calibration_error_is_torchmetrics_below_one(rows, bins):
    confidence = torch.tensor([p for p, _ in rows], dtype=torch.float64)
    correct = torch.tensor([right for _, right in rows])
    theirs = torchmetrics.BinaryCalibrationError(n_bins=bins, norm="l1")(confidence, correct.int())
    assert expected_calibration_error(confidence, correct, bins=bins) == pytest.approx(
        float(theirs), abs=1e-9
    )


@given(seeds, st.integers(1, 100), st.sampled_from([torch.float32, torch.float64]))
def test_calibration_error_is_torchmetrics_for_any_number_of_bins(seed, bins, dtype):
    g = torch.Generator().manual_seed(seed)
    confidence, correct = torch.rand(500, generator=g, dtype=dtype), torch.rand(500, generator=g) < 0.5
    # Theirs are edges of linspace, which is an ulp off k / bins for some k: not at those values, then.
    place = confidence.double() * bins
    clear = (place - place.round()).abs() > 4 * bins * torch.finfo(dtype).eps
    confidence, correct = confidence[clear], correct[clear]
    theirs = torchmetrics.BinaryCalibrationError(n_bins=bins, norm="l1")(confidence, correct.int())
    assert expected_calibration_error(confidence, correct, bins=bins) == pytest.approx(
        float(theirs), abs=1e-6 if dtype == torch.float32 else 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bins", [1, 3, 10, 15, 20, 100])
def test_a_confidence_on_an_edge_is_in_the_bin_above_it_in_any_precision(dtype, bins):
    edges = (torch.arange(bins, dtype=torch.float64) / bins).to(dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    below = (edges[1:].view(bits) - 1).view(dtype)  # the next smaller number
    for confidence in (edges, below) if bins > 1 else (edges,):
        right = torch.ones(len(confidence), dtype=torch.bool)
        count = reliability(confidence, right, bins=bins).count
        assert count == (1.0,) * len(confidence) + (0.0,) * (bins - len(confidence))


def test_the_calibration_error_of_seven_in_ten():
    """Seven sure by 0.7 and by 0.75, with half of them right: an edge that float32 puts below 0.7."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        confidence = torch.tensor([0.7, 0.75], dtype=dtype)
        correct = torch.tensor([True, False])
        theirs = torchmetrics.BinaryCalibrationError(n_bins=10, norm="l1")(confidence.float(), correct.int())
        ours = expected_calibration_error(confidence, correct, bins=10)
        assert ours == pytest.approx(0.225, abs=2 * torch.finfo(dtype).eps)
        if dtype != torch.bfloat16:
            assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_a_confidence_of_one_has_a_bin_of_its_own_only_in_torchmetrics():
    confidence, correct = torch.tensor([1.0, 0.95]), torch.tensor([False, True])
    theirs = torchmetrics.BinaryCalibrationError(n_bins=10, norm="l1")(confidence, correct.int())
    assert float(theirs) == pytest.approx((1 + 0.05) / 2)
    assert expected_calibration_error(confidence, correct, bins=10) == pytest.approx((1.95 - 1) / 2)


def test_reliability_sums_up_to_all_rows():
    confidence, correct = torch.rand(200), torch.rand(200) < 0.5
    found = reliability(confidence, correct, bins=7)
    assert sum(found.count) == 200
    assert sum(found.correct) == int(correct.sum())
    assert sum(found.confidence) == pytest.approx(float(confidence.double().sum()))
    for b, (count, total) in enumerate(zip(found.count, found.confidence, strict=True)):
        assert b / 7 * count - 1e-6 <= total <= (b + 1) / 7 * count + 1e-6


@pytest.mark.parametrize(("factor", "name"), [(1e4, "tau_max"), (1e-4, "tau_min")])
def test_a_best_constant_beyond_the_bounds_is_not_silent(factor, name):
    logits, label = TEST
    scaled = [(factor * logits, label)]
    host = dt.hosts.Classifier(torch.nn.Identity())
    with pytest.warns(dt.TemperatureWarning, match=rf"received the bound {name} itself.*Pass {name}="):
        short = evaluate_classifier(host, scaled, validation=scaled)
    wide = evaluate_classifier(host, scaled, validation=scaled, tau_min=1e-6, tau_max=1e6)
    expected = evaluate_classifier(host, [TEST], validation=[TEST])
    assert wide["best constant"].tau_mean == pytest.approx(
        factor * expected["best constant"].tau_mean, rel=1e-2
    )
    assert short["best constant"].nll > wide["best constant"].nll
