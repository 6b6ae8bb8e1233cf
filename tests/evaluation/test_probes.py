"""Probes of frozen features: against scipy, brute force and the field's other evaluations; near-duplicates."""

import math

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from dro_temp.evaluation import (
    _inputs,
    concepts,
    features,
    knn_accuracy,
    linear_probe,
    near_duplicates,
    same_concept,
)
from dro_temp.evaluation.features import fitted


def blobs(seed, n, classes=3, d=5, noise=0.8, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(0))
    label = torch.randint(classes, (n,), generator=g)
    return (centres[label] + noise * torch.randn(n, d, generator=g)).to(dtype), label


def by_scipy(x, label, classes, strength):
    """The minimum of the penalised mean cross-entropy, by another program, gradient by autograd."""

    def value(flat):
        w = torch.tensor(flat, dtype=torch.float64, requires_grad=True)
        weight, bias = w[:-classes].view(x.shape[1], classes), w[-classes:]
        loss = torch.nn.functional.cross_entropy(x.double() @ weight + bias, label)
        loss = loss + strength / 2 * weight.square().sum()
        (slope,) = torch.autograd.grad(loss, w)
        return float(loss.detach()), slope.numpy()

    start = torch.zeros(classes * (x.shape[1] + 1), dtype=torch.float64).numpy()
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
    return scipy.optimize.minimize(value, start, jac=True, method="L-BFGS-B", options=options)


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
@pytest.mark.parametrize("block", [3 * 7, 2**22])
def test_the_fit_is_scipys(strength, block, monkeypatch):
    monkeypatch.setattr(_inputs, "BLOCK", block)
    x, label = blobs(1, 60, dtype=torch.float64)
    weight, bias = fitted(x, label, strength, (x.new_zeros(5, 3), x.new_zeros(3)), 500)
    found = by_scipy(x, label, 3, strength)
    theirs = torch.from_numpy(found.x)
    torch.testing.assert_close(weight.flatten(), theirs[:-3], rtol=1e-4, atol=1e-5)
    # A number added to every bias changes no probability: compare without it.
    torch.testing.assert_close(bias - bias.mean(), theirs[-3:] - theirs[-3:].mean(), rtol=1e-4, atol=1e-5)


def test_the_strength_is_chosen_on_validation_and_refitted_to_both():
    train, validation, test = (blobs(seed, n, noise=2.0) for seed, n in ((1, 40), (2, 80), (3, 400)))
    strengths = (1e-6, 1e-2, 1.0)
    report = linear_probe(train, validation, test, strengths=strengths)

    def accuracy(x, label, strength, on):
        found = torch.from_numpy(by_scipy(x, label, 3, strength).x).float()
        scores = on[0] @ found[:-3].view(-1, 3) + found[-3:]
        return 100 * float((scores.argmax(dim=1) == on[1]).float().mean())

    expected = {s: accuracy(*train, s, validation) for s in strengths}
    assert list(report.validation) == sorted(strengths, reverse=True)
    assert report.validation == pytest.approx(expected, abs=1.3)  # one item of 80 may lie on the border
    assert report.strength == max(report.validation, key=report.validation.get)
    both = [torch.cat(parts) for parts in zip(train, validation, strict=True)]
    assert report.accuracy == pytest.approx(accuracy(*both, report.strength, test), abs=0.3)
    assert linear_probe(train, validation, test, strengths=strengths, progress=True) == report


def test_of_equally_good_strengths_the_strongest_is_taken():
    train, validation, test = (blobs(seed, 60, noise=0.01) for seed in (1, 2, 3))
    report = linear_probe(train, validation, test, strengths=(1e-4, 1e-3))
    assert report.validation == {1e-3: 100.0, 1e-4: 100.0}
    assert (report.strength, report.accuracy) == (1e-3, 100.0)


def test_a_collapsed_encoder_is_no_better_than_guessing():
    label = torch.arange(30) % 3
    split = torch.ones(30, 4), label
    assert linear_probe(split, split, split).accuracy == pytest.approx(100 / 3, abs=1e-6)
    assert knn_accuracy(*split, *split, k=30) == pytest.approx(100 / 3)


@torch.inference_mode()
def test_features_of_inference_mode_are_fitted_in_it():
    train, validation, test = (
        (x.clone(), label) for x, label in (blobs(s, 60, noise=0.1) for s in (1, 2, 3))
    )
    assert linear_probe(train, validation, test).accuracy == 100.0


def test_half_precision_features_are_fitted_in_float32():
    train, validation, test = (blobs(seed, 60, noise=0.1, dtype=torch.bfloat16) for seed in (1, 2, 3))
    assert linear_probe(train, validation, test).accuracy == 100.0


def votes(train, train_label, query, k, tau):
    """One query in plain Python."""
    cosine = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)  # noqa: E731
    near = sorted(
        ((cosine(query, item), y) for item, y in zip(train, train_label, strict=True)), reverse=True
    )[:k]
    by_class: dict[int, float] = {}
    for similarity, y in near:
        by_class[y] = by_class.get(y, 0.0) + math.exp(similarity / tau)
    return by_class


