"""The temperature that generates a token is the one that training would have given its row, in every mode."""

import gc
import weakref

import pytest
import tiny_lms
import torch
import transformers
from torch import nn

import dro_temp as dt

VOCABULARY, WIDTH, STEPS = 99, 16, 6
_SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_WIDE = _SIZES | {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


class TwistedHead(nn.Linear):
    """A head that is no product: the probe finds out, and logits are read as the model returns them."""

    def forward(self, x):
        return super().forward(x).sinh()


def _gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, **_SIZES))


def _twisted():
    model = _gpt2()
    model.lm_head = TwistedHead(WIDTH, VOCABULARY, bias=False)
    return model


MODELS = {
    "gpt2": _gpt2,
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_WIDE)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(final_logit_softcapping=1.5, **_WIDE)
    ),
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(logit_scale=0.25, **_WIDE)),
    "granite": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(logits_scaling=4.0, **_WIDE)
    ),
    "twisted": _twisted,
}
ENCODERS = {
    "logits": lambda: dt.predictors.LogitEncoder(VOCABULARY, width=8),
    "centred": lambda: dt.predictors.LogitEncoder(VOCABULARY, width=8, centred=True),
    "hidden": lambda: dt.predictors.PrototypeEncoder(WIDTH, prototypes=5),
    "several": lambda: dt.predictors.SumEncoder(
        [dt.predictors.HiddenEncoder(WIDTH, width=8), dt.predictors.StatisticsEncoder(width=8)]
    ),
}


def _model(name="gpt2"):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    # At their start, models are so sure of nothing that all temperatures are one.
    nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return model


def _tempnet(name="logits"):
    torch.manual_seed(1)
    return tiny_lms.tempnet(ENCODERS[name]())


def _prompt(rows=2, length=5):
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(2))


def _generate(model, processor, prompt, **options):
    defaults = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": True}
    torch.manual_seed(3)
    return model.generate(prompt, logits_processor=[processor], **(defaults | options))


def _taught(model, tempnet, text, mask=None):
    """Temperatures that an objective would have trained with, of the rows that predict the last `STEPS` tokens."""
    mask = torch.ones_like(text) if mask is None else nn.functional.pad(mask, (0, STEPS), value=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    host = dt.hosts.CausalLM(model, frozen=True)
    rows = host(input_ids=text, attention_mask=mask, position_ids=positions)["token"]
    with torch.no_grad():
        return tempnet.predict(rows).view(len(text), -1)[:, -STEPS:]


def _close(found, expected):
    assert expected.std() > 1e-3  # or a constant would do
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- Train tau equals generate tau ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", MODELS)
def test_train_tau_equals_generate_tau(name, encoder):
    model, tempnet = _model(name), _tempnet(encoder)
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    text = _generate(model, processor, _prompt())
    _close(processor.temperatures, _taught(model, tempnet, text))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"num_return_sequences": 3},
        {"use_cache": False},
        {"prefill_chunk_size": 2},
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static"},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "prefill_chunk_size": 2},
        {"guidance_scale": 3.0, "use_cache": False},
        {"guidance_scale": 0.5, "negative_prompt_ids": _prompt(2, 5).flip(1)},
        {"repetition_penalty": 3.0, "temperature": 0.3, "top_k": 5, "bad_words_ids": [[7], [8]]},
    ],
    ids=str,
)
def test_in_every_mode(options):
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    text = _generate(model, processor, _prompt(), **options)
    _close(processor.temperatures, _taught(model, tempnet, text))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_left_padding(name, cached):
    model, tempnet = _model(name), _tempnet("hidden")
    prompt, mask = _prompt(3), torch.ones(3, 5, dtype=torch.long)
    for row, padding in enumerate([0, 1, 3]):
        prompt[row, :padding], mask[row, :padding] = 0, 0
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    text = _generate(model, processor, prompt, attention_mask=mask, use_cache=cached)
    _close(processor.temperatures, _taught(model, tempnet, text, mask))


