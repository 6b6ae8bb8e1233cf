"""Several processes train as one does: real gloo groups, DistributedDataParallel, float64."""

import socket

import pytest
import small
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt
from dro_temp import distributed

STEPS = 20


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _run(rank: int, world: int, port: int, job, args, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        results[rank] = job(rank, world, *args)
    finally:
        dist.destroy_process_group()


def in_processes(world: int, job, *args):
    """Run `job(rank, world, *args)` in that many real processes; their results in rank order."""
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_run, (world, _free_port(), job, args, results), nprocs=world, join=True)
        return [results[rank] for rank in range(world)]


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
    objective = small.objective(predictor, gamma=dt.CosineGamma(0.3, epochs=10))
    opt = small.optimizer(objective)
    model = DistributedDataParallel(objective) if wrap else objective
    for index in _plan(kind):
        index = _shares(index, world, kind)[rank] if wrap else index
        model(images[index], texts[index], index=index).loss.backward()
        opt.step()
        opt.zero_grad()
    return _state(objective)


@pytest.mark.parametrize("kind", ["even", "uneven", "duplicates"])
@pytest.mark.parametrize("predictor", ["tempnet", "individual", "learnable"])
def test_two_processes_train_as_one(predictor, kind):
    alone = _train(0, 1, predictor, kind, wrap=False)
    together = in_processes(2, _train, predictor, kind)
    for name, value in alone.items():
        expected = torch.tensor(value, dtype=torch.float64)
        for state in together:
            got = torch.tensor(state[name], dtype=torch.float64)
            torch.testing.assert_close(
                got, expected, rtol=0, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
            )
        assert together[0][name] == together[1][name], name  # to the last bit


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


def test_gathering_leaves_other_gradients_alone():
    assert in_processes(2, _sibling) == [2.0, 2.0]


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


def test_a_count_is_that_of_all_processes():
    for default, counted in in_processes(2, _count):
        assert default == pytest.approx(counted, rel=1e-12)


def _evaluate(rank: int, world: int) -> float | None:
    images, texts = small.data()
    objective = small.objective("tempnet").eval()
    return float(objective(images, texts).loss.detach()) if rank == 0 else None


def test_one_process_may_evaluate_alone():
    """It must not wait for the others."""
    images, texts = small.data()
    expected = small.objective("tempnet").eval()(images, texts).loss.item()
    assert in_processes(2, _evaluate)[0] == pytest.approx(expected, rel=1e-12)


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


def test_accumulation_without_synchronisation_ends_alike_on_every_process():
    first, second = in_processes(2, _accumulate)
    assert first == second
    assert first["losses.image.estimator.steps"] == 6


def test_alone_everything_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_rows_with_gradient(x)[0] is x
    assert torch.equal(distributed.gather_rows(x)[0], x)
    assert torch.equal(distributed.sum_over_processes(x), x)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
