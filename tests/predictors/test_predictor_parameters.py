"""A predictor's parameters while kernels compute with them: never written to, seen whole by hooks, all trained."""

import threading
import time

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import dro_temp as dt
from dro_temp import _autograd
from dro_temp._autograd import Substituted
from dro_temp.interfaces import PredictorInputs

N, OUTCOMES, WIDTH = 600, 2000, 8  # streamed, and more rows than one block


def rows(features: bool = True) -> dt.Rows:
    g = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(k, WIDTH, generator=g, dtype=torch.float64) for k in (N, OUTCOMES))
    target = torch.randint(OUTCOMES, (N,), generator=g)
    return dt.Rows(dt.LinearScores(queries, keys), target, queries if features else None)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class ReadsStatistics(dt.TemperaturePredictor):
    """Uses its parameters in every way that operations take them."""

    reads = frozenset({"statistics"})

    def __init__(self) -> None:
        super().__init__(tau_min=0.1, tau_max=2.0)
        torch.manual_seed(0)
        # One gradient for both; a list of parameters; one that an autograd.Function is given as it is; a property.
        self.a, self.b = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
        self.parts = nn.ParameterList(torch.randn(2, 3, dtype=torch.float64).unbind())
        self.squared = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.matrix = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
        self.layer = nn.Linear(3, 3, dtype=torch.float64)
        self.calls = 0

    def raw(self, inputs: PredictorInputs) -> torch.Tensor:
        self.calls += 1
        return self.number(
            torch.stack([inputs.statistics.std, inputs.statistics.entropy, inputs.statistics.max], 1)
        )

    def number(self, read: torch.Tensor) -> torch.Tensor:
        weight = self.a + self.b + torch.stack([*self.parts]).sum(0) + Squared.apply(self.squared)
        return self.layer(read @ self.matrix.T) @ weight


class ReadsFeatures(ReadsStatistics):
    reads = frozenset({"features"})

    def raw(self, inputs: PredictorInputs) -> torch.Tensor:
        self.calls += 1
        return self.number(inputs.features[:, :3])


def gradients(predictor: dt.TemperaturePredictor, backend: str) -> dict[str, torch.Tensor]:
    predictor.zero_grad()
    dt.KLRobustLoss(1.0, backend=backend)(rows(), predictor).mean().backward()
    return {name: p.grad.clone() for name, p in predictor.named_parameters()}


@pytest.mark.parametrize("kind", [ReadsStatistics, ReadsFeatures])
def test_every_parameter_gets_the_gradient_that_eager_autograd_gives(kind, monkeypatch):
    predictor = kind()
    with monkeypatch.context() as patch:
        patch.setattr(_autograd, "BLOCK_OF_ROWS", N)
        expected = gradients(predictor, "reference")
    predictor.calls = 0
    monkeypatch.setattr(_autograd, "BLOCK_OF_ROWS", 100)
    monkeypatch.setattr("dro_temp.kernels.memory._CPU_ROWS", 100)
    monkeypatch.setattr("dro_temp.kernels.memory._CPU_CACHE", 0)
    found = gradients(predictor, "torch")
    assert predictor.calls > 2  # several blocks; and what raw notes stays
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [ReadsStatistics, ReadsFeatures])
def test_hooks_see_one_call_and_one_gradient(kind):
    predictor, calls, seen = kind(), [], []
    predictor.register_forward_hook(lambda *_: calls.append(1))
    predictor.a.register_hook(seen.append)
    gradients(predictor, "torch")
    assert len(calls) == len(seen) == 1
    torch.testing.assert_close(seen[0], predictor.a.grad)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # by the compiler itself
def test_a_compiled_layer_inside_of_a_predictor_is_compiled_once():
    torch.compiler.reset()
    predictor = dt.TempNet(dt.predictors.StatisticsEncoder(width=8), tau_min=0.1, tau_max=2.0).double()
    expected = gradients(predictor, "reference")
    counter = CompileCounterWithBackend("aot_eager")
    predictor.encoder.rest = torch.compile(predictor.encoder.rest, backend=counter)
    for _ in range(12):
        found = gradients(predictor, "torch")
    assert counter.frame_count <= 2
    torch.compiler.reset()
    for gradient, other in zip(expected.values(), found.values(), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "predictor",
    [
        dt.TempNet.for_logits(OUTCOMES, tau_min=0.1, tau_max=2.0),
        dt.TempNet(WIDTH, tau_min=0.1, tau_max=2.0),
        dt.TempNet(
            dt.predictors.SumEncoder(
                [dt.predictors.HiddenEncoder(WIDTH, width=8), dt.predictors.StatisticsEncoder(width=8)]
            ),
            tau_min=0.1,
            tau_max=2.0,
        ),
    ],
    ids=["logits", "embedding", "hidden and statistics"],
)
def test_threads_share_a_network(predictor):
    """Training, evaluation and serving side by side: parameters stay, and each thread gets its own right numbers."""
    predictor, batch = predictor.double().eval(), rows()
    before = dict(predictor.named_parameters())
    loss = dt.KLRobustLoss(1.0, backend="torch")
    with torch.no_grad():
        right = loss(batch, predictor)
    wrong: list[str] = []
    stop = threading.Event()

    def serve():
        with torch.no_grad():
            for _ in range(8):
                if not torch.equal(loss(batch, predictor), right):
                    wrong.append("values")

    def train():
        for _ in range(8):
            value = loss(batch, predictor)
            grads = torch.autograd.grad(value.mean(), list(before.values()), allow_unused=True)
            if any(g is None for g in grads):
                wrong.append("no gradient")

    def look():
        while not stop.is_set():
            now = dict(predictor.named_parameters())
            if now.keys() != before.keys() or any(now[name] is not p for name, p in before.items()):
                wrong.append("parameters")
            time.sleep(0)

    workers = [threading.Thread(target=work) for work in (serve, serve, train)]
    watcher = threading.Thread(target=look)
    watcher.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    watcher.join()
    assert not wrong


@pytest.mark.parametrize("rows_at_once", [1, 3, 8])
def test_threads_share_a_decoder(rows_at_once):
    """What is prepared for generation holds no scratch memory of its own."""
    torch.manual_seed(0)
    head, network = torch.randn(500, 16), dt.TempNet.for_logits(500, tau_min=0.1, tau_max=2.0).eval()
    decoder = network.decoder(dt.interfaces.FrozenHead(head))
    hidden = 3 * torch.randn(4, rows_at_once, 16)
    right = [decoder(h, h @ head.T) for h in hidden]
    wrong = []

    def decode(k: int) -> None:
        logits = hidden[k] @ head.T
        for _ in range(400):
            if not torch.equal(decoder(hidden[k], logits), right[k]):
                wrong.append(k)

    threads = [threading.Thread(target=decode, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_substitution_ends_with_its_block():
    x, y = nn.Parameter(torch.ones(1), requires_grad=False), torch.zeros(1)
    with Substituted([x], [y]):
        assert float(x + 1) == 1.0
        assert float(torch.cat([x, x]).sum()) == 0.0
    assert float(x + 1) == 2.0