@pytest.mark.parametrize("sampled", [True, False])
def test_beams(sampled):
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    found = _generate(
        model,
        processor,
        _prompt(),
        do_sample=sampled,
        num_beams=4,
        num_return_sequences=2,
        return_dict_in_generate=True,
        output_scores=True,
        bad_words_ids=[[7]],
    )
    assert processor.temperatures.shape == (8, STEPS)
    _close(
        processor.temperatures.gather(0, found.beam_indices.long()), _taught(model, tempnet, found.sequences)
    )
    for scores in found.scores if not sampled else ():
        assert (scores[:, 7] == -torch.inf).all()
        torch.testing.assert_close(scores.logsumexp(1), torch.zeros(8), rtol=0, atol=1e-5)


def test_inputs_embeds():
    model, tempnet = _model("llama"), _tempnet()
    prompt = _prompt()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    embeds = model.get_input_embeddings()(prompt).detach()
    text = _generate(model, processor, None, inputs_embeds=embeds)
    _close(processor.temperatures, _taught(model, tempnet, torch.cat([prompt, text], 1)))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16(name):
    model, tempnet = _model(name).to(torch.bfloat16), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    text = _generate(model, processor, _prompt(), return_dict_in_generate=True, output_scores=True)
    assert text.scores[0].dtype == processor.temperatures.dtype == torch.float32
    # One logit is rounded to 8 bits in generation, and not in training.
    torch.testing.assert_close(
        processor.temperatures, _taught(model, tempnet, text.sequences), rtol=0.02, atol=0
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_wrapped_model():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model, tempnet = peft.get_peft_model(_model("llama"), config).eval(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    text = _generate(model, processor, _prompt())
    _close(processor.temperatures, _taught(model, tempnet, text))


def test_a_compiled_forward():
    model, tempnet = _model("llama"), _tempnet()
    compiled = transformers.CompileConfig(backend="eager", mode="default", fullgraph=False)
    compiled._compile_all_devices = True  # else on accelerators only
    for _ in range(2):  # hooks of the second processor are not those that the forward was compiled with
        processor = dt.TemperatureLogitsProcessor(model, tempnet)
        options = {"cache_implementation": "static", "compile_config": compiled}
        text = _generate(model, processor, _prompt(), **options)
        _close(processor.temperatures, _taught(model, tempnet, text))


def test_a_loop_of_ones_own():
    model, tempnet = _model(), _tempnet()
    processor, text = dt.TemperatureLogitsProcessor(model, tempnet), _prompt()
    with torch.no_grad():
        for _ in range(STEPS):
            scores = processor(text, model(text).logits[:, -1])
            text = torch.cat([text, scores.argmax(1, keepdim=True)], 1)
    _close(processor.temperatures, _taught(model, tempnet, text))


# --- What becomes of scores ----------------------------------------------------------------------------------


def test_scores_of_logits_are_logits_over_the_temperature():
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    # The user's own multiplies.
    found = _generate(model, processor, _prompt(), temperature=0.5, top_k=0, bad_words_ids=[[7]], **options)
    for step, (scores, logits) in enumerate(zip(found.scores, found.logits, strict=True)):
        logits[:, [2, 7]] = -torch.inf  # 2 ends a text, too early
        torch.testing.assert_close(scores, logits / processor.temperatures[:, step, None] / 0.5)


def test_log_probabilities_stay_log_probabilities_also_after_bans():
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    with torch.no_grad():
        logits = model(_prompt()).logits[:, -1]
    scores = logits.log_softmax(1)
    scores[0, logits[0].argmax()] = -torch.inf
    scores[1, 3] = -torch.inf
    found = processor(_prompt(), scores)
    torch.testing.assert_close(found.exp(), (scores / processor.temperatures).softmax(1))
    assert torch.equal(found == -torch.inf, scores == -torch.inf)


class NormalisedHead(nn.Linear):
    """Whose logits are log-probabilities themselves."""

    def forward(self, x):
        return super().forward(x).log_softmax(-1)


def test_beams_of_a_model_of_log_probabilities():
    model, tempnet = _model(), _tempnet()
    weight = model.lm_head.weight
    model.lm_head = NormalisedHead(WIDTH, VOCABULARY, bias=False)
    model.lm_head.weight = weight
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    options = {"return_dict_in_generate": True, "output_scores": True, "num_beams": 3, "do_sample": False}
    for scores in _generate(model, processor, _prompt(), **options).scores:
        torch.testing.assert_close(scores.logsumexp(1), torch.zeros(6), rtol=0, atol=1e-5)


def test_greedy_text_is_the_models_own():
    model = _model()
    processor = dt.TemperatureLogitsProcessor(model, _tempnet())
    assert torch.equal(
        _generate(model, processor, _prompt(), do_sample=False),
        model.generate(_prompt(), do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS),
    )


def test_one_temperature_for_all_is_the_models_own_sampling_and_beam_search():
    model = _model()
    processor = dt.TemperatureLogitsProcessor(model, dt.ConstantTemperature(1.0).eval())
    for options in ({"do_sample": True}, {"do_sample": False, "num_beams": 3}):
        torch.manual_seed(3)
        expected = model.generate(_prompt(), max_new_tokens=STEPS, min_new_tokens=STEPS, **options)
        assert torch.equal(_generate(model, processor, _prompt(), **options), expected)


# --- What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["assistant", "prompt lookup"])
def test_assisted_decoding(how):
    model = _model()
    options = {"assistant_model": _model()} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    processor = dt.TemperatureLogitsProcessor(model, _tempnet())
    with pytest.raises(ValueError, match="Assisted decoding verifies several positions"):
        _generate(model, processor, torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]]), **options)
    processor.reset()
    assert _generate(model, processor, _prompt()).shape == (2, 5 + STEPS)


