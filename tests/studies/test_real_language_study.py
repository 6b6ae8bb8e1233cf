"""The study of a real language model: curves are exact enough, losses the library's, splits disjoint."""

import json

import pytest
import torch

import dro_temp as dt

pytest.importorskip("yaml")
pytest.importorskip("scipy")
from benchmarks.studies.real_language import bootstrap, methods, sampling, texts
from benchmarks.studies.real_language.cache import Tokens, _projected
from benchmarks.studies.real_language.curves import TAU_MAX, TAU_MIN, Curves, log_sum_exp_curve
from dro_temp.functional.statistics import score_profile

N, M, D = 40, 300, 12


@pytest.fixture(scope="module")
def tokens():
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(k, D, generator=generator) for k in (N, M))
    head = 1.5 * head
    scores = hidden @ head.T
    target = torch.where(torch.arange(N) % 2 == 0, scores.argmax(1), torch.arange(N))
    profile = score_profile(scores)
    below = scores - profile.row_max[:, None]
    reached = below.gather(1, target[:, None]).squeeze(1)
    curves = Curves(*log_sum_exp_curve(below), reached, profile.mean - profile.row_max, M)
    kind = torch.arange(N) // 20
    found = Tokens(curves, hidden, profile, kind, kind, kind, kind, ("a", "b"))
    return found, dt.Rows(scores, target), head


@pytest.fixture
def tau():
    return torch.logspace(*torch.tensor([TAU_MIN, TAU_MAX]).log10().tolist(), N)


def test_curves_give_likelihood_confidence_and_brier_score(tokens, tau):
    found, rows, _ = tokens
    p = (rows.scores / tau[:, None]).softmax(1)
    nll = torch.nn.functional.cross_entropy(rows.scores / tau[:, None], rows.target, reduction="none")
    brier = (p - torch.nn.functional.one_hot(rows.target, M)).square().sum(1)
    torch.testing.assert_close(found.curves.nll(tau), nll, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.curves.confidence(tau), p.amax(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.curves.brier(tau), brier, atol=3e-4, rtol=0)
    assert found.curves.correct.tolist() == (p.argmax(1) == rows.target).tolist()


def test_gradient_of_a_curve_is_that_of_the_scores(tokens, tau):
    found, rows, _ = tokens
    grads = []
    for loss in (found.curves.nll, dt.LikelihoodLoss().__call__):
        t = tau.clone().requires_grad_()
        (loss(t) if loss == found.curves.nll else loss(rows, t)).sum().backward()
        grads.append(t.grad)
    torch.testing.assert_close(*grads, atol=5e-3, rtol=1e-2)


def test_robust_loss_is_the_librarys(tokens, tau):
    found, rows, _ = tokens
    entropy = 2.0
    rho = float(torch.tensor(float(M)).log()) - entropy
    expected = dt.KLRobustLoss(rho)(rows, tau).mean()
    value = methods.robust(found.curves, tau, {"entropy": entropy})
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("value", "options", "loss"),
    [
        (methods.selective_smoothing, {"alpha": 0.3}, dt.SelectiveSmoothingLoss(0.3)),
        (methods.self_weighted, {"easy_weight": 0.4}, dt.SelfWeightedLoss(0.4)),
    ],
)
def test_losses_of_a_frozen_host_are_the_librarys(tokens, tau, value, options, loss):
    found, rows, _ = tokens
    torch.testing.assert_close(
        value(found.curves, tau, options), loss(rows, tau).mean(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("inputs", [("hidden", "statistics"), ("logits",)])
def test_networks_read_what_they_would_read_of_the_scores(tokens, inputs):
    found, rows, head = tokens
    torch.manual_seed(0)
    net = methods.tempnet(inputs, D, M).eval()
    for weight in (net.readout.last.weight, *net.encoder.parameters()):
        torch.nn.init.normal_(weight, std=0.3)
    rows = dt.Rows(rows.scores, rows.target, found.hidden)
    predicted = methods._temperatures(net, found, slice(None), head)
    torch.testing.assert_close(predicted, net.predict(rows), atol=1e-4, rtol=1e-4)
    assert predicted.std() > 1e-3


def test_projection_of_stored_rows_has_the_gradient_of_the_scores(tokens):
    found, rows, head = tokens
    weight = torch.randn(3, M, requires_grad=True)
    shift = rows.scores.amax(1)
    grads = []
    for product in (
        _projected(found.hidden, head, weight, shift),
        (rows.scores - shift[:, None]) @ weight.T,
    ):
        grads.append(torch.autograd.grad(product.square().sum(), weight)[0])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-2)


def test_constants_are_fitted_and_the_oracle_has_one_for_each_kind(tokens):
    found, _, head = tokens
    starts = torch.zeros(N, dtype=torch.bool)
    nll = {}
    for name in ("tau = 1", "constant", "constant per kind"):
        tau = methods.METHODS[name].fit(found, starts, head, 0, {})(found, starts)
        nll[name] = float(found.curves.nll(tau).mean())
        assert len(tau.unique()) == {"tau = 1": 1, "constant": 1, "constant per kind": 2}[name]
    assert nll["constant per kind"] <= nll["constant"] + 1e-6 <= nll["tau = 1"] + 2e-6


def test_methods_have_equal_numbers_of_trials():
    numbers = {name: len(m.trials) for name, m in methods.METHODS.items()}
    assert set(numbers.values()) == {1, 6}
    assert all(k == 6 for name, k in numbers.items() if name.startswith("TempNet"))


def test_resamples_keep_the_number_of_documents_of_each_kind():
    kind = torch.tensor([0, 0, 0, 1, 1])
    weights = bootstrap.resampling_weights(kind)
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:].sum(1) == 2).all()
    assert bootstrap.interval(1.0, torch.full((100,), 1.0))["p"] < 0.05


