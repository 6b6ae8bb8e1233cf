"""What every temperature predictor must do."""

import copy
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dro_temp.interfaces import FrozenHead, Support, TemperaturePredictor
from dro_temp.testing._cases import PredictorCase

_some = settings(max_examples=20, deadline=None)


def _predict(predictor: TemperaturePredictor, inputs: dict[str, object]) -> Tensor:
    tau: Tensor = predictor(**inputs)
    return tau


def _first(inputs: dict[str, object], n: int) -> dict[str, object]:
    support = inputs["support"]
    assert isinstance(support, Support)
    features, index = inputs["features"], inputs["index"]
    assert isinstance(features, Tensor)
    assert isinstance(index, Tensor)
    return {"features": features[:n], "index": index[:n], "support": Support(support.scores[:n])}


def stays_in_bounds(case: PredictorCase) -> None:
    """Temperatures lie in [tau_min, tau_max] whatever the scale of the inputs."""
    predictor = case.build()

    @_some
    @given(st.sampled_from([0.0, 1e-6, 1.0, 1e3, 1e6]), st.integers(0, 99), st.integers(1, 9), st.booleans())
    def check(scale: float, seed: int, n: int, training: bool) -> None:
        tau = _predict(predictor.train(training), case.inputs(n, seed=seed, scale=scale))
        lower, upper = tau.new_tensor(predictor.tau_min), tau.new_tensor(predictor.tau_max)
        assert bool(((tau >= lower) & (tau <= upper)).all()), (tau, lower, upper)

    check()


def decodes_what_it_predicts(case: PredictorCase) -> None:
    """What generation calls gives the temperatures of training, for one row and for many, and without dropout."""
    predictor = case.build()
    inputs = case.inputs(9)
    features, support = inputs["features"], inputs["support"]
    assert isinstance(features, Tensor)
    assert isinstance(support, Support)
    head = torch.nn.Linear(features.shape[1], support.scores.shape[1]).to(features.dtype)
    with torch.no_grad():
        scores = head(features)
    frozen = FrozenHead(head.weight, head.bias)
    predictor.train()
    if "index" in predictor.reads or _drops_out(predictor):
        _refuses(lambda: predictor.decoder(frozen))
    predictor.train("index" not in predictor.reads and not _may_change_in_training(predictor))
    if "index" in predictor.reads:
        _refuses(lambda: predictor.decoder(frozen))
        return
    decode = predictor.decoder(frozen)
    expected = predictor.eval()(features, support=Support(scores), shape=scores.shape[:1])
    for rows in (slice(0, 1), slice(0, 9), slice(3, 6)):
        found = decode(features[rows], scores[rows])
        assert not found.requires_grad
        torch.testing.assert_close(found, expected[rows].detach(), rtol=1e-5, atol=1e-6)


def _drops_out(predictor: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in predictor.modules())


def _may_change_in_training(predictor: torch.nn.Module) -> bool:
    """Dropout, or a class from elsewhere, of which a predictor assumes the worst."""
    known = ("torch.nn.", "dro_temp.")
    return _drops_out(predictor) or not all(type(p).__module__.startswith(known) for p in predictor.modules())


def _refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError("expected a ValueError")


def has_one_temperature_per_row(case: PredictorCase) -> None:
    """The result has the leading shape of the inputs: none, one or several dimensions."""
    predictor = case.build().eval()
    if predictor.reads_scores:
        assert _predict(predictor, case.inputs(6)).shape == (6,)
        return
    inputs = case.inputs(6)
    features, index = inputs["features"], inputs["index"]
    flat = predictor(features, index=index)
    assert flat.shape == (6,)
    grid = predictor(features.reshape(2, 3, -1), index=index.reshape(2, 3))
    torch.testing.assert_close(grid, flat.reshape(2, 3), rtol=0, atol=1e-6)
    single = predictor(features[0], index=index[0])
    assert single.shape == ()
    torch.testing.assert_close(single, flat[0], rtol=0, atol=1e-6)


def works_row_by_row(case: PredictorCase) -> None:
    """A row's temperature does not depend on its neighbours, in a batch of one as in any other."""
    predictor = case.build().eval()
    inputs = case.inputs(5)
    together = _predict(predictor, inputs)
    for n in (1, 2):
        torch.testing.assert_close(_predict(predictor, _first(inputs, n)), together[:n], rtol=1e-5, atol=1e-7)


def is_deterministic_in_eval(case: PredictorCase) -> None:
    """Twice the same input, twice the same temperature."""
    predictor = case.build().eval()
    inputs = case.inputs(4)
    assert torch.equal(_predict(predictor, inputs), _predict(predictor, inputs))


def has_finite_gradients(case: PredictorCase) -> None:
    """Every parameter gets a finite gradient, and nothing flows back into what was read."""
    predictor = case.build().train()
    for scale in (0.0, 1.0, 1e4):
        predictor.zero_grad()
        inputs = case.inputs(4, scale=scale)
        features = inputs["features"].requires_grad_()
        tau = _predict(predictor, inputs)
        if tau.requires_grad:
            tau.sum().backward()  # type: ignore[no-untyped-call]
        assert features.grad is None
        for name, parameter in predictor.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


def survives_saving(case: PredictorCase) -> None:
    """A state dict carries everything that the temperatures depend on."""
    first, second = case.build().eval(), case.build().eval()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    second.load_state_dict(first.state_dict())
    inputs = case.inputs(4)
    assert torch.equal(_predict(first, inputs), _predict(second, inputs))


def accepts_low_precision(case: PredictorCase) -> None:
    """bfloat16 inputs and weights give float32 temperatures in bounds."""
    predictor = copy.deepcopy(case.build()).to(torch.bfloat16).eval()
    inputs = case.inputs(4)
    inputs["features"] = inputs["features"].bfloat16()
    inputs["support"] = Support(inputs["support"].scores.bfloat16())
    tau = _predict(predictor, inputs)
    assert tau.dtype == torch.float32
    assert bool(
        ((tau >= tau.new_tensor(predictor.tau_min)) & (tau <= tau.new_tensor(predictor.tau_max))).all()
    )


def compiles_whole(case: PredictorCase) -> None:
    """One graph, no breaks: nothing waits for a value."""
    predictor = case.build().eval()
    inputs = case.inputs(4)
    # The backend only records: what is tested is the graph, and no compiler is needed.
    compiled = torch.compile(predictor, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), _predict(predictor, inputs))
    torch.compiler.reset()


CONTRACTS = (
    stays_in_bounds,
    decodes_what_it_predicts,
    has_one_temperature_per_row,
    works_row_by_row,
    is_deterministic_in_eval,
    has_finite_gradients,
    survives_saving,
    accepts_low_precision,
    compiles_whole,
)
