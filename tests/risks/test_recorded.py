"""A risk over samples that are known by number: what it remembers of them, and when."""

import csv

import pytest
import small
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt
from dro_temp import functional as F
from dro_temp.risks import MeanRisk, RecordedRisk, recorded

N = small.N
BEST = lambda: dt.OptimisticRisk(dt.KLRisk(0.3))  # noqa: E731
LOSSES = torch.tensor([0.3, 0.1, 9.0, 0.2], dtype=torch.float64)
INDEX = torch.tensor([5, 17, 40, 19])


def _recorded(risk=None, **options) -> RecordedRisk:
    return RecordedRisk(BEST() if risk is None else risk, 50, **options).double()


def _objective(risk=None, **options) -> dt.Objective:
    return small.objective("constant", risk=RecordedRisk(risk or BEST(), N, gamma=0.5), **options).double()


def _stepped(risk, losses=LOSSES, index=INDEX, scale=1.0):
    (scale * risk(losses.clone().requires_grad_(), index=index)).backward()
    risk.commit()
    return risk


def test_it_remembers_the_weights_of_the_risk_in_multiples_of_the_mean():
    risk = _stepped(_recorded())
    torch.testing.assert_close(risk.record.last[INDEX], 4 * BEST().weights(LOSSES))
    assert torch.equal(risk.record.loss[INDEX], LOSSES)
    assert (risk.record.last >= 0).sum() == 4
    torch.testing.assert_close(risk(LOSSES, index=INDEX), risk.risk(LOSSES))


@pytest.mark.parametrize("scale", [1e-6, 1024.0])
def test_what_the_loss_is_multiplied_by_does_not_matter(scale):
    torch.testing.assert_close(
        _stepped(_recorded(), scale=scale).record.last, _stepped(_recorded()).record.last
    )


def test_visits_are_averaged():
    risk = _recorded(gamma=0.25)
    rows = [LOSSES, LOSSES.flip(0), 2 * LOSSES]
    expected = None
    for losses in rows:
        _stepped(risk, losses)
        weight = 4 * BEST().weights(losses)
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
        torch.testing.assert_close(risk.record.average[INDEX], expected)
        torch.testing.assert_close(risk.record.last[INDEX], weight)


def test_rows_of_one_sample_count_as_one_with_the_sum_of_their_weights():
    index, weight = torch.tensor([5, 17, 5, 19, -1]), torch.tensor([1.0, 2.0, 3.0, 1.0, 0.0]).double()
    losses = torch.tensor([1.0, 2.0, 5.0, 3.0, torch.nan], dtype=torch.float64, requires_grad=True)
    risk = _recorded()
    value = risk(losses, weight=weight, index=index)
    value.backward()
    mean, mass = torch.tensor([4.0, 2.0, 3.0]).double(), torch.tensor([4.0, 2.0, 1.0]).double()
    torch.testing.assert_close(value, BEST()(mean, weight=mass))
    p = BEST().weights(mean, weight=mass)
    torch.testing.assert_close(losses.grad, torch.stack([p[0] / 4, p[1], 3 * p[0] / 4, p[2], 0 * p[0]]))
    risk.commit()
    torch.testing.assert_close(risk.record.last[[5, 17, 19]], p / (mass / 7))
    torch.testing.assert_close(risk.record.loss[[5, 17, 19]], mean)


def test_of_no_radius_it_is_the_mean_over_rows():
    """With the same gradients as without a risk, and every weight 1."""
    images, texts = small.data()
    index = torch.arange(12)
    outputs = []
    for objective in (_objective(MeanRisk()), small.objective("constant")):
        output = objective(images[:12], texts[:12], index=index)
        output.loss.backward()
        objective.commit()
        outputs.append((output.loss, [p.grad for p in objective.parameters()]))
    torch.testing.assert_close(outputs[0], outputs[1])
    record = _objective(MeanRisk()).risks["all"].record
    assert (record.average == -1).all()


def test_an_objective_takes_the_rows_of_both_views_as_one_risk():
    images, texts = small.data()
    objective, index = _objective(), torch.tensor([3, 20, 7, 11, 0, 15])
    output = objective(images[index], texts[index], index=index)
    mean = (output.values["image"] + output.values["text"]) / 2
    torch.testing.assert_close(output.loss, BEST()(mean))
    assert torch.equal(output.metrics["image/loss"], output.loss.detach())
    output.loss.backward()
    objective.commit()
    record = objective.risks["all"].record
    torch.testing.assert_close(record.last[index], 6 * BEST().weights(mean))
    torch.testing.assert_close(record.loss[index], mean.detach())
    assert "risks.all.record.average" in objective.state_dict()


def test_a_risk_per_view_records_each_view():
    images, texts = small.data()
    risks = {view: RecordedRisk(BEST(), N) for view in ("image", "text")}
    objective = small.objective("constant", risk=risks)
    output = objective(images, texts, index=torch.arange(N))
    output.loss.backward()
    objective.commit()
    for view, risk in risks.items():
        torch.testing.assert_close(risk.record.last, N * BEST().weights(output.values[view]))


