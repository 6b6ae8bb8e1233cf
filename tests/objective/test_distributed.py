"""Several processes train as one does: real gloo groups, DistributedDataParallel, float64."""

import importlib.util

import pytest
import small
import torch
from processes import in_processes
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt
from dro_temp import distributed

STEPS = 20


def _plan(kind: str) -> list[torch.Tensor]:
    plan = small.batches(STEPS, size=12)
    if kind == "duplicates":  # within a rank, and across ranks, as padded samplers make them
        plan = [torch.cat([p[:5], p[:1], p[:6]]) for p in plan]
    return plan


def _shares(index: torch.Tensor, world: int, kind: str) -> list[torch.Tensor]:
    if kind == "uneven":
        return list(index.split([5, 7]))
    return list(index.chunk(world))


def _state(objective: dt.Objective) -> dict[str, list]:
    return {name: value.tolist() for name, value in objective.state_dict().items()}


def _train(rank: int, world: int, predictor: str, kind: str, wrap: bool = True) -> dict[str, list]:
    images, texts = small.data()
    objective = small.objective(predictor, gamma=dt.estimators.CosineGamma(0.3, epochs=10))
    opt = small.optimizer(objective)
    model = DistributedDataParallel(objective) if wrap else objective
    for index in _plan(kind):
        index = _shares(index, world, kind)[rank] if wrap else index
        model(images[index], texts[index], index=index).loss.backward()
        opt.step()
        opt.zero_grad()
    return _state(objective)


RUNS = [
    (predictor, kind)
    for predictor in ("tempnet", "individual", "learnable")
    for kind in ("even", "uneven", "duplicates")
]


@pytest.fixture(scope="module")
def found():
    """What two processes do, by function, for each of them; they are started once."""
    of_ranks = in_processes(2, _everything)
    return {name: [of_rank[name] for of_rank in of_ranks] for name in of_ranks[0]}


def _everything(rank: int, world: int) -> dict:
    jobs = (_train_all, _sibling, _count, _evaluate, _accumulate, _traffic, _accelerate, _errors)
    return {job.__name__: job(rank, world) for job in jobs}


def _train_all(rank: int, world: int) -> list[dict[str, list]]:
    return [_train(rank, world, *run) for run in RUNS]


@pytest.mark.parametrize("run", range(len(RUNS)), ids=lambda k: "-".join(RUNS[k]))
def test_two_processes_train_as_one(run, found):
    alone = _train(0, 1, *RUNS[run], wrap=False)
    states = [of_rank[run] for of_rank in found["_train_all"]]
    for name, value in alone.items():
        expected = torch.tensor(value, dtype=torch.float64)
        for state in states:
            got = torch.tensor(state[name], dtype=torch.float64)
            small.assert_same_to_rounding(got, expected, small.TRAINED_APART, name)
        assert states[0][name] == states[1][name], name  # to the last bit


def _gather(rank: int, world: int) -> tuple[list, int, list]:
    mine = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    everything, start = distributed.gather_rows_with_gradient(mine)
    weights = torch.arange(everything.numel(), dtype=torch.float32).view_as(everything)
    ((rank + 1) * weights * everything).sum().backward()
    return everything.tolist(), start, mine.grad.tolist()


def test_gathering_rows_of_different_number_sums_gradients_at_their_owner():
    first, second, third = in_processes(3, _gather)
    assert first[0] == second[0] == third[0] == [[0.0, 0.0]] + [[1.0, 1.0]] * 2 + [[2.0, 2.0]] * 3
    assert [first[1], second[1], third[1]] == [0, 1, 3]
    # every rank r weighs by (r + 1), so each row's gradient is 1 + 2 + 3 times its weight
    assert first[2] == [[0.0, 6.0]]
    assert second[2] == [[12.0, 18.0], [24.0, 30.0]]


def _sibling(rank: int, world: int) -> float:
    shared, mine = torch.ones(2, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)
    # Made first, so that its backward runs last: after the one that crosses processes.
    scaled = shared * 1.0
    everything, _ = distributed.gather_rows_with_gradient(mine)
    (2 * (everything + scaled)).sum().backward()
    return float(shared.grad[0])


def test_gathering_leaves_other_gradients_alone(found):
    assert found["_sibling"] == [2.0, 2.0]


def _count(rank: int, world: int) -> tuple[float, float]:
    images, texts = small.data()
    norms = []
    for count in (None, 12):
        objective = small.objective("learnable")
        index = torch.arange(12).chunk(2)[rank]
        DistributedDataParallel(objective)(
            images[index], texts[index], index=index, count=count
        ).loss.backward()
        norms.append(float(sum(p.grad.square().sum() for p in objective.parameters())))
    return norms[0], norms[1]


def test_a_count_is_that_of_all_processes(found):
    for default, counted in found["_count"]:
        assert default == pytest.approx(counted, rel=1e-12)


def _evaluate(rank: int, world: int) -> float | None:
    images, texts = small.data()
    objective = small.objective("tempnet").eval()
    return float(objective(images, texts).loss.detach()) if rank == 0 else None


def test_one_process_may_evaluate_alone(found):
    """It must not wait for the others."""
    images, texts = small.data()
    expected = small.objective("tempnet").eval()(images, texts).loss.item()
    assert found["_evaluate"][0] == pytest.approx(expected, rel=1e-12)


