"""The gap against slow formulas in float64, row by row, that share no code with it."""

import copy
import json
import math
import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import D, N, batches, data, objective, two_tower
from strategies import seeds
from torch import nn
from torch.utils.data import DataLoader

import dro_temp as dt
from dro_temp import functional as F
from dro_temp.evaluation import _sampled_rows, amortisation_gap, evaluate_language
from dro_temp.evaluation._sampled_rows import Margins, RowSample

RHO, LOW, HIGH = 0.5, 0.05, 1.0


def robust(h, tau, rho):
    """Of the margins of one row over its support."""
    return tau * (math.log(sum(math.exp(x / tau) for x in h) / len(h)) + rho)


def lowest(of, low, high):
    """Golden section over log tau."""
    a, b, golden = math.log(low), math.log(high), (math.sqrt(5) - 1) / 2
    for _ in range(100):
        left, right = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, right) if of(math.exp(left)) < of(math.exp(right)) else (left, b)
    return math.exp((a + b) / 2)


def mean(values, weight=None):
    weight = [1.0] * len(values) if weight is None else weight
    return sum(x * w for x, w in zip(values, weight, strict=True)) / sum(weight)


def ranks(values):
    """Mid-ranks."""
    return [sum(y < x for y in values) + 0.5 * sum(y == x for y in values) for x in values]


def correlation(x, y):
    a, b = ([v - mean(r) for v in r] for r in (ranks(x), ranks(y)))
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(
        sum(p * p for p in a) * sum(q * q for q in b)
    )


def slow(margins, tau, rho, low, high):
    """What `amortisation_gap` should find for rows of these margins at these temperatures."""
    at = lambda taus: mean([robust(h, t, rho) for h, t in zip(margins, taus, strict=True)])  # noqa: E731
    n = len(margins)
    best = [lowest(lambda t, h=h: robust(h, t, rho), low, high) for h in margins]
    for bound in (low, high):  # golden section comes near it only
        best = [bound if abs(math.log(t / bound)) < 1e-6 else t for t in best]
    constant = lowest(lambda t: at([t] * n), low, high)
    loss, loss_constant, loss_optimum = at(tau), at([constant] * n), at(best)
    return {
        "rows": n,
        "available": n,
        "constant": constant,
        "loss": loss,
        "loss_optimum": loss_optimum,
        "loss_constant": loss_constant,
        "loss_same_mean": at([mean(tau)] * n),
        "gap": loss - loss_optimum,
        "recovered": (loss_constant - loss) / (loss_constant - loss_optimum),
        "rank_correlation": correlation(tau, best),
    }, best


def assert_equals_slow(gap, margins, tau, rho, low, high):
    expected, best = slow(margins, tau, rho, low, high)
    for name, value in expected.items():
        assert getattr(gap, name) == pytest.approx(value, rel=1e-6, abs=1e-9), name
    for spread, taus in ((gap.tau, tau), (gap.optimum, best)):
        assert spread.mean == pytest.approx(mean(taus))
        assert spread.std == pytest.approx(math.sqrt(mean([(t - mean(taus)) ** 2 for t in taus])))
        ordered = sorted(taus)
        for share, value in spread.quantiles.items():
            place = max(math.ceil(share * len(taus) - 1e-9) - 1, 0)
            assert value == pytest.approx(ordered[place], rel=1e-6)
        near = mean([t <= 1.01 * low or t >= 0.99 * high for t in taus])
        assert spread.at_bound == pytest.approx(near)


# --- Against slow formulas -----------------------------------------------------------------------------------


def pairs_of(obj, images, texts):
    with torch.no_grad():
        return {
            "image": (obj.host.encode_image(images), obj.host.encode_text(texts)),
            "text": (obj.host.encode_text(texts), obj.host.encode_image(images)),
        }