@given(
    seed=st.integers(0, 10**6), m=st.integers(1, 25), n=st.integers(1, 6), k=st.integers(1, 25),
    tau=st.sampled_from([0.07, 1.0, 50.0]), tiles=st.sampled_from([(256, 16384), (2, 3)]),
)  # fmt: skip
def test_neighbours_vote_as_by_hand(seed, m, n, k, tau, tiles):
    k = min(k, m)
    train, train_label = blobs(seed, m)
    test, test_label = blobs(seed + 1, n)
    right = 0
    for query, y in zip(test.tolist(), test_label.tolist(), strict=True):
        by_class = votes(train.tolist(), train_label.tolist(), query, k, tau)
        right += max(by_class, key=by_class.get) == y
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "BANK", tiles[1])
        patch.setattr(_inputs, "BLOCK", tiles[0] * tiles[1])
        got = knn_accuracy(train, train_label, test, test_label, k=k, tau=tau)
    assert got == pytest.approx(100 * right / n)


def test_equal_votes_share():
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert knn_accuracy(train, torch.tensor([0, 1]), train[:1], torch.tensor([0]), k=2) == 50.0


def test_a_tiny_temperature_does_not_overflow():
    x, label = torch.eye(4), torch.arange(4)
    assert knn_accuracy(x, label, x, label, k=4, tau=1e-4, progress=True) == 100.0


# --- Near-duplicates -----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), n=st.integers(1, 20), tile=st.sampled_from([1, 3, 2048]))
def test_duplicates_are_counted_as_by_hand(seed, n, tile):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, generator=g)[torch.randint(4, (n,), generator=g)] * (
        1 + torch.rand(n, 1, generator=g)
    )
    cosine = torch.nn.functional.cosine_similarity(x[:, None].double(), x[None].double(), dim=2).tolist()
    for threshold in (1.0, 0.5):
        expected = [sum(cosine[i][j] >= threshold - 1e-6 for j in range(n) if j != i) for i in range(n)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_inputs, "BLOCK", tile * tile)
            patch.setattr(concepts, "BANK", tile)
            assert near_duplicates(x, threshold=threshold, progress=tile == 1).tolist() == expected


@given(concept=st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_same_concepts_are_counted(concept):
    assert same_concept(torch.tensor(concept)).tolist() == [concept.count(y) - 1 for y in concept]


def test_threshold_and_concept_agree_where_a_concept_is_a_vector():
    concept = torch.randint(7, (50,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(near_duplicates(torch.eye(7)[concept], threshold=1.0), same_concept(concept))


# --- Bad input -----------------------------------------------------------------------------------------------

EYE = torch.eye(3)
LABEL = torch.arange(3)
GOOD = (EYE, LABEL)
NAN = EYE.clone().fill_diagonal_(math.nan)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: linear_probe((EYE[0], LABEL), GOOD, GOOD), ValueError, "train [n d]"),
        (lambda: linear_probe(GOOD, (EYE[:, :2], LABEL), GOOD), ValueError, "validation 2"),
        (lambda: linear_probe(GOOD, GOOD, (NAN, LABEL)), ValueError, "finite test"),
        (lambda: linear_probe(GOOD, GOOD, (EYE, LABEL[:2])), ValueError, "test_label [3]"),
        (lambda: linear_probe((EYE, LABEL.float()), GOOD, GOOD), TypeError, "train_label.long()"),
        (lambda: linear_probe(GOOD, GOOD, GOOD, strengths=()), ValueError, "at least one strength"),
        (lambda: linear_probe(GOOD, GOOD, GOOD, strengths=(0.0,)), ValueError, "strength=0.0"),
        (lambda: linear_probe(GOOD, GOOD, GOOD, steps=0), ValueError, "steps=0"),
        (lambda: knn_accuracy(*GOOD, *GOOD), ValueError, "number of training items, received k=200"),
        (lambda: knn_accuracy(*GOOD, *GOOD, k=0), ValueError, "k=0"),
        (lambda: knn_accuracy(*GOOD, *GOOD, k=1, tau=0.0), ValueError, "tau=0.0"),
        (lambda: knn_accuracy(EYE, LABEL, EYE[:, :2], LABEL, k=1), ValueError, "train 3, test 2"),
        (lambda: knn_accuracy(NAN, LABEL, EYE, LABEL, k=1), ValueError, "3 of 3 rows"),
        (lambda: knn_accuracy(EYE, LABEL - 1, EYE, LABEL, k=1), ValueError, "from -1 to 1"),
        (lambda: near_duplicates(EYE[0]), ValueError, "features [n d]"),
        (lambda: near_duplicates(NAN), ValueError, "3 of 3 rows"),
        (lambda: near_duplicates(EYE[:0]), ValueError, "[0, 3]"),
        (lambda: near_duplicates(EYE, threshold=1.5), ValueError, "threshold=1.5"),
        (lambda: near_duplicates(LABEL[:, None]), TypeError, "features.float()"),
        (lambda: same_concept(EYE), ValueError, "concept [n]"),
        (lambda: same_concept(LABEL[:0]), ValueError, "[0]"),
        (lambda: same_concept(EYE[0]), TypeError, "concept.long()"),
        (lambda: same_concept(LABEL - 1), ValueError, "from -1"),
    ],
)
def test_refuses(call, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        call()
    assert said in str(caught.value)