def test_groups_and_numbers():
    risk = _recorded(dt.GroupRisk(2, step_size=0.5))
    group = torch.tensor([0, 1, 1, 0])
    risk(LOSSES.clone().requires_grad_(), index=INDEX, group=group).backward()
    risk.commit()
    q = (0.5 * torch.tensor([0.25, 4.55]).double()).softmax(0)
    torch.testing.assert_close(risk.record.last[INDEX], 4 * q[group] / 2)


# When it is written ----------------------------------------------------------------------------------------


def test_only_a_step_writes():
    risk = _recorded()
    before = {name: x.clone() for name, x in risk.state_dict().items()}
    risk(LOSSES, index=INDEX)  # no gradient
    with torch.no_grad():
        risk(LOSSES, index=INDEX)
    risk.weights(LOSSES, index=INDEX)
    risk.eval()(LOSSES.clone().requires_grad_(), index=INDEX).backward()
    risk.train()(LOSSES.clone().requires_grad_(), index=INDEX)  # never backpropagated
    risk.commit()
    risk(LOSSES.clone().requires_grad_(), index=INDEX).backward()
    risk.discard()  # skipped
    risk.commit()
    assert all(torch.equal(x, before[name]) for name, x in risk.state_dict().items())


def test_a_step_that_a_scaler_skips_leaves_the_record():
    images, texts = small.data()
    objective = _objective()
    optimizer = small.optimizer(objective)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for overflow in (False, True):
        before = objective.risks["all"].record.loss.clone()
        scaler.scale(objective(images, texts, index=torch.arange(N)).loss).backward()
        if overflow:
            next(objective.host.parameters()).grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, objective.risks["all"].record.loss) == overflow


def test_a_step_of_several_forwards_counts_as_one_visit():
    parts = _recorded()
    for losses in (LOSSES, 3 * LOSSES):
        parts(losses.clone().requires_grad_(), index=INDEX).backward()
    parts.commit()
    mean = (4 * BEST().weights(LOSSES) + 4 * BEST().weights(3 * LOSSES)) / 2
    torch.testing.assert_close(parts.record.average[INDEX], mean)
    torch.testing.assert_close(parts.record.loss[INDEX], 2 * LOSSES)


def test_it_resumes_bit_for_bit():
    images, texts = small.data()
    batches = small.batches(6, size=8)

    def run(objective, optimizer, batches):
        small.train(objective, optimizer, batches, (images, texts))
        return objective

    straight = _objective()
    run(straight, small.optimizer(straight), batches)
    first = _objective()
    optimizer = small.optimizer(first)
    run(first, optimizer, batches[:3])
    second = _objective()
    resumed = small.optimizer(second)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    run(second, resumed, batches[3:])
    for name, x in straight.state_dict().items():
        assert torch.equal(x, second.state_dict()[name]), name


def test_a_data_set_that_grows():
    objective = _objective()
    objective.resize(N + 6)
    record = objective.risks["all"].record
    assert len(record.average) == len(record.loss) == N + 6
    images, texts = small.data(6)
    objective(images, texts, index=torch.arange(N, N + 6)).loss.backward()
    objective.commit()
    assert [s.sample for s in objective.risks["all"].suspects()] != []


# The list ----------------------------------------------------------------------------------------------------


def test_suspects_are_those_of_least_weight(tmp_path, monkeypatch):
    risk = _recorded(dt.OptimisticRisk(dt.CVaRRisk(0.5)))
    assert risk.suspects() == []
    _stepped(risk)
    assert [s.sample for s in risk.suspects()] == [
        40,
        5,
        19,
        17,
    ]  # of equal weights, 2 and 0, the larger loss first
    assert risk.suspects(1) == [dt.risks.Suspect(40, 0.0, 0.0, 9.0)]
    monkeypatch.setattr(recorded, "_LINES_AT_A_TIME", 2)
    path = tmp_path / "new" / "suspects.csv"
    risk.write_csv(path, 3)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample"]) for row in rows] == [40, 5, 19]
    assert {name: float(x) for name, x in rows[0].items()} == {
        "sample": 40,
        "weight": 0,
        "last": 0,
        "loss": 9,
    }
    with pytest.raises(ValueError, match="expected k"):
        risk.suspects(0)


