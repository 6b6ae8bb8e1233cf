"""TempNets for language models by what they read, entropy rules, and the loss that fits labels."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dtypes, seeds
from streams import blocks_of
from torch import nn

import dro_temp as dt
from dro_temp.predictors import HeadShape
from dro_temp.predictors.encoders import shift_invariant_statistics

float64 = torch.float64
INPUTS = ("hidden", "logits", "statistics", ("hidden", "statistics"), ("logits", "statistics", "hidden"))
BOUNDS = {"tau_min": 0.1, "tau_max": 2.0}


class Model(nn.Module):
    """Has what TempNet asks of a language model."""

    def __init__(self, outcomes=40, d=6, name="some/model", head=nn.Linear):
        super().__init__()
        self.head = head(d, outcomes) if head is not None else None
        self.config = SimpleNamespace(_name_or_path=name)

    def get_output_embeddings(self):
        return self.head


def _random(module, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return module


# TempNet.for_lm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_reads_what_it_was_asked_to_read(inputs):
    tempnet = dt.TempNet.for_lm(Model(), inputs=inputs, width=8, **BOUNDS)
    names = {inputs} if isinstance(inputs, str) else set(inputs)
    reads = {"features"} if "hidden" in names else set()
    assert tempnet.reads == reads | ({"statistics"} if names - {"hidden"} else set())
    assert tempnet.made_for == HeadShape(40, 6, "some/model")
    assert [m.p for m in tempnet.modules() if isinstance(m, nn.Dropout)] == (
        [0.5] if names == {"logits"} else [0.0] * len(names)
    )


def test_logits_alone_are_exactly_the_papers_network():
    torch.manual_seed(3)
    ours = dt.TempNet.for_lm(Model(), inputs="logits", centred=True, **BOUNDS)
    torch.manual_seed(3)
    Model()
    papers = dt.TempNet.for_logits(40, centred=True, **BOUNDS)
    logits = dt.Support(torch.randn(5, 40))
    for mode in (True, False):
        torch.manual_seed(0)
        tau = ours.train(mode)(support=logits)
        torch.manual_seed(0)
        assert torch.equal(tau, papers.train(mode)(support=logits))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Linear(3, 4), "Linear with no head"),
        (Model(head=None), "no head"),
        (Model(head=lambda d, outcomes: nn.Bilinear(2, 3, 4)), r"shape \[4, 2, 3\]"),
        (Model(head=lambda d, outcomes: nn.Identity()), "the head Identity"),
    ],
    ids=["no-method", "none", "three-dimensional", "no-weight"],
)
def test_a_model_without_a_head(model, found):
    with pytest.raises(TypeError, match=rf"(?s)expected a causal language model.*received.*{found}"):
        dt.TempNet.for_lm(model, **BOUNDS)


def test_a_head_that_is_packed_is_refused():
    model = Model()
    model.head.weight = nn.Parameter(torch.zeros(120, 1))
    with pytest.raises(TypeError, match="quantisation"):
        dt.TempNet.for_lm(model, **BOUNDS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": "logit"}, "hidden, logits, statistics"),
        ({"inputs": ()}, "one or several"),
        ({"inputs": ("hidden", "hidden")}, "different"),
        ({"inputs": "hidden", "centred": True}, "'logits' among the inputs"),
        ({"rho": math.log(40)}, "rho < log m"),
        ({"rho": -1.0}, "rho >= 0"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_shape_checks")
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=f"(?s)expected.*{words}.*received"):
        dt.TempNet.for_lm(Model(), **options, **BOUNDS)


def test_widths_of_several_must_agree():
    for encoders in (
        [],
        [dt.predictors.HiddenEncoder(4)],
        [dt.predictors.HiddenEncoder(4, width=8), dt.predictors.StatisticsEncoder()],
    ):
        with pytest.raises(ValueError, match="one width, received"):
            dt.predictors.SumEncoder(encoders)


def test_features_of_another_width():
    with pytest.raises(ValueError, match=r"width 4, received 5.*HiddenEncoder\(5"):
        dt.TempNet(dt.predictors.HiddenEncoder(4), **BOUNDS)(torch.randn(2, 5))


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("transform", [None, dt.functional.SoftCap(3.0)], ids=str)
def test_streamed_equals_the_score_matrix(inputs, transform):
    """Values, temperatures and the gradient of every parameter."""
    torch.manual_seed(0)
    tempnet = _random(dt.TempNet.for_lm(Model(), inputs=inputs, width=8, dropout=0.0, **BOUNDS)).double()
    hidden, keys = torch.randn(11, 6, dtype=float64), torch.randn(40, 6, dtype=float64)
    scores = dt.LinearScores(hidden, keys, torch.randn(40, dtype=float64), transform)
    rows = dt.Rows(scores, torch.arange(11), hidden)
    found = {}
    for backend in ("reference", "torch"):
        tempnet.zero_grad()
        for loss in (dt.KLRobustLoss(1.5, backend=backend), dt.LikelihoodLoss(backend=backend)):
            with blocks_of(4):
                evaluated = loss.evaluate(rows, tempnet)
            evaluated.values.mean().backward()
            gradients = [p.grad.clone() for p in tempnet.parameters()]
            found.setdefault(backend, []).extend([evaluated.values, evaluated.tau, *gradients])
    for ours, theirs in zip(found["torch"], found["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert found["reference"][1].std() > 1e-3


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_every_input_contributes(inputs):
    """The temperature answers to each of them, and each of them is trained."""
    tempnet = _random(dt.TempNet.for_lm(Model(), inputs=inputs, width=8, **BOUNDS)).eval()
    names = (inputs,) if isinstance(inputs, str) else inputs
    hidden, logits = torch.randn(4, 6), torch.randn(4, 40)
    tau = tempnet(hidden, support=dt.Support(logits))
    other = tempnet(torch.randn(4, 6), support=dt.Support(logits))
    assert torch.equal(other, tau) == ("hidden" not in names)
    other = tempnet(hidden, support=dt.Support(3.0 * torch.randn(4, 40)))
    assert torch.equal(other, tau) == (names == ("hidden",))
    tau.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in tempnet.parameters())


def test_several_is_the_sum():
    parts = [
        _random(dt.predictors.HiddenEncoder(6, width=8)),
        _random(dt.predictors.StatisticsEncoder(width=8), 1),
    ]
    both = dt.predictors.SumEncoder(parts).eval()
    inputs = dt.interfaces.PredictorInputs(
        3, features=torch.randn(3, 6), statistics=dt.interfaces.ScoreStatistics(torch.randn(3, 40))
    )
    torch.testing.assert_close(both(inputs), parts[0](inputs) + parts[1](inputs))
    assert (both.features, both.outcomes) == (6, None)


def test_prototypes_of_one_among_several_are_set():
    prototypes = dt.predictors.PrototypeEncoder(6, prototypes=8)
    tempnet = dt.TempNet(
        dt.predictors.SumEncoder([prototypes, dt.predictors.StatisticsEncoder(width=8)]), **BOUNDS
    )
    others = torch.randn(8, 6)
    tempnet.start_prototypes(others)
    torch.testing.assert_close(prototypes.prototypes.detach(), nn.functional.normalize(others, dim=1))


def test_hidden_encoder_is_its_formula():
    encoder = _random(dt.predictors.HiddenEncoder(6, width=4)).double().eval()
    x = torch.randn(3, 6, dtype=float64)
    for row, v in zip(x, encoder(dt.interfaces.PredictorInputs(3, features=x)), strict=True):
        z = (row - row.mean()) / (
            row.var(correction=0) + 1e-5
        ).sqrt() * encoder.norm.weight + encoder.norm.bias
        hidden = encoder.first.weight @ z + encoder.first.bias
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        torch.testing.assert_close(v, encoder.rest[2].weight @ hidden + encoder.rest[2].bias)


@given(seeds, st.integers(2, 30), st.floats(0.01, 30.0), st.floats(-1e3, 1e3), st.booleans())
def test_statistics_are_those_of_the_docstring(seed, m, scale, shift, masked):
    g = torch.Generator().manual_seed(seed)
    s = scale * torch.randn(4, m, generator=g, dtype=float64)
    found = shift_invariant_statistics(dt.interfaces.ScoreStatistics(s))
    for row, numbers in zip(s, found, strict=True):
        p = row.softmax(0)
        centred = row - row.mean()
        expected = torch.stack(
            [
                torch.special.entr(p).sum() / math.log(m),
                centred.max().log1p(),
                centred.square().mean().sqrt().log1p(),
                centred.exp().mean().log().clamp(min=0).log1p(),
            ]
        )
        torch.testing.assert_close(numbers, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(
        shift_invariant_statistics(dt.interfaces.ScoreStatistics(s + shift)), found, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("m", [1, 2])
def test_statistics_of_rows_without_spread(m):
    assert shift_invariant_statistics(dt.interfaces.ScoreStatistics(torch.full((2, m), 1e6))).isfinite().all()
    assert (
        shift_invariant_statistics(dt.interfaces.ScoreStatistics(torch.tensor([[1e6, -1e6]])))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_fits_only_the_model_that_it_was_made_for(inputs):
    tempnet = dt.TempNet.for_lm(Model(), inputs=inputs, width=8, **BOUNDS)
    tempnet.check_fits(Model(name="the/same/elsewhere"))
    for other in (Model(outcomes=41), Model(d=7)):
        with pytest.raises(ValueError, match=r"expected .*40 outcomes.*width 6.*received.*TempNet\.for_lm"):
            tempnet.check_fits(other)


def test_a_network_made_for_no_model_fits_whatever_it_can_read():
    dt.TempNet(dt.predictors.StatisticsEncoder(), **BOUNDS).check_fits(Model())
    dt.TempNet(dt.predictors.HiddenEncoder(6), **BOUNDS).check_fits(Model(outcomes=99))
    logits = dt.TempNet.for_logits(40, **BOUNDS)
    logits.check_fits(Model(d=99))
    with pytest.raises(ValueError, match="40 outcomes and hidden states of any width"):
        logits.check_fits(Model(outcomes=99))


# What it is for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["hidden", "statistics", ("hidden", "statistics")], ids=str)
def test_learns_scales_that_normalised_logits_cannot_show(inputs):
    """Rows of one direction and many lengths: their optimal temperatures differ by those lengths."""
    g = torch.Generator().manual_seed(0)
    length = 1 + 3 * torch.rand(256, 1, generator=g)
    hidden = length * torch.randn(6, generator=g)
    hidden[:, 0] = (
        1.0  # LayerNorm takes the length as well, unless something stands beside it to compare with
    )
    model = Model()
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(40, 6, generator=g))
        model.head.weight[:, 0] = 0.0
        scores = hidden @ model.head.weight.T
    rows = dt.Rows(scores, torch.zeros(256, dtype=torch.long), hidden)
    loss, bounds = dt.KLRobustLoss(1.0), {"tau_min": 0.1, "tau_max": 30.0}
    least = loss(rows, dt.OptimalTemperature(1.0, **bounds)).mean()
    gaps = {}
    for name in (inputs, "logits"):
        torch.manual_seed(0)
        tempnet = dt.TempNet.for_lm(model, inputs=name, width=32, dropout=0.0, tau_init=3.0, **bounds)
        optimizer = torch.optim.Adam(tempnet.parameters(), 1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            value = loss(rows, tempnet).mean()
            value.backward()
            optimizer.step()
        gaps[name] = float(value.detach() - least)
    assert 0 <= gaps[inputs] < 0.1 * gaps["logits"], gaps


# Entropy rules -------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 50), st.floats(0.01, 20.0), st.floats(0.0, 3.0), st.floats(0.3, 0.9))
def test_edt_is_its_formula(seed, m, scale, theta, base):
    g = torch.Generator().manual_seed(seed)
    s = scale * torch.randn(5, m, generator=g, dtype=float64)
    predictor = dt.EntropyTemperature(dt.predictors.EdtRule(tau0=1.3, theta=theta, base=base, tau_min=0.01))
    for row, tau in zip(s, predictor(support=dt.Support(s)), strict=True):
        entropy = float(torch.special.entr(row.softmax(0)).sum())
        expected = 1.3 * base ** (theta / entropy) if entropy > 1e-300 else 0.0
        assert float(tau) == pytest.approx(max(expected, 0.01), rel=1e-6)


@given(seeds, st.integers(2, 50), st.floats(0.01, 20.0), st.floats(0.1, 4.0))
def test_dynatemp_is_its_formula(seed, m, scale, exponent):
    g = torch.Generator().manual_seed(seed)
    s = scale * torch.randn(5, m, generator=g, dtype=float64)
    predictor = dt.EntropyTemperature(dt.predictors.DynatempRule(0.2, 1.8, exponent))
    for row, tau in zip(s, predictor(support=dt.Support(s)), strict=True):
        share = float(torch.special.entr(row.softmax(0)).sum()) / math.log(m)
        assert float(tau) == pytest.approx(0.2 + 1.6 * min(max(share, 0), 1) ** exponent, rel=1e-6)


@pytest.mark.parametrize("theta", [0.0, 0.5])
def test_rules_at_the_ends(theta):
    edt = dt.EntropyTemperature(dt.predictors.EdtRule(tau0=1.0, theta=theta))
    certain, uniform = torch.tensor([[0.0, -1e4]]), torch.zeros(1, 1000)
    assert float(edt(support=dt.Support(certain))) == pytest.approx(0.01 if theta else 1.0)
    assert float(edt(support=dt.Support(uniform))) == pytest.approx(0.8 ** (theta / math.log(1000)))
    dynamic = dt.EntropyTemperature(dt.predictors.DynatempRule(0.5, 2.0))
    assert float(dynamic(support=dt.Support(certain))) == 0.5
    assert float(dynamic(support=dt.Support(uniform))) == pytest.approx(2.0)
    assert float(dynamic(support=dt.Support(torch.zeros(1, 1)))) == 0.5  # nothing to choose from


def test_rules_rise_with_the_entropy():
    sharpness = torch.linspace(0.1, 6.0, 30)[:, None]
    support = dt.Support(sharpness * torch.randn(30, generator=torch.Generator().manual_seed(0)))
    for rule in (dt.predictors.EdtRule(), dt.predictors.DynatempRule(0.1, 1.0)):
        tau = dt.EntropyTemperature(rule)(support=support)
        assert bool((tau.diff() < 0).all())


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda: dt.predictors.EdtRule(theta=-1.0), ValueError),
        (lambda: dt.predictors.EdtRule(base=1.0), ValueError),
        (lambda: dt.predictors.EdtRule(tau0=0.001), ValueError),
        (lambda: dt.predictors.DynatempRule(0.5, 0.5), ValueError),
        (lambda: dt.predictors.DynatempRule(0.5, 1.0, exponent=0.0), ValueError),
        (lambda: dt.EntropyTemperature("edt"), TypeError),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_rules_out_of_range(build, kind):
    with pytest.raises(kind, match=r"expected.*received"):
        build()


def test_a_rule_of_ones_own():
    class Half(dt.predictors.EntropyRule):
        bounds = (0.1, 5.0)

        def __call__(self, entropy, log_outcomes):
            return 0.5 * entropy

    tau = dt.EntropyTemperature(Half())(support=dt.Support(torch.zeros(2, 8)))
    torch.testing.assert_close(tau, torch.full((2,), 0.5 * math.log(8)))


# A wanted entropy ----------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 60), st.floats(0.05, 0.95), st.floats(0.1, 10.0))
def test_rows_get_the_entropy_that_was_wanted(seed, m, share, scale):
    g = torch.Generator().manual_seed(seed)
    s = scale * torch.randn(4, m, generator=g, dtype=float64)
    wanted = share * math.log(m)
    predictor = dt.OptimalTemperature.for_entropy(wanted, outcomes=m, tau_min=1e-4, tau_max=1e4)
    tau = predictor(support=dt.Support(s))
    inside = (tau > 1.01e-4) & (tau < 0.99e4)
    entropy = dt.interfaces.ScoreStatistics(s / tau[:, None]).entropy
    torch.testing.assert_close(entropy[inside], torch.full_like(entropy[inside], wanted), rtol=0, atol=1e-6)


def test_an_entropy_out_of_reach_takes_the_nearer_bound():
    s = dt.Support(torch.tensor([[1e3, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    tau = dt.OptimalTemperature.for_entropy(0.5, outcomes=3, tau_min=0.1, tau_max=2.0)(support=s)
    assert tau.tolist() == pytest.approx([2.0, 0.1])


def test_entropies_and_outcomes_that_are_wrong():
    build = dt.OptimalTemperature.for_entropy
    for entropy in (0.0, -1.0, 1.2, math.nan):
        with pytest.raises(ValueError, match="expected 0 < entropy <= log 3"):
            build(entropy, outcomes=3, **BOUNDS)
    with pytest.raises(ValueError, match="expected rows of 3 outcomes, received 4"):
        build(1.0, outcomes=3, **BOUNDS)(support=dt.Support(torch.zeros(1, 4)))
    uniform = build(math.log(3), outcomes=3, **BOUNDS)(support=dt.Support(torch.randn(2, 3)))
    assert uniform.tolist() == [2.0, 2.0]


# Likelihood ----------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 6), st.integers(2, 30), dtypes)
@settings(max_examples=40)
def test_likelihood_is_cross_entropy(seed, n, m, dtype):
    g = torch.Generator().manual_seed(seed)
    scores = (3 * torch.randn(n, m, generator=g)).to(dtype)
    target, tau = torch.randint(m, (n,), generator=g), 0.2 + torch.rand(n, generator=g)
    found = dt.LikelihoodLoss()(dt.Rows(scores, target), tau)
    wide = scores.double() / tau.double()[:, None]
    expected = nn.functional.cross_entropy(wide, target, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_likelihood_equals_infonce_for_pairs_too():
    rows = dt.Rows(torch.randn(4, 4), torch.arange(4), target_in_support=False)
    tau = torch.rand(4) + 0.1
    assert torch.equal(dt.LikelihoodLoss()(rows, tau), dt.InfoNCELoss()(rows, tau))


def test_likelihood_fits_labels_where_the_robust_loss_does_not_see_them():
    """A frozen model that is confidently wrong on some rows: only one of the losses heats those."""
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 10, generator=g, dtype=float64) * 4
    right = scores.argmax(1)
    target = torch.where(torch.arange(200) < 100, right, scores.argmin(1))
    gradients = {}
    for loss in (dt.LikelihoodLoss(), dt.KLRobustLoss(1.0)):
        tau = torch.ones(200, dtype=float64, requires_grad=True)
        loss(dt.Rows(scores, target), tau).sum().backward()
        other = torch.ones(200, dtype=float64, requires_grad=True)
        loss(dt.Rows(scores, right), other).sum().backward()
        gradients[type(loss)] = tau.grad, other.grad
    ours, with_right_labels = gradients[dt.LikelihoodLoss]
    assert bool((ours[:100] > 0).all())  # right: cooler
    assert bool((ours[100:] < 0).all())  # wrong: hotter
    assert bool((with_right_labels > 0).all())
    torch.testing.assert_close(*gradients[dt.KLRobustLoss], rtol=1e-10, atol=1e-12)
