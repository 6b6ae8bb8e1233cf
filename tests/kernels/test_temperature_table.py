"""The kernel that steps a table of temperatures, interpreted, against plain PyTorch."""

import pytest
import torch

import dro_temp as dt
from dro_temp import _faults
from dro_temp.predictors import individual

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the interpreter


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())


def trained(batches, size, dtype=torch.float32, **update):
    predictor = dt.IndividualTemperature(
        size, tau_min=0.01, tau_max=1.0, update=dt.predictors.GradientUpdate(**update)
    ).to(dtype)
    for index, gradient in batches:
        predictor.observe(index, gradient.to(dtype))
        predictor.commit()
    return predictor.tau, predictor.momentum


@pytest.mark.parametrize("n", [1, 33, 300])
def test_it_agrees_with_plain_pytorch(n, monkeypatch):
    torch.manual_seed(n)
    size = n // 2 + 1
    batches = [(torch.randint(-1, size, (n,)), 4 * torch.randn(n)) for _ in range(3)]
    ours = trained(batches, size, beta=0.7, clip=3.0, lr=0.02)
    monkeypatch.setattr(individual, "MOST_COMPARED", 0)
    plain = trained(batches, size, beta=0.7, clip=3.0, lr=0.02)
    for x, y in zip(ours, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_copies_of_a_sample_agree_whatever_their_place():
    torch.manual_seed(0)
    index, gradient = torch.randint(20, (400,)), torch.randn(400)
    order = torch.randperm(400)
    ours = trained([(index, gradient)], 20)
    other = trained([(index[order], gradient[order])], 20)
    for x, y in zip(ours, other, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_numbers_outside_the_table_write_nothing():
    tau, momentum = trained([(torch.tensor([-1, 2, 9, -4]), torch.ones(4))], 4)
    assert momentum.nonzero().tolist() == [[2]]
    assert (tau != tau[0]).nonzero().tolist() == [[2]]


def test_nan_reaches_the_table_as_in_plain_pytorch(monkeypatch):
    batch = [(torch.tensor([1, 2]), torch.tensor([torch.nan, 1.0]))]
    for most in (2**16, 0):
        monkeypatch.setattr(individual, "MOST_COMPARED", most)
        assert trained(batch, 4)[0].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("loaded", ["tau", "momentum"])
def test_a_table_that_is_a_view_is_written(loaded):
    predictor = dt.IndividualTemperature(4, tau_min=0.01, tau_max=1.0)
    state = predictor.state_dict()
    state[loaded] = torch.stack([state[loaded]] * 2, 1)[:, 0]
    predictor.load_state_dict(state, assign=True)
    predictor.observe(torch.tensor([1, 3]), torch.tensor([1.0, -1.0]))
    predictor.commit()
    assert predictor.momentum.nonzero().tolist() == [[1], [3]]
    assert (predictor.tau != predictor.tau[0]).nonzero().tolist() == [[1], [3]]


def test_rows_that_do_not_count_step_no_sample_whatever_the_type_of_their_numbers():
    """Of uint8, -1 would be sample 255."""
    torch.manual_seed(0)
    predictor = dt.IndividualTemperature(256, tau_min=0.01, tau_max=1.0)
    predictor.momentum[255] = 1.0
    host = dt.hosts.Classifier(torch.nn.Linear(4, 5), torch.nn.Linear(5, 7))
    objective = dt.Objective(host, predictor, dt.LikelihoodLoss())
    index = torch.tensor([9, 4], dtype=torch.uint8)
    objective(torch.randn(2, 4), torch.tensor([3, -100]), index=index).loss.backward()
    objective.commit()
    assert predictor.momentum.nonzero().tolist() == [[9], [255]]
    assert predictor.momentum[255] == 1.0
