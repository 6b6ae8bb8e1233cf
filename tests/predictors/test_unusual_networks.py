"""Networks that use their modules in unusual ways get the temperatures and gradients of ordinary autograd.

A predictor of scores runs block by block inside a loss, one of features block by block from 513 rows on: neither may
replace its modules by others, or run them in a way that they could tell from an ordinary call.
"""

import gc
from functools import cached_property

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import dro_temp as dt
from dro_temp import _autograd
from dro_temp.interfaces import PredictorInputs

N, OUTCOMES, WIDTH = 600, 2000, 3


class HookOnOwner(nn.Module):
    """A forward hook stores an activation on the module that owns the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.hidden = nn.Linear(WIDTH, 4), nn.Linear(4, 1), None
        self.first.register_forward_hook(lambda module, inputs, output: setattr(self, "hidden", output))

    def forward(self, x):
        self.first(x)
        return self.last(self.hidden.tanh())


class HookByModule(nn.Module):
    """A forward hook looks its module up, as code that captures activations does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.seen = nn.Linear(WIDTH, 4), nn.Linear(4, 1), {}
        names = {module: name for name, module in self.named_modules()}
        for layer in (self.first, self.last):
            layer.register_forward_hook(lambda module, _, output: self.seen.update({names[module]: output}))

    def forward(self, x):
        self.last(self.first(x).tanh())
        return self.seen["last"] + self.seen["first"].sum(1, keepdim=True)


class KeepsLayers(nn.Module):
    """A list of its layers, made at the first call and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 4), nn.Linear(4, 1)

    @cached_property
    def layers(self):
        return [self.first, nn.Tanh(), self.last]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class WritesToOwner(nn.Module):
    """A layer sets an attribute of the module that owns it."""

    class Layer(nn.Module):
        def __init__(self, owner) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, 4)
            object.__setattr__(self, "owner", owner)  # not as a submodule

        def forward(self, x):
            self.owner.factor = 2.0
            return self.linear(x)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.factor = self.Layer(self), nn.Linear(4, 1), 1.0

    def forward(self, x):
        y = self.first(x)
        return self.last(y.tanh() * self.factor)


class Slots(nn.Module):
    """An attribute in a slot."""

    __slots__ = ("factor",)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(WIDTH, 1), 1.5

    def forward(self, x):
        return self.linear(x) * self.factor


class OwnSetattr(nn.Module):
    """Assignments read an attribute of the module."""

    def __init__(self) -> None:
        self.__dict__["logged"] = []
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)

    def __setattr__(self, name, value):
        self.logged.append(name)
        super().__setattr__(name, value)

    def forward(self, x):
        self.last = self.linear(x)
        return self.last


class ChecksItsParameter(nn.Module):
    """Code that tests for nn.Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, x):
        assert isinstance(self.linear.weight, nn.Parameter)
        return self.linear(x)


NETWORKS = [HookOnOwner, HookByModule, KeepsLayers, WritesToOwner, Slots, OwnSetattr, ChecksItsParameter]


class OfFeatures(dt.TemperaturePredictor):
    reads = frozenset({"features"})

    def __init__(self, network) -> None:
        super().__init__(tau_min=0.1, tau_max=2.0)
        torch.manual_seed(0)
        self.network = network().double()

    def raw(self, inputs: PredictorInputs) -> torch.Tensor:
        return self.network(inputs.features).squeeze(1)


class OfStatistics(OfFeatures):
    reads = frozenset({"statistics"})

    def raw(self, inputs: PredictorInputs) -> torch.Tensor:
        s = inputs.statistics
        return self.network(torch.stack([s.std, s.entropy, s.max], 1)).squeeze(1)


def rows() -> dt.Rows:
    g = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(k, WIDTH, generator=g, dtype=torch.float64) for k in (N, OUTCOMES))
    return dt.Rows(
        dt.LinearScores(queries, keys), torch.randint(OUTCOMES, (N,), generator=g), features=queries
    )


def gradients(predictor, values) -> dict[str, torch.Tensor]:
    predictor.zero_grad()
    values.mean().backward()
    return {name: p.grad.clone() for name, p in predictor.named_parameters()}


def assert_close(actual, expected) -> None:
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_of_features_by_blocks_of_rows(network):
    expected, actual, batch = OfFeatures(network), OfFeatures(network), rows()
    for _ in range(3):  # what a call remembers must serve the next one
        tau, blocks = expected(batch.features), actual.predict(batch)
        torch.testing.assert_close(blocks, tau, rtol=1e-12, atol=0)
        assert_close(gradients(actual, blocks.square()), gradients(expected, tau.square()))


