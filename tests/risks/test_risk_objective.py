"""A risk as the reduction of an objective: views, memory, groups of parameters and of samples, processes."""

import pytest
import small
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt

VIEWS = ("image", "text")


def _per_view(build):
    return {view: build() for view in VIEWS}


RISKS = {
    "mean": dt.risks.MeanRisk,
    "tilted": lambda: _per_view(lambda: dt.TiltedRisk(0.8, estimator=dt.LogMovingAverage(1, gamma=0.4))),
    "kl": lambda: _per_view(
        lambda: dt.KLRisk(
            0.3,
            tau=dt.LearnableTemperature(0.9, tau_max=5.0),
            estimator=dt.LogMovingAverage(1, gamma=0.4),
        )
    ),
    "kl-exact": lambda: dt.KLRisk(0.3),
    "cvar": lambda: dt.CVaRRisk(0.4),
    "group": lambda: _per_view(lambda: dt.GroupRisk(3, step_size=0.5)),
    "trimmed": lambda: dt.OptimisticRisk(dt.CVaRRisk(0.8)),
}


def _objective(risk=None, predictor="tempnet", **options) -> dt.Objective:
    return small.objective(predictor, estimator=dt.estimators.Exact, risk=risk, **options).double()


def _classifier(risk=None, **options) -> dt.Objective:
    torch.manual_seed(0)
    host = dt.hosts.Classifier(nn.Linear(6, 4))
    return dt.Objective(host, dt.ConstantTemperature(1.0), dt.InfoNCELoss(), risk=risk, **options)


def test_none_is_the_weighted_mean_bit_for_bit_and_the_mean_risk_agrees():
    images, texts = small.data()
    plain = _objective()(images, texts)
    values = plain.values
    ones = torch.ones(small.N, dtype=torch.float64)
    by_hand = [(values[v] * ones).sum() / ones.sum() for v in VIEWS]
    assert torch.equal(plain.loss, torch.stack(by_hand).mean())
    torch.testing.assert_close(_objective(dt.risks.MeanRisk())(images, texts).loss, plain.loss)


def test_the_loss_is_the_mean_over_views_of_each_views_risk():
    images, texts = small.data()
    risks = {"image": dt.CVaRRisk(0.3), "text": dt.TiltedRisk(-1.0)}
    output = _objective(risks)(images, texts)
    expected = {view: risk(output.values[view]) for view, risk in risks.items()}
    torch.testing.assert_close(output.loss, (expected["image"] + expected["text"]) / 2)
    for view, value in expected.items():
        torch.testing.assert_close(output.metrics[f"{view}/loss"], value.detach())


def test_rows_without_weight_stay_inert():
    class Masked(dt.hosts.Classifier):
        """The last two rows are padding."""

        def rows(self, inputs, labels):
            (row,) = super().rows(inputs, labels).values()
            weight = torch.ones(len(row)).index_fill(0, torch.tensor([len(row) - 2, len(row) - 1]), 0.0)
            scores = row.dense_scores.masked_fill(weight[:, None] == 0, float("nan"))
            return {"class": dt.Rows(scores, row.target, weight=weight)}

    torch.manual_seed(0)
    host = Masked(nn.Linear(6, 4))
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), dt.InfoNCELoss(), risk=dt.CVaRRisk(0.5))
    x, y = torch.randn(8, 6), torch.randint(4, (8,))
    output = objective(x, y)
    output.loss.backward()
    losses = nn.functional.cross_entropy(host.model(x[:6]), y[:6], reduction="none")
    torch.testing.assert_close(output.loss, dt.CVaRRisk(0.5)(losses))
    assert all(bool(p.grad.isfinite().all()) for p in host.parameters())


def test_a_tau_loss_is_still_averaged():
    images, texts = small.data()
    output = _objective(dt.CVaRRisk(0.3), tau_loss=dt.KLRobustLoss(0.5))(images, texts)
    for view in VIEWS:
        torch.testing.assert_close(
            output.metrics[f"{view}/tau_loss"], output.tau_values[view].mean().detach()
        )


def test_a_learned_tau_has_the_temperatures_group():
    objective = _objective(RISKS["kl"](), predictor="constant")
    groups = {g["name"]: g for g in objective.param_groups(lr=0.1, tau_lr=0.3, weight_decay=0.2)}
    assert list(groups) == ["host", "temperature"]
    expected = [objective.risks[view].tau.log_tau for view in VIEWS]
    assert [id(p) for p in groups["temperature"]["params"]] == [id(p) for p in expected]
    assert (groups["temperature"]["lr"], groups["temperature"]["weight_decay"]) == (0.3, 0.0)


def test_an_optimizer_commits_the_memory_of_risks():
    images, texts = small.data()
    objective = _objective(RISKS["tilted"]())
    optimizer = small.optimizer(objective)
    output = objective(images, texts)
    objective.eval()(images, texts)
    objective.train()
    log_u = objective.risks["image"].estimator.log_u
    assert log_u.isneginf().all()
    output.loss.backward()
    optimizer.step()
    expected = dt.functional.weighted_log_mean_exp(0.8 * output.values["image"].detach())
    torch.testing.assert_close(objective.risks["image"].estimator.log_u[0], expected)
    assert "risks.image.estimator.log_u" in objective.state_dict()


