"""Losses with backend="torch" against backend="reference", with every way to come by temperatures."""

import pytest
import torch
from streams import TRANSFORMS, blocks_of, float64, linear_rows
from torch import nn

import dro_temp as dt
from dro_temp.kernels import STATISTICS


@pytest.fixture(autouse=True)
def _tiny_blocks():
    with blocks_of(4):
        yield


class FromSupport(dt.TemperaturePredictor):
    """Keeps the scores themselves in its graph."""

    reads = frozenset({"support", "features"})

    def __init__(self):
        super().__init__(tau_min=0.3, tau_max=2.0)
        self.slope = nn.Parameter(torch.linspace(-1, 1, 11, dtype=float64))
        self.shift = nn.Parameter(torch.tensor(0.1, dtype=float64))

    def raw(self, inputs):
        """A square, so that autograd saves scores."""
        scores, mask = inputs.support.scores, inputs.support.mask
        scores = scores if mask is None else scores.masked_fill(~mask, 0.0)
        return ((scores * self.slope).square().mean(1) - self.shift * inputs.features.sum(1)).tanh()


def _tempnet(**options):
    torch.manual_seed(0)
    return dt.TempNet.for_logits(11, tau_min=0.3, tau_max=2.0, width=5, **options).double()


PREDICTORS = {
    "constant": lambda: dt.ConstantTemperature(0.7).double(),
    "learnable": lambda: dt.LearnableTemperature(0.7).double(),
    "individual": lambda: dt.IndividualTemperature(9, tau_min=0.3, tau_max=2.0, update=None).double(),
    "tempnet": lambda: dt.TempNet(3, tau_min=0.3, tau_max=2.0, prototypes=4, dropout=0.0).double(),
    "tempnet-logits": lambda: _tempnet(dropout=0.0),
    "tempnet-centred": lambda: _tempnet(dropout=0.0, centred=True),
    "optimal": lambda: dt.OptimalTemperature(0.5, tau_min=0.3, tau_max=2.0),
    "support": FromSupport,
}
LOSSES = {
    "kl": lambda **o: dt.KLRobustLoss(0.5, **o),
    "infonce": lambda **o: dt.InfoNCELoss(**o),
    "moving-average": lambda **o: dt.KLRobustLoss(
        0.5, estimator=dt.LogMovingAverage(40, gamma=0.3).double(), **o
    ),
}


def _found(loss, predictor, rows, leaves):
    output = loss.evaluate(rows, predictor, statistics=STATISTICS)
    trained = [*leaves, *predictor.parameters()]
    # A predictor that has no part in a value has no gradient on one path, and zero on the other.
    grads = torch.autograd.grad(output.values.mean(), trained, allow_unused=True, materialize_grads=True)
    return output.values, output.tau, output.statistics, grads


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("loss", LOSSES)
def test_chunked_equals_eager(loss, predictor, pairs):
    found = {}
    for backend in ("reference", "torch"):
        torch.manual_seed(1)
        rows, leaves = linear_rows(pairs=pairs)
        found[backend] = _found(LOSSES[loss](backend=backend), PREDICTORS[predictor](), rows, leaves)
    torch.testing.assert_close(found["torch"], found["reference"])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("predictor", ["tempnet-logits", "tempnet-centred", "support"])
def test_temperatures_of_a_pass_with_every_head(predictor, frozen, bias, transform):
    found = {}
    for backend in ("reference", "torch"):
        rows, leaves = linear_rows(bias=bias, transform=transform)
        rows = rows.detached() if frozen else rows
        found[backend] = _found(
            LOSSES["kl"](backend=backend), PREDICTORS[predictor](), rows, [] if frozen else leaves
        )
    torch.testing.assert_close(found["torch"], found["reference"])


@pytest.mark.parametrize("predictor", ["learnable", "tempnet-logits"])
def test_twenty_committed_steps_leave_the_same_memory(predictor):
    states = {}
    for backend in ("reference", "torch"):
        torch.manual_seed(1)
        loss, tempnet = LOSSES["moving-average"](backend=backend), PREDICTORS[predictor]()
        optimizer = torch.optim.SGD(tempnet.parameters(), lr=0.05)
        for step in range(20):
            index = (torch.arange(9) * 3 + step) % 40
            rows, _ = linear_rows(seed=step, index=index)
            optimizer.zero_grad()
            loss(rows, tempnet).mean().backward()
            optimizer.step()
            loss.estimator.commit()
        states[backend] = (loss.state_dict(), tempnet.state_dict())
    torch.testing.assert_close(states["torch"], states["reference"], rtol=1e-11, atol=1e-12)


def test_a_second_pass_drops_the_same_units():
    """Its gradient is that of the mean when the mean comes back, and linear in what comes back."""
    tempnet = _tempnet(dropout=0.5)
    rows, leaves = linear_rows()
    trained = [*leaves, *tempnet.parameters()]
    torch.manual_seed(7)
    values = LOSSES["kl"](backend="torch")(rows, tempnet)
    state = torch.get_rng_state()

    def gradient(total):
        torch.rand(3)  # others draw in between
        return torch.autograd.grad(total, trained, retain_graph=True)

    mean = gradient(values.mean())
    one_by_one = [gradient(value) for value in values]
    for k, expected in enumerate(mean):
        torch.testing.assert_close(torch.stack([grads[k] for grads in one_by_one]).mean(0), expected)
    torch.set_rng_state(state)
    torch.autograd.grad(values[0], trained)
    assert torch.equal(torch.get_rng_state(), state)  # and costs nobody a random number


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [float64, torch.float32])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_table_observes_each_rows_whole_gradient(backend, dtype, ignored):
    """Also where some labels are ignored, and where the table is less precise than the scores."""
    torch.manual_seed(0)
    host = dt.hosts.Classifier(nn.Linear(6, 3), nn.Linear(3, 11)).double()
    table = dt.IndividualTemperature(
        9, tau_min=0.3, tau_max=2.0, update=dt.predictors.GradientUpdate(lr=0.1)
    ).to(dtype)
    objective = dt.Objective(host, table, dt.KLRobustLoss(0.5, backend=backend))
    inputs, labels = torch.randn(9, 6, dtype=float64), torch.arange(9)
    if ignored:
        labels[3] = -100
    before = table.tau.clone()
    output = objective(inputs, labels, index=torch.arange(9))
    output.loss.backward()
    objective.commit()
    rows = host(inputs, labels)["class"]
    tau = before.double().requires_grad_()
    gradient = torch.autograd.grad(dt.KLRobustLoss(0.5, backend="reference")(rows, tau).sum(), tau)[0]
    assert output.backend["class"].name == backend
    expected = before - 0.1 * 0.9 * gradient.clamp(-5, 5).to(dtype)
    torch.testing.assert_close(table.tau, expected.to(table.tau.dtype), rtol=1e-5, atol=1e-6)