@pytest.mark.parametrize("rho", [0.1, RHO, 2.0])
def test_two_towers_equal_slow_formulas(rho):
    obj, (images, texts) = objective(rho=rho), data()
    found = amortisation_gap(obj, list(zip(images.split(7), texts.split(7), strict=True)))
    assert list(found) == ["image", "text"]
    for view, (x, y) in pairs_of(obj, images, texts).items():
        scores = (x @ y.T).tolist()
        margins = [[s - row[i] for j, s in enumerate(row) if j != i] for i, row in enumerate(scores)]
        tau = obj.predictors[view].eval()(x).tolist()
        assert_equals_slow(found[view], margins, tau, rho, LOW, HIGH)
        assert found[view].outcomes == N - 1
        assert (found[view].tau_min, found[view].tau_max, found[view].rho) == (LOW, HIGH, rho)


def classifier(predictor=None, seed=0, classes=9, rho=RHO):
    torch.manual_seed(seed)
    host = dt.hosts.Classifier(nn.Linear(6, 5), nn.Linear(5, classes))
    predictor = predictor or dt.TempNet(5, tau_min=LOW, tau_max=HIGH)
    return dt.Objective(host, predictor, dt.KLRobustLoss(rho=rho)).double()


def labelled(n=20, seed=1, classes=9):
    g = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(n, 6, generator=g, dtype=torch.float64)
    return inputs, torch.randint(classes, (n,), generator=g)


def margins_of(obj, inputs, labels):
    with torch.no_grad():
        logits = obj.host.head(obj.host.model(inputs))
    return [[s - row[y] for s in row] for row, y in zip(logits.tolist(), labels.tolist(), strict=True)]


def test_a_classifier_equals_slow_formulas():
    obj, (inputs, labels) = classifier(), labelled()
    labels[3] = -100
    found = amortisation_gap(
        obj, [{"inputs": x, "labels": y} for x, y in zip(inputs.split(6), labels.split(6), strict=True)]
    )
    keep = labels >= 0
    inputs, labels = inputs[keep], labels[keep]
    with torch.no_grad():
        tau = obj.predictors["class"].eval()(obj.host.model(inputs)).tolist()
    assert_equals_slow(found["class"], margins_of(obj, inputs, labels), tau, RHO, LOW, HIGH)
    assert found["class"].outcomes == 9


@pytest.fixture(scope="module")
def language():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=37, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    tempnet = dt.TempNet(16, tau_min=0.2, tau_max=3.0)
    return dt.Objective(dt.hosts.CausalLM(model, frozen=True), tempnet, dt.KLRobustLoss(rho=1.3))


TEXT = torch.randint(37, (12, 9), generator=torch.Generator().manual_seed(2))


def test_a_language_model_equals_slow_formulas_and_its_own_report(language):
    found = amortisation_gap(language, TEXT.split(5))["token"]
    model, tempnet = language.host.model, language.predictors["token"].eval()
    with torch.no_grad():
        output = model(TEXT, output_hidden_states=True)
        tau = tempnet(output.hidden_states[-1][:, :-1].flatten(0, 1)).tolist()
    logits = output.logits[:, :-1].flatten(0, 1).double().tolist()
    target = TEXT[:, 1:].flatten().tolist()
    margins = [[s - row[y] for s in row] for row, y in zip(logits, target, strict=True)]
    expected, _ = slow(margins, tau, 1.3, 0.2, 3.0)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    report = evaluate_language(language.host, tempnet, TEXT.split(5), validation=TEXT.split(5), rho=1.3)
    assert report["predictor"].recovered == pytest.approx(found.recovered, abs=1e-3)
    assert report["predictor"].gap == pytest.approx(found.gap, abs=1e-5)
    assert report["best constant (robust)"].tau_mean == pytest.approx(found.constant, rel=1e-3)


