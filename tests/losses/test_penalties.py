"""Penalties over all views, and losses with parameters, inside an objective."""

import pytest
import small
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt


class Constant(dt.interfaces.Penalty):
    """The same number for every batch."""

    name = "constant"

    def value(self, rows):
        return next(iter(rows.values())).dense_scores.sum() * 0.0 + 3.0


def _objective(*penalties) -> dt.Objective:
    return dt.Objective(
        small.two_tower(), dt.LearnableTemperature(0.2), dt.InfoNCELoss(), penalties=penalties
    ).double()


def test_a_penalty_is_added_and_logged():
    images, texts = small.data(8)
    plain, with_two = _objective()(images, texts), _objective(Constant(), dt.CyclicPenalty())(images, texts)
    cyclic = with_two.metrics["penalty/cyclic"]
    torch.testing.assert_close(with_two.loss, plain.loss + 3.0 + cyclic)
    assert with_two.metrics["penalty/constant"] == 3.0
    assert not cyclic.requires_grad
    assert with_two.metrics["loss"] == with_two.loss.detach()
    torch.testing.assert_close(with_two.metrics["image/loss"], plain.metrics["image/loss"])
    assert cyclic > 0


def test_with_a_count_a_penalty_is_weighed_by_the_rows_of_its_batch():
    """Accumulated over parts of 4 and 8 rows and divided by 12: the mean of the parts' penalties over rows."""
    images, texts = small.data(12)
    objective = _objective(Constant(), dt.CyclicPenalty())
    parts = (slice(0, 4), slice(4, 12))
    outputs = [objective(images[p], texts[p], count=12.0) for p in parts]
    assert sum(o.metrics["penalty/constant"] for o in outputs).item() == pytest.approx(3.0)
    alone = [objective(images[p], texts[p]).metrics["penalty/cyclic"] for p in parts]
    total = sum(o.metrics["penalty/cyclic"] for o in outputs)
    torch.testing.assert_close(total, (4 * alone[0] + 8 * alone[1]) / 12)


def test_both_terms_are_zero_for_two_sides_that_are_alike():
    x = nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    target = torch.arange(6)
    rows = {v: dt.Rows(dt.LinearScores(x, x), target, target_in_support=False) for v in ("image", "text")}
    assert dt.CyclicPenalty()(rows).item() == pytest.approx(0.0, abs=1e-24)


def test_an_evaluation_penalises_too_and_keeps_nothing():
    images, texts = small.data(8)
    objective = _objective(dt.CyclicPenalty())
    expected = objective(images, texts).loss
    torch.testing.assert_close(objective.eval()(images, texts).loss, expected)
    assert not any("penalties" in key for key in objective.state_dict())


def test_hosts_that_do_not_fit_are_refused_at_construction():
    classifier = dt.hosts.Classifier(nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"views \['image', 'text'\] mirror each other.*received Classifier"):
        dt.Objective(
            classifier, dt.ConstantTemperature(1.0), dt.InfoNCELoss(), penalties=(dt.CyclicPenalty(),)
        )
    with pytest.raises(
        ValueError, match=r"expected a host whose views \['a', 'b'\] mirror.*CyclicPenalty\(views="
    ):
        _objective(dt.CyclicPenalty(views=("a", "b")))
    reference = dt.hosts.TwoTower(nn.Linear(5, 3), nn.Linear(5, 3), frozen=True)
    with pytest.raises(ValueError, match=r"received WithReference.*mirror each other: none"):
        dt.recipes.cyclip(dt.hosts.WithReference(small.two_tower(), reference))


def test_what_is_no_penalty_is_refused():
    with pytest.raises(TypeError, match=r"expected penalties as a sequence, received CyclicPenalty\. Write"):
        dt.Objective(
            small.two_tower(), dt.ConstantTemperature(1.0), dt.InfoNCELoss(), penalties=dt.CyclicPenalty()
        )
    with pytest.raises(TypeError, match=r"expected each of penalties to be a Penalty, received InfoNCELoss"):
        _objective(dt.InfoNCELoss())
    with pytest.raises(
        ValueError, match=r"expected penalties of different names, received two named 'cyclic'"
    ):
        _objective(dt.CyclicPenalty(), dt.CyclicPenalty())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-0.1,), ValueError, r"expected a finite in_modal >= 0, received in_modal=-0.1"),
        ((0.1, float("inf")), ValueError, r"expected a finite cross_modal >= 0, received cross_modal=inf"),
        (("0.25",), TypeError, r"expected in_modal as a number, received str"),
    ],
)
def test_weights_are_numbers_not_below_zero(arguments, error, text, no_shape_checks):
    with pytest.raises(error, match=text):
        dt.CyclicPenalty(*arguments)


