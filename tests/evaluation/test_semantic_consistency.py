"""Near concepts, near temperatures: against slow formulas, scipy, and theorems."""

import dataclasses
import itertools
import math
import statistics

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from dro_temp.evaluation import _inputs, features, neighbour_consistency, semantic_consistency


def grouped(seed, concepts=30, icc=0.5, most=6, least=1):
    """Temperatures with this intraclass correlation, and their concepts."""
    g = torch.Generator().manual_seed(seed)
    size = torch.randint(least, most + 1, (concepts,), generator=g)
    concept = torch.arange(concepts).repeat_interleave(size)
    own = torch.randn(concepts, generator=g, dtype=torch.float64)[concept]
    noise = torch.randn(len(concept), generator=g, dtype=torch.float64)
    return 0.1 + 0.01 * (icc**0.5 * own + (1 - icc) ** 0.5 * noise), concept


def by_hand(tau, concept):
    """The table of an analysis of variance, in plain Python."""
    rows = {
        c: [t for t, d in zip(tau.tolist(), concept.tolist(), strict=True) if d == c]
        for c in set(concept.tolist())
    }
    rows = {c: x for c, x in rows.items() if len(x) > 1}
    everything = [t for x in rows.values() for t in x]
    n, a, mean = len(everything), len(rows), statistics.fmean(everything)
    among = sum(len(x) * (statistics.fmean(x) - mean) ** 2 for x in rows.values()) / (a - 1)
    within = sum((t - statistics.fmean(x)) ** 2 for x in rows.values() for t in x) / (n - a)
    typical = (n - sum(len(x) ** 2 for x in rows.values()) / n) / (a - 1)
    between = (among - within) / typical
    labelled = [(t, c) for c, x in rows.items() for t in x]
    pairs = list(itertools.combinations(labelled, 2))
    return {
        "icc": between / (between + within),
        "within_std": within**0.5,
        "between_std": max(between, 0.0) ** 0.5,
        "within_difference": statistics.fmean(abs(t - u) for (t, c), (u, d) in pairs if c == d),
        "between_difference": statistics.fmean(abs(t - u) for (t, c), (u, d) in pairs if c != d),
        "concepts": a,
        "rows": n,
    }


@given(seed=st.integers(0, 10**6), icc=st.sampled_from([0.0, 0.3, 0.95]), most=st.integers(2, 9))
def test_it_is_the_analysis_of_variance(seed, icc, most):
    tau, concept = grouped(seed, concepts=12, icc=icc, most=most)
    concept[:4] = torch.tensor([0, 0, 50, 50])  # two concepts that occur twice, whatever was drawn
    found = dataclasses.asdict(semantic_consistency(tau, concept, resamples=5))
    for name, value in by_hand(tau, concept).items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-15), name


def test_its_f_is_scipys():
    tau, concept = grouped(0, least=2)
    found = semantic_consistency(tau, concept, resamples=5)
    groups = [tau[concept == c].numpy() for c in range(30)]
    n = torch.tensor([float(len(x)) for x in groups])
    typical = float((n.sum() - n.square().sum() / n.sum()) / 29)
    f = scipy.stats.f_oneway(*groups).statistic
    assert found.icc == pytest.approx((f - 1) / (f - 1 + typical), rel=1e-6)


def test_a_table_of_a_textbook():
    # Three concepts of 2, 2 and 3 rows: means 2, 6 and 10, each row 1 (or 0) away from its own.
    tau = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0, 10.0, 11.0])
    found = semantic_consistency(tau, torch.tensor([4, 4, 9, 9, 2, 2, 2]))
    among, within, typical = (2 * 16 + 2 * 0 + 3 * 16 - 7 * (4 / 7) ** 2) / 2, 6 / 4, (7 - 17 / 7) / 2
    assert found.icc == pytest.approx((among - within) / (among + (typical - 1) * within))
    assert found.within_difference == pytest.approx((2 + 2 + 1 + 1 + 2) / 5)
    assert found.ratio == pytest.approx(found.within_difference / found.between_difference)


