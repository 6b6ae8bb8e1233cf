"""Networks as checkpoints: a folder with `config.json` and the weights that it names, here or on the Hugging Face Hub.

The weights' file is named after its own content, and whether a checkpoint exists is decided by one atomic
replacement, that of `config.json`. Killed before it, a save leaves what was there; killed after it, the new one.
The model card is written last; other files of the folder are never touched.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dro_temp._files import whole_file
from dro_temp._optional import optional_module
from dro_temp.predictors.model_card import (
    CARD,
    CUSTOM_GENERATE,
    REPOSITORY,
    is_untouched,
    write_custom_generate,
)

CONFIG = "config.json"
_WEIGHTS = "tempnet-*.safetensors"
#: The files of a checkpoint.
PATTERNS = (CONFIG, _WEIGHTS, CARD)
_LIBRARY, _FORMAT = "dro-temp", 1
_LARGEST_CONFIG, _DEEPEST_CONFIG = 2**20, 32
_USE = "for saving and loading"
_AGAIN = "Save it again with save_pretrained, or fetch the whole folder."
#: What building a network from a file of unknown origin may raise, beside errors that say what they expect.
_UNBUILDABLE = (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError, MemoryError)

_Network = TypeVar("_Network", bound=nn.Module)


def local_folder(source: str | Path, **options: Any) -> Path:
    """The folder itself, or a local copy of the repository of that name."""
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"expected a folder or a name on the Hub, received {type(source).__name__} ({source!r}). Pass a path, or "
            '"owner/name".'
        )
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or REPOSITORY.fullmatch(source) is None:
        raise FileNotFoundError(
            f"expected a folder that save_pretrained wrote, or 'owner/name' on the Hugging Face Hub, received "
            f"{str(source)!r}, which is neither. Check the path; it is relative to {Path.cwd()}."
        )
    hub = optional_module("huggingface_hub", _USE)
    try:
        return Path(hub.snapshot_download(source, allow_patterns=list(PATTERNS), **options))
    except Exception as error:  # of the Hub, the connection or the disk: one answer
        raise OSError(
            f"expected a folder or a repository on the Hugging Face Hub, received {source!r}: no such folder in "
            f"{Path.cwd()}, and the Hub gave none ({type(error).__name__}: {error}). Check the name, the connection, "
            "and token=... for a private one."
        ) from error


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint, over an earlier one if there is one."""
    serialise = optional_module("safetensors.torch", _USE).save
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _earlier_weights(folder)
    data: bytes = serialise({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = _WEIGHTS.replace("*", digest[:12])
    marked = {"library": _LIBRARY, "format": _FORMAT, **config, "weights": {"file": name, "sha256": digest}}
    for file, content in ((name, data), (CONFIG, (json.dumps(marked, indent=2) + "\n").encode())):
        with whole_file(folder / file) as out:
            out.write(content)
    if earlier not in (None, name):
        (folder / str(earlier)).unlink(missing_ok=True)


def _earlier_weights(folder: Path) -> str | None:
    """File name of the weights of the checkpoint in this folder, or None."""
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("library") != _LIBRARY:
        raise FileExistsError(
            f"expected a folder without {CONFIG}, or with that of a TempNet, received one with that of something else: "
            f"{path}. Pass a folder of its own, for example {str(folder / 'tempnet')!r}."
        )
    return _weights_of(config)[0]


def _weights_of(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Name and digest of the weights; None for a name outside the folder, or of a file that is not ours."""
    weights = config.get("weights")
    name, digest = (weights.get("file"), weights.get("sha256")) if isinstance(weights, dict) else (None, None)
    inside = isinstance(name, str) and Path(name).name == name and Path(name).match(_WEIGHTS)
    return name if inside else None, digest


def load(
    folder: Path, kind: type[_Network], build: Callable[[Mapping[str, Any]], _Network], custom: bool
) -> _Network:
    """The network in this folder; `custom` is True if `build` knows classes of the user's own."""
    config, tensors = _read(folder)
    if config.get("class") != kind.__name__:
        raise ValueError(
            f"expected a checkpoint of {kind.__name__}, received one of {config.get('class')!r}: {folder}. "
            "Load it with that class."
        )
    try:
        _check_nesting(config, len(tensors))
        # A file of unknown origin is compared with its weights before anything of that size is allocated.
        try:
            with torch.device("meta"):
                outline = build(config).state_dict()
        except RuntimeError:
            if not custom:  # a user's class may compute something in its constructor
                raise
        else:
            _check_shapes(outline, tensors, folder)
        with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten: leave no trace
            network = build(config)
        _check_shapes(network.state_dict(), tensors, folder)
    except _UNBUILDABLE as error:
        raise ValueError(
            f"expected a config.json that describes a {kind.__name__}, received {folder / CONFIG}, which "
            f"cannot be built ({type(error).__name__}: {error}). Save it again with save_pretrained."
        ) from error
    network.load_state_dict(tensors, assign=True)  # keeps the precision that was saved
    return network.eval()


def upload(folder: Path, name: str, kind: str, *, private: bool | None, token: str | None) -> str:
    """Upload a checkpoint to the Hub, and return the repository's address; a card that was edited there stays."""
    api = optional_module("huggingface_hub", _USE).HfApi(token=token)
    repository: str = api.create_repo(name, private=private, exist_ok=True).repo_id
    if api.file_exists(repository, CARD) and not is_untouched(api.hf_hub_download(repository, CARD)):
        (folder / CARD).unlink()
    if (folder / CUSTOM_GENERATE).exists():
        write_custom_generate(folder, repository)
    api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=f"Upload of a {kind}",
        allow_patterns=[*PATTERNS, CUSTOM_GENERATE],
        delete_patterns=[_WEIGHTS],  # of earlier checkpoints; what is uploaded stays
    )
    return f"https://huggingface.co/{repository}"


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights, if the checkpoint is intact."""
    parse = optional_module("safetensors.torch", _USE).load
    config = _read_config(folder / CONFIG)
    file, digest = _weights_of(config)
    if file is None:
        raise _damaged(folder / CONFIG, "which names no weights")
    if not (folder / file).is_file():
        raise FileNotFoundError(
            f"expected the weights {file} beside {CONFIG}, received a folder without them: {folder}. {_AGAIN}"
        )
    data = (folder / file).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(folder / file, f"whose {len(data)} bytes are not those that were saved")
    try:
        return config, parse(data)
    except Exception as error:  # safetensors has an exception of its own, which is not a ValueError
        raise _damaged(folder / file, f"which is no safetensors file ({error})") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        of_run = path.parent / "tempnet"
        instead = f"Pass {str(of_run)!r}." if (of_run / CONFIG).is_file() else _AGAIN
        raise FileNotFoundError(
            f"expected a folder with {CONFIG} and weights, received one without {CONFIG}: {path.parent}. {instead}"
        )
    size = path.stat().st_size
    if size > _LARGEST_CONFIG:
        raise _damaged(path, f"whose {size} bytes are more than the {_LARGEST_CONFIG} of any configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "which is no JSON, or nested too deep") from error
    if not isinstance(config, dict) or config.get("library") != _LIBRARY:
        raise ValueError(
            f"expected the {CONFIG} of a TempNet, received one of something else: {path}. Pass the folder that "
            "TempNet.save_pretrained wrote; for a published checkpoint of the paper use TempNet.from_reference."
        )
    if type(config.get("format")) is not int or config["format"] != _FORMAT:
        raise ValueError(
            f"expected a checkpoint of format {_FORMAT}, received one of format {config.get('format')!r}: {path}. "
            "pip install --upgrade dro-temp"
        )
    return config


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"expected an intact checkpoint, received {path}, {what}. {_AGAIN}")


def _check_nesting(config: Mapping[str, Any], tensors: int) -> None:
    """Raise where a config is nested deeper, or names more modules, than the weights beside it can belong to."""
    level: list[Any] = [config]
    modules = 0
    for _ in range(_DEEPEST_CONFIG):
        inside = [x for holder in level for x in (holder.values() if isinstance(holder, dict) else holder)]
        level = [x for x in inside if isinstance(x, dict | list)]
        modules += sum(isinstance(x, dict) and "class" in x for x in level)
    # Each has a weight, except one that only adds up others.
    if level or modules > 2 * tensors + 2:
        raise TypeError(f"it is nested too deep, or names {modules} parts for {tensors} tensors")


def _check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    def shape(x: Tensor) -> str:
        return f"{list(x.shape)}" if x.is_floating_point() else f"{list(x.shape)} of {x.dtype}"

    ours, theirs = ({name: shape(x) for name, x in tensors.items()} for tensors in (expected, found))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names:
        wanted, received = (", ".join(f"{k} {x.get(k, 'absent')}" for k in names) for x in (ours, theirs))
        raise ValueError(
            f"expected weights that belong to config.json, {wanted}, received {received}: {folder}. Undo changes to "
            "config.json, or save the network again with save_pretrained."
        )
