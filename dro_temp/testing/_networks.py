"""What the two parts of a `TempNet` must do: an encoder reads rows, a readout makes numbers of its similarities."""

import json
from typing import Any

import torch
from torch import Tensor

from dro_temp.interfaces import PredictorInputs
from dro_temp.predictors import HiddenEncoder, TempNetEncoder, TempNetReadout
from dro_temp.predictors.encoders import encoder_of
from dro_temp.testing._asserts import (
    assert_compiles,
    assert_finite_gradients,
    assert_same,
    assert_unchanged,
    state_of,
)
from dro_temp.testing._cases import EncoderCase, ReadoutCase, all_inputs


def _changed(inputs: PredictorInputs, change: Any) -> PredictorInputs:
    """The same inputs, with a function applied to features, sample numbers and scores."""
    return all_inputs(change(inputs.features), change(inputs.index), change(inputs.support.scores))


def gives_width_similarities(case: EncoderCase) -> None:
    """Similarities and what is pooled are finite, `width` of each per row; for one row, and several."""
    encoder = case.build().eval()
    for n in (1, 2, 5):
        similarities = encoder(case.inputs(n))
        for x in (similarities, encoder.pooled(similarities)):
            assert x.shape == (n, encoder.width), f"expected [{n}, width={encoder.width}], received {x.shape}"
            assert x.isfinite().all()


def reads_what_it_declares(case: EncoderCase) -> None:
    """What is not in `reads` is not needed, and changes nothing."""
    encoder, inputs = case.build().eval(), case.inputs(4)
    reads = sorted(encoder.reads)
    declared: dict[str, Any] = {name: getattr(inputs, name) for name in reads}
    try:
        similarities = encoder(PredictorInputs(inputs.n, **declared))
    except Exception as error:
        raise AssertionError(f"reads={reads}: expected to need no more, received {error!r}") from error
    assert_same(similarities, encoder(inputs), f"with nothing but {reads}, and with all there is")


def encodes_row_by_row(case: EncoderCase) -> None:
    """A row's similarities depend neither on its neighbours nor on its place in the batch."""
    encoder, inputs = case.build().eval(), case.inputs(5)
    together = encoder(inputs)
    for rows in ([0], [0, 1], [3, 0, 4]):
        alone = encoder(_changed(inputs, lambda x, rows=rows: x[rows]))
        assert_same(alone, together[rows], f"rows {rows} of 5, without the others", rtol=1e-4, atol=1e-5)
        pooled, expected = encoder.pooled(together[rows]), encoder.pooled(together)[rows]
        assert_same(pooled, expected, f"pooled {rows}", rtol=1e-5, atol=1e-6)


def is_deterministic_in_eval(case: EncoderCase) -> None:
    """Twice the same input, twice the same similarities."""
    encoder, inputs = case.build().eval(), case.inputs(4)
    assert_same(encoder(inputs), encoder(inputs), "a second call in eval mode")


def trains_every_parameter(case: EncoderCase) -> None:
    """Similarities have finite gradients to all parameters, at any scale of the inputs, and forward writes nothing."""
    encoder = case.build().train()
    before = state_of(encoder)
    for scale in (0.0, 1.0, 1e4):
        encoder.zero_grad()
        similarities = encoder(case.inputs(4, scale=scale))
        (similarities + encoder.pooled(similarities)).sum().backward()
        assert_finite_gradients(encoder)
    assert_unchanged(encoder, before, "expected a forward to write nothing")


def is_rebuilt_from_its_config(case: EncoderCase) -> None:
    """A checkpoint's JSON and its weights give the same encoder."""
    first, inputs = case.build().eval(), case.inputs(4)
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
    assert encoder(case.inputs(4)).isfinite().all()


def keeps_the_precision_of_its_inputs(case: EncoderCase) -> None:
    """Half-precision inputs count as the numbers that they are, and float32 inputs are not rounded to them."""
    encoder = case.build().eval()
    similarities = encoder(case.inputs(4))
    for dtype in (torch.bfloat16, torch.float16):
        low = _changed(case.inputs(4), lambda x, dtype=dtype: x.to(dtype) if x.is_floating_point() else x)
        rounded = encoder(_changed(low, lambda x: x.float() if x.is_floating_point() else x))
        assert_same(encoder(low), rounded, f"inputs of {dtype}, and as float32", rtol=1e-3, atol=1e-3)
        counts = not torch.equal(rounded, similarities)
        assert counts, f"expected float32 inputs to count, received those of {dtype}"
    assert encoder.bfloat16()(low).isfinite().all()


def encoder_compiles_whole(case: EncoderCase) -> None:
    """One graph, no breaks."""
    encoder, inputs = case.build().eval(), case.inputs(4)
    index = inputs.index
    assert_compiles(
        lambda features, scores: encoder(all_inputs(features, index, scores)),
        inputs.features,
        inputs.support.scores,
    )


def _trained(case: ReadoutCase) -> tuple[TempNetReadout, TempNetEncoder]:
    """A readout whose parameters are no longer those of the start, and its encoder."""
    encoder = HiddenEncoder(8, width=6).requires_grad_(False)
    readout, generator = case.build(encoder), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return readout, encoder


def _similarities(n: int) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(n))


def reads_out_one_number_per_row(case: ReadoutCase) -> None:
    """Shape [n] and finite, each row for itself."""
    readout, encoder = _trained(case)
    together = readout(encoder, _similarities(5))
    assert together.shape == (5,)
    assert together.isfinite().all()
    for rows in ([0], [3, 0, 4]):
        alone = readout(encoder, _similarities(5)[rows])
        assert_same(alone, together[rows], f"rows {rows} of 5, without the others", rtol=1e-5, atol=1e-6)


def starts_where_it_is_set(case: ReadoutCase) -> None:
    """After `start_at(raw)`, similarities of zero give that number, in a fresh readout and in a trained one."""
    encoder = HiddenEncoder(8, width=6)
    for readout in (case.build(encoder), _trained(case)[0]):
        for raw in (-2.0, 0.0, 3.5):
            readout.start_at(raw)
            value = readout(encoder, torch.zeros(3, 6)).detach()
            assert_same(value, torch.full((3,), raw), f"start_at({raw}), similarities of zero", atol=1e-5)


def depends_on_the_similarities(case: ReadoutCase) -> None:
    """Trained, rows that differ get numbers that differ, and gradient flows on to the encoder."""
    readout, encoder = _trained(case)
    x = _similarities(5).requires_grad_()
    values = readout(encoder, x)
    values.sum().backward()
    assert (values[1:] != values[0]).all(), f"expected numbers that differ, received {values}"
    reaches = x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any(1).all()
    assert reaches, f"expected a finite gradient of every row's similarities, received {x.grad}"
    assert_finite_gradients(readout)


def is_restored_from_its_state(case: ReadoutCase) -> None:
    """A state dict carries everything that the numbers depend on; bfloat16 weights serve as well."""
    (first, encoder), x = _trained(case), _similarities(4)
    second = case.build(encoder)
    second.load_state_dict(first.state_dict())
    assert_same(second(encoder, x), first(encoder, x), "after load_state_dict")
    assert second.bfloat16()(encoder, x.bfloat16()).isfinite().all()


def readout_compiles_whole(case: ReadoutCase) -> None:
    """One graph, no breaks."""
    readout, encoder = _trained(case)
    assert_compiles(lambda similarities: readout(encoder, similarities), _similarities(4))
