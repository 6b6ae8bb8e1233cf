"""Wrapped by FSDP2 or DistributedDataParallel, two processes train as one does, or stop at the first step."""

import pytest
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt

STEPS, ROWS, CLASSES, NAMES = 3, 1200, 2000, 120
VOCABULARY = 300


def _classifier(tempnet: dt.TempNet) -> dt.Objective:
    host = dt.hosts.Classifier(nn.Linear(6, 16), nn.Linear(16, CLASSES))
    return dt.Objective(host, tempnet, dt.KLRobustLoss(2.0))


def _language_model(*, frozen: bool) -> dt.Objective:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config)
    tempnet = dt.TempNet.for_lm(model, inputs=("hidden", "statistics"), tau_min=0.1, tau_max=2.0)
    host = dt.hosts.CausalLM(model, frozen=frozen)
    return dt.Objective(host, tempnet, dt.KLRobustLoss(2.0, backend="torch"))


def _pairs() -> dt.Objective:
    host = dt.hosts.TwoTower(nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 8)), nn.Linear(5, 8))
    tempnets = {view: dt.TempNet(8, tau_min=0.05, tau_max=1.0, dropout=0.0) for view in host.views}
    loss = {view: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(NAMES)) for view in host.views}
    return dt.Objective(host, tempnets, loss)


def _embedding() -> dt.Objective:
    return _classifier(dt.TempNet(16, tau_min=0.1, tau_max=2.0, dropout=0.0))  # rows in blocks of 512


def _logits() -> dt.Objective:
    return _classifier(dt.TempNet.for_logits(CLASSES, tau_min=0.1, tau_max=2.0, dropout=0.0))  # streamed


def _scalars() -> dt.Objective:
    """All parameters that are one number."""
    host = dt.hosts.TwoTower(nn.Linear(6, 8), nn.Linear(5, 8))
    loss = {view: dt.SigmoidLoss() for view in host.views}
    return dt.Objective(host, {view: dt.LearnableTemperature(0.1) for view in host.views}, loss)


BUILD = {
    "embedding": _embedding,
    "logits": _logits,
    "pairs": _pairs,
    "scalars": _scalars,
    "lm": lambda: _language_model(frozen=False),
    "frozen lm": lambda: _language_model(frozen=True),
}


def _batches(kind: str) -> list[dict]:
    g = torch.Generator().manual_seed(1)
    if kind in ("pairs", "scalars"):
        sides = [
            (torch.randn(NAMES, 6, generator=g), torch.randn(NAMES, 5, generator=g)) for _ in range(STEPS)
        ]
        return [{"images": x, "texts": y, "index": torch.randperm(NAMES, generator=g)} for x, y in sides]
    if "lm" in kind:
        return [{"input_ids": torch.randint(VOCABULARY, (8, 40), generator=g)} for _ in range(STEPS)]
    return [
        {
            "inputs": torch.randn(ROWS, 6, generator=g),
            "labels": torch.randint(CLASSES, (ROWS,), generator=g),
        }
        for _ in range(STEPS)
    ]


def _build(kind: str) -> dt.Objective:
    torch.manual_seed(0)
    return BUILD[kind]()


def _trained(
    objective: dt.Objective, model: nn.Module, kind: str, rank: int, world: int
) -> dict[str, torch.Tensor]:
    optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.5), lr=0.5), objective)
    for batch in _batches(kind):
        share = {name: x.chunk(world)[rank] for name, x in batch.items()}
        model(**share).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in objective.named_parameters()
    }


def _shard(objective: dt.Objective, parts: str) -> None:
    for part in parts.split(", "):
        if part == "blocks":
            for block in objective.host.model.transformer.h:
                fully_shard(block)
        else:
            places = {
                "objective": [objective],
                "host": [objective.host],
                "predictors": list(objective.predictors.values()),
                "encoder": [getattr(p, "encoder", None) for p in objective.predictors.values()],
                "readout": [getattr(p, "readout", None) for p in objective.predictors.values()],
                "model": [getattr(objective.host, "model", None)],
                "model kept": [getattr(objective.host, "model", None)],
            }
            for place in places[part]:
                fully_shard(place, **({"reshard_after_forward": False} if part == "model kept" else {}))