def test_methods_are_compared_with_constants_of_their_diversity():
    """The constants are a line; a method one above it at three settings, one of which lies beyond the line."""

    def record(method, distinct, above):
        values = {
            metric: [above + 10 * distinct + prompt for prompt in range(4)] for metric in sampling.BY_PROMPT
        }
        places = {f"distinct_2_{kind}": distinct for kind in sampling.BY_PROMPT.values()}
        return {"method": method, "options": {}, **values, **places}

    records = [record("constant", x, 0.0) for x in (0.8, 0.2, 0.5)]
    records += [record("min-p", 0.3, 1.0), record("min-p", 0.6, 1.0), record("min-p", 0.9, 5.0)]
    summary = sampling.summary_of(records, {})
    found = json.loads(json.dumps(summary.differences))
    assert [row["metric"] for row in found] == list(sampling.BY_PROMPT)
    assert all(row["settings"] == 2 and row["seeds"] == 4 for row in found)
    assert [row["mean"] for row in found] == pytest.approx([1.0] * 3)
    assert summary.records[0]["parses"][0] == pytest.approx(9.5)


def test_prompts_are_the_beginnings_of_stored_documents(tokens):
    found, _, _ = tokens
    words = "def f(x):\n    return x + 1\n" * 20
    text = torch.tensor([ord(c) for c in words[:128]])
    stored = Tokens(
        *(found.curves, found.hidden, found.profile),
        kind=torch.tensor([0, 1]).repeat_interleave(128),
        document=torch.tensor([0, 1]).repeat_interleave(128),
        position=torch.arange(128).repeat(2),
        previous=text.repeat(2),
        kinds=("prose", "code"),
    )

    class Characters:
        def decode(self, ids):
            return "".join(map(chr, ids))

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(c) for c in text]}

    prompts = sampling.prompts_of(stored, Characters())
    assert prompts.prose == [text[:64].tolist()] * sampling.SAMPLES
    (code,) = {Characters().decode(ids) for ids in prompts.code}
    assert code == words[: len(code)]
    assert code.endswith("\n")
    assert sampling.LENGTHS[0] <= len(code) <= sampling.LENGTHS[1]


def test_no_group_of_documents_is_in_two_splits(monkeypatch):
    def documents():
        for k in range(400):
            yield texts.Document("a", f"group {k % 90}", f"{k:04d} " * 40)

    monkeypatch.setattr(texts, "KINDS", {"a": documents, "german": documents})
    monkeypatch.setattr(texts, "german", lambda folder: documents())
    found = texts.splits(None, lambda text: [ord(c) for c in text], 50)
    groups = [{d.group for d, _ in found[split]["a"]} for split in texts.SIZES]
    assert all(len(found[split]["a"]) == size for split, size in texts.SIZES.items())
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