@pytest.mark.parametrize(
    ("tempnet", "message"),
    [
        (lambda: dt.TempNet.for_logits(98, tau_min=0.1, tau_max=2.0).eval(), "98"),
        (lambda: dt.TempNet(17, tau_min=0.1, tau_max=2.0).eval(), "width 17"),
        (
            lambda: dt.TempNet.for_lm(_other(), inputs="hidden", tau_min=0.1, tau_max=2.0).eval(),
            "98 outcomes",
        ),
        (lambda: dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0), r"Call predictor.eval\(\)"),
        (lambda: dt.IndividualTemperature(50, tau_min=0.1, tau_max=2.0).eval(), "Train a TempNet"),
    ],
    ids=["vocabulary", "width", "other-model", "training", "by-number"],
)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "twisted"])
def test_a_predictor_that_does_not_fit(name, tempnet, message):
    model = _model(name)
    with pytest.raises(ValueError, match=message):
        dt.TemperatureLogitsProcessor(model, tempnet())
    assert _hooks(model) == 0


def _other():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=WIDTH, n_layer=1, n_head=2, vocab_size=98, bos_token_id=1, eos_token_id=2
        )
    )


def test_an_encoder_decoder():
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    with pytest.raises(TypeError, match="encoder-decoder"):
        dt.TemperatureLogitsProcessor(transformers.T5ForConditionalGeneration(config), _tempnet())


def test_another_models_forward():
    model, other = _model(), _model("llama")
    processor = dt.TemperatureLogitsProcessor(model, _tempnet())
    with pytest.raises(ValueError, match="none since the last call"):
        _generate(other, processor, _prompt())
    with torch.no_grad():
        model(_prompt(3))
    with pytest.raises(ValueError, match=r"of 2 rows .* received one of 3 rows"):
        _generate(other, processor, _prompt())


def test_training_mode_in_between():
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    _generate(model, processor, _prompt())
    tempnet.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        _generate(model, processor, _prompt())
    tempnet.eval()
    _generate(model, processor, _prompt())


# --- What is remembered --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=str)
def test_a_prompt_starts_again(options):
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    for length in (5, 5 + STEPS, 5 + 2 * STEPS - 1, 1):  # the second goes on where the first has stopped
        text = _generate(model, processor, _prompt(2, length), **options)
        _close(processor.temperatures[:, -STEPS:], _taught(model, tempnet, text))
        if not options:
            assert processor.temperatures.shape == (2, STEPS)
    processor.reset()
    assert processor.temperatures.numel() == 0


def test_weights_that_have_moved():
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    _generate(model, processor, _prompt())
    for weight in (tempnet.encoder.first.weight, model.lm_head.weight):
        with torch.no_grad():
            weight.mul_(-1.5)
        text = _generate(model, processor, _prompt())
        _close(processor.temperatures, _taught(model, tempnet, text))


def test_after_an_error_the_next_text_is_right():
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)

    def fails(input_ids, scores):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        model.generate(_prompt(), logits_processor=[fails, processor], max_new_tokens=2)
    text = _generate(model, processor, _prompt(2, 7))
    _close(processor.temperatures, _taught(model, tempnet, text))