@pytest.mark.parametrize("network", NETWORKS)
def test_of_statistics_inside_of_a_streaming_loss(network):
    expected, actual, batch = OfStatistics(network), OfStatistics(network), rows()
    for _ in range(3):
        dense, streamed = (
            dt.KLRobustLoss(0.5, backend=name)(batch, predictor)
            for name, predictor in (("reference", expected), ("torch", actual))
        )
        torch.testing.assert_close(streamed, dense, rtol=1e-10, atol=1e-12)
        assert_close(gradients(actual, streamed), gradients(expected, dense))


class Values(nn.Module):
    """The values of a loss of the rows."""

    def __init__(self, predictor, loss) -> None:
        super().__init__()
        self.predictor, self.loss = predictor, loss

    def forward(self):
        return self.loss(rows(), self.predictor)


@pytest.mark.parametrize("kind", [OfFeatures, OfStatistics])
@pytest.mark.parametrize("function", [torch.Tensor.mean, lambda values: values.square().mean()])
def test_under_functional_call(kind, function, monkeypatch):
    """Gradients reach the tensors of the call, though backward runs after it, and may compute temperatures again."""
    grads = {}
    for backend, rows_at_once in (("reference", 10 * N), ("torch", 512)):
        monkeypatch.setattr(_autograd, "BLOCK_OF_ROWS", rows_at_once)
        values = Values(kind(lambda: nn.Linear(WIDTH, 1)), dt.KLRobustLoss(0.5, backend=backend))
        tensors = {name: (0.1 * p.detach()).requires_grad_() for name, p in values.named_parameters()}
        result = function(torch.func.functional_call(values, tensors, ()))
        grads[backend] = dict(zip(tensors, torch.autograd.grad(result, list(tensors.values())), strict=True))
    assert_close(grads["torch"], grads["reference"])


def test_weights_that_parametrize_caches():
    expected, actual, batch = (
        OfFeatures(lambda: weight_norm(nn.Linear(WIDTH, 1))),
        OfFeatures(lambda: weight_norm(nn.Linear(WIDTH, 1))),
        rows(),
    )
    with parametrize.cached():
        cached = gradients(actual, actual.predict(batch).square())
    assert_close(cached, gradients(expected, expected(batch.features).square()))


def test_one_of_features_inside_of_a_checkpoint():
    expected, actual, batch = OfFeatures(KeepsLayers), OfFeatures(KeepsLayers), rows()
    tau = torch.utils.checkpoint.checkpoint(actual.predict, batch, use_reentrant=False)
    assert_close(gradients(actual, tau.square()), gradients(expected, expected(batch.features).square()))


@pytest.mark.parametrize("kind", [OfFeatures, OfStatistics])
def test_dropout_whose_mode_changes_before_backward_is_refused(kind):
    predictor = kind(lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.5), nn.Linear(4, 1)))
    values = dt.KLRobustLoss(0.5, backend="torch")(rows(), predictor)
    predictor.eval()
    with pytest.raises(RuntimeError, match=r"expected .* in the mode of its forward.*received .* after loss"):
        values.square().mean().backward()
    predictor.train()
    dt.KLRobustLoss(0.5, backend="torch")(rows(), predictor).square().mean().backward()


@pytest.mark.parametrize("kind", [OfFeatures, OfStatistics])
def test_lazy_layers_without_a_shape_are_refused(kind):
    predictor = kind(lambda: nn.LazyLinear(1))
    with pytest.raises(ValueError, match=r"expected the parameters .* shape, received .* Call the predictor"):
        dt.KLRobustLoss(0.5, backend="torch")(rows(), predictor)


def test_a_layer_made_in_a_forward_is_kept():
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, 1)

        def forward(self, x):
            if not hasattr(self, "last"):
                self.last = nn.Linear(1, 1, dtype=torch.float64)
            return self.last(self.first(x))

    predictor = OfStatistics(Lazy)
    with torch.no_grad():
        first, second = (dt.KLRobustLoss(0.5, backend="torch")(rows(), predictor) for _ in range(2))
    assert torch.equal(first, second)


