"""A whole step can be captured in a CUDA graph, and its replays train as steps do.

Without a GPU a stand-in records a step's operations and runs them again on the same memory, as a replay does: what a
step decided on the host, or changed there, would be missing.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dro_temp as dt
from dro_temp import _faults
from dro_temp.kernels import dispatch

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}


class Recorder(TorchDispatchMode):
    """Records operations; `replay` runs them again on the tensors that they had, and writes where they wrote."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in READS, f"{func._schema.name} reads a value"
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.operations:
            outputs = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(result), outputs, strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


@pytest.fixture
def capturing(monkeypatch):
    """Switches between steps of a device, and their capture."""
    state = {"on": False}
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())
    monkeypatch.setattr(_faults, "is_capturing", lambda: state["on"])
    # The kernels' launches are no operations of PyTorch; they compute what those do.
    monkeypatch.setattr(dispatch, "triton_interprets", lambda device: False)
    return lambda on: state.update(on=on)


def towers(recipe, **options):
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(torch.nn.Linear(6, 8), torch.nn.Linear(5, 8))
    objective = getattr(dt.recipes, recipe)(host, num_samples=20, **options)
    for module in objective.modules():  # each replay draws other numbers
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return objective


def classifier():
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
    encoder = dt.predictors.HiddenEncoder(8, width=8)
    return dt.Objective(host, dt.TempNet(encoder, tau_min=0.1, tau_max=4.0), dt.KLRobustLoss(1.0))


def scheduled():
    objective = towers("sogclr")
    for loss in objective.losses.values():
        loss.estimator.gamma = dt.estimators.CosineGamma(0.2, epochs=4)
    return objective


def batch(seed, kind):
    torch.manual_seed(seed)
    x, y, index = torch.randn(6, 6), torch.randn(6, 5), torch.randint(20, (6,))
    return (x, index % 10) if kind == "classifier" else (x, y, index)


CASES = {
    "tempnet": lambda: towers("tempnet", width=8, rho=1.0),
    "isogclr": lambda: towers("isogclr", rho=1.0),
    "gamma from a schedule": scheduled,
    "classifier": classifier,
}


def stepper(objective, device="cpu"):
    base = torch.optim.AdamW(objective.param_groups(lr=0.01), foreach=False, capturable=device == "cuda")
    optimizer = dt.CompositionalOptimizer(base, objective)

    def step(tensors):
        index = {"index": tensors[2]} if len(tensors) == 3 else {}
        loss = objective(*tensors[:2], **index).loss
        loss.backward()
        optimizer.step()
        return loss

    return step, optimizer


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)


def plain_sgd(objective):
    """As `stepper`: AdamW counts its steps on the host unless it is on a device."""
    optimizer = dt.CompositionalOptimizer(
        torch.optim.SGD(objective.param_groups(lr=0.1), foreach=False), objective
    )

    def step(tensors):
        index = {"index": tensors[2]} if len(tensors) == 3 else {}
        objective(*tensors[:2], **index).loss.backward()
        optimizer.step()

    return step, optimizer


@pytest.mark.parametrize("case", CASES)
def test_a_replay_is_a_step(case, capturing):
    batches = [batch(seed, case) for seed in range(4)]
    eager = CASES[case]()
    step, optimizer = plain_sgd(eager)
    for tensors in batches:
        optimizer.zero_grad()
        step(tensors)
    captured = CASES[case]()
    step, optimizer = plain_sgd(captured)
    step(batches[0])
    optimizer.zero_grad()
    static = [x.clone() for x in batches[1]]
    capturing(True)
    checks = dt.state.ReplayChecks()
    with Recorder() as recorder, checks:
        step(static)  # here, unlike in a capture, it runs as well
    capturing(False)
    for tensors in batches[2:]:
        for x, y in zip(static, tensors, strict=True):
            x.copy_(y)
        recorder.replay()
        checks.look()
    assert_same(captured.state_dict(), eager.state_dict(), 1e-6)


def test_a_replay_tells_of_its_faults(capturing):
    objective = CASES["tempnet"]()
    step, optimizer = plain_sgd(objective)
    static = [x.clone() for x in batch(0, "tempnet")]
    step(static)
    optimizer.zero_grad()
    capturing(True)
    checks = dt.state.ReplayChecks()
    with Recorder() as recorder, checks:
        step(static)
    capturing(False)
    recorder.replay()
    checks.look()
    static[2][3] = 77
    recorder.replay()
    with pytest.raises(IndexError, match=r"from 0 to 19, received numbers from .* to 77"):
        checks.look()
    static[2][3] = 7
    static[0][1] = torch.nan
    recorder.replay()
    with pytest.raises(FloatingPointError, match=r"features in view 'image'.*rows \[1\]"):
        checks.look()


def test_checks_belong_to_their_own_graph(capturing):
    """Another graph, captured and never replayed, holds whatever its memory held."""
    objective = CASES["tempnet"]()
    step, optimizer = plain_sgd(objective)
    step(batch(0, "tempnet"))
    both = []
    for numbers in (torch.arange(6), torch.full((6,), 12345)):
        optimizer.zero_grad()
        capturing(True)
        checks = dt.state.ReplayChecks()
        with checks:
            step([*batch(1, "tempnet")[:2], numbers])
        capturing(False)
        both.append(checks)
    both[0].look()
    with pytest.raises(IndexError):
        both[1].look()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_captured_step_on_a_gpu(case):
    batches = [[x.cuda() for x in batch(seed, case)] for seed in range(6)]
    eager = CASES[case]().cuda()
    step, optimizer = stepper(eager, "cuda")
    for tensors in batches:
        optimizer.zero_grad()
        step(tensors)
    captured = CASES[case]().cuda()
    step, optimizer = stepper(captured, "cuda")
    static = [x.clone() for x in batches[0]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are compiled, and the optimizer's state is made
        step(static)
        optimizer.zero_grad()
    torch.cuda.current_stream().wait_stream(side)
    graph, checks = torch.cuda.CUDAGraph(), dt.state.ReplayChecks()
    with torch.cuda.graph(graph), checks:
        step(static)
    for tensors in batches[1:]:
        for x, y in zip(static, tensors, strict=True):
            x.copy_(y)
        graph.replay()
        checks.look()
    assert_same(captured.state_dict(), eager.state_dict(), 1e-4)