BAD = [
    (lambda: RecordedRisk(0.5, 10), TypeError, "risk"),
    (lambda: RecordedRisk(BEST(), 0), ValueError, "num_samples"),
    (lambda: RecordedRisk(BEST(), 10, gamma=0.0), ValueError, "gamma"),
    (lambda: RecordedRisk(_recorded(), 10), ValueError, "records nothing itself"),
    (lambda: dt.OptimisticRisk(_recorded()), ValueError, r"RecordedRisk\(OptimisticRisk"),
    (lambda: _recorded()(LOSSES), ValueError, "sample numbers.*index=None"),
    (lambda: _recorded()(LOSSES, index=INDEX[:3]), ValueError, "one sample number per loss"),
    (lambda: _recorded()(LOSSES, index=INDEX.double()), (TypeError, ValueError), "index"),
    (lambda: _recorded()(LOSSES, index=INDEX + 10), IndexError, "from 0 to 49"),
    (lambda: BEST()(LOSSES, index=INDEX), ValueError, "no sample numbers for OptimisticRisk"),
    (lambda: small.objective("constant", estimator=dt.estimators.Exact, risk=_recorded())(*small.data()), ValueError,
     "sample numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "error", "words"), BAD)
def test_what_does_not_fit_is_refused(build, error, words, no_shape_checks):
    with pytest.raises(error, match=f"(?s)expected.*{words}"):
        build()


def test_held_out_data_need_no_numbers():
    images, texts = small.data()
    objective = _objective(estimator=dt.estimators.Exact).eval()
    output = objective(images, texts)
    both = torch.cat([output.values["image"], output.values["text"]])
    torch.testing.assert_close(output.loss, BEST()(both))


@pytest.mark.slow
def test_a_compiled_step_trains_and_records_nothing(no_shape_checks):
    images, texts = small.data()
    objective = _objective()
    optimizer = small.optimizer(objective)
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    compiled(images, texts, index=torch.arange(N)).loss.backward()
    optimizer.step()
    assert objective.risks["all"].suspects() == []
    torch.compiler.reset()


# A text's tokens, in the hosts of language models -------------------------------------------------------------


class Tokens(dt.hosts.Classifier):
    """Rows of which several belong to a sample."""

    def rows(self, inputs, labels, index):
        (row,) = super().rows(inputs.flatten(0, 1), labels.flatten(), index.repeat_interleave(3)).values()
        return {"class": row}


def test_texts_are_weighed_and_not_their_tokens():
    torch.manual_seed(0)
    host = Tokens(nn.Linear(6, 4))
    risk = RecordedRisk(dt.OptimisticRisk(dt.CVaRRisk(0.5)), 10)
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), dt.LikelihoodLoss(), risk=risk)
    x, y, index = torch.randn(4, 3, 6), torch.randint(4, (4, 3)), torch.tensor([7, 0, 9, 2])
    output = objective(x, y, index)
    texts = output.values["class"].view(4, 3).mean(1)
    torch.testing.assert_close(output.loss, texts.sort().values[:2].mean())
    output.loss.backward()
    objective.commit()
    assert {s.sample for s in risk.suspects(2)} == set(index[texts.argsort()[2:]].tolist())


# Several processes -------------------------------------------------------------------------------------------


def _trained(rank: int, world: int) -> dict[str, list]:
    images, texts = small.data()
    objective = _objective(dt.OptimisticRisk(dt.risks.RisingRadius(dt.KLRisk(0.0), 0.4, steps=4)))
    optimizer = small.optimizer(objective)
    model = DistributedDataParallel(objective) if world > 1 else objective
    for step, index in enumerate(small.batches(6, size=12)):
        sizes = [5, 7] if step % 3 else [0, 12]
        mine = index.split(sizes)[rank] if world > 1 else index
        model(images[mine], texts[mine], index=mine).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.tolist() for key, value in objective.state_dict().items()}


def _alone(rank: int, world: int) -> dict[str, list]:
    """A risk by itself: every process has its own batch."""
    risk = _stepped(_recorded(), LOSSES + rank, INDEX + rank)
    return {"last": risk.record.last.tolist(), "wrong": _wrong(rank)}


def _wrong(rank: int) -> str:
    images, texts = small.data(6)
    try:
        _objective()(images, texts, index=torch.arange(6) + (N if rank else 0))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _all(rank: int, world: int) -> dict[str, dict[str, list]]:
    return {"trained": _trained(rank, world), "alone": _alone(rank, world)}


@pytest.mark.slow
def test_two_processes_of_unequal_shares_record_as_one():
    of_ranks = in_processes(2, _all)
    for key, value in _trained(0, 1).items():
        expected = torch.tensor(value, dtype=torch.float64)
        for state in of_ranks:
            got = torch.tensor(state["trained"][key], dtype=torch.float64)
            small.assert_same_to_rounding(got, expected, small.TRAINED_APART, key)
    last = [torch.tensor(state["alone"]["last"]) for state in of_ranks]
    assert torch.equal(last[0], last[1])
    seen = (last[0] >= 0).nonzero()[:, 0].tolist()
    assert seen == sorted({*INDEX.tolist(), *(INDEX + 1).tolist()})
    assert "on another than number 0" in of_ranks[0]["alone"]["wrong"]
    assert "sample numbers from 0 to 23" in of_ranks[1]["alone"]["wrong"]


def test_rows_by_sample_does_not_depend_on_the_order():
    torch.manual_seed(0)
    losses, weight, index = torch.randn(9), torch.rand(9), torch.randint(4, (9,))
    order = torch.randperm(9)
    first = F.rows_by_sample(losses, weight, index)
    second = F.rows_by_sample(losses[order], weight[order], index[order])
    torch.testing.assert_close(first[:3], second[:3])
