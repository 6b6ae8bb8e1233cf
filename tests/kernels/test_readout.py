"""The kernels of a TempNet's readout and bounds, interpreted, against plain operations in float64."""

import pytest
import torch
import torch.nn.utils.prune
from torch.autograd import forward_ad

import dro_temp as dt
from dro_temp import _faults
from dro_temp import functional as F
from dro_temp.kernels import readout

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the interpreter


@pytest.fixture
def on_device(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)


def inputs(n, k, *, dtype=torch.float32):
    torch.manual_seed(n + k)
    v, y = torch.randn(n, k), torch.randn(n, k)
    made = v, y, torch.tensor([-0.7]), torch.randn(1, k), torch.tensor([0.3])
    return [x.to(dtype).requires_grad_() for x in made]


@pytest.mark.parametrize("k", [1, 7, 64, 300])
@pytest.mark.parametrize("n", [1, 40, 3000])
def test_pooled_readout(n, k):
    if n * k > 200_000:
        pytest.skip("slow in the interpreter")
    ours, exact = inputs(n, k), inputs(n, k, dtype=torch.float64)
    upstream = torch.randn(n)
    raw = readout.FusedPooledReadout.apply(*ours)
    truth = readout.pooled_readout(*exact)
    torch.testing.assert_close(raw.double(), truth, rtol=1e-5, atol=1e-5)
    raw.backward(upstream)
    truth.backward(upstream.double())
    for x, y in zip(ours, exact, strict=True):
        assert (x.grad.double() - y.grad).norm() <= 1e-5 * y.grad.norm() + 1e-6


def test_rows_far_apart_and_shared_similarities():
    """A view with other strides, pooled as it is: gradients of both uses add up."""
    ours, exact = inputs(12, 9), inputs(12, 9, dtype=torch.float64)
    for leaves, function in ((ours, readout.FusedPooledReadout.apply), (exact, readout.pooled_readout)):
        v = leaves[0].T.contiguous().T
        function(v, v, *leaves[2:]).sum().backward()
    for i in (0, 2, 3, 4):
        torch.testing.assert_close(ours[i].grad.double(), exact[i].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 200.0])
def test_bounds(spread):
    raw = (spread * torch.randn(600, generator=torch.Generator().manual_seed(0))).requires_grad_()
    exact = raw.detach().double().requires_grad_()
    tau = readout.FusedBounds.apply(raw, 0.1, 0.7)
    assert (tau >= torch.tensor(0.1)).all()
    assert (tau <= torch.tensor(0.7)).all()
    truth = F.sigmoid_between(exact, 0.1, 0.7)
    torch.testing.assert_close(tau.double(), truth, rtol=1e-6, atol=1e-6)
    upstream = torch.randn(600, generator=torch.Generator().manual_seed(1))
    tau.backward(upstream)
    truth.backward(upstream.double())
    torch.testing.assert_close(raw.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_nan_stays():
    assert readout.FusedBounds.apply(torch.tensor([torch.nan, 0.0]), 0.1, 0.7).isnan().tolist() == [
        True,
        False,
    ]


def test_second_derivatives_go_through_plain_operations(on_device):
    torch.manual_seed(0)
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(6, width=5), tau_min=0.1, tau_max=2.0)
    for p in tempnet.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(4, 6)
    curvatures = []
    for device in (True, False):
        _faults.everywhere = device
        tau = tempnet(x)
        first = torch.autograd.grad(tau.sum(), list(tempnet.parameters()), create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), list(tempnet.parameters()))
        curvatures.append(second)
    for ours, plain in zip(*curvatures, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_what_is_frozen_gets_no_gradient(on_device):
    leaves = [x.detach() for x in inputs(5, 6)]
    leaves[3].requires_grad_()
    readout.FusedPooledReadout.apply(*leaves).sum().backward()
    assert leaves[3].grad.shape == (1, 6)
    assert all(x.grad is None for i, x in enumerate(leaves) if i != 3)


@pytest.mark.parametrize("change", ["double", "own layer"])
def test_other_networks_take_plain_operations(change, on_device, monkeypatch):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    tempnet = dt.TempNet(6, prototypes=5, dropout=0.0, tau_min=0.1, tau_max=2.0)
    if change == "double":
        tempnet.double()
    else:
        tempnet.readout.last = Doubled(5, 1)
    monkeypatch.setattr(readout.FusedPooledReadout, "apply", None)
    assert tempnet(torch.randn(3, 6)).isfinite().all()


def test_a_hook_on_the_last_layer_runs(on_device):
    tempnet = dt.TempNet(6, prototypes=5, dropout=0.0, tau_min=0.1, tau_max=2.0)
    tempnet.readout.last.register_forward_hook(lambda layer, args, output: output + 100)
    torch.testing.assert_close(tempnet(torch.randn(3, 6)), torch.full((3,), 2.0))


def test_bounds_of_many_rows(on_device, monkeypatch):
    """More than the readout could take in one row."""
    called = []
    monkeypatch.setattr(readout.FusedBounds, "apply", lambda *args: called.append(args) or args[0].sigmoid())
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(2, width=2), tau_min=0.1, tau_max=2.0)
    tempnet.bound(torch.zeros(2 * readout._kernels().WIDEST))
    assert len(called) == 1


def hooked(layer):
    layer.register_forward_hook(lambda module, args, output: 0 * output)


def overridden(layer):
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def pruned(layer):
    torch.nn.utils.prune.l1_unstructured(layer, "weight", 2)


@pytest.mark.parametrize("change", [hooked, overridden, pruned])
def test_a_last_layer_that_does_more_than_its_weights_is_called(change, on_device):
    torch.manual_seed(0)
    tempnet, x = dt.TempNet(6, prototypes=5, dropout=0.0, tau_min=0.1, tau_max=2.0), torch.randn(3, 6)
    change(tempnet.readout.last)
    found = []
    for device in (True, False):
        _faults.everywhere = device
        for _ in range(2):  # what a hook computes from the weights has a graph for each forward
            tempnet.zero_grad()
            tau = tempnet(x)
            tau.sum().backward()
        found.append((tau.detach(), tempnet.readout.last.bias.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_an_encoder_may_pool_what_is_broadcast(on_device):
    class Columns(dt.predictors.HiddenEncoder):
        def pooled(self, similarities):
            return similarities[:, :1]

    tempnet, x = dt.TempNet(Columns(6, width=5), tau_min=0.1, tau_max=2.0), torch.randn(3, 6)
    torch.nn.init.normal_(tempnet.readout.last.weight)
    found = tempnet(x)
    _faults.everywhere = False
    torch.testing.assert_close(found, tempnet(x))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.* is deprecated"
)  # forward mode compiles its rules with it
def test_forward_mode_takes_plain_operations(on_device):
    tempnet = dt.TempNet(6, prototypes=5, dropout=0.0, tau_min=0.1, tau_max=2.0)
    bias = tempnet.readout.last.bias.detach()
    with forward_ad.dual_level():
        dual = {"readout.last.bias": forward_ad.make_dual(bias, torch.ones(1))}
        tau = torch.func.functional_call(tempnet, dual, (torch.randn(3, 6),))
        assert (forward_ad.unpack_dual(tau).tangent > 0).all()


def test_gradients_have_the_strides_of_their_parameters():
    """Wrappers for several processes copy, and warn of, those that have not."""
    leaves = inputs(5, 6)
    readout.FusedPooledReadout.apply(*leaves).sum().backward()
    assert [x.grad.stride() for x in leaves] == [x.stride() for x in leaves]