@given(seed=seeds, rho=st.floats(0.01, 2.5), scale=st.sampled_from([1e-2, 1.0, 1e2]), pairs=st.booleans())
def test_optima_are_those_of_the_functional(seed, rho, scale, pairs):
    g = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(9, 30, generator=g, dtype=torch.float64)
    scores[0, 5] = -torch.inf  # an outcome that cannot happen
    scores[1] = 0.0  # nothing to tell apart
    target = torch.randint(5, (9,), generator=g)
    rows = dt.Rows(scores.clone(), target, target_in_support=not pairs)
    found = Margins(rows, rho).optimum(0.01 * scale, 2.0 * scale)
    best = F.optimal_tau(rows.margins, rho=rho, tau_min=0.01 * scale, tau_max=2.0 * scale, mask=rows.mask)
    torch.testing.assert_close(found, best, rtol=1e-6, atol=0)
    values = F.kl_dual(rows.margins, best, rho=rho, mask=rows.mask)
    torch.testing.assert_close(Margins(rows, rho).at(best)[0], values, rtol=1e-9, atol=1e-9)


# --- Properties ----------------------------------------------------------------------------------------------


@given(seed=seeds, rho=st.floats(0.05, 1.5))
def test_no_temperature_within_the_bounds_beats_the_optimum(seed, rho):
    torch.manual_seed(seed)
    taus = (LOW * (HIGH / LOW) ** torch.rand(N)).clamp(LOW, HIGH)
    predictor = dt.IndividualTemperature(N, tau_min=LOW, tau_max=HIGH)
    predictor.tau[:] = torch.where(
        torch.rand(N) < 0.3, torch.tensor([LOW, HIGH])[torch.randint(2, (N,))], taus
    )
    host = two_tower(seed).double()
    obj = dt.Objective(host, {"image": predictor, "text": copy.deepcopy(predictor)}, dt.KLRobustLoss(rho))
    images, texts = data(seed=seed)
    found = amortisation_gap(
        obj, [{"images": images, "texts": texts, "index": torch.arange(N)}], resamples=20
    )
    for gap in found.values():
        assert gap.gap >= 0
        assert gap.gap_interval[0] >= 0
        assert gap.loss_constant >= gap.loss_optimum
        assert gap.loss_same_mean >= gap.loss_constant
        assert not gap.recovered_by_mean > 1e-9  # NaN where there is nothing to gain
        assert not gap.recovered > 1


def test_the_optimum_recovers_everything_and_the_best_constant_nothing(language):
    bounds = {"tau_min": 0.2, "tau_max": 3.0}
    objectives = {
        "class": lambda predictor: (classifier(predictor), [labelled()]),
        "token": lambda predictor: (dt.Objective(language.host, predictor, dt.KLRobustLoss(rho=1.3)), [TEXT]),
    }
    for view, build in objectives.items():
        obj, given = build(dt.OptimalTemperature(RHO if view == "class" else 1.3, **bounds))
        best = amortisation_gap(obj, given)[view]
        assert best.recovered == pytest.approx(1, abs=1e-5)
        assert best.recovered_interval == pytest.approx((1, 1), abs=1e-5)
        assert best.rank_correlation == pytest.approx(1, abs=1e-3)
        obj, given = build(dt.ConstantTemperature(best.constant))
        none = amortisation_gap(obj, given, **bounds)[view]
        assert none.recovered == pytest.approx(0, abs=1e-5)
        assert none.recovered_interval == pytest.approx((0, 0), abs=1e-5)
        assert none.loss_same_mean == pytest.approx(none.loss_constant, rel=1e-9)
        assert math.isnan(none.rank_correlation)
        assert all(math.isnan(x) for x in none.rank_correlation_interval)


def figures(gaps):
    return {
        (view, name): getattr(gap, name)
        for view, gap in gaps.items()
        for name in (
            "loss",
            "loss_optimum",
            "loss_constant",
            "gap",
            "recovered",
            "rank_correlation",
            "constant",
        )
    }


@pytest.mark.parametrize("size", [1, 5, 23, N])
def test_neither_batches_nor_the_order_of_pairs_matter(size, monkeypatch):
    obj, (images, texts) = objective("individual"), data()
    for predictor in obj.predictors.values():
        predictor.tau[:] = 0.1 + 0.02 * torch.arange(N)
    whole = amortisation_gap(obj, [(images, texts, torch.arange(N))])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(_sampled_rows, "OUTCOMES_AT_A_TIME", 3 * N)
    for index in (torch.arange(N), order):
        given = [(images[i], texts[i], i) for i in index.split(size)]
        assert figures(amortisation_gap(obj, given)) == pytest.approx(figures(whole), rel=1e-9, abs=1e-12)


