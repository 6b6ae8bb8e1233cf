"""Streaming losses inside what else a training loop is made of; which path is taken; how much memory it takes."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from streams import blocks_of, float64, linear_rows
from torch import nn
from torch.utils.checkpoint import checkpoint

import dro_temp as dt
from dro_temp import kernels
from dro_temp.kernels.dispatch import cpu_runs_on, triton_backend

float32 = torch.float32


@pytest.fixture(autouse=True)
def _tiny_blocks():
    with blocks_of(4):
        yield


def _tempnet(dtype=float64):
    torch.manual_seed(0)
    tempnet = dt.TempNet.for_logits(11, tau_min=0.3, tau_max=2.0, width=5, dropout=0.0)
    return tempnet.to(dtype)


def _loss(backend="torch"):
    return dt.KLRobustLoss(0.5, backend=backend)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("uniform", [True, False])
def test_autocast_leaves_the_loss_in_float32(uniform, reads):
    """And its gradients: backward is called outside, as torch asks."""
    weight = torch.ones(9) if uniform else torch.linspace(-1, 1, 9)
    found = []
    for inside in (False, True):
        rows, leaves = linear_rows(dtype=float32)
        tempnet = _tempnet(float32) if reads else dt.LearnableTemperature(0.7)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            values = _loss()(rows, tempnet)
        grads = torch.autograd.grad((weight * values).sum(), leaves)
        assert values.dtype == float32
        found.append((values, grads))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, reads):
    found = []
    for backend, wrapped in (("reference", False), ("torch", True)):
        rows, leaves = linear_rows()
        tempnet, loss = _tempnet() if reads else dt.LearnableTemperature(0.7).double(), _loss(backend)

        def total(queries, keys, bias, loss=loss, tempnet=tempnet, rows=rows):
            scores = dt.LinearScores(queries, keys, bias)
            return loss(dt.Rows(scores, rows.target, queries), tempnet).square().sum()

        result = checkpoint(total, *leaves, use_reentrant=reentrant) if wrapped else total(*leaves)
        result.backward()
        trained = [*leaves, *tempnet.parameters()]
        found.append((result.detach(), [x.grad for x in trained]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.usefixtures("no_shape_checks")
# The compiler itself looks, when it goes on after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_compiling_the_model_around_it(inside):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        backbone, head = nn.Linear(6, 3).double(), nn.Linear(3, 11).double()
        tempnet, loss, target = _tempnet(), _loss(), torch.arange(9)
        inputs = torch.randn(9, 6, dtype=float64)
        whole = partial(torch.compile, backend="aot_eager") if compiled else lambda f: f
        model = backbone if inside else whole(backbone)

        def step(x, model=model, head=head, tempnet=tempnet, loss=loss, target=target):
            features = model(x)
            rows = dt.Rows(dt.LinearScores(features, head.weight, head.bias), target, features)
            return loss(rows, tempnet).mean()

        result = (whole(step) if inside else step)(inputs)
        result.backward()
        modules = (backbone, head, tempnet)
        found.append((result.detach(), [p.grad for module in modules for p in module.parameters()]))
        torch.compiler.reset()
    torch.testing.assert_close(found[1], found[0])


def _value(queries, keys):
    rows = dt.Rows(dt.LinearScores(queries, keys), torch.zeros(len(queries), dtype=torch.long))
    return _loss()(rows, 1.0).sum()


TWO = (torch.randn(3, 2), torch.randn(5, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.func.grad(_value)(*TWO),
        lambda: torch.func.vmap(lambda q: _value(q, TWO[1]))(TWO[0][None]),
        lambda: torch.func.grad(
            lambda q: kernels.pair_log_sums(q, TWO[1], torch.ones(5), torch.ones(5)).rows.sum()
        )(TWO[1]),
    ],
)
def test_functional_transforms_are_refused(call):
    with pytest.raises(RuntimeError, match=r"expected.*torch\.func.*received.*backend='reference'"):
        call()


def test_second_derivatives_are_refused():
    queries, keys = (x.clone().requires_grad_() for x in TWO)
    with pytest.raises(
        RuntimeError, match=r"expected a first.*received create_graph=True.*backend='reference'"
    ):
        torch.autograd.grad(_value(queries, keys), queries, create_graph=True)
    sums = kernels.pair_log_sums(keys, keys.detach(), torch.ones(5), torch.ones(5))
    with pytest.raises(
        RuntimeError, match=r"expected a first.*received create_graph=True.*backend='reference'"
    ):
        torch.autograd.grad(sums.rows.sum(), keys, create_graph=True)


def test_auto_streams_where_the_score_matrix_is_large_and_says_why():
    def choose(n, m, **options):
        scores = dt.LinearScores(torch.zeros(n, 1), torch.zeros(m, 1))
        return dt.KLRobustLoss(0.5, **options).choose_backend(
            dt.Rows(scores, torch.zeros(n, dtype=torch.long))
        )

    small, large = choose(512, 512), choose(512, 513)
    assert (small.name, large.name) == (
        "reference",
        "cpu" if cpu_runs_on(torch.device("cpu"), torch.float32) else "torch",
    )
    assert "1048576 bytes" in small.reason
    assert f"{512 * 513 * 4} bytes" in large.reason
    assert choose(512, 513, backend="reference").name == "reference"
    assert choose(2, 3, backend="torch").name == "torch"
    matrix = dt.Rows(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    assert dt.KLRobustLoss(0.5, backend="torch").choose_backend(matrix).name == "reference"


def test_a_transform_without_a_slope():
    rows, _ = linear_rows(transform=torch.tanh)
    assert _loss("auto").choose_backend(rows).name == "reference"
    assert "derivative" in dt.KLRobustLoss(0.5).choose_backend(rows).reason
    with pytest.raises(ValueError, match=r"expected a ScoreTransform.*received.*SoftCap"):
        _loss("torch")(rows, 1.0)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("build", [dt.InfoNCELoss, lambda **options: dt.KLRobustLoss(0.5, **options)])
def test_a_path_that_does_not_exist(build):
    with pytest.raises(
        ValueError, match=r"expected backend.*auto.*reference.*torch.*cpu.*triton.*received 'fast'.*Pass"
    ):
        build(backend="fast")


def test_triton_on_the_processor_is_refused_unless_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows, _ = linear_rows()
    with pytest.raises(
        ImportError, match=r"expected tensors on an NVIDIA GPU.*received.*'cpu'.*backend='torch'"
    ):
        _loss("triton")(rows, 1.0)
    with pytest.raises(ImportError, match="expected"):
        triton_backend(torch.device("cpu"))


_MEASURE = """
import sys, torch, dro_temp as dt
from pathlib import Path
torch.set_num_threads(1)

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1])

def step(n, m):
    q, k = torch.randn(n, 16, requires_grad=True), torch.randn(m, 16, requires_grad=True)
    rows = dt.Rows(dt.LinearScores(q, k), torch.zeros(n, dtype=torch.long))
    before = kilobytes("VmRSS")
    dt.KLRobustLoss(0.5, backend=sys.argv[1])(rows, 1.0).mean().backward()
    return kilobytes("VmHWM") - before

step(32, 32)
print(step(2048, 20000))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the size of a process from /proc")
def test_streaming_takes_less_than_a_tenth_of_the_score_matrix():
    """Its block of 256 rows would alone be an eighth: a block is narrower where memory is watched."""
    matrix = 2048 * 20000 * 4
    program = _MEASURE.replace(
        "step(32, 32)", "from dro_temp.kernels import memory; memory._CPU_ROWS = 64\nstep(32, 32)"
    )
    run = [sys.executable, "-c", program, "torch"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) * 1024 < matrix / 10
