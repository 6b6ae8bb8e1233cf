"""Every mistake gets an error that says what was expected, what arrived and what to type; or the exact result."""

import math
import re

import bad_inputs
import pytest
import small
import torch
from torch import nn

import dro_temp as dt

IMAGES, TEXTS = small.data()
SOME = torch.arange(6)


def raises(kind, *words):
    """The three parts, and the words that matter in this case."""
    pattern = ".*".join(["expected", *words, "received"]) + ".*"
    return pytest.raises(kind, match=f"(?s){pattern}")


def losses(build):
    return {view: dt.KLRobustLoss(0.5, estimator=build()) for view in ("image", "text")}


# Devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["target", "features", "weight"])
def test_rows_on_two_devices(part):
    """The meta device stands in for a second one."""
    parts = {"target": SOME, "features": torch.randn(6, 3), "index": SOME, "weight": torch.ones(6)}
    parts[part] = parts[part].to("meta")
    with raises(ValueError, part, "cpu, as the scores"):
        dt.Rows(dt.LinearScores(torch.randn(6, 3), torch.randn(7, 3)), **parts)


@pytest.mark.parametrize("part", ["keys", "bias"])
def test_products_on_two_devices(part):
    parts = {"keys": torch.randn(7, 3), "bias": torch.zeros(7)}
    parts[part] = parts[part].to("meta")
    with raises(ValueError, part):
        dt.LinearScores(torch.randn(6, 3), **parts)


# Construction --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (1.0, 0.5), (0.0, 1.0), (-1.0, 1.0), (0.1, math.inf)])
@pytest.mark.parametrize(
    "build",
    [
        lambda **b: dt.TempNet(4, **b),
        lambda **b: dt.TempNet.for_logits(4, **b),
        lambda **b: dt.LearnableTemperature(0.07, **b),
        lambda **b: dt.IndividualTemperature(10, **b),
        lambda **b: dt.OptimalTemperature(1.0, **b),
    ],
)
def test_bounds_that_are_no_interval(build, low, high):
    with raises(ValueError, "tau_min < tau_max"):
        build(tau_min=low, tau_max=high)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1, math.nan])
def test_gamma_outside_its_range(gamma):
    for build in (
        lambda: dt.LogMovingAverage(10, gamma=gamma),
        lambda: dt.estimators.CosineGamma(gamma, epochs=2),
        lambda: small.optimizer(small.objective(), gamma=gamma),
    ):
        with raises(ValueError, "gamma in"):
            build()


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_radius_outside_its_range(rho):
    with raises(ValueError, "rho"):
        dt.KLRobustLoss(rho)
    with raises(ValueError, "rho"):
        dt.OptimalTemperature(rho, tau_min=0.1, tau_max=1.0)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_a_constant_that_is_no_temperature(tau):
    with raises(ValueError, "tau"):
        dt.ConstantTemperature(tau)


def test_a_start_outside_the_bounds():
    for build in (
        lambda: dt.LearnableTemperature(2.0, tau_min=0.1, tau_max=1.0),
        lambda: dt.IndividualTemperature(4, tau_min=0.1, tau_max=1.0, tau_init=2.0),
        lambda: dt.TempNet(4, tau_min=0.1, tau_max=1.0, tau_init=0.1),
    ):
        with raises(ValueError, "tau_init"):
            build()


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": -1.0}, {"beta": 0.0}, {"beta": 1.5}, {"clip": 0.0}])
def test_an_update_with_impossible_numbers(options):
    with raises(ValueError):
        dt.predictors.GradientUpdate(**options)


@pytest.mark.parametrize(
    ("bad", "kind"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)]
)
def test_sizes_that_are_no_counts(bad, kind, no_shape_checks):
    for build in (
        lambda: dt.LogMovingAverage(bad),
        lambda: dt.IndividualTemperature(bad, tau_min=0.1, tau_max=1.0),
        lambda: dt.TempNet(dt.predictors.PrototypeEncoder(4, prototypes=bad), tau_min=0.1, tau_max=1.0),
        lambda: dt.estimators.CosineGamma(0.5, epochs=bad),
    ):
        with raises(kind):
            build()


