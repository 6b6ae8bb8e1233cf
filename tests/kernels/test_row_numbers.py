"""Kernels of a number or two per row, interpreted, against plain PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dro_temp as dt
from dro_temp import _faults
from dro_temp.kernels import dispatch

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the interpreter

SEEDS = st.integers(0, 1000)


@pytest.fixture
def on_device(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())


@pytest.fixture
def kernels():
    return dispatch.row_numbers()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 1030])
def test_labels(n, masked, dtype, kernels):
    torch.manual_seed(n)
    given = torch.randint(0, 7, (n,)).to(dtype)
    if dtype != torch.uint8:
        given[::5] = -100
    mask = torch.rand(n) > 0.3 if masked else None
    target, weight, wrongs = kernels.labels(given, mask, 7, ignore=-100)
    counted = (given != -100) & (torch.ones(n, dtype=torch.bool) if mask is None else mask)
    assert torch.equal(target, given.masked_fill(~counted, 0))
    assert torch.equal(weight, counted.float())
    assert min(wrongs.tolist())[0] >= n


@pytest.mark.parametrize("wrong", [7, -1, -(2**40)])
@pytest.mark.parametrize("row", [0, 3, 2100])
def test_the_first_wrong_label_is_named_and_does_not_count(row, wrong, on_device):
    labels = torch.zeros(2200, dtype=torch.int64)
    labels[[row, 2150]] = wrong
    rows = dt.hosts.labelled_rows(torch.zeros(2200, 7), labels)
    assert rows.weight[row] == 0
    assert rows.weight.sum() == 2198
    with pytest.raises(ValueError, match=rf"from 0 to 6, .* received {wrong} in row {row}\."):
        _faults.raise_faults()


def test_masked_labels_may_be_anything(on_device):
    rows = dt.hosts.labelled_rows(torch.zeros(3, 5), torch.tensor([9, 4, -7]), mask=torch.tensor([0, 1, 0]))
    assert rows.target.tolist() == [0, 4, 0]
    assert rows.weight.tolist() == [0.0, 1.0, 0.0]
    _faults.raise_faults()


@given(seed=SEEDS, n=st.sampled_from([1, 5, 2049]), some=st.booleans())
@settings(max_examples=12, deadline=None)
def test_spread(seed, n, some):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) + 5
    counts = torch.rand(n, generator=generator) > 0.4 if some else None
    kept = x if counts is None else x[counts]
    found = dispatch.row_numbers().spread(x, counts)
    if not len(kept):
        assert found.tolist() == [0.0] * 4
        return
    std, mean = torch.std_mean(kept.double(), correction=0)
    expected = torch.stack([mean, std, kept.min(), kept.max()]).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x", [[1.0, torch.nan, 2.0], [torch.nan, torch.nan]])
def test_spread_shows_nan(x, kernels):
    assert kernels.spread(torch.tensor(x), None).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["features", "temperatures", "loss"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_found_in_its_row(what, special, dtype, kernels):
    n, d = 70, 130
    features = torch.randn(n, d, dtype=dtype) * 1e18  # whose squares and sums overflow
    tau, values = torch.ones(n), torch.zeros(n)
    numbers = {"features": features, "temperatures": tau, "loss": values}
    bit = {"features": 1, "temperatures": 2, "loss": 4}[what]
    numbers[what][(64, 129) if what == "features" else 64] = special
    some = torch.ones(n, dtype=torch.bool)
    for counts in (None, some):
        parts = torch.empty(kernels.parts_of(n), dtype=torch.int32)
        found = kernels.not_finite(features, tau, values, counts, parts)
        assert found.nonzero().tolist() == [[64]]
        assert found[64] == bit
        assert parts.tolist() == [0, 0, bit]
    some[64] = False  # what a row that does not count was given is nobody's fault; its value is the loss's
    found = kernels.not_finite(features.T.contiguous().T, tau, values, some, parts)
    assert found[64] == (4 if what == "loss" else 0)


@pytest.mark.parametrize("view", ["image", "text"])
def test_both_ways_of_looking_say_the_same(view, on_device, monkeypatch):
    """The error names view, rows and samples."""
    torch.manual_seed(0)
    objective = dt.recipes.sogclr(dt.hosts.TwoTower(torch.nn.Linear(4, 6), torch.nn.Linear(3, 6)), 50)
    x, y, index = torch.randn(40, 4), torch.randn(40, 3), torch.arange(10, 50)
    (x if view == "image" else y)[35] = torch.nan
    messages = []
    for by_kernel in (True, False):
        if not by_kernel:
            monkeypatch.setattr(dispatch, "triton_interprets", lambda device: False)
        objective(x, y, index=index)
        with pytest.raises(FloatingPointError, match=r"in view 'image'.* rows \[.*samples \[") as caught:
            _faults.raise_faults(wait=True)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    named = "features in view 'image', received NaN or infinity in rows [35] (samples [45])"
    assert (named in messages[0]) == (view == "image")


def test_metrics_are_those_of_plain_pytorch(on_device, monkeypatch):
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
    predictor = dt.TempNet(dt.predictors.HiddenEncoder(8, width=8), tau_min=0.1, tau_max=4.0)
    torch.nn.init.normal_(predictor.readout.last.weight)
    objective = dt.Objective(host, predictor, dt.KLRobustLoss(1.0))
    labels = torch.tensor([3, -100, 5, 2, -100])
    found = []
    for by_kernel in (True, False):
        if not by_kernel:
            monkeypatch.setattr(dispatch, "triton_interprets", lambda device: False)
        objective.zero_grad()
        output = objective(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), labels)
        output.loss.backward()
        gradients = {f"d {name}": p.grad for name, p in objective.named_parameters()}
        found.append({"loss": output.loss.detach(), **output.metrics, **gradients})
        objective.discard()
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=2e-5, atol=1e-6, msg=name)
