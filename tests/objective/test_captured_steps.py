"""A whole step in a CUDA graph: forward, backward, optimizer, memory; on a CPU, its operations replayed."""

import pytest
import torch
from replay import Recording

import dro_temp as dt
from dro_temp import _faults

ON_A_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
N, D, SAMPLES = 8, 6, 40


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())


def _pairs(recipe, device):
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(torch.nn.Linear(D, 4), torch.nn.Linear(5, 4))
    make = getattr(dt.recipes, recipe)
    options = {
        "tempnet": {"num_samples": SAMPLES, "rho": 1.0, "width": 4},
        "sogclr": {"num_samples": SAMPLES},
        "isogclr": {"num_samples": SAMPLES, "rho": 1.0},
        "siglip": {},
        "infonce": {},
    }[recipe]
    objective = make(host, **options).to(device)
    gamma = dt.estimators.CosineGamma(0.3, epochs=3) if recipe in ("tempnet", "sogclr", "isogclr") else None
    return objective, gamma


def _batch(k, device):
    g = torch.Generator().manual_seed(k)
    index = torch.randperm(SAMPLES, generator=g)[:N]
    return [torch.randn(N, width, generator=g).to(device) for width in (D, 5)] + [index.to(device)]


def _steps(recipe, device, make_optimizer, capture, count=4):
    """State after so many steps; the last ones by `capture(step, static inputs)`, if given."""
    objective, gamma = _pairs(recipe, device)
    base = make_optimizer(objective.param_groups(lr=0.1))
    optimizer = dt.CompositionalOptimizer(base, objective, gamma=gamma)
    images, texts, index = _batch(0, device)

    def step():
        optimizer.zero_grad()
        with_index = {} if recipe in ("siglip", "infonce") else {"index": index}
        objective(images, texts, **with_index).loss.backward()
        optimizer.step()

    run = step
    for k in range(count):
        for static, new in zip((images, texts, index), _batch(k, device), strict=True):
            static.copy_(new)
        if k == 2 and capture is not None:
            run = capture(step)
            continue
        run()
    return {name: x.detach().clone() for name, x in objective.state_dict().items()}


def _recorded(step):
    recording = Recording()
    with recording:
        step()
    return recording.replay


@pytest.mark.parametrize("recipe", ["tempnet", "sogclr", "isogclr", "siglip", "infonce"])
def test_a_step_replayed_is_the_step_run_again(recipe, on_a_gpu):
    make = lambda groups: torch.optim.SGD(groups, momentum=0.9)  # noqa: E731
    eager = _steps(recipe, "cpu", make, None)
    replayed = _steps(recipe, "cpu", make, _recorded)
    for name, expected in eager.items():
        torch.testing.assert_close(replayed[name], expected, msg=lambda text, name=name: f"{name}: {text}")


def test_a_replay_notices_what_it_would_miss():
    """The stand-in itself: a number that Python read is the old one when it is replayed."""
    x, total = torch.tensor(1.0), torch.tensor(0.0)
    replay = _recorded(lambda: total.add_(float(x)))
    x.fill_(5.0)
    replay()
    assert total == 2.0  # 6.0 had the step run again


@pytest.mark.gpu
@ON_A_CARD
@pytest.mark.parametrize("recipe", ["tempnet", "sogclr", "isogclr", "siglip", "infonce"])
def test_a_step_in_a_cuda_graph(recipe):
    def captured(step):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        graph.replay()  # capturing runs nothing
        return graph.replay

    make = lambda groups: torch.optim.AdamW(groups, capturable=True)  # noqa: E731
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        eager = _steps(recipe, "cuda", make, None)
        graphed = _steps(recipe, "cuda", make, captured)
    torch.cuda.current_stream().wait_stream(side)
    for name, expected in eager.items():
        torch.testing.assert_close(graphed[name], expected, msg=lambda text, name=name: f"{name}: {text}")