class TakesTheParameterItself(nn.Module):
    """An autograd.Function of a parameter, which no alias can replace."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient * ctx.saved_tensors[0]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 1))

    def forward(self, x):
        return x @ self.Square.apply(self.weight)


@pytest.mark.parametrize("kind", [OfFeatures, OfStatistics])
def test_a_hook_that_would_see_each_part_is_refused(kind):
    expected, actual, batch = kind(TakesTheParameterItself), kind(TakesTheParameterItself), rows()
    loss = dt.KLRobustLoss(0.5, backend="torch")
    reference = dt.KLRobustLoss(0.5, backend="reference")
    tau = expected if kind is OfStatistics else expected(batch.features)
    assert_close(gradients(actual, loss(batch, actual)), gradients(expected, reference(batch, tau)))
    actual.network.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(RuntimeError, match=r"expected hooks .* received .* Use register_post_accumulate"):
        loss(batch, actual).mean().backward()


@pytest.mark.parametrize("kind", [OfFeatures, OfStatistics])
@pytest.mark.parametrize("function", [torch.Tensor.mean, lambda values: values.square().mean()])
def test_hooks_of_tensors_of_a_functional_call_see_one_gradient(kind, function, monkeypatch):
    results = []
    for backend, rows_at_once in (("reference", 10 * N), ("torch", 512)):
        monkeypatch.setattr(_autograd, "BLOCK_OF_ROWS", rows_at_once)
        values = Values(kind(lambda: nn.Linear(WIDTH, 1)), dt.KLRobustLoss(0.5, backend=backend))
        leaves = {name: (0.1 * p.detach()).requires_grad_() for name, p in values.named_parameters()}
        tensors, calls = {name: 1.0 * x for name, x in leaves.items()}, []
        for tensor in tensors.values():
            tensor.retain_grad()
            tensor.register_hook(lambda gradient, calls=calls: calls.append(1) or 2 * gradient)
        function(torch.func.functional_call(values, tensors, ())).backward()
        own = {f"of the call: {name}": x.grad for name, x in tensors.items()}
        results.append((own | {name: x.grad for name, x in leaves.items()}, len(calls)))
    (expected, times), (actual, ours) = results
    assert_close(actual, expected)
    assert ours == times == len(leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [OfFeatures, OfStatistics])
def test_parts_of_low_precision_are_summed_in_float32(kind, dtype, monkeypatch):
    """Each block may round its part; the sum over a hundred of them must not lose what they have."""
    monkeypatch.setattr(_autograd, "BLOCK_OF_ROWS", 8)
    monkeypatch.setattr("dro_temp.kernels.rows.chunked.block_rows", lambda *args, **options: 8)

    class Low(kind):
        def raw(self, inputs):
            if kind is OfFeatures:
                x = inputs.features
            else:
                x = torch.stack([inputs.statistics.std, inputs.statistics.entropy, inputs.statistics.max], 1)
            return self.network(x.to(self.network.weight.dtype)).squeeze(1)

    weights = []
    for backend, precision in (("torch", dtype), ("reference", torch.float64)):
        predictor = Low(lambda: nn.Linear(WIDTH, 1)).to(precision)
        with torch.no_grad():
            predictor.network.weight.fill_(0.125)
            predictor.network.bias.fill_(0.5)
        dt.KLRobustLoss(0.5, backend=backend)(rows(), predictor).mean().backward()
        weights.append(predictor.network.weight.grad.double())
    low, exact = weights
    assert (low - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


def test_a_parameter_that_is_removed_before_backward_is_an_error_of_ours():
    predictor = OfFeatures(KeepsLayers)
    tau = predictor.predict(rows())
    predictor.network.last.register_parameter("bias", None)
    with pytest.raises(RuntimeError, match=r"expected the 4 parameters .* received 3. Make all layers"):
        tau.sum().backward()


def test_a_step_leaves_nothing_to_the_collector_of_cycles():
    """Gradients as large as a head would wait for it, step after step."""
    queries, keys = torch.randn(64, 8, requires_grad=True), torch.randn(9000, 8, requires_grad=True)
    batch = dt.Rows(dt.LinearScores(queries, keys), torch.randint(9000, (64,)), features=queries.detach())
    network = dt.TempNet(dt.predictors.StatisticsEncoder(width=8), tau_min=0.1, tau_max=2.0)
    logits = dt.TempNet(dt.predictors.LogitEncoder(9000, width=8), tau_min=0.1, tau_max=2.0)
    loss = dt.KLRobustLoss(0.5, backend="torch")

    def steps():
        for tau in (0.5, network, logits):
            loss(batch, tau).mean().backward()
            loss(batch, tau).square().mean().backward()

    def garbage():
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            steps()
            gc.collect()
            left = [type(x).__name__ for x in gc.garbage if type(x).__module__.startswith("dro_temp")]
            return left, sum(x.numel() for x in gc.garbage if isinstance(x, torch.Tensor))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    steps()
    left, size = garbage()
    if (
        left
    ):  # of earlier tests, perhaps, whose last references went just now: a step's own would be there again
        left, size = garbage()
    assert not left
    assert size < 9000
