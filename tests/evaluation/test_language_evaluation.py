"""The report against slow formulas in float64, token by token, that share no code with it."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import dro_temp as dt
from dro_temp.evaluation import (
    LanguageReport,
    TemperatureScheme,
    _batches,
    evaluate_language,
    expected_calibration_error,
)
from dro_temp.evaluation._batches import ScoredRows
from dro_temp.evaluation._reports import SHARES
from dro_temp.evaluation._temperature_sums import minimisers

transformers = pytest.importorskip("transformers")

V, RHO = 37, 1.3
LOW, HIGH = 0.2, 3.0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # a new model is uniform: every temperature would do
    return model


@pytest.fixture(scope="module")
def host(model):
    return dt.hosts.CausalLM(model, frozen=True)


@pytest.fixture(scope="module")
def tempnet():
    torch.manual_seed(1)
    return dt.TempNet(16, tau_min=LOW, tau_max=HIGH).eval()


def blocks(seed, n=12, length=9):
    return torch.randint(V, (n, length), generator=torch.Generator().manual_seed(seed))


TEST, VALIDATION = blocks(2), blocks(3)


@pytest.fixture(scope="module")
def report(host, tempnet):
    return evaluate_language(host, tempnet, TEST.split(5), validation=VALIDATION.split(5), rho=RHO)


def rows_of(model, tokens):
    """Logits [n][V], targets and hidden states, in float64."""
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
    return (
        output.logits[:, :-1].reshape(-1, V).double(),
        tokens[:, 1:].reshape(-1),
        output.hidden_states[-1][:, :-1].reshape(-1, 16),
    )


def nll_of(logits, target, tau):
    return [
        math.log(sum(math.exp(s / t) for s in row)) - row[y] / t
        for row, y, t in zip(logits.tolist(), target.tolist(), tau, strict=True)
    ]


def robust_of(logits, target, tau):
    return [
        t * (math.log(sum(math.exp((s - row[y]) / t) for s in row) / V) + RHO)
        for row, y, t in zip(logits.tolist(), target.tolist(), tau, strict=True)
    ]


def ece_of(logits, target, tau, bins=15):
    rows = []
    for row, y, t in zip(logits.tolist(), target.tolist(), tau, strict=True):
        top = max(range(V), key=row.__getitem__)
        rows.append((math.exp(row[top] / t) / sum(math.exp(s / t) for s in row), top == y))
    error = 0.0
    for b in range(bins):
        inside = [
            (p, right) for p, right in rows if b / bins <= p < (b + 1) / bins or (p == 1 and b == bins - 1)
        ]
        if inside:
            error += abs(sum(p for p, _ in inside) - sum(right for _, right in inside)) / len(rows)
    return error


def mean(values):
    return sum(values) / len(values)


def lowest(of, low=LOW, high=HIGH):
    """Golden section over log tau."""
    a, b, golden = math.log(low), math.log(high), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, right) if of(math.exp(left)) < of(math.exp(right)) else (left, b)
    return math.exp((a + b) / 2)


def optimum_of(logits):
    """Bisection on entropy = log V - rho."""
    taus = []
    for row in logits.tolist():
        low, high = LOW, HIGH
        for _ in range(100):
            tau = math.sqrt(low * high)
            p = [math.exp((s - max(row)) / tau) for s in row]
            p = [x / sum(p) for x in p]
            kl = sum(x * math.log(x * V) for x in p if x > 0)
            low, high = (tau, high) if kl > RHO else (low, tau)
        taus.append(tau)
    return taus


def expected_taus(model, tempnet):
    logits, target, _ = rows_of(model, VALIDATION)
    n = len(target)
    likelihood = lowest(lambda t: mean(nll_of(logits, target, [t] * n)))
    robust = lowest(lambda t: mean(robust_of(logits, target, [t] * n)))
    test_logits, _, test_hidden = rows_of(model, TEST)
    with torch.no_grad():
        predicted = tempnet(test_hidden).double().tolist()
    n = len(test_logits)
    return {
        "tau = 1": [1.0] * n,
        "best constant (likelihood)": [likelihood] * n,
        "best constant (robust)": [robust] * n,
        "predictor": predicted,
        "optimum": optimum_of(test_logits),
    }


def test_equals_slow_formulas(report, model, tempnet):
    logits, target, _ = rows_of(model, TEST)
    taus = expected_taus(model, tempnet)
    assert [scheme.name for scheme in report.schemes] == list(taus)
    assert (report.tokens, report.vocabulary, report.rho) == (len(target), V, RHO)
    robust = {name: mean(robust_of(logits, target, tau)) for name, tau in taus.items()}
    constant, best = robust["best constant (robust)"], robust["optimum"]
    for scheme in report.schemes:
        tau = taus[scheme.name]
        close = lambda x: pytest.approx(x, rel=2e-4)  # noqa: E731
        assert scheme.tau_mean == close(mean(tau))
        for share, value in scheme.tau_quantiles.items():
            assert value == pytest.approx(sorted(tau)[round(share * (len(tau) - 1))], rel=2e-3)
        assert scheme.perplexity == close(math.exp(mean(nll_of(logits, target, tau))))
        assert scheme.ece == pytest.approx(ece_of(logits, target, tau), abs=2e-3)
        assert scheme.robust_loss == pytest.approx(robust[scheme.name], rel=1e-5)
        assert scheme.gap == pytest.approx(robust[scheme.name] - best, abs=1e-5)
        assert scheme.recovered == pytest.approx(
            (constant - robust[scheme.name]) / (constant - best), abs=1e-3
        )


def test_without_a_radius_the_likelihood_is_all_there_is(host, tempnet, report):
    plain = evaluate_language(host, tempnet, TEST.split(5), validation=VALIDATION.split(5), rho=None)
    assert [s.name for s in plain.schemes] == ["tau = 1", "best constant (likelihood)", "predictor"]
    for scheme in plain.schemes:
        full = report[scheme.name]
        assert (scheme.perplexity, scheme.ece) == pytest.approx((full.perplexity, full.ece))
        assert scheme.tau_quantiles == pytest.approx(full.tau_quantiles)
        assert scheme.robust_loss is scheme.gap is scheme.recovered is None
    assert plain.rho is None
    assert "robust" not in plain.table()
    assert plain.table().splitlines()[2].count("|") == plain.table().splitlines()[0].count("|")
    json.dumps(plain.asdict(), allow_nan=False)


def test_order_of_the_schemes(report):
    by_name = {scheme.name: scheme for scheme in report.schemes}
    assert by_name["optimum"].gap == 0
    assert by_name["optimum"].recovered == 1
    assert by_name["best constant (robust)"].recovered == 0
    assert all(scheme.gap >= 0 for scheme in report.schemes)
    assert all(0 <= scheme.ece <= 1 for scheme in report.schemes)


def test_the_optimum_recovers_everything(host):
    optimal = dt.OptimalTemperature(RHO, tau_min=LOW, tau_max=HIGH)
    constant = dt.ConstantTemperature(1.0)
    report = evaluate_language(
        host, {"solver": optimal, "one": constant}, TEST.split(4), validation=VALIDATION.split(4), rho=RHO
    )
    assert report["solver"].recovered == pytest.approx(1, abs=1e-6)
    for name in ("perplexity", "ece", "robust_loss", "gap", "recovered"):
        assert getattr(report["one"], name) == getattr(report["tau = 1"], name)


def test_neither_batches_nor_blocks_matter(host, tempnet, report, monkeypatch):
    monkeypatch.setattr(_batches, "SCORES_AT_A_TIME", 3 * V)
    loader = DataLoader([{"input_ids": row} for row in TEST], batch_size=1)
    other = evaluate_language(host, tempnet, loader, validation=[VALIDATION], rho=RHO)
    for a, b in zip(report.schemes, other.schemes, strict=True):
        assert a.perplexity == pytest.approx(b.perplexity, rel=1e-5)
        assert a.robust_loss == pytest.approx(b.robust_loss, rel=1e-5)


def test_holds_the_scores_of_one_block(host, tempnet, monkeypatch):
    seen = []
    add = ScoredRows.__init__

    def noted(self, rows):
        seen.append(tuple(rows.scores.shape))
        add(self, rows)

    monkeypatch.setattr(_batches, "SCORES_AT_A_TIME", 10 * V)
    monkeypatch.setattr(ScoredRows, "__init__", noted)
    evaluate_language(host, tempnet, TEST.split(5), validation=VALIDATION.split(5), rho=RHO)
    assert max(n for n, _ in seen) == 10


def test_padding_does_not_count(host, tempnet, report):
    """Longer rows whose ends are masked, by the attention mask and by labels, and a batch of padding alone."""
    padded = torch.cat([TEST, torch.zeros(len(TEST), 4, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones_like(TEST), torch.zeros(len(TEST), 4, dtype=torch.long)], 1)
    nothing = {"input_ids": TEST[:2], "labels": torch.full_like(TEST[:2], -100)}
    batches = [nothing, {"input_ids": padded, "attention_mask": mask}]
    other = evaluate_language(host, tempnet, batches, validation=VALIDATION.split(5), rho=RHO)
    assert other.tokens == report.tokens
    assert other["predictor"].perplexity == pytest.approx(report["predictor"].perplexity, rel=1e-5)


def test_modes_are_put_back_and_dropout_is_off(tempnet, report):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    trained = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config)).train()
    noisy = dt.TempNet.for_logits(V, tau_min=LOW, tau_max=HIGH).train()
    modes = [m.training for m in trained.modules()]
    runs = [
        evaluate_language(trained, noisy, TEST.split(5), validation=VALIDATION.split(5), rho=RHO)
        for _ in range(2)
    ]
    assert runs[0].asdict() == runs[1].asdict()
    assert [m.training for m in trained.modules()] == modes
    assert noisy.training
    assert all(p.grad is None for p in noisy.parameters())


def test_nothing_to_gain_is_nan(host, tempnet):
    report = evaluate_language(host, tempnet, TEST.split(5), validation=VALIDATION.split(5), rho=0.0)
    assert math.isnan(report["predictor"].recovered)


def test_asdict_and_table(report):
    plain = json.loads(json.dumps(report.asdict()))
    assert plain["tokens"] == report.tokens
    assert plain["schemes"][3]["perplexity"] == report["predictor"].perplexity
    lines = report.table().splitlines()
    assert len(lines) == 2 + len(report.schemes)
    assert len({len(line) for line in lines}) == 1
    assert len({line.count("|") for line in lines}) == 1
    assert f"{report['optimum'].perplexity:.2f}" in lines[-1]
    with pytest.raises(KeyError, match=r"expected one of tau = 1, .* received 'tempnet'"):
        report["tempnet"]


def test_progress_bars(host, tempnet, capsys):
    pytest.importorskip("rich")
    evaluate_language(host, tempnet, TEST.split(5), validation=VALIDATION.split(5), rho=RHO, progress=True)
    said = capsys.readouterr().out
    assert "constants" in said
    assert "test" in said


@given(tau=st.floats(0.05, 20.0), other=st.floats(0.05, 20.0), bend=st.floats(0.1, 10.0))
def test_minimisers_finds_both_minima(tau, other, bend):
    sweeps = []

    def swept(taus):
        sweeps.append(len(taus))
        return [
            (bend * (math.log(t / tau) ** 2 + math.log(t / tau) ** 4), t / other + other / t) for t in taus
        ]

    likelihood, robust = minimisers(swept, 2, 0.05, 20.0)
    assert likelihood == pytest.approx(tau, rel=1e-3)
    assert robust == pytest.approx(other, rel=1e-3)
    assert len(sweeps) == 3


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"rho": 3.7},
            ValueError,
            r"rho < log m, received rho=3\.7 with m=37 .*log m = 3\.611.*Pass rho=1\.8 or so",
        ),
        ({"rho": -1.0}, ValueError, "rho >= 0"),
        ({"rho": "8"}, TypeError, "rho as a number"),
        ({"test": TEST}, TypeError, r"blocks\.split\(8\)"),
        ({"validation": (x for x in TEST.split(2))}, TypeError, "more than once.*received generator"),
        ({"test": []}, ValueError, "at least one token"),
        ({"validation": []}, ValueError, "at least one token"),
        ({"test": [{"input_ids": TEST, "labels": TEST * 0 - 100}]}, ValueError, "at least one token"),
        ({"test": [TEST[0]]}, ValueError, "length >= 2"),
        ({"predictors": {}}, ValueError, "at least one predictor"),
        ({"predictors": {"optimum": dt.ConstantTemperature(1.0)}}, ValueError, "names other than"),
        ({"predictors": dt.ConstantTemperature(1.0)}, ValueError, "tau_min < tau_max"),
        ({"tau_min": 4.0}, ValueError, "tau_min < tau_max"),
        ({"bins": 0}, ValueError, "bins >= 1"),
        ({"host": dt.hosts.TwoTower(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))}, ValueError, "one view"),
    ],
)
def test_refuses(change, error, said, host, tempnet):
    given = {
        "host": host,
        "predictors": tempnet,
        "test": TEST.split(5),
        "validation": VALIDATION.split(5),
        "rho": RHO,
    } | change
    with pytest.raises(error, match=said):
        evaluate_language(given.pop("host"), given.pop("predictors"), given.pop("test"), **given)


# --- Calibration ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40), st.integers(1, 20)
)
def test_calibration_error_equals_its_formula(rows, bins):
    confidence = torch.tensor([p for p, _ in rows], dtype=torch.float64)
    correct = torch.tensor([right for _, right in rows])
    expected = 0.0
    for b in range(bins):
        inside = [(p, r) for p, r in rows if min(int(p * bins), bins - 1) == b]
        expected += abs(sum(p for p, _ in inside) - sum(r for _, r in inside)) / len(rows)
    assert expected_calibration_error(confidence, correct, bins=bins) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("confidence", "correct", "error", "said"),
    [
        (torch.ones(2), torch.ones(3, dtype=torch.bool), ValueError, r"\[2\] and \[3\]"),
        (torch.ones(0), torch.ones(0, dtype=torch.bool), ValueError, "n > 0"),
        (torch.ones(2), torch.ones(2), TypeError, "predicted == target"),
        (torch.tensor([0.5, 7.0]), torch.ones(2, dtype=torch.bool), ValueError, r"in \[0, 1\]"),
        (torch.tensor([0.5, math.nan]), torch.ones(2, dtype=torch.bool), ValueError, r"in \[0, 1\]"),
    ],
)
def test_calibration_error_refuses(confidence, correct, error, said):
    with pytest.raises(error, match=said):
        expected_calibration_error(confidence, correct)


@pytest.mark.parametrize(
    ("gap", "recovered", "cell"), [(2e-5, -679.4, "–"), (0.5, -679.4, "-67940.0"), (0.0, math.nan, "–")]
)
def test_the_table_shows_no_share_of_next_to_nothing(gap, recovered, cell):
    quantiles = dict.fromkeys(SHARES, 1.0)
    constant = TemperatureScheme("best constant (robust)", 2.0, 0.1, 1.0, gap, 0.0, 1.0, quantiles)
    net = TemperatureScheme("TempNet", 2.0, 0.1, 1.1, 0.1, recovered, 1.0, quantiles)
    report = LanguageReport(10, 99, 1.0, (constant, net))
    row = report.table().splitlines()[-1]
    assert [x.strip() for x in row.split("|")][6] == cell
    assert f"{cell} |" in report._repr_markdown_()
    assert report.asdict()["schemes"][1]["recovered"] is recovered