def test_rows_that_do_not_fit_are_refused():
    target = torch.arange(3)
    matrix = {v: dt.Rows(torch.randn(3, 3), target, target_in_support=False) for v in ("image", "text")}
    with pytest.raises(
        ValueError, match=r"view 'image' that are products \(LinearScores\).*received a matrix"
    ):
        dt.CyclicPenalty()(matrix)
    scores = dt.LinearScores(torch.randn(3, 2), torch.randn(3, 2))
    weighed = {v: dt.Rows(scores, target, target_in_support=False, weight=torch.ones(3)) for v in matrix}
    with pytest.raises(ValueError, match=r"rows without weights in view 'image'.*received weights"):
        dt.CyclicPenalty()(weighed)


# Losses with parameters ------------------------------------------------------------------------------------


def test_a_losss_bias_is_trained_without_weight_decay():
    objective = dt.recipes.siglip(small.two_tower())
    groups = {g["name"]: g for g in objective.param_groups(lr=0.1, tau_lr=0.3, weight_decay=0.2)}
    assert list(groups) == ["host", "loss", "temperature"]
    assert groups["loss"]["params"] == [objective.losses["image"].bias]
    assert (groups["loss"]["lr"], groups["loss"]["weight_decay"]) == (0.1, 0.0)
    assert (groups["host"]["weight_decay"], groups["temperature"]["lr"]) == (0.2, 0.3)
    counted = [id(p) for g in groups.values() for p in g["params"]]
    assert len(counted) == len(set(counted)) == len(list(objective.parameters()))
    images, texts = small.data(8, dtype=torch.float32)
    opt = dt.CompositionalOptimizer(torch.optim.AdamW(list(groups.values())), objective)
    objective(images, texts).loss.backward()
    opt.step()
    assert objective.losses["image"].bias.item() != -10.0


def test_the_sigmoid_loss_is_safe_at_large_logits():
    """Against float64; the target's own term keeps its digits beside a logit of 2000."""
    scores = torch.tensor([[20.0, -20.0, 0.1]])
    values = dt.SigmoidLoss(0.0)(dt.Rows(scores, torch.tensor([0]), target_in_support=False), 0.01)
    torch.testing.assert_close(values, torch.tensor([10.0 + 4.539889921e-05]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("bias", "error", "text"),
    [
        ("-10", TypeError, r"expected bias_init as a number, received str \('-10'\)\. Pass bias_init=-10.0"),
        (
            float("nan"),
            ValueError,
            r"expected a finite bias_init, received bias_init=nan\. Pass bias_init=-10.0",
        ),
    ],
)
def test_the_bias_starts_at_a_number(bias, error, text, no_shape_checks):
    with pytest.raises(error, match=text):
        dt.SigmoidLoss(bias)


# Several processes -----------------------------------------------------------------------------------------


def _recipe(name: str) -> dt.Objective:
    if name == "drrho":
        torch.manual_seed(5)
        reference = dt.hosts.TwoTower(nn.Linear(small.D, 3), nn.Linear(small.D, 3), frozen=True)
        return dt.recipes.drrho(small.two_tower(), reference, small.N, tau=0.2).double()
    build = {"cyclip": dt.recipes.cyclip, "siglip": dt.recipes.siglip}.get(name)
    if build is not None:
        return build(small.two_tower()).double()
    return dt.recipes.scent(small.two_tower(), small.N, tau=0.2).double()


def _train(rank: int, world: int, names: tuple[str, ...]) -> dict[str, list]:
    return {f"{name}: {key}": value for name in names for key, value in _trained(rank, world, name).items()}


def _trained(rank: int, world: int, name: str) -> dict[str, list]:
    images, texts = small.data()
    objective = _recipe(name)
    opt = small.optimizer(objective)
    model = DistributedDataParallel(objective) if world > 1 else objective
    for index in small.batches(4, size=12):
        share = index.split([5, 7])[rank] if world > 1 else index
        output = model(images[share], texts[share], index=share)
        output.loss.backward()
        opt.step()
        opt.zero_grad()
    return {key: value.tolist() for key, value in objective.state_dict().items()}


def test_two_processes_of_unequal_shares_train_as_one():
    names = ("cyclip", "siglip", "scent", "drrho")
    alone = _train(0, 1, names)
    for state in in_processes(2, _train, names):
        for key, value in alone.items():
            got, expected = (torch.tensor(v, dtype=torch.float64) for v in (state[key], value))
            small.assert_same_to_rounding(got, expected, small.TRAINED_APART, key)
