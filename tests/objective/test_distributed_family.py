"""Every composition of the contrastive family trains in several processes as in one, whichever way gradients go."""

import pytest
import small
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt

GAMMA = dt.estimators.CosineGamma(0.3, epochs=10)


def _reference() -> dt.hosts.TwoTower:
    torch.manual_seed(9)
    return dt.hosts.TwoTower(nn.Linear(small.D, 3), nn.Linear(small.D, 3), frozen=True)


R = dt.recipes
RECIPES = {
    "infonce": lambda host: R.infonce(host),
    "cyclip": lambda host: R.cyclip(host),
    "siglip": lambda host: R.siglip(host),
    "sogclr": lambda host: R.sogclr(host, small.N, tau=0.2, gamma=GAMMA),
    "isogclr": lambda host: R.isogclr(host, small.N, rho=1.0, tau_max=0.5, gamma=GAMMA),
    "fastclip_v0": lambda host: R.fastclip_v0(host, small.N, epochs=10, steps_per_epoch=2),
    "fastclip_v1": lambda host: R.fastclip_v1(host, small.N, epochs=10, steps_per_epoch=2),
    "fastclip_v2": lambda host: R.fastclip_v2(host, small.N, epochs=10, steps_per_epoch=2, rho=1.0),
    "fastclip_v3": lambda host: R.fastclip_v3(host, small.N, epochs=10, steps_per_epoch=2, rho=1.0),
    "tempnet": lambda host: R.tempnet(host, small.N, 4, rho=1.0, tau_min=0.05, tau_max=0.5, gamma=GAMMA),
    "drrho": lambda host: R.drrho(host, _reference(), small.N, tau=0.2, gamma=GAMMA),
    "scent": lambda host: R.scent(host, small.N, tau=0.2, alpha=1.0),
    "tempnet-in-chunks": lambda host: R.tempnet(
        dt.hosts.InChunks(host, size=2), small.N, 4, rho=1.0, tau_min=0.05, tau_max=0.5, gamma=GAMMA
    ),
    "supcon+groups": lambda host: R.supcon(host, tau=0.2),
    "siglip+groups": lambda host: R.siglip(host),
    "isogclr+groups": lambda host: R.isogclr(host, small.N, rho=1.0, tau_max=0.5, gamma=GAMMA),
    "two-views+groups": lambda host: R.sogclr(
        dt.hosts.TwoViews(host.image_encoder), small.N, tau=0.2, gamma=GAMMA
    ),
    "two-views": lambda host: R.sogclr(dt.hosts.TwoViews(host.image_encoder), small.N, tau=0.2, gamma=GAMMA),
}
STEPS = 20
#: Sizes of the batches of all processes together: even, uneven, with duplicates, and so few that some get none.
SIZES = (12, 11, 12, 2, 5)


def _plan() -> list[torch.Tensor]:
    plan = small.batches(STEPS, size=12)
    cut = [index[: SIZES[step % len(SIZES)]] for step, index in enumerate(plan)]
    return [torch.cat([i[:-1], i[:1]]) if step % 5 == 2 else i for step, i in enumerate(cut)]


def _objective(name: str, backend: str) -> dt.Objective:
    host = small.two_tower()
    torch.manual_seed(1)
    objective = RECIPES[name](host)
    for module in objective.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # processes draw different numbers
        if isinstance(module, dt.losses.log_mean_exp.StreamingLoss):
            module.backend = backend
    return objective.double()


def _train(name: str, backend: str, rank: int = 0, world: int = 1) -> tuple[list[float], list[float]]:
    images, texts = small.data()
    objective = _objective(name, backend)
    opt = small.optimizer(objective)
    model = DistributedDataParallel(objective) if world > 1 else objective
    losses = []
    for index in _plan():
        mine = index.tensor_split(world)[rank]
        # Four groups, a third of the pairs alone: some pairs have few negatives, and no batch leaves them all without.
        groups = {"group": torch.where(mine % 3 == 0, -1, mine % 4)} if name.endswith("+groups") else {}
        output = model(images[mine], texts[mine], index=mine, **groups)
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        opt.step()
        opt.zero_grad()
    state = [value.double().flatten() for value in objective.state_dict().values()]
    return torch.cat(state).tolist(), losses


def _train_all(rank: int, world: int) -> dict[str, list[float]]:
    return {
        f"{name}-{backend}": _train(name, backend, rank, world)[0]
        for name in RECIPES
        for backend in ("auto", "reference")
    }


@pytest.fixture(scope="module", params=[2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def states(request):
    return in_processes(request.param, _train_all)


@pytest.fixture(scope="module")
def alone():
    known = {}

    def of(name):
        if name not in known:
            known[name] = torch.tensor(_train(name, "reference")[0], dtype=torch.float64)
        return known[name]

    return of


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", RECIPES)
def test_processes_train_as_one(name, backend, states, alone):
    for state in states:
        found = torch.tensor(state[f"{name}-{backend}"], dtype=torch.float64)
        small.assert_same_to_rounding(found, alone(name), small.TRAINED_APART)
        assert state[f"{name}-{backend}"] == states[0][f"{name}-{backend}"]  # to the last bit


def test_the_test_can_fail():
    """Training moves everything that is compared."""
    for name in RECIPES:
        before = torch.cat(
            [v.double().flatten() for v in _objective(name, "reference").state_dict().values()]
        )
        after = torch.tensor(_train(name, "reference")[0], dtype=torch.float64)
        moved = (before != after) & ~(before.isinf() & after.isinf())
        assert moved.double().mean() > 0.3, name