def test_batches_do_not_change_which_rows_are_drawn():
    obj, (images, texts) = objective(), data()
    several = [
        amortisation_gap(obj, list(zip(images.split(size), texts.split(size), strict=True)), rows=7)
        for size in (2, 9, N)
    ]
    for gaps in several:
        assert figures(gaps) == pytest.approx(figures(several[0]), rel=1e-9, abs=1e-12)
        for gap in gaps.values():
            assert (gap.rows, gap.available, gap.outcomes) == (7, N, N - 1)


def test_seeds_draw_rows_and_draw_them_again():
    obj, given = objective(), [data()]
    first, again, other = (amortisation_gap(obj, given, rows=9, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["image"].loss != other["image"].loss


@given(n=st.integers(1, 40), size=st.integers(1, 40), cut=st.integers(1, 40), seed=seeds)
def test_rows_are_drawn_without_replacement(n, size, cut, seed):
    sample = RowSample("class", dt.ConstantTemperature(1.0), size, seed)
    numbers = torch.arange(n)
    for part in numbers.split(cut):
        sample.offer(dt.Rows(torch.zeros(len(part), 3), part % 3, index=part, features=part[:, None].float()))
    rows, tau = sample.drawn()
    drawn = torch.cat([r.index for r in rows])
    assert sample.available == n
    assert len(tau) == len(drawn) == min(n, size)
    lots = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert drawn.tolist() == lots.argsort()[:size].sort().values.tolist()


def test_every_row_is_drawn_as_often():
    times = torch.zeros(10)
    for seed in range(600):
        sample = RowSample("class", dt.ConstantTemperature(1.0), 3, seed)
        for part in torch.arange(10).split(2):
            sample.offer(dt.Rows(torch.zeros(2, 3), part % 3, index=part))
        times[torch.cat([r.index for r in sample.drawn()[0]])] += 1
    assert float(((times - 180) / (600 * 0.3 * 0.7) ** 0.5).abs().max()) < 4


class Weighted(dt.HostAdapter):
    """Rows as they are given."""

    views = ("class",)

    def rows(self, scores, target, weight=None, in_support=True):
        linear = dt.LinearScores(scores, torch.eye(scores.shape[1], dtype=scores.dtype))
        return {"class": dt.Rows(linear, target, scores, target_in_support=in_support, weight=weight)}


def test_weights_count_as_copies_do():
    g = torch.Generator().manual_seed(0)
    scores, target = (
        torch.randn(12, 8, generator=g, dtype=torch.float64),
        torch.randint(8, (12,), generator=g),
    )
    weight = torch.tensor([0, 1, 2, 3] * 3)
    obj = dt.Objective(Weighted(), dt.TempNet(8, tau_min=LOW, tau_max=HIGH).double(), dt.KLRobustLoss(RHO))
    weighted = amortisation_gap(obj, [(scores, target, weight.double())])["class"]
    copies = amortisation_gap(obj, [(scores.repeat_interleave(weight, 0), target.repeat_interleave(weight))])[
        "class"
    ]
    assert weighted.rows == weighted.available == 9
    assert copies.rows == 18
    assert figures({"class": weighted}) == pytest.approx(figures({"class": copies}), rel=1e-9)
    for name in ("tau", "optimum"):
        ours, theirs = getattr(weighted, name), getattr(copies, name)
        assert (ours.mean, ours.std, ours.at_bound) == pytest.approx(
            (theirs.mean, theirs.std, theirs.at_bound)
        )
        assert ours.quantiles == pytest.approx(theirs.quantiles)


def test_rows_of_weight_zero_may_hold_anything():
    obj = dt.Objective(Weighted(), dt.TempNet(8, tau_min=LOW, tau_max=HIGH).double(), dt.KLRobustLoss(RHO))
    g = torch.Generator().manual_seed(0)
    scores, target = (
        torch.randn(12, 8, generator=g, dtype=torch.float64),
        torch.randint(8, (12,), generator=g),
    )
    weight = torch.ones(12).double()
    without = amortisation_gap(obj, [(scores[2:], target[2:], weight[2:])])
    scores[:2], target[:2], weight[:2] = torch.nan, -100, 0
    assert figures(amortisation_gap(obj, [(scores, target, weight)])) == pytest.approx(figures(without))


def test_hard_negatives_belong_to_the_support():
    class Bag(nn.EmbeddingBag):
        def forward(self, features):
            return {"sentence_embedding": super().forward(features["input_ids"])}

    torch.manual_seed(0)
    host = dt.hosts.SentenceTransformers(Bag(99, 16))
    obj = dt.Objective(host, dt.TempNet(16, tau_min=LOW, tau_max=HIGH), dt.KLRobustLoss(RHO)).double()
    columns = [{"input_ids": torch.randint(99, (10, 5))} for _ in range(3)]
    cut = lambda column, part: {"input_ids": column["input_ids"][part]}  # noqa: E731
    parts = (slice(0, 4), slice(4, 10))
    given = [(cut(columns[0], p), cut(columns[1], p), [cut(columns[2], p)]) for p in parts]
    found = amortisation_gap(obj, given)
    assert (found["anchor"].outcomes, found["positive"].outcomes) == (19, 9)
    with torch.no_grad():
        anchor, positive, negative = (host.encode(column) for column in columns)
        scores = (anchor @ torch.cat([positive, negative]).T).tolist()
        tau = obj.predictors["anchor"].eval()(anchor).tolist()
    margins = [[s - row[i] for j, s in enumerate(row) if j != i] for i, row in enumerate(scores)]
    assert_equals_slow(found["anchor"], margins, tau, RHO, LOW, HIGH)


def test_predictors_of_scores_read_what_they_read_in_training():
    """For pairs the batch's scores; the optimum of a batch is not that of the data."""
    obj, (images, texts) = objective(estimator=dt.estimators.Exact), data()
    optimal = dt.OptimalTemperature(RHO, tau_min=LOW, tau_max=HIGH)
    obj = dt.Objective(obj.host, optimal, dt.KLRobustLoss(RHO))
    whole = amortisation_gap(obj, [(images, texts)])["image"]
    assert whole.recovered == pytest.approx(1, abs=1e-6)
    parts = list(zip(images.split(6), texts.split(6), strict=True))
    split = amortisation_gap(obj, parts)["image"]
    assert split.loss_optimum == pytest.approx(whole.loss_optimum, rel=1e-12)
    assert split.gap > 1e-4
    taus = torch.cat(
        [
            optimal.predict(obj.host(x, y)["image"])
            for x, y in zip(images.split(6), texts.split(6), strict=True)
        ]
    )
    assert split.tau.mean == pytest.approx(float(taus.mean()))


def test_a_reference_model_and_a_score_matrix():
    """Keys that every batch makes anew, and a host that gives scores."""
    inputs, labels = labelled()
    given = list(zip(inputs.split(6), labels.split(6), strict=True))
    obj, reference = classifier(), classifier(seed=3)
    reference.host.frozen = True
    host = dt.hosts.WithReference(obj.host, reference.host)
    found = amortisation_gap(dt.Objective(host, obj.predictors["class"], obj.losses["class"]), given)["class"]
    with torch.no_grad():
        rows = host(inputs, labels)["class"]
        tau = obj.predictors["class"].eval().predict(rows).tolist()
        margins = rows.margins.tolist()
    assert_equals_slow(found, margins, tau, RHO, LOW, HIGH)

    class Dense(dt.hosts.Classifier):
        def rows(self, *args):
            return {"class": super().rows(*args)["class"].dense()}

    dense = Dense(obj.host.model, obj.host.head)
    matrix = amortisation_gap(
        dt.Objective(dense, obj.predictors["class"], obj.losses["class"]), given, rows=11
    )
    linear = amortisation_gap(obj, given, rows=11)
    assert figures(matrix) == pytest.approx(figures(linear), rel=1e-9)


def test_intervals():
    inputs, labels = labelled(2500)
    obj = classifier()
    found = amortisation_gap(obj, [(inputs, labels)], rows=2500)["class"]
    narrow = amortisation_gap(obj, [(inputs, labels)], rows=2500, confidence=0.5)["class"]
    margins, tau = (
        margins_of(obj, inputs, labels),
        obj.predictors["class"].eval()(obj.host.model(inputs)).tolist(),
    )
    rows = dt.Rows(torch.tensor(margins, dtype=torch.float64), labels)
    best = F.optimal_tau(rows.margins, rho=RHO, tau_min=LOW, tau_max=HIGH)
    gaps = [
        robust(h, t, RHO) - robust(h, b, RHO) for h, t, b in zip(margins, tau, best.tolist(), strict=True)
    ]
    error = torch.tensor(gaps).std() / 50
    low, high = found.gap_interval
    assert high - low == pytest.approx(2 * 1.96 * float(error), rel=0.1)
    assert low + high == pytest.approx(2 * found.gap, rel=0.05)
    for name in ("gap", "recovered", "rank_correlation"):
        (low, high), (a, b) = getattr(found, f"{name}_interval"), getattr(narrow, f"{name}_interval")
        assert low < a < getattr(found, name) < b < high


@pytest.mark.parametrize(("low", "high"), [(LOW, 0.3), (LOW, 1.7), (2.0, 100.0), (5.0, 100.0)])
def test_a_best_constant_at_a_bound_is_that_bound(low, high):
    torch.manual_seed(0)
    scores = torch.randn(30, 9) * (3.0 if low == LOW else 1.0)
    scores[:3] *= 0.1 if low == LOW else 10.0  # the best temperatures of some rows are inside
    predictor = dt.OptimalTemperature(RHO, tau_min=low, tau_max=high)
    obj = dt.Objective(dt.hosts.Classifier(nn.Identity()), predictor, dt.KLRobustLoss(rho=RHO))
    found = amortisation_gap(obj, [(scores, torch.randint(9, (30,)))])["class"]
    assert found.constant == (high if low == LOW else low)
    assert found.optimum.at_bound < 1


def test_nothing_to_gain_is_nan():
    found = amortisation_gap(classifier(rho=0.0), [labelled()])["class"]
    assert found.optimum.at_bound == 1
    assert math.isnan(found.recovered)
    assert all(math.isnan(x) for x in found.recovered_interval)
    assert {[x.strip() for x in row.split("|")][4] for row in found.table().splitlines()[2:]} == {"–"}
    assert ", recovered –, " in str(found)


# --- What is held --------------------------------------------------------------------------------------------


def test_holds_margins_of_one_block(language, monkeypatch):
    seen, init = [], Margins.__init__

    def noted(self, rows, rho):
        seen.append((type(rows.scores), len(rows)))
        init(self, rows, rho)

    monkeypatch.setattr(Margins, "__init__", noted)
    monkeypatch.setattr(_sampled_rows, "OUTCOMES_AT_A_TIME", 10 * 37)
    amortisation_gap(language, TEXT.split(5), rows=40)
    assert max(n for _, n in seen) == 10
    assert {kind for kind, _ in seen} == {dt.LinearScores}


def test_holds_the_keys_of_one_batch_and_matrices_of_few_rows():
    sample = RowSample("class", dt.ConstantTemperature(1.0), 5, 0)
    keys = torch.randn(7, 3)
    for i in range(30):
        sample.offer(dt.Rows(dt.LinearScores(torch.randn(4, 3), keys.clone()), torch.full((4,), i % 7)))
        assert len({part.rows.scores.keys.data_ptr() for part in sample._parts}) == 1
        assert sum(len(part.key) for part in sample._parts) <= 10


# --- Nothing changes -----------------------------------------------------------------------------------------


class Noisy(torch.utils.data.Dataset):
    """Augments at random, with everything that draws random numbers."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        noise = random.random() + numpy.random.rand() + float(torch.rand(()))
        images, texts = data()
        return {"images": images[i] + 1e-3 * noise, "texts": texts[i], "index": i}


def test_leaves_no_trace():
    obj, (images, texts) = objective("individual"), data()
    index = batches(1)[0]
    obj(images[index], texts[index], index=index).loss.backward()
    obj.predictors["image"].eval()
    state = copy.deepcopy(obj.state_dict())
    staged = [[len(m.staged)] for m in obj.memory_modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in obj.parameters()]
    modes = [m.training for m in obj.modules()]
    chance = random.getstate(), numpy.random.get_state()[1].copy(), torch.get_rng_state()
    amortisation_gap(obj, DataLoader(Noisy(), batch_size=5, shuffle=True), rows=10)
    assert random.getstate() == chance[0]
    assert (numpy.random.get_state()[1] == chance[1]).all()
    assert torch.equal(torch.get_rng_state(), chance[2])
    assert [m.training for m in obj.modules()] == modes
    assert obj.host.objective_trains
    assert [[len(m.staged)] for m in obj.memory_modules()] == staged
    assert obj.pending
    for p, grad in zip(obj.parameters(), grads, strict=True):
        assert grad is None if p.grad is None else torch.equal(p.grad, grad)
    for name, value in obj.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_dropout_is_off_and_modes_come_back_after_an_error():
    obj = classifier(dt.TempNet(5, tau_min=LOW, tau_max=HIGH, dropout=0.9)).train()
    assert amortisation_gap(obj, [labelled()]) == amortisation_gap(obj, [labelled()])
    with pytest.raises(TypeError):
        amortisation_gap(obj, [{"nonsense": 1}])
    assert all(m.training for m in obj.modules())
    assert obj.host.objective_trains


def test_reads_rows_of_one_process_alone(monkeypatch):
    """Other processes do not take part, so nothing may be gathered."""
    obj = objective()
    monkeypatch.setattr(
        dt.distributed, "refuse_missing_group", lambda: pytest.fail("waits for other processes")
    )
    amortisation_gap(obj.train(), [data()])


# --- What it says --------------------------------------------------------------------------------------------


def test_table_and_asdict():
    found = amortisation_gap(classifier(), [labelled()])["class"]
    plain = json.loads(json.dumps(found.asdict()))
    assert plain["recovered"] == found.recovered
    assert plain["tau"]["mean"] == found.tau.mean
    assert plain["gap_interval"] == list(found.gap_interval)
    lines = found.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "best constant", "same mean, constant", "predicted", "optimum",
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    assert len({line.count("|") for line in lines}) == 1
    assert f"{100 * found.recovered:.1f}" in lines[4]
    said = str(found)
    assert said.startswith("class: 20 of 20 rows, m = 9, rho = 0.5, tau from 0.05 to 1\n")
    assert f"recovered {100 * found.recovered:.1f} % [{100 * found.recovered_interval[0]:.1f}" in said
    assert "(95 % bootstrap over rows)" in said
    with pytest.raises(AttributeError):
        found.gap = 0.0


def test_progress_bars(capsys):
    pytest.importorskip("rich")
    amortisation_gap(classifier(), [labelled()], progress=True)
    said = capsys.readouterr().out
    assert "rows" in said
    assert "best temperatures, class" in said


def views_objective():
    host = dt.hosts.TwoViews(nn.Linear(D, 4))
    return dt.Objective(host, dt.TempNet(4, tau_min=LOW, tau_max=HIGH), dt.KLRobustLoss(RHO)).double()


def nan_batch():
    inputs, labels = labelled()
    inputs[4] = torch.nan
    return [(inputs, labels)]


def generator():
    yield labelled()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"objective": lambda: nn.Linear(2, 2)}, TypeError, "to be an Objective, received Linear.*model.module"),
        ({"objective": lambda: dt.Objective(classifier().host, dt.ConstantTemperature(1.0), dt.InfoNCELoss())},
         TypeError, r"KLRobustLoss in view 'class'.*received InfoNCELoss.*dt\.KLRobustLoss\(rho=1\.0\)"),
        ({"objective": lambda: classifier(dt.ConstantTemperature(0.3))}, ValueError,
         r"received a ConstantTemperature at 0\.3 in view 'class', which has none\. Pass tau_min=0\.01"),
        ({"objective": views_objective, "batches": [data()]}, TypeError,
         r"LinearScores\) in view 'first'.*received a matrix.*Pass an Objective of a host of pairs"),
        ({"objective": lambda: classifier(rho=2.5)}, ValueError,
         r"rho < log m in view 'class', received rho=2\.5 and m=9.*log m = 2\.197.*Pass a smaller rho"),
        ({"objective": lambda: objective(rho=1.0), "batches": [tuple(x[:3] for x in data())]}, ValueError,
         r"view 'image', received rho=1\.0 and m=2.*Pass more data"),
        ({"objective": lambda: objective(), "batches": [tuple(x[:1] for x in data())]}, ValueError, "m=0"),
        ({"objective": lambda: objective("individual"), "batches": [data()]}, ValueError,
         "expected index for IndividualTemperature, received no index"),
        ({"batches": labelled()[0]}, TypeError, "expected batches as several batches, received one tensor"),
        ({"batches": generator()}, TypeError, "more than once.*received generator"),
        ({"batches": []}, ValueError, "at least one row that counts in view 'class'"),
        ({"batches": [(labelled()[0], torch.full((20,), -100))]}, ValueError, "labels other than -100"),
        ({"batches": nan_batch()}, FloatingPointError, "view 'class', received NaN or infinity in 1 of 20"),
        ({"tau_min": 2.0}, ValueError, "tau_min < tau_max"),
        ({"rows": 0}, ValueError, "rows >= 1"),
        ({"rows": 1.5}, TypeError, "rows as an int"),
        ({"seed": -1}, ValueError, "seed >= 0"),
        ({"resamples": 0}, ValueError, "resamples >= 1"),
        ({"confidence": 1.0}, ValueError, "confidence between 0.0 and 1.0, both excluded"),
    ],
)  # fmt: skip
def test_refuses(change, error, said):
    given = {"objective": classifier, "batches": [labelled()]} | change
    with pytest.raises(error, match=said):
        amortisation_gap(given.pop("objective")(), given.pop("batches"), **given)


@pytest.mark.parametrize("size", [5, 11, 24])
def test_false_negatives_are_no_outcomes_in_any_batch(size):
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4)).double()
    tempnets = {view: dt.TempNet(4, tau_min=0.1, tau_max=1.0).double() for view in host.views}
    objective = dt.Objective(host, tempnets, dt.KLRobustLoss(1.0))
    images, texts = torch.randn(24, 6).double(), torch.randn(24, 5).double()
    group = torch.randint(-1, 4, (24,))
    batches = [
        {"images": i, "texts": t, "group": g}
        for i, t, g in zip(*(x.split(size) for x in (images, texts, group)), strict=True)
    ]
    found = amortisation_gap(objective, batches, resamples=10)
    objective.eval()
    rows = host(images, texts, group=group)
    for view, r in rows.items():
        tau = tempnets[view].predict(r)
        values = F.kl_dual(r.margins, tau, rho=1.0, mask=r.mask)
        best = F.optimal_tau(r.margins, rho=1.0, tau_min=0.1, tau_max=1.0, mask=r.mask)
        optima = F.kl_dual(r.margins, best, rho=1.0, mask=r.mask)
        assert found[view].loss == pytest.approx(float(values.mean().detach()), rel=1e-6)
        assert found[view].loss_optimum == pytest.approx(float(optima.mean().detach()), rel=1e-6)
        assert found[view].outcomes == int(r.support_sizes.amin())
