"""Runs of open_clip's command with this package's loss, in this process, on a few glyphs and a tiny model."""

import contextlib
import functools
import gc
import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from isolation import ROOT, imported_example

from dro_temp.datasets import GlyphCaptions
from dro_temp.integrations.open_clip import main

SIZE = 32  # samples
#: Rendered glyphs are kept in the checkout.
CACHE = mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(ROOT / ".cache")})
_TOWER = {"width": 16, "layers": 1}
MODEL = {
    "embed_dim": 16,
    "vision_cfg": _TOWER | {"image_size": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": _TOWER | {"context_length": 12, "vocab_size": 49408, "heads": 2},
}


@functools.cache
def _tokenizer(*args: Any, **options: Any) -> Any:
    """Reads its vocabulary, in a quarter of a second, once."""
    from open_clip import get_tokenizer

    return get_tokenizer(*args, **options)


def write_data(folder: Path, size: int = SIZE) -> SimpleNamespace:
    """Glyphs as a CSV file and as shards whose keys repeat, and a model's config, as open_clip reads them."""
    import webdataset as wds

    with imported_example("clip_open_clip") as example, CACHE:
        example.write_pairs(folder, size, folder)
        example.write_model(folder, MODEL)
        captions = GlyphCaptions("train", size=size).captions
    with wds.ShardWriter(str(folder / "pairs-%03d.tar"), maxcount=size // 2, verbose=0) as writer:
        for i, text in enumerate(captions):
            image = (folder / f"{i}.png").read_bytes()
            writer.write({"__key__": f"{i % (size // 2):06d}", "png": image, "txt": text})
    return SimpleNamespace(
        folder=folder,
        csv=str(folder / "pairs.csv"),
        shards=str(folder / "pairs-{000..001}.tar"),
        keys=[f"pairs-{i // (size // 2):03d}.tar/{i % (size // 2):06d}" for i in range(size)],
        model=f"local-dir:{folder}",
    )


def flags(data: SimpleNamespace, logs: Path, **changes: Any) -> list[str]:
    """Options as typed: two steps of 16 in an epoch; True for an option without a value, None to leave one out.

    Images are whole: what is drawn at random is the order of the samples, and what dropout leaves out.
    """
    options: dict[str, Any] = {
        "scheme": "tempnet", "rho": 1.0, "model": data.model, "train_data": data.csv, "device": "cpu",
        "precision": "fp32", "batch_size": 16, "epochs": 1, "workers": 0, "warmup": 1, "lr": 1e-3, "logs": logs,
        "name": "run", "log_every_n_steps": 1, "aug_cfg": ["scale=(1.0,1.0)"],
    } | changes  # fmt: skip
    words: list[str] = []
    for name, value in options.items():
        if value is not None:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return words


@contextlib.contextmanager
def logging_restored():
    """open_clip's main adds handlers to the root logger, and sets the level of every logger."""
    known = [logging.root, *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    before, handlers = [(logger, logger.level) for logger in known], list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in [h for h in logging.root.handlers if h not in handlers]:
            logging.root.removeHandler(handler)
            handler.close()
        for logger, level in before:
            logger.setLevel(level)


def run(data: SimpleNamespace, logs: Path, **changes: Any) -> SimpleNamespace:
    """The exit status, the last checkpoint and the log of a run."""
    tokenizer = mock.patch("open_clip_train.main.get_tokenizer", _tokenizer)
    with tokenizer, logging_restored(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        # webdataset leaves the shard open at which an epoch of an endless stream ends.
        warnings.simplefilter("ignore", ResourceWarning)
        status = main(flags(data, logs, **changes))
        if any(str(value).endswith(".tar") for value in changes.values()):
            gc.collect()
    folder = Path(logs) / changes.get("name", "run")
    files = sorted(folder.glob("checkpoints/epoch_*.pt"))
    log = folder / "out.log"
    return SimpleNamespace(
        status=status,
        folder=folder,
        files=files,
        checkpoint=torch.load(files[-1], weights_only=True) if files else None,
        log=log.read_text() if log.exists() else "",
    )