def _accumulate(rank: int, world: int) -> dict[str, list]:
    images, texts = small.data()
    objective = small.objective("tempnet")
    opt = small.optimizer(objective)
    model = DistributedDataParallel(objective)
    for index in _plan("even")[:6]:
        first, second = _shares(index, world, "even")[rank].chunk(2)
        with model.no_sync():
            (model(images[first], texts[first], index=first).loss / 2).backward()
        (model(images[second], texts[second], index=second).loss / 2).backward()
        opt.step()
        opt.zero_grad()
    return _state(objective)


def test_accumulation_without_synchronisation_ends_alike_on_every_process(found):
    first, second = found["_accumulate"]
    assert first == second
    assert first["losses.image.estimator.steps"] == 6


def _accelerate(rank: int, world: int) -> dict[str, list] | None:
    if importlib.util.find_spec("accelerate") is None:
        return None
    from accelerate import Accelerator

    images, texts = small.data()
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    objective = small.objective("tempnet")
    # Wrapped by the user or not, the optimizer that accelerate steps is the compositional one.
    model, opt = accelerator.prepare(objective, small.optimizer(objective))
    for index in _plan("even"):
        index = _shares(index, world, "even")[rank]
        accelerator.backward(model(images[index], texts[index], index=index).loss)
        opt.step()
        opt.zero_grad()
    return _state(objective)


def test_accelerate_trains_as_one_process(found):
    pytest.importorskip("accelerate")
    images, texts = small.data()
    alone = small.objective("tempnet")
    small.train(alone, small.optimizer(alone), _plan("even"), (images, texts))
    for state in found["_accelerate"]:
        for name, value in alone.state_dict().items():
            got = torch.tensor(state[name], dtype=torch.float64)
            small.assert_same_to_rounding(got, value.double(), small.TRAINED_APART, name)


def _errors(rank: int, world: int) -> list[tuple[str, str]]:
    """What each process raises if the second one alone is given something wrong; nobody may be left waiting."""
    images, texts = small.data()
    first, second = torch.arange(12).chunk(2)
    nan = images.masked_fill(torch.arange(small.N)[:, None] == 7, float("nan"))
    wrong = [
        {"texts": texts[:5], "index": second},
        {"index": second[:4]},
        {"index": second + 100},
        {"images": nan[second]},
    ]
    found = []
    for changes in wrong:
        objective = small.objective("individual")
        right = {"images": images[first], "texts": texts[first], "index": first}
        given = right if rank == 0 else right | {"index": second} | changes
        try:
            objective(**given)
            found.append(("nothing", ""))
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    return found


def test_what_is_wrong_on_one_process_stops_all(found):
    ours, theirs = found["_errors"]
    assert [kind for kind, _ in theirs] == ["ValueError", "ValueError", "IndexError", "FloatingPointError"]
    assert [kind for kind, _ in ours][:3] == ["RuntimeError"] * 3
    assert all("on another than number 0" in text for _, text in ours[:3])
    assert ours[3][0] == "FloatingPointError"  # its rows score the column that is none


def _traffic(rank: int, world: int) -> dict[str, tuple[int, int]]:
    images, texts = small.data()
    index = torch.arange(12).chunk(2)[rank]
    sent = {}
    for backend in ("reference", "auto"):
        objective = small.objective("tempnet")
        for loss in objective.losses.values():
            loss.backend = backend
        with distributed.counting_traffic() as traffic:
            objective(images[index], texts[index], index=index).loss.backward()
        sent[backend] = (traffic.gathered, traffic.reduced)
    return sent


def test_what_a_step_sends(found):
    n, d, number, other = 6, 4, 8, 1  # rows of a process, width, bytes of a float64, other processes
    features = 2 * n * d * number * other
    counts = 8 * other  # each gathering tells how many rows there are, in an int64
    # index and log_g of each side, for the estimators
    memory = 2 * (n * 8 + n * number + 2 * counts)
    per_row = 6 * n * number + counts
    for sent in found["_traffic"]:
        reduced = (
            2 * (2 * 2 * n * d * number) // 2
        )  # both sides' gradients, of all rows, around a ring of two
        (gathered_eager, reduced_eager), (gathered, reduced_auto) = sent["reference"], sent["auto"]
        assert gathered - gathered_eager == per_row
        assert gathered_eager >= features + 2 * counts + memory
        assert (reduced_eager - reduced_auto, reduced_auto) == (reduced, reduced_auto)


def test_a_launcher_without_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    images, texts = small.data()
    objective = small.objective("tempnet")
    with pytest.raises(RuntimeError, match="init_process_group"):
        objective(images, texts, index=torch.arange(small.N))
    objective.eval()(images, texts)  # an evaluation may run on one process alone


def test_alone_everything_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_rows_with_gradient(x)[0] is x
    assert torch.equal(distributed.gather_rows(x)[0], x)
    assert torch.equal(distributed.sum_over_processes(x), x)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)


def _few_outcomes_on_one(rank: int, world: int) -> str:
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
    objective = dt.Objective(host, dt.ConstantTemperature(0.5), dt.KLRobustLoss(1.2))
    group = torch.tensor([7, 7, 7]) if rank else torch.tensor([0, 1, 2])  # three outcomes there, five here
    with pytest.raises(ValueError, match="outcomes in the support") as caught:
        objective(torch.randn(3, 3), torch.randn(3, 3), group=group)
    return str(caught.value)


@pytest.mark.slow
def test_a_radius_too_large_for_one_process_is_refused_on_all():
    for message in in_processes(2, _few_outcomes_on_one):
        assert "rho=1.2 with m=3 outcomes" in message