def test_parts_for_the_wrong_views():
    host = small.two_tower()
    with raises(ValueError, "image"):
        dt.Objective(host, {"image": dt.ConstantTemperature(0.1)}, dt.KLRobustLoss(0.5))
    with raises(ValueError, "loss"):
        dt.Objective(host, dt.ConstantTemperature(0.1), {"pictures": dt.KLRobustLoss(0.5)})


def test_an_estimator_shared_by_two_views():
    host, shared = small.two_tower(), dt.LogMovingAverage(small.N)
    with raises(ValueError, "each view"):
        dt.Objective(host, dt.ConstantTemperature(0.1), losses(lambda: shared))
    with raises(ValueError, "each view"):
        dt.Objective(host, dt.ConstantTemperature(0.1), dt.KLRobustLoss(0.5, estimator=shared))
    table = dt.IndividualTemperature(small.N, tau_min=0.1, tau_max=1.0)
    with raises(ValueError, "each view"):
        dt.Objective(host, table, dt.KLRobustLoss(0.5))


def test_nothing_to_train():
    host = dt.hosts.Classifier(nn.Linear(3, 4), frozen=True)
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), dt.KLRobustLoss(0.5))
    with raises(ValueError, "to train"):
        objective.param_groups(lr=0.1)


def test_optimizers_that_do_not_belong():
    objective, other = small.objective(), small.objective()
    with raises(ValueError, "the objective's parameters"):
        dt.CompositionalOptimizer(torch.optim.Adam(other.parameters()), objective)
    with raises(TypeError, "torch optimizer"):
        dt.CompositionalOptimizer(objective, objective)
    with raises(TypeError, "Objective"):
        dt.CompositionalOptimizer(torch.optim.Adam(objective.parameters()), objective.host)
    exact = small.objective(estimator=dt.estimators.Exact)
    with raises(ValueError, "LogMovingAverage"):
        small.optimizer(exact, gamma=0.5)


# Rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"scores": torch.zeros(2, 3, 4)}, ValueError),
        ({"target": torch.zeros(3, dtype=torch.long)}, ValueError),
        ({"target": torch.zeros(2)}, TypeError),
        ({"features": torch.zeros(3, 5)}, ValueError),
        ({"features": torch.zeros(2)}, ValueError),
        ({"index": torch.zeros(2)}, TypeError),
        ({"index": torch.zeros(5, dtype=torch.long)}, ValueError),
        ({"weight": torch.zeros(3)}, ValueError),
    ],
)
def test_rows_whose_parts_do_not_fit(change, kind):
    with raises(kind):
        dt.Rows(**({"scores": torch.zeros(2, 4), "target": torch.zeros(2, dtype=torch.long)} | change))


def test_linear_scores_that_do_not_fit():
    with raises(ValueError, "width"):
        dt.LinearScores(torch.zeros(2, 3), torch.zeros(4, 5))
    with raises(ValueError, "bias"):
        dt.LinearScores(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3))