def test_one_temperature_a_concept_is_one():
    concept = torch.arange(40) % 8
    found = semantic_consistency(torch.rand(8, generator=torch.Generator().manual_seed(0))[concept], concept)
    assert (found.icc, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.within_std == pytest.approx(0, abs=1e-7)
    assert found.ratio == pytest.approx(0, abs=1e-7)
    assert found.p_value == 1 / 1001


def test_equal_means_are_as_negative_as_can_be():
    found = semantic_consistency(
        torch.tensor([0.1, 0.2, 0.3]).repeat(5), torch.arange(5).repeat_interleave(3)
    )
    assert found.icc == pytest.approx(-1 / 2)
    assert found.between_std == 0
    assert found.p_value == 1
    assert found.ratio > 1


def test_chance_is_zero_and_its_p_uniform():
    found = [semantic_consistency(*grouped(seed, icc=0.0), resamples=99) for seed in range(200)]
    icc = torch.tensor([x.icc for x in found])
    assert abs(float(icc.mean())) < 3 * float(icc.std()) / 200**0.5
    assert scipy.stats.kstest([x.p_value - 0.005 for x in found], "uniform").pvalue > 0.05


def test_the_interval_holds_the_truth_about_as_often_as_its_docstring_says():
    def held(concepts, confidence):
        found = (
            semantic_consistency(*grouped(seed, concepts=concepts), resamples=100, confidence=confidence)
            for seed in range(100)
        )
        return sum(x.low <= 0.5 <= x.high for x in found)

    assert 85 <= held(300, 0.95) <= 98
    assert 36 <= held(300, 0.5) <= 64


def test_the_interval_is_that_of_drawing_whole_concepts():
    tau, concept = grouped(3, concepts=40, least=2)
    found = semantic_consistency(tau, concept)
    g = torch.Generator().manual_seed(5)
    drawn = []
    for _ in range(400):
        chosen = torch.randint(40, (40,), generator=g).tolist()
        rows = [(concept == c).nonzero()[:, 0] for c in chosen]
        label = torch.arange(40).repeat_interleave(torch.tensor([len(x) for x in rows]))
        drawn.append(by_hand_icc(tau[torch.cat(rows)], label))
    expected = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert [found.low, found.high] == pytest.approx(expected, abs=0.05)


def by_hand_icc(tau, label):
    x, n = tau.double(), label.bincount().double()
    mean = torch.zeros_like(n).index_add_(0, label, x) / n
    within = float((x - mean[label]).square().sum() / (len(x) - len(n)))
    among = float((n * (mean - x.mean()).square()).sum() / (len(n) - 1))
    typical = float((len(x) - n.square().sum() / len(x)) / (len(n) - 1))
    return (among - within) / (among + (typical - 1) * within)


@given(seed=st.integers(0, 10**6), values=st.sampled_from([3, 10**6]))
def test_neither_labels_nor_order_nor_unit_matter(seed, values):
    tau, concept = grouped(seed, most=4)
    concept[:4] = torch.tensor([0, 0, 50, 50])
    tau = (
        (tau - tau.min()) / (tau.max() - tau.min()) * (values - 1)
    ).round() / 1024  # ties, where values are few
    tau[0], tau[1] = 0.0, 1 / 1024
    before = semantic_consistency(tau, concept, resamples=20)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tau), generator=g)
    labels = 3 * torch.randperm(51, generator=g)
    assert semantic_consistency(tau[order], labels[concept[order]], resamples=20) == before
    scaled = dataclasses.asdict(semantic_consistency(2.0 * tau + 1.0, concept, resamples=20))
    mirrored = dataclasses.asdict(semantic_consistency(1.0 - tau, concept, resamples=20))
    for name, value in dataclasses.asdict(before).items():
        factor = 2.0 if name.startswith(("within", "between")) else 1.0
        if name not in ("low", "high", "p_value"):
            assert scaled[name] == pytest.approx(factor * value, rel=1e-6, abs=1e-9), name
            assert mirrored[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_concepts_that_occur_once_change_nothing():
    tau, concept = grouped(1, least=2)
    alone = torch.cat([tau, torch.tensor([5.0, -3.0])]), torch.cat([concept, torch.tensor([77, 78])])
    assert semantic_consistency(*alone) == semantic_consistency(tau, concept)


@pytest.mark.parametrize("tau", [0.07, 0.0, 1e30])
def test_one_temperature_for_all_is_undefined(tau):
    concept = torch.arange(9) // 3
    x = torch.full((9,), tau)
    found = semantic_consistency(x, concept)
    nan = (found.icc, found.low, found.high, found.p_value, found.ratio)
    assert all(map(math.isnan, nan))
    assert (found.within_std, found.between_difference) == (0, 0)
    assert str(found) == "undefined: one temperature for all of 3 concepts of 9 rows"
    rounded = x * (1 + 1e-7 * (torch.arange(9) % 2))  # what two code paths of one network make of one number
    assert math.isnan(semantic_consistency(rounded, concept).icc)
    among_used = torch.cat([x, torch.tensor([3.0])]), torch.cat([concept, torch.tensor([8])])
    assert math.isnan(semantic_consistency(*among_used).icc)


def test_it_reads_well():
    tau, concept = grouped(0, least=2)
    lines = str(semantic_consistency(tau, concept)).splitlines()
    assert lines[0].startswith("intraclass correlation 0.")
    assert lines[0].endswith(f"(95 % bootstrap over 30 concepts of {len(tau)} rows)")
    assert "within a concept" in lines[1]
    assert lines[2].endswith("times")


def test_it_takes_parameters_and_half_precision():
    tau, concept = grouped(0, icc=0.9, least=2)
    expected = semantic_consistency(tau, concept).icc
    assert semantic_consistency(torch.nn.Parameter(tau), concept.int()).icc == expected
    assert semantic_consistency(tau.float(), concept).icc == pytest.approx(expected, abs=1e-5)
    assert semantic_consistency(tau.bfloat16(), concept).icc == pytest.approx(expected, abs=0.02)


TAU, CONCEPT = torch.rand(6), torch.tensor([0, 0, 1, 1, 2, 2])
BOTH = [
    ({"tau": torch.tensor([0.1, math.nan, 0.1, 0.1, 0.1, math.inf])}, ValueError, "in 2 of 6 rows"),
    ({"tau": torch.arange(6)}, TypeError, "tau.float()"),
    ({"tau": torch.rand(6, 1)}, ValueError, "[6, 1]"),
    ({"tau": torch.empty(0)}, ValueError, "n > 0"),
    ({"concept": CONCEPT.float()}, TypeError, "concept.long()"),
    ({"concept": CONCEPT[:5]}, ValueError, "concept [6]"),
    ({"concept": CONCEPT - 1}, ValueError, "from -1 to 1"),
    ({"resamples": 0}, ValueError, "resamples=0"),
    ({"seed": -1}, ValueError, "seed=-1"),
    ({"confidence": 1.0}, ValueError, "confidence=1.0"),
    (
        {"confidence": 0.0},
        ValueError,
        "confidence between 0.0 and 1.0, both excluded, received confidence=0.0",
    ),
]


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        *BOTH,
        ({"concept": torch.tensor([0, 0, 0, 0, 1, 2])}, ValueError, "received 1 among 3 concepts of 6 rows"),
        ({"concept": torch.arange(6)}, ValueError, "more coarsely"),
    ],
)
def test_consistency_refuses(wrong, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        semantic_consistency(**({"tau": TAU, "concept": CONCEPT} | wrong))
    assert said in str(caught.value)


# --- Neighbours ----------------------------------------------------------------------------------------------


def neighbours_by_hand(tau, x, concept, k):
    similarity = torch.nn.functional.cosine_similarity(x[:, None].double(), x[None].double(), dim=2)
    means = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if concept[j] != concept[i]]
        nearest = sorted(others, key=lambda j: -float(similarity[i, j]))[:k]
        means.append(statistics.fmean(float(tau[j]) for j in nearest))
    return scipy.stats.spearmanr(tau.numpy(), means).statistic