def test_a_step_that_a_scaler_skips_leaves_the_groups_weights():
    images, texts = small.data()
    objective = _objective(RISKS["group"]())
    optimizer = small.optimizer(objective)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    group = torch.arange(small.N) % 3
    for overflow in (False, True):
        before = objective.risks["text"].q.clone()
        scaler.scale(objective(images, texts, group=group).loss).backward()
        if overflow:
            next(objective.host.parameters()).grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, objective.risks["text"].q) == overflow


def test_groups_reach_the_risks_that_read_them():
    images, texts = small.data()
    group = torch.arange(small.N) % 3
    risks = {"image": dt.GroupRisk(3, step_size=0.5), "text": dt.risks.MeanRisk()}
    output = _objective(risks)(images, texts, group=group)
    q = torch.stack([output.values["image"][group == g].mean() for g in range(3)])
    q = (0.5 * q.detach()).softmax(0)
    expected = sum(q[g] * output.values["image"][group == g].mean() for g in range(3))
    torch.testing.assert_close(output.metrics["image/loss"], expected.detach())


BAD = [
    (lambda: _classifier(dt.CVaRRisk(0.5)), {"count": 8}, ValueError, "no count beside a risk.*InChunks"),
    (lambda: _classifier(), {"group": torch.zeros(8)}, ValueError, "risk that reads groups.*and no risk"),
    (
        lambda: _classifier(dt.risks.MeanRisk()),
        {"group": torch.zeros(8)},
        ValueError,
        "risk that reads groups.*and MeanRisk.*GroupRisk",
    ),
    (
        lambda: _classifier(dt.GroupRisk(2)),
        {},
        ValueError,
        "the group of each row.*view 'class', received none",
    ),
    (
        lambda: _classifier(dt.GroupRisk(2)),
        {"group": torch.zeros(3, dtype=torch.long)},
        ValueError,
        r"each of the 8 rows of view 'class', received shape \[3\]",
    ),
    (
        lambda: _classifier(dt.OptimisticRisk(dt.GroupRisk(2))),
        {"group": torch.full((8,), 2)},
        IndexError,
        "group numbers from 0 to 1",
    ),
]


@pytest.mark.parametrize(("build", "options", "error", "text"), BAD)
def test_what_does_not_fit_is_refused(build, options, error, text, no_shape_checks):
    with pytest.raises(error, match=f"(?s)expected.*{text}"):
        build()(torch.randn(8, 6), torch.randint(4, (8,)), **options)


def test_what_is_no_risk_or_shared_memory_is_refused():
    with pytest.raises(TypeError, match="expected risk to be a SampleRisk, received float"):
        _classifier(0.5)
    with pytest.raises(ValueError, match=r"expected one risk.*views \['image', 'text'\]"):
        _objective({"image": dt.risks.MeanRisk()})
    shared = dt.TiltedRisk(1.0, estimator=dt.LogMovingAverage(1))
    with pytest.raises(ValueError, match=r"memory of its own for each view, received one LogMovingAverage"):
        _objective(shared)
    with pytest.raises(ValueError, match=r"memory of its own for each view"):
        _objective(dt.OptimisticRisk(dt.GroupRisk(2)))


def test_compiled_whole_with_memory(no_shape_checks):
    images, texts = small.data()
    losses = []
    for compiled in (False, True):
        objective = _objective(RISKS["tilted"]())
        call = torch.compile(objective, fullgraph=True, backend="aot_eager") if compiled else objective
        loss = call(images, texts).loss
        loss.backward()
        losses.append((loss.detach(), next(objective.host.parameters()).grad))
    torch.testing.assert_close(losses[0], losses[1])
    torch.compiler.reset()


# Several processes -------------------------------------------------------------------------------------------

STEPS = 6


def _trained(rank: int, world: int, name: str) -> dict[str, list]:
    images, texts = small.data()
    objective = _objective(RISKS[name]())
    optimizer = small.optimizer(objective)
    model = DistributedDataParallel(objective) if world > 1 else objective
    group = torch.arange(small.N) % 3
    losses = []
    for step, index in enumerate(small.batches(STEPS, size=12)):
        sizes = [5, 7] if step % 3 else [0, 12]  # one process may hold no rows at all
        mine = index.split(sizes)[rank] if world > 1 else index
        options = {"group": group[mine]} if name == "group" else {}
        output = model(images[mine], texts[mine], index=mine, **options)
        output.loss.backward()
        losses.append(output.loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses} | {key: value.tolist() for key, value in objective.state_dict().items()}


def _train_all(rank: int, world: int) -> dict[str, dict[str, list]]:
    return {name: _trained(rank, world, name) for name in RISKS} | {"wrong": _wrong(rank)}


def _wrong(rank: int) -> str:
    """One process alone is given too few groups: nobody may be left waiting."""
    images, texts = small.data(6)
    group = torch.zeros(6 if rank == 0 else 4, dtype=torch.long)
    try:
        _objective(RISKS["group"]())(images, texts, group=group)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_two_processes_of_unequal_shares_train_as_one():
    of_ranks = in_processes(2, _train_all)
    for name in RISKS:
        for key, value in _trained(0, 1, name).items():
            expected = torch.tensor(value, dtype=torch.float64)
            for state in of_ranks:
                got = torch.tensor(state[name][key], dtype=torch.float64)
                small.assert_same_to_rounding(got, expected, small.TRAINED_APART, f"{name}, {key}")
    assert "on another than number 0" in of_ranks[0]["wrong"]
    assert "each of the 6 rows" in of_ranks[1]["wrong"]
