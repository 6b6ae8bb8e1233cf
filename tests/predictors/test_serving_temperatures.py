"""`predictor.temperatures`: one call for any engine, with the temperatures of `generate`."""

import pytest
import torch
import transformers

import dro_temp as dt
from dro_temp.predictors import DynatempRule, EdtRule

BOUNDS = {"tau_min": 0.1, "tau_max": 2.0}
OUTCOMES, WIDTH = 99, 16
INPUTS = ("hidden", "logits", "statistics", ("hidden", "statistics"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(
        vocab_size=OUTCOMES, n_embd=WIDTH, n_layer=1, n_head=2, initializer_range=0.5, **special
    )
    return transformers.GPT2LMHeadModel(config).eval()


def network(model, inputs, **options):
    tempnet = dt.TempNet.for_lm(model, inputs=inputs, width=8, **BOUNDS, **options).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in tempnet.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return tempnet


def read(predictor, logits, hidden):
    inputs = {"logits": logits} if predictor.reads_scores or not predictor.reads else {}
    return inputs | ({"hidden": hidden} if "features" in predictor.reads else {})


@pytest.mark.parametrize(
    "build",
    [
        *(pytest.param(lambda m, i=i: network(m, i), id=str(i)) for i in INPUTS),
        pytest.param(lambda m: network(m, "logits", centred=True), id="paper centred"),
        pytest.param(lambda m: dt.EntropyTemperature(DynatempRule(0.3, 1.7)), id="dynatemp"),
        pytest.param(lambda m: dt.EntropyTemperature(EdtRule(1.2, theta=0.5)), id="edt"),
        pytest.param(lambda m: dt.ConstantTemperature(0.7), id="constant"),
    ],
)
def test_equals_generate(model, build):
    predictor = build(model)
    processor = dt.TemperatureLogitsProcessor(model, predictor)
    prompt = torch.arange(3, 9).view(2, 3)
    text = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        max_new_tokens=6,
        min_new_tokens=6,
        logits_processor=[processor],
    )
    with torch.no_grad():
        hidden = model.transformer(text[:, :-1])[0][:, 2:]
        logits = model.lm_head(hidden)
    tau = predictor.temperatures(**read(predictor, logits, hidden))
    assert tau.shape == (2, 6)
    assert tau.dtype == torch.float32
    assert not tau.requires_grad
    torch.testing.assert_close(tau, processor.temperatures, rtol=1e-5, atol=1e-5)
    if predictor.reads:
        assert tau.std() > 1e-3  # a test of equal numbers would show nothing
    one = predictor.temperatures(**read(predictor, logits[0, 0], hidden[0, 0]))
    torch.testing.assert_close(one, tau[0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_low_precision_of_the_engine(model, inputs, dtype):
    tempnet = network(model, inputs)
    logits, hidden = torch.randn(3, OUTCOMES).to(dtype), torch.randn(3, WIDTH).to(dtype)
    tau = tempnet.temperatures(**read(tempnet, logits, hidden))
    wide = tempnet.temperatures(**read(tempnet, logits.float(), hidden.float()))
    assert tau.dtype == torch.float32
    torch.testing.assert_close(tau, wide, rtol=1e-5, atol=1e-5)


LOGITS, HIDDEN = torch.zeros(3, OUTCOMES), torch.zeros(3, WIDTH)


@pytest.mark.parametrize(
    ("inputs", "passed", "words"),
    [
        ("hidden", {"logits": LOGITS}, r"expected hidden .*received logits\. Call .*hidden=hidden"),
        ("logits", {"hidden": HIDDEN}, r"expected logits .*received hidden\. Call .*logits=logits"),
        ("statistics", {}, r"expected logits .*received neither"),
        ("statistics", {"logits": LOGITS, "hidden": HIDDEN}, "received logits and hidden"),
        (("hidden", "statistics"), {"hidden": HIDDEN}, "expected logits and hidden .*reads both"),
        ("statistics", {"logits": torch.zeros(3, OUTCOMES + 29)}, rf"pads .*logits\[\.\.\., :{OUTCOMES}\]"),
        ("logits", {"logits": torch.zeros(3, OUTCOMES - 1)}, "received shape .*Load the TempNet"),
        ("hidden", {"hidden": torch.zeros(3, WIDTH + 1)}, rf"\[\.\.\., {WIDTH}\].*Load the TempNet"),
        ("hidden", {"hidden": torch.zeros(())}, "received shape"),
        ("logits", {"logits": torch.zeros(3, OUTCOMES, device="meta")}, r"on cpu.*on meta.*\.to\('meta'\)"),
        (("hidden", "logits"), {"logits": LOGITS[:2], "hidden": HIDDEN}, "same tokens.*Select"),
    ],
)
def test_inputs_that_do_not_fit(model, inputs, passed, words):
    with pytest.raises(ValueError, match=words):
        network(model, inputs).temperatures(**passed)


@pytest.mark.parametrize("wrong", [torch.zeros(3, OUTCOMES, dtype=torch.long), [[0.0] * OUTCOMES]])
def test_inputs_of_another_type(model, wrong):
    with pytest.raises(TypeError, match="expected logits"):
        network(model, "logits").temperatures(logits=wrong)


def test_refused_in_training_mode_and_by_sample(model):
    with pytest.raises(ValueError, match=r"evaluation mode.*\.eval\(\)"):
        dt.TempNet.for_lm(model, **BOUNDS).train().temperatures(logits=LOGITS)
    with pytest.raises(ValueError, match="Train a TempNet"):
        dt.IndividualTemperature(9, tau_min=0.1, tau_max=1.0).temperatures(logits=LOGITS)
    with pytest.raises(ValueError, match="expected logits or hidden"):
        dt.ConstantTemperature(1.0).temperatures()