RIGHT = [
    ("embedding", "objective"),
    ("embedding", "host, predictors"),
    ("logits", "objective"),
    ("logits", "host, predictors"),
    ("pairs", "objective"),
    ("pairs", "host, predictors"),
    ("pairs", "host, predictors, objective"),
    ("pairs", "encoder, readout, objective"),
    ("scalars", "objective"),
    ("lm", "blocks, model, predictors"),
    ("lm", "blocks, objective"),
    ("lm", "blocks, model kept, predictors, objective"),
    (
        "lm",
        "blocks, model, predictors, objective",
    ),  # the head is sharded again when scores are made: logits instead
    ("frozen lm", "model, predictors"),
]
REFUSED = [
    ("embedding", "host", "beside sharded ones"),
    ("logits", "predictors", "beside sharded ones"),
    ("frozen lm", "model", "beside sharded ones"),
    ("embedding", "encoder, objective", "Shard the predictor as one"),
    ("embedding", "readout, objective", "Shard the predictor as one"),
    ("logits", "encoder, objective", "Shard the predictor as one"),
]


def fully_shard(module: nn.Module, **options) -> None:
    """Over processors, also where there is a GPU, which torch would take."""
    from torch.distributed import device_mesh, fsdp

    mesh = device_mesh.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fsdp.fully_shard(module, mesh=mesh, **options)


def _keys_of_a_sharded_head() -> str:
    head = nn.Linear(4, 10)
    fully_shard(head)
    try:
        dt.LinearScores(torch.randn(3, 4), head.weight)
    except ValueError as error:
        return str(error)
    return ""


def _everything(rank: int, world: int) -> dict:
    found: dict = {}
    for kind, parts in RIGHT:
        objective = _build(kind)
        _shard(objective, parts)
        found[kind, parts] = _trained(objective, objective, kind, rank, world)
    for kind, parts, _ in REFUSED:
        objective = _build(kind)
        _shard(objective, parts)
        try:
            _trained(objective, objective, kind, rank, world)
            found["refused", kind, parts] = ""
        except (RuntimeError, ValueError) as error:
            found["refused", kind, parts] = str(error)
    found["sharded keys"] = _keys_of_a_sharded_head()
    for kind in ("embedding", "logits", "pairs"):
        objective = _build(kind)
        wrapped = DistributedDataParallel(objective, static_graph=True)
        found["static graph", kind] = _trained(objective, wrapped, kind, rank, world)
    return found


@pytest.fixture(scope="module")
def of_processes():
    return in_processes(2, _everything)


@pytest.fixture(scope="module")
def of_one_process():
    trained = {}
    for kind in BUILD:
        objective = _build(kind)
        trained[kind] = _trained(objective, objective, kind, 0, 1)
    return trained


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        # Sums over rows in another order; weights move by about their own size.
        torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-5 * float(x.abs().max()))


@pytest.mark.parametrize(("kind", "parts"), RIGHT)
def test_sharded_processes_train_as_one(of_processes, of_one_process, kind, parts):
    for found in of_processes:
        _assert_same(found[kind, parts], of_one_process[kind])


@pytest.mark.parametrize(("kind", "parts", "message"), REFUSED)
def test_what_cannot_train_as_one_is_refused_at_the_first_step(of_processes, kind, parts, message):
    for found in of_processes:
        assert message in found["refused", kind, parts]
        assert "expected" in found["refused", kind, parts]


def test_keys_that_are_sharded_are_refused(of_processes):
    for found in of_processes:
        assert "expected whole keys, received a DTensor" in found["sharded keys"]
        assert "reshard_after_forward=False" in found["sharded keys"]


@pytest.mark.parametrize("kind", ["embedding", "logits", "pairs"])
def test_a_static_graph_is_seen_through(of_processes, of_one_process, kind):
    for found in of_processes:
        _assert_same(found["static graph", kind], of_one_process[kind])


def test_training_moves_every_part(of_one_process):
    """Else equality would say nothing."""
    for kind in BUILD:
        start = dict(_build(kind).named_parameters())
        moved = {
            name.partition(".")[0]
            for name, x in of_one_process[kind].items()
            if not torch.equal(x, start[name])
        }
        assert "predictors" in moved
        assert ("host" in moved) == (kind != "frozen lm")
