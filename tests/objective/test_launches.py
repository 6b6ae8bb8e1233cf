"""How many kernels a step launches: on a GPU each costs the host 25 microseconds, more than most of the work.

Counted on the CPU, on the device's path, with interpreted kernels. The limits are what there was when they were written
plus a few: lower them with the count.
"""

import pytest
import torch
import torch.nn.functional as F

import dro_temp as dt
from dro_temp import _faults
from dro_temp.estimators import moving_average
from dro_temp.losses import log_mean_exp
from tests.support.launches import counted

averages = pytest.importorskip("dro_temp.kernels.backends.triton.averages")
N, D, CLASSES = 32, 16, 20


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())
    monkeypatch.setattr(moving_average, "_kernels", lambda table, values: averages)
    monkeypatch.setattr(log_mean_exp, "triton_runs_on", lambda device: True)


def launches(loss, optimizer) -> int:
    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()

    step()
    return counted(step).total


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def added(objective, args, batch, baseline, parameters) -> int:
    ours = dt.CompositionalOptimizer(adamw(objective.param_groups(lr=1e-3)), objective)
    return launches(lambda: objective(*args, **batch).loss, ours) - launches(baseline, adamw(parameters))


@pytest.mark.filterwarnings(
    "ignore:.*encountered in:RuntimeWarning"
)  # of what is no outcome, in the interpreter
@pytest.mark.parametrize(("recipe", "most"), [("tempnet", 225), ("sogclr", 100), ("infonce", 113)])
def test_pairs(recipe, most, on_a_gpu):
    torch.manual_seed(0)
    image, text = torch.nn.Linear(D, D), torch.nn.Linear(D, D)
    args, scale = (torch.randn(N, D), torch.randn(N, D)), torch.nn.Parameter(torch.tensor(14.0))
    options = {} if recipe == "infonce" else {"num_samples": 100, "rho": 1.0, "width": D}
    options = {k: options[k] for k in ("num_samples",) if options} if recipe == "sogclr" else options

    def clip_loss():
        x, y = (F.normalize(tower(a), dim=1) for tower, a in zip((image, text), args, strict=True))
        place = torch.arange(N)
        return (F.cross_entropy(scale * x @ y.T, place) + F.cross_entropy(scale * y @ x.T, place)) / 2

    objective = getattr(dt.recipes, recipe)(dt.hosts.TwoTower(image, text), **options)
    batch = {"index": torch.randperm(100)[:N]} if options else {}
    assert added(objective, args, batch, clip_loss, [*image.parameters(), *text.parameters(), scale]) <= most


def test_a_classifier(on_a_gpu):
    torch.manual_seed(0)
    model, head = torch.nn.Linear(D, D), torch.nn.Linear(D, CLASSES)
    images, labels = torch.randn(N, D), torch.randint(CLASSES, (N,))
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(D), tau_min=0.1, tau_max=4.0)
    objective = dt.Objective(dt.hosts.Classifier(model, head), tempnet, dt.KLRobustLoss(1.0))
    parameters = [*model.parameters(), *head.parameters()]
    assert (
        added(
            objective,
            (images, labels),
            {},
            lambda: F.cross_entropy(head(model(images)), labels),
            parameters,
        )
        <= 146
    )