@given(
    seed=st.integers(0, 10**6), k=st.integers(1, 4), concepts=st.sampled_from([4, 25]), tiles=st.booleans()
)
def test_neighbours_are_the_nearest_of_other_concepts(seed, k, concepts, tiles):
    g = torch.Generator().manual_seed(seed)
    x, concept = torch.randn(25, 3, generator=g), torch.arange(25) % concepts
    tau = torch.rand(25, generator=g, dtype=torch.float64) + x[:, 0]
    with pytest.MonkeyPatch.context() as patch:
        if tiles:
            patch.setattr(features, "BANK", 11)
            patch.setattr(_inputs, "BLOCK", 7 * 16_384)
        found = neighbour_consistency(tau, x, concept=concept, k=k, resamples=5)
    assert found.correlation == pytest.approx(neighbours_by_hand(tau, x, concept, k), abs=1e-12)
    assert (found.k, found.concepts, found.rows) == (k, concepts, 25)
    assert -1 <= found.low <= found.high <= 1


def test_a_smooth_temperature_goes_with_its_neighbours_and_noise_does_not():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=g)
    smooth = torch.atan2(x[:, 0], x[:, 1]).sin()
    noise = torch.rand(600, generator=g)
    assert neighbour_consistency(smooth, x).low > 0.95
    found = neighbour_consistency(noise, x)
    assert found.low < 0 < found.high
    # Twins of one concept are no neighbours: without the concept they would be, and agree.
    x = torch.randn(600, 8, generator=g)
    twice = torch.cat([x, x]), torch.cat([noise, noise]), torch.arange(600).repeat(2)
    apart = neighbour_consistency(twice[1], twice[0], concept=twice[2], k=2)
    assert apart.low < 0 < apart.high
    assert neighbour_consistency(twice[1], twice[0], k=1).correlation == pytest.approx(1)


