"""What every temperature predictor must do, and the two parts of a `TempNet`."""

import copy
import json
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dro_temp.interfaces import (
    FrozenHead,
    LinearScores,
    PredictorInputs,
    Rows,
    ScoreStatistics,
    Support,
    TemperaturePredictor,
)
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses import KLRobustLoss
from dro_temp.predictors import HiddenEncoder, TempNetEncoder
from dro_temp.predictors.encoders import encoder_of
from dro_temp.testing._asserts import (
    assert_compiles,
    assert_finite_gradients,
    assert_same,
    assert_unchanged,
    state_of,
)
from dro_temp.testing._cases import EncoderCase, ReadoutCase, TemperatureCase


def _changed(inputs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The same inputs, with a function applied to each tensor."""
    support = Support(change(inputs["support"].scores))
    return {"features": change(inputs["features"]), "index": change(inputs["index"]), "support": support}


def _converted(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return _changed(inputs, lambda x: x.to(dtype) if x.is_floating_point() else x)


def _assert_in_bounds(predictor: TemperaturePredictor, tau: Tensor) -> None:
    lower, upper = tau.new_tensor(predictor.tau_min), tau.new_tensor(predictor.tau_max)
    inside = ((tau >= lower) & (tau <= upper)).all()
    assert inside, f"expected tau in [{lower}, {upper}], received {tau}"


def stays_in_bounds(case: TemperatureCase) -> None:
    """Temperatures lie in [tau_min, tau_max] whatever the scale of the inputs."""
    predictor = case.predictor()
    for scale, n, training in product((0.0, 1e-6, 1.0, 1e3, 1e6), (1, 9), (True, False)):
        tau = predictor.train(training)(**case.inputs(n, seed=n, scale=scale))
        _assert_in_bounds(predictor, tau)


def has_one_temperature_per_row(case: TemperatureCase) -> None:
    """The result has the leading shape of the inputs: none, one or several dimensions."""
    predictor, inputs = case.predictor().eval(), case.inputs(6)
    if predictor.reads_scores:
        assert predictor(**inputs).shape == (6,)
        return
    features, index = inputs["features"], inputs["index"]
    flat = predictor(features, index=index)
    assert flat.shape == (6,)
    grid = predictor(features.reshape(2, 3, -1), index=index.reshape(2, 3))
    assert_same(grid, flat.reshape(2, 3), "features [2, 3, d]", atol=1e-6)
    assert_same(predictor(features[0], index=index[0]), flat[0], "features [d]", atol=1e-6)


def works_row_by_row(case: TemperatureCase) -> None:
    """A row's temperature depends neither on its neighbours nor on its place in the batch."""
    predictor, inputs = case.predictor().eval(), case.inputs(5)
    together = predictor(**inputs)
    for rows in ([0], [0, 1], [3, 0, 4]):
        tau = predictor(**_changed(inputs, lambda x, rows=rows: x[rows]))  # type: ignore[misc]
        assert_same(tau, together[rows], f"rows {rows} of 5, without the others", rtol=1e-5, atol=1e-7)


def predicts_the_same_while_streaming(case: TemperatureCase) -> None:
    """A predictor of scores, asked chunk by chunk by a streaming loss, gives what it gives for the score matrix."""
    predictor = case.predictor().double().eval()
    if not predictor.reads_scores:
        return
    generator = torch.Generator().manual_seed(0)
    queries, keys = (
        torch.randn(k, case.width, generator=generator, dtype=torch.float64) for k in (5, case.outcomes)
    )
    index, target = torch.arange(5) % case.num_samples, torch.arange(5) % case.outcomes
    rows = Rows(LinearScores(queries, keys), target, features=queries, index=index)

    def run(backend: BackendOption) -> tuple[Tensor, dict[str, Tensor | None]]:
        predictor.zero_grad()
        output = KLRobustLoss(0.1, backend=backend).evaluate(rows, predictor)
        if output.values.requires_grad:
            output.values.mean().backward()  # type: ignore[no-untyped-call]
        return output.tau.detach(), {name: p.grad for name, p in predictor.named_parameters()}

    (expected, theirs), (streamed, ours) = run("reference"), run("torch")
    assert_same(streamed, expected, "temperatures while streaming, and of the matrix", rtol=1e-8, atol=1e-10)
    assert_same(ours, theirs, "gradients while streaming, and of the matrix", rtol=1e-6, atol=1e-10)


def is_deterministic_in_eval(case: TemperatureCase) -> None:
    """Twice the same input, twice the same temperature."""
    predictor, inputs = case.predictor().eval(), case.inputs(4)
    assert_same(predictor(**inputs), predictor(**inputs), "a second call in eval mode")


def decodes_what_it_predicts(case: TemperatureCase) -> None:
    """What generation calls gives the temperatures of training, for one row and for many, and without dropout."""
    predictor, features = case.predictor(), case.inputs(9)["features"]
    head = nn.Linear(case.width, case.outcomes)
    scores, frozen = head(features).detach(), FrozenHead(head.weight, head.bias)
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in predictor.modules())
    if drops:
        with pytest.raises(ValueError, match=r"."):  # whatever it says
            predictor.train().decoder(frozen)
    # Modules from elsewhere may work otherwise in training mode, for all that is known of them.
    known = all(type(part).__module__.startswith(("torch.nn.", "dro_temp.")) for part in predictor.modules())
    predictor.train(known and not drops)
    if "index" in predictor.reads:
        with pytest.raises(ValueError, match=r"."):  # whatever it says
            predictor.decoder(frozen)
        return
    decode = predictor.decoder(frozen)
    expected = predictor.eval()(features, support=Support(scores), shape=scores.shape[:1]).detach()
    for rows in (slice(0, 1), slice(0, 9), slice(3, 6)):
        tau = decode(features[rows], scores[rows])
        assert not tau.requires_grad, "expected decoded temperatures without gradient"
        assert_same(tau, expected[rows], "decoded temperatures", rtol=1e-5, atol=1e-6)