def test_tau_of_the_wrong_shape():
    rows = dt.Rows(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    with raises(ValueError, "tau"):
        dt.KLRobustLoss(0.5)(rows, torch.ones(3))


def test_a_predictor_that_is_not_given_what_it_reads():
    with raises(ValueError, "features"):
        dt.TempNet(4, tau_min=0.1, tau_max=1.0)(index=torch.arange(3))
    with raises(ValueError, "support"):
        dt.OptimalTemperature(1.0, tau_min=0.1, tau_max=1.0)(torch.zeros(3, 4))
    with raises(ValueError, "index"):
        dt.IndividualTemperature(4, tau_min=0.1, tau_max=1.0)(torch.zeros(3, 4))
    with raises(ValueError, "shape"):
        dt.ConstantTemperature(1.0)()
    host = dt.hosts.Classifier(nn.Linear(3, 4))
    objective = dt.Objective(host, dt.TempNet(4, tau_min=0.1, tau_max=1.0), dt.KLRobustLoss(0.5))
    with raises(ValueError, "features"):
        objective(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


def test_logits_of_another_width():
    tempnet = dt.TempNet.for_logits(5, tau_min=0.1, tau_max=1.0)
    with raises(ValueError, "5 logits"):
        tempnet.predict(dt.Rows(torch.zeros(2, 7), torch.zeros(2, dtype=torch.long)))
    with raises(ValueError, "embeddings"):
        dt.TempNet(4, tau_min=0.1, tau_max=1.0).encoder.set_prototypes(torch.zeros(3, 5))


# Hosts ---------------------------------------------------------------------------------------------------


def test_encoders_that_do_not_fit():
    uneven = dt.hosts.TwoTower(nn.Linear(5, 4), nn.Linear(5, 3))
    with raises(ValueError, "both encoders"):
        uneven(torch.zeros(2, 5), torch.zeros(2, 5))
    with raises(ValueError, "both encoders"):
        small.two_tower()(torch.zeros(2, 5), torch.zeros(3, 5))
    with raises(ValueError, "both encoders"):
        small.two_tower()(torch.zeros(2, 7, 5), torch.zeros(2, 7, 5))


@pytest.mark.parametrize("label", [4, -1, 1000])
def test_labels_out_of_range(label):
    host = dt.hosts.Classifier(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=f"received {label} in row 1"):
        host(torch.zeros(2, 3), torch.tensor([0, label]))


def test_a_model_without_a_pool():
    host = dt.hosts.Classifier(nn.Conv2d(1, 2, 1))
    with raises(ValueError, "model to return"):
        host(torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.long))


# Sample numbers ------------------------------------------------------------------------------------------


def test_a_loss_with_an_estimator_but_no_index():
    with raises(ValueError, "sample numbers"):
        small.objective()(IMAGES[SOME], TEXTS[SOME])


@pytest.mark.parametrize("bad", [small.N, -1, 10**6])
@pytest.mark.parametrize("predictor", ["constant", "individual"])
def test_an_index_outside_the_table(predictor, bad):
    objective = small.objective(predictor)
    index = SOME.clone()
    index[3] = bad
    with raises(IndexError, "sample numbers from 0 to 23"):
        objective(IMAGES[SOME], TEXTS[SOME], index=index)
    assert not objective.pending


def test_an_index_that_is_no_integer():
    with raises(TypeError, "index"):
        small.objective()(IMAGES[SOME], TEXTS[SOME], index=SOME.double())


def test_int32_is_an_index():
    results = []
    for dtype in (torch.int32, torch.int64):
        objective = small.objective("individual")
        opt = small.optimizer(objective)
        objective(IMAGES[SOME], TEXTS[SOME], index=SOME.to(dtype)).loss.backward()
        opt.step()
        results.append(objective)
    small.assert_same_state(*results)


def test_memory_of_another_data_set():
    saved = small.objective().state_dict()
    other = small.objective(estimator=lambda: dt.LogMovingAverage(7))
    with raises(ValueError, "7 samples"):
        other.load_state_dict(saved)


# Numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("predictor", small.PREDICTORS)
def test_features_that_are_not_finite_name_their_row(predictor, bad):
    objective = small.objective(predictor)
    images = IMAGES[SOME].clone()
    images[2, 0] = bad
    with pytest.raises(FloatingPointError, match=r"view 'image'.*rows \[2\] \(samples \[12\]\)"):
        objective(images, TEXTS[SOME], index=SOME + 10)
    assert not objective.pending
    objective(IMAGES[SOME], TEXTS[SOME], index=SOME)  # and nothing is broken


def test_the_finite_check_can_be_left_to_a_gradient_scaler():
    images = IMAGES[SOME].clone()
    images[2, 0] = math.nan
    out = small.objective("constant", check_finite=False)(images, TEXTS[SOME], index=SOME)
    assert bool(out.loss.isnan())


def test_a_radius_that_holds_every_distribution():
    exact = small.objective(estimator=dt.estimators.Exact, rho=2.0)
    with raises(ValueError, "rho < log m"):
        exact(IMAGES[:7], TEXTS[:7])  # m = 6, log m = 1.79
    exact(IMAGES[:20], TEXTS[:20])
    whole = small.objective(rho=3.1)  # m = 23 in the data set, log m = 3.135, whatever the batch
    whole(IMAGES[:7], TEXTS[:7], index=torch.arange(7))
    with raises(ValueError, "rho < log m"):
        small.objective(rho=3.2)(IMAGES[:7], TEXTS[:7], index=torch.arange(7))
    classes = dt.Objective(
        dt.hosts.Classifier(nn.Linear(3, 4)), dt.ConstantTemperature(1.0), dt.KLRobustLoss(1.4)
    )
    with raises(ValueError, "rho < log m"):
        classes(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


def test_a_batch_of_one_pair_has_nothing_to_learn_from():
    for estimator in (None, dt.estimators.Exact):
        objective = small.objective(estimator=estimator)
        out = objective(IMAGES[:1], TEXTS[:1], index=torch.tensor([3]))
        out.loss.backward()
        assert out.loss.item() == 0.0
        assert all(p.grad is None or bool((p.grad == 0).all()) for p in objective.parameters())
        objective.commit()
        for view in objective.host.views:
            log_u = getattr(objective.losses[view].estimator, "log_u", torch.tensor([-math.inf]))
            assert bool(log_u.isneginf().all())


def test_a_batch_of_two_pairs_is_exact():
    objective = small.objective("constant")
    out = objective(IMAGES[:2], TEXTS[:2], index=SOME[:2])
    rows = objective.host(IMAGES[:2], TEXTS[:2])["image"]
    only_negative = rows.margins[[0, 1], [1, 0]]
    torch.testing.assert_close(out.values["image"], only_negative + 0.2 * 0.5)


def test_temperatures_at_both_bounds():
    for raw in (-1e9, 1e9):
        tempnet = dt.TempNet(4, tau_min=0.05, tau_max=1.0, dropout=0.0)
        with torch.no_grad():
            tempnet.readout.last.bias.fill_(raw)
        objective = dt.Objective(small.two_tower(), tempnet, dt.KLRobustLoss(0.5)).double()
        out = objective(IMAGES, TEXTS)
        out.loss.backward()
        assert out.tau["image"].unique().tolist() == [0.05 if raw < 0 else 1.0]
        assert all(bool(p.grad.isfinite().all()) for p in objective.parameters())


@pytest.mark.parametrize("view", ["non-contiguous", "zero-stride"])
def test_any_strides(view):
    base = torch.randn(6, 4, dtype=torch.float64)
    if view == "non-contiguous":
        scores, target = base.T.contiguous().T, torch.arange(12)[::2] % 4
    else:
        scores, target = base[:1].expand(6, 4), torch.tensor([2]).expand(6)
    rows = dt.Rows(scores, target, index=torch.tensor([5]).expand(6))
    plain = dt.Rows(scores.clone(), target.clone(), index=torch.full((6,), 5))
    tau = torch.tensor([0.3], dtype=torch.float64).expand(6)
    for build in (lambda: dt.KLRobustLoss(0.5, estimator=dt.LogMovingAverage(9)), dt.InfoNCELoss):
        torch.testing.assert_close(build()(rows, tau), build()(plain, tau.clone()))


def test_duplicates_in_a_batch_do_not_depend_on_their_order():
    index = torch.tensor([4, 4, 7, 4, 1])
    order = torch.tensor([3, 2, 0, 4, 1])
    results = []
    for rows in (torch.arange(5), order):
        objective = small.objective("individual")
        opt = small.optimizer(objective)
        objective(IMAGES[rows], TEXTS[rows], index=index[rows]).loss.backward()
        opt.step()
        results.append(objective)
    small.assert_same_state(*results, digits=1e-14)


# An optimizer that was never told of the objective ---------------------------------------------------------


def test_a_plain_optimizer_is_found_out_at_the_next_forward():
    objective = small.objective()
    plain = torch.optim.Adam(objective.parameters())
    objective(IMAGES[SOME], TEXTS[SOME], index=SOME).loss.backward()
    plain.step()
    with pytest.raises(RuntimeError, match=r"(?s)expected.*committed.*received.*CompositionalOptimizer"):
        objective(IMAGES[SOME], TEXTS[SOME], index=SOME)


def test_a_commit_by_hand_is_accepted():
    objective = small.objective()
    plain = torch.optim.Adam(objective.parameters())
    for _ in range(3):
        objective(IMAGES[SOME], TEXTS[SOME], index=SOME).loss.backward()
        plain.step()
        objective.commit()
    assert bool(objective.losses["image"].estimator.log_u[SOME].isfinite().all())


def test_shape_checks_are_on_in_this_suite():
    """The hook in conftest.py is really there."""
    with pytest.raises(Exception, match="margins"):
        dt.functional.kl_dual(torch.zeros(3), torch.zeros(3), rho=0.5)


# The list ------------------------------------------------------------------------------------------------

# What an error says to do: a sentence that starts with one of these.
ADVICE = re.compile(
    r"\b(Pass|Use|Write|Call|Build|Lower|Flatten|Widen|Give|Put|Leave|Raise|Wrap|Load|Make|Pool|Look|Divide|Save|Useful|"
    r"Take|Check|Number|The order)\b"
)


def assert_unchanged(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
        else:
            assert after[name] == value, name


def test_the_list_is_whole():
    assert len(bad_inputs.CASES) == 298
    assert bad_inputs.LEGITIMATE.keys() <= bad_inputs.CASES.keys()


@pytest.mark.parametrize("name", [name for name in bad_inputs.CASES if name not in bad_inputs.LEGITIMATE])
def test_a_bad_input_meets_an_error_of_three_parts_and_changes_nothing(name, no_shape_checks):
    world = bad_inputs.World()
    before = world.state()
    with pytest.raises(
        (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError, OSError)
    ) as caught:
        bad_inputs.CASES[name](world)
    expected, _, rest = str(caught.value).partition("received")
    assert "expected" in expected, caught.value
    assert ADVICE.search(rest), caught.value
    assert_unchanged(before, world.state())


@pytest.mark.parametrize("name", bad_inputs.LEGITIMATE)
def test_an_input_that_is_right_after_all_has_the_exact_result(name, no_shape_checks):
    case = bad_inputs.LEGITIMATE[name]
    world = bad_inputs.World()
    torch.manual_seed(0)
    value = case.value(bad_inputs.CASES[name](world))
    world.objective.discard()
    torch.manual_seed(0)
    torch.testing.assert_close(value, case.equal(world), rtol=0, atol=0, equal_nan=True)


# What a message says -------------------------------------------------------------------------------------


def test_a_recipe_whose_radius_needs_more_samples_says_how_many():
    host = _towers()
    for build in (
        lambda n: dt.recipes.isogclr(host, num_samples=n),
        lambda n: dt.recipes.tempnet(host, num_samples=n, width=4),
        lambda n: dt.recipes.tempnet_queued(host, num_samples=n, width=4),
        lambda n: dt.recipes.fastclip_v2(host, num_samples=n, **_EPOCHS),
        lambda n: dt.recipes.fastclip_v3(host, num_samples=n, rho=7.0, **_EPOCHS),
    ):
        with pytest.raises(
            ValueError, match=r"rho < log m, received rho=7.0 with m=999.*of 1098 samples or more"
        ):
            build(1000)
        with pytest.raises(ValueError, match="data set of 1098 samples or more"):
            build(1097)
        build(1098)  # log 1097 = 7.0003


def test_no_estimator_is_advised_where_there_is_one():
    rows = dt.Rows(torch.randn(4, 5), torch.zeros(4, dtype=torch.long), index=torch.arange(4))
    with raises(ValueError, "rho < log m") as caught:
        dt.KLRobustLoss(4.0, estimator=dt.LogMovingAverage(20))(rows, 1.0)
    assert "a LogMovingAverage" not in str(caught.value)
    with raises(ValueError, "rho < log m") as caught:
        dt.KLRobustLoss(4.0)(rows, 1.0)
    assert "a LogMovingAverage" in str(caught.value)


def test_a_sample_number_beyond_a_table_may_be_of_a_data_set_that_grew():
    table = dt.IndividualTemperature(4, tau_min=0.1, tau_max=1.0)
    with pytest.raises(IndexError, match=r"received numbers from 0 to 9.*has grown, call objective.resize\("):
        table(index=torch.tensor([0, 9]))


@pytest.mark.parametrize(
    ("batch", "received"),
    [
        (
            {"inputs": torch.randn(2, 6), "labels": SOME[:2], "idx": SOME[:2]},
            "received .*an unexpected keyword argument 'idx'",
        ),
        ({"inputs": torch.randn(2, 6)}, "received .*missing a required argument: 'labels'"),
    ],
)
def test_arguments_that_a_host_does_not_take(batch, received):
    host = dt.hosts.Classifier(nn.Linear(6, 10))
    with pytest.raises(TypeError, match=received):
        host(**batch)
    with pytest.raises(TypeError, match=r"received .*too many positional arguments"):
        host(torch.randn(2, 6), SOME[:2], SOME[:2], 3)
    with pytest.raises(TypeError, match=r"received .*multiple values for argument 'labels'"):
        host(torch.randn(2, 6), SOME[:2], labels=SOME[:2])


@pytest.mark.parametrize("inputs", ["logits", "statistics"])
def test_plain_logits_for_a_predictor_of_scores(inputs):
    bounds = {"tau_min": 0.1, "tau_max": 4.0}
    encoder = dt.predictors.StatisticsEncoder() if inputs == "statistics" else None
    predictor = dt.TempNet(encoder, **bounds) if encoder else dt.TempNet.for_logits(10, **bounds)
    wanted = (
        r"expected scores \(support=dro_temp.Support\(logits\)\) for TempNet, received features.*no scores"
    )
    with pytest.raises(ValueError, match=wanted):
        predictor(torch.randn(4, 10))
    assert predictor(support=dt.Support(torch.randn(4, 10))).shape == (4,)


def test_a_default_that_was_not_typed_is_called_one():
    for build in (dt.LearnableTemperature, lambda **b: dt.recipes.fastclip_v0(_towers(), 20, **_EPOCHS, **b)):
        with pytest.raises(ValueError, match=r"received tau_init=0.07, which is the default. Pass tau_init="):
            build(tau_min=0.1, tau_max=4.0)
    with pytest.raises(ValueError, match=r"received tau_init=0.03, which is the default. Pass tau_init="):
        dt.recipes.fastclip_v2(_towers(), 20, **_EPOCHS, rho=1.0, tau_min=0.1)
    with pytest.raises(ValueError, match=r"tau_init=0.05\. Pass"):
        dt.LearnableTemperature(0.05, tau_min=0.1)


_EPOCHS = {"epochs": 2, "steps_per_epoch": 3}


def _towers():
    return dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
