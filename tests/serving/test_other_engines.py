"""llama-cpp-python on the real file, and SGLang by its own class: `make test-vllm` builds their environment."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.vllm

from smollm2 import gguf_file, plain_copy, random_tempnet

import dro_temp as dt
from dro_temp.integrations._served import VARIABLE

PROMPT = "The capital of France is Paris. def fibonacci(n): return"


@pytest.fixture(scope="module")
def model_and_tokens(tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = plain_copy(tmp_path_factory.mktemp("smollm2"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]


# llama-cpp-python -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama():
    llama_cpp = pytest.importorskip("llama_cpp")
    # Token by token: on a processor with AMX the build of 0.3.36 crashes in batches, without a processor as well.
    small = {"n_batch": 1, "n_ubatch": 1, "n_threads": 1, "n_threads_batch": 1}
    return llama_cpp.Llama(str(gguf_file()), n_ctx=128, verbose=False, seed=0, **small)


@pytest.mark.parametrize("inputs", ["statistics", "logits"])
def test_llama_cpp(llama, model_and_tokens, inputs):
    from dro_temp.integrations.llama_cpp import LlamaTemperatureProcessor

    model, tokens = model_and_tokens
    tempnet = random_tempnet(model, inputs, tokens)
    processor = LlamaTemperatureProcessor(llama, tempnet)
    seen = []

    def record(ids, scores):
        seen.append(np.array(scores))
        return scores

    options = {"max_tokens": 8, "temperature": 0.0, "repeat_penalty": 1.0}
    tempered = llama(tokens, logits_processor=[record, processor], **options)["choices"][0]["text"]
    assert tempered == llama(tokens, **options)["choices"][0]["text"]  # greedy text is the model's own
    assert len(processor.temperatures) == len(seen) == 8
    raw = torch.tensor(np.stack(seen))
    expected = tempnet.temperatures(logits=raw)
    torch.testing.assert_close(torch.tensor(processor.temperatures), expected)
    assert expected.max() - expected.min() > 0.2
    # Its products in eight bits give other logits than float32 does, and temperatures that are as close as they are.
    with torch.no_grad():
        plain = model(torch.tensor([tokens])).logits[0, -1]
    plain_tau = tempnet.temperatures(logits=plain)
    print(inputs, "llama.cpp", processor.temperatures[0], "float32", float(plain_tau))
    assert abs(processor.temperatures[0] / float(plain_tau) - 1) < 0.1


def test_llama_cpp_samples_at_the_temperatures(llama, model_and_tokens):
    """The log-probabilities of what a processor returns are those that are sampled from."""
    from dro_temp.integrations.llama_cpp import LlamaTemperatureProcessor

    _, tokens = model_and_tokens
    processor = LlamaTemperatureProcessor(llama, dt.ConstantTemperature(1e-3))
    options = {
        "max_tokens": 8,
        "temperature": 1.0,
        "repeat_penalty": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }
    cold = llama(tokens, logits_processor=[processor], **options)["choices"][0]["text"]
    greedy = llama(tokens, max_tokens=8, temperature=0.0, repeat_penalty=1.0)["choices"][0]["text"]
    assert cold == greedy


def test_llama_cpp_refuses_what_does_not_fit(llama, model_and_tokens):
    from dro_temp.integrations.llama_cpp import LlamaTemperatureProcessor

    model, tokens = model_and_tokens
    with pytest.raises(ValueError, match=r"no hidden states"):
        LlamaTemperatureProcessor(llama, random_tempnet(model, "hidden", tokens))
    with pytest.raises(ValueError, match=r"expected logits of shape"):
        LlamaTemperatureProcessor(llama, dt.TempNet.for_logits(99, tau_min=0.1, tau_max=1.0).eval())


# SGLang ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sglang(monkeypatch, model_and_tokens, tmp_path):
    spec = importlib.util.find_spec("sglang")
    if spec is None:
        pytest.skip("sglang is not installed")
    # Its class alone: the packages around it import the GPU's kernels.
    for name in ("sglang", "sglang.srt", "sglang.srt.sampling"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(spec.origin).parent.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    from dro_temp.integrations import sglang as bridge

    tempnet = random_tempnet(model_and_tokens[0], "statistics", model_and_tokens[1])
    tempnet.save_pretrained(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return bridge, tempnet


def test_sglang_by_its_own_class(sglang):
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    bridge, tempnet = sglang
    sent = json.loads(json.dumps(bridge.request(tempnet, dro_temp_tau_min=0.5, dro_temp_tau_max=0.9)))
    processor = CustomLogitProcessor.from_str(sent["custom_logit_processor"])  # as the server does
    logits = 5 * torch.randn(3, 49152)
    rows = [sent["sampling_params"]["custom_params"], {}, {"dro_temp": 0, "__req__": object()}]
    tau = tempnet.temperatures(logits=logits)
    tau = torch.stack([tau[0].clamp(0.5, 0.9), tau[1], torch.tensor(1.0)])
    torch.testing.assert_close(processor(logits.clone(), rows), logits / tau[:, None])


def test_sglang_checks_a_request_where_it_is_made(sglang, model_and_tokens, monkeypatch):
    bridge, tempnet = sglang
    with pytest.raises(ValueError, match=r"within the bounds of the served"):
        bridge.request(tempnet, dro_temp_tau_max=9.0)
    with pytest.raises(ValueError, match=r"Correct the name"):
        bridge.request(tempnet, dro_temp_max=1.0)
    with pytest.raises(ValueError, match=r"one of hidden states"):
        bridge.request(random_tempnet(model_and_tokens[0], "hidden", model_and_tokens[1]))
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ValueError, match=r"Start it with"):
        bridge.TemperatureLogitProcessor()