def has_finite_gradients(case: TemperatureCase) -> None:
    """Every parameter gets a finite gradient, and nothing flows back into what was read."""
    predictor = case.predictor().train()
    for scale in (0.0, 1.0, 1e4):
        predictor.zero_grad()
        inputs = case.inputs(4, scale=scale)
        features = inputs["features"].requires_grad_()
        tau = predictor(**inputs)
        if tau.requires_grad:
            tau.sum().backward()
        assert features.grad is None, "expected no gradient of the features"
        assert_finite_gradients(predictor)


def forward_writes_nothing(case: TemperatureCase) -> None:
    """Forward, in training and evaluation, leaves the state as it was."""
    predictor = case.predictor()
    before = state_of(predictor)
    for training in (True, False):
        predictor.train(training)(**case.inputs(4))
        assert_unchanged(predictor, before, f"expected a forward with training={training} to write nothing")


def survives_saving(case: TemperatureCase) -> None:
    """A state dict carries everything that the temperatures depend on."""
    first, second, inputs = case.predictor().eval(), case.predictor().eval(), case.inputs(4)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    second.load_state_dict(first.state_dict())
    assert_same(second(**inputs), first(**inputs), "after load_state_dict")


def accepts_low_precision(case: TemperatureCase) -> None:
    """bfloat16 and float16 inputs, with weights of bfloat16 or float32, give float32 temperatures in bounds."""
    for weights in (torch.float32, torch.bfloat16):
        predictor = copy.deepcopy(case.predictor()).to(weights).eval()
        for dtype in (torch.bfloat16, torch.float16):
            tau = predictor(**_converted(case.inputs(4), dtype))
            assert tau.dtype == torch.float32, f"{dtype} inputs, {weights} weights: received {tau.dtype}"
            _assert_in_bounds(predictor, tau)


def keeps_the_precision_of_its_inputs(case: TemperatureCase) -> None:
    """Half-precision inputs count as the numbers that they are, and float32 inputs are not rounded to them."""
    predictor, inputs = case.predictor().eval(), case.inputs(16)
    tau = predictor(**inputs)
    reads_numbers = not predictor.reads <= {"index"} and (tau != tau[0]).any()
    for dtype in (torch.bfloat16, torch.float16):
        low = _converted(inputs, dtype)
        rounded = predictor(**_converted(low, torch.float32))
        assert_same(predictor(**low), rounded, f"inputs of {dtype}, and as float32", rtol=1e-3)
        counts = not (reads_numbers and torch.equal(rounded, tau))
        assert counts, f"expected float32 inputs to count, received those of {dtype}"


def compiles_whole(case: TemperatureCase) -> None:
    """One graph, no breaks: nothing waits for a value."""
    assert_compiles(case.predictor().eval(), **case.inputs(4))


def _encoded(case: EncoderCase, n: int) -> PredictorInputs:
    """All inputs that an encoder may read."""
    inputs = case.inputs(n)
    return PredictorInputs(n, **inputs, statistics=ScoreStatistics(inputs["support"].scores))


def gives_width_similarities(case: EncoderCase) -> None:
    """Similarities and what is pooled are finite, `width` of each per row; for one row, and several."""
    encoder = case.build().eval()
    for n in (1, 2, 5):
        similarities = encoder(_encoded(case, n))
        for x in (similarities, encoder.pooled(similarities)):
            assert x.shape == (n, encoder.width), f"expected [{n}, width={encoder.width}], received {x.shape}"
            assert x.isfinite().all()


def is_rebuilt_from_its_config(case: EncoderCase) -> None:
    """A checkpoint's JSON and its weights give the same encoder."""
    first, inputs = case.build().eval(), _encoded(case, 4)
    description = json.loads(json.dumps(first.description))
    known = {type(part) for part in first.modules() if isinstance(part, TempNetEncoder)}
    second = encoder_of(description, known).eval()
    second.load_state_dict(first.state_dict())
    assert json.loads(json.dumps(second.description)) == description
    assert_same(second(inputs), first(inputs), f"rebuilt from {description}")


def starts_from_prototypes(case: EncoderCase) -> None:
    """`set_prototypes` takes embeddings of the other side, and leaves similarities finite."""
    encoder = case.build().eval()
    encoder.set_prototypes(torch.randn(7, case.width, generator=torch.Generator().manual_seed(0)))
    assert encoder(_encoded(case, 4)).isfinite().all()


def starts_where_it_is_set(case: ReadoutCase) -> None:
    """After `start_at(raw)`, similarities of zero give that number, in a fresh readout and in a trained one."""
    encoder = HiddenEncoder(8, width=6)
    for readout in (case.build(encoder), case.predictor().readout):
        for raw in (-2.0, 0.0, 3.5):
            readout.start_at(raw)
            value = readout(encoder, torch.zeros(3, 6)).detach()
            assert_same(value, torch.full((3,), raw), f"start_at({raw}), similarities of zero", atol=1e-5)


def depends_on_the_similarities(case: ReadoutCase) -> None:
    """Trained, rows that differ get numbers that differ, and gradient flows on to the encoder."""
    network = case.predictor()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(5)).requires_grad_()
    values = network.readout(network.encoder, x)
    values.sum().backward()
    assert (values[1:] != values[0]).all(), f"expected numbers that differ, received {values}"
    reaches = x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any(1).all()
    assert reaches, f"expected a finite gradient of every row's similarities, received {x.grad}"