# --- Hooks ---------------------------------------------------------------------------------------------------


def _hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_with_the_processor():
    model, tempnet = _model(), _tempnet()
    _generate(model, dt.TemperatureLogitsProcessor(model, tempnet), _prompt())
    assert _hooks(model) == 0  # without the garbage collector's help
    with dt.TemperatureLogitsProcessor(model, tempnet) as processor:
        assert _hooks(model) == 3
        _generate(model, processor, _prompt())
    assert _hooks(model) == 0
    assert processor.temperatures.shape == (2, STEPS)
    with pytest.raises(ValueError, match="was closed"):
        _generate(model, processor, _prompt())


def test_several_processors_on_one_model():
    model, tempnets = _model(), [_tempnet(), _tempnet("hidden")]
    first, second = (dt.TemperatureLogitsProcessor(model, tempnet) for tempnet in tempnets)
    text = model.generate(
        _prompt(),
        do_sample=True,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        logits_processor=[first, second],
    )
    _close(first.temperatures, _taught(model, tempnets[0], text))
    _close(second.temperatures, _taught(model, tempnets[1], text))


def test_neither_model_nor_tensors_are_kept_alive():
    model = _model()
    processor = dt.TemperatureLogitsProcessor(model, _tempnet())
    output = model(_prompt(2, 30))  # with gradients, as in training: not even noticed
    assert processor._hook.take() is None
    del output
    with torch.no_grad():
        logits = model(_prompt(2, 30)).logits
    last = processor._hook.take()
    assert last.logits.untyped_storage().nbytes() == 2 * VOCABULARY * 4  # one position, not a view of thirty
    assert last.hidden.untyped_storage().nbytes() == 2 * WIDTH * 4
    gone = weakref.ref(model), weakref.ref(logits)
    del model, logits, last
    gc.collect()
    assert gone[0]() is None
    assert gone[1]() is None


def test_an_evaluation_in_between_is_not_taken_for_generation():
    model, tempnet = _model(), _tempnet()
    processor = dt.TemperatureLogitsProcessor(model, tempnet)

    def evaluates(input_ids, scores):
        model(_prompt(2, 9))
        return scores

    text = model.generate(
        _prompt(),
        logits_processor=[evaluates, processor],
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=True,
    )
    _close(processor.temperatures, _taught(model, tempnet, text))


# custom_generate ------------------------------------------------------------------------------------------


def test_custom_generate_of_a_saved_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2, **special)
    model = transformers.GPT2LMHeadModel(config).eval()
    tempnet = dt.TempNet.for_lm(model, inputs="hidden", tau_min=0.1, tau_max=0.2).eval()
    tempnet.save_pretrained(tmp_path / "net")
    prompt = torch.arange(3, 9).view(2, 3)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": True}
    scored = {"return_dict_in_generate": True, "output_scores": True}
    with dt.TemperatureLogitsProcessor(model, tempnet) as processor:
        torch.manual_seed(1)
        expected = model.generate(prompt, logits_processor=[processor], **options, **scored)
    remote = {"custom_generate": str(tmp_path / "net"), "trust_remote_code": True}
    torch.manual_seed(1)
    found = model.generate(prompt, **remote, **options, **scored)
    torch.testing.assert_close(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores)
    assert not model._forward_hooks  # closed

    (tmp_path / "net").rename(tmp_path / "moved")
    remote["custom_generate"] = str(tmp_path / "moved")
    model.generate(prompt, **remote, **options, tempnet=str(tmp_path / "moved"))
    other = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=98, n_embd=16, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match="for which this TempNet was made"):
        other.generate(prompt, **remote, **options, tempnet=str(tmp_path / "moved"))


def test_custom_generate_is_not_written_over_a_file_of_ones_own(tmp_path):
    tempnet = dt.TempNet.for_logits(9, tau_min=0.1, tau_max=2.0)
    tempnet.save_pretrained(tmp_path)
    assert not (tmp_path / "custom_generate").exists()  # made for no language model
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    (tmp_path / "custom_generate").mkdir()
    path = tmp_path / "custom_generate" / "generate.py"
    path.write_text("# mine\n")
    dt.TempNet.for_lm(model, tau_min=0.1, tau_max=2.0).save_pretrained(tmp_path)
    assert path.read_text() == "# mine\n"