def test_the_neighbours_interval_is_over_concepts():
    g = torch.Generator().manual_seed(0)
    concept = torch.arange(400) // 10
    own = torch.randn(40, 4, generator=g)
    x = own[concept] + 0.01 * torch.randn(400, 4, generator=g)
    tau = (own[:, 0] + 2 * torch.randn(40, generator=g))[concept]
    wide, narrow = (
        neighbour_consistency(tau, x, concept=concept, resamples=300, confidence=c) for c in (0.95, 0.5)
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    over_rows = neighbour_consistency(tau, x, concept=concept, resamples=1, seed=3)
    assert over_rows.low == over_rows.high != wide.correlation
    # 40 witnesses, so a standard error near 1 / sqrt(39); of 400 it would be a third of that.
    assert 0.3 < wide.high - wide.low < 1.0


def test_one_temperature_has_no_neighbours():
    found = neighbour_consistency(torch.full((9,), 0.07), torch.rand(9, 2), k=3)
    assert math.isnan(found.correlation)
    assert str(found).startswith("undefined")
    assert "with the mean of 3 nearest neighbours" in str(
        neighbour_consistency(torch.rand(9), torch.rand(9, 2), k=3)
    )


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        *BOTH,
        ({"features": torch.rand(5, 2)}, ValueError, "features [6 d]"),
        ({"features": torch.full((6, 2), math.nan)}, ValueError, "finite features"),
        ({"k": 5}, ValueError, "at most 4"),
        ({"k": 0}, ValueError, "k=0"),
    ],
)
def test_neighbours_refuse(wrong, error, said):
    given_ = {"tau": TAU, "features": torch.rand(6, 2), "concept": CONCEPT, "k": 2} | wrong
    with pytest.raises(error, match=r"expected .* received") as caught:
        neighbour_consistency(**given_)
    assert said in str(caught.value)


def test_neighbours_show_progress(capsys):
    pytest.importorskip("rich")
    shown = neighbour_consistency(torch.rand(9), torch.rand(9, 2), k=3, progress=True)
    assert "neighbours" in capsys.readouterr().out
    assert shown.rows == 9
