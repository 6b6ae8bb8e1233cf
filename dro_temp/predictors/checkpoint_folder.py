"""A checkpoint as a folder: `config.json`, and the weights that it names.

The weights' file is named after its own content, and whether a checkpoint exists is decided by one atomic
replacement, that of `config.json`. Killed before it, a save leaves what was there; killed after it, the new one.
A model card is written after it, unless the folder has one that is not ours; other files of the folder are never
touched.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dro_temp._files import whole_file
from dro_temp._optional import optional_module
from dro_temp.predictors.model_card import CARD

CONFIG = "config.json"
#: Which files belong to a checkpoint.
PATTERNS = (CONFIG, "tempnet-*.safetensors", CARD)
LIBRARY, FORMAT = "dro-temp", 1
_LARGEST = 2**20
_ADVICE = "Save it again with save_pretrained, or fetch the whole folder."


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint, over an earlier one if there is one.

    Args:
        folder: made if need be.
        config: anything JSON knows.
        tensors: the weights.

    Raises:
        FileExistsError: the folder holds a `config.json` of something else.
    """
    serialise = optional_module("safetensors.torch", "for saving and loading").save
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _weights_of_earlier(folder)
    data: bytes = serialise({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"tempnet-{digest[:12]}.safetensors"
    marked = {"library": LIBRARY, "format": FORMAT, **config, "weights": {"file": name, "sha256": digest}}
    text = json.dumps(marked, indent=2) + "\n"
    for file, content in ((name, data), (CONFIG, text.encode())):
        with whole_file(folder / file) as out:
            out.write(content)
    if earlier not in (None, name):
        (folder / str(earlier)).unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a whole checkpoint.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: one of them is damaged, or not ours.
    """
    parse = optional_module("safetensors.torch", "for saving and loading").load
    config = _read_config(folder)
    named = config.get("weights")
    named = named if isinstance(named, dict) else {}
    file = _own_file(named.get("file"))
    if file is None:
        raise _damaged(folder / CONFIG, "which names no weights")
    if not (folder / file).is_file():
        raise FileNotFoundError(
            f"expected the weights {file} beside {CONFIG}, received a folder without them: {folder}. {_ADVICE}"
        )
    data = (folder / file).read_bytes()
    if hashlib.sha256(data).hexdigest() != named.get("sha256"):
        raise _damaged(folder / file, f"whose {len(data)} bytes are not those that were saved")
    try:
        return config, parse(data)
    except Exception as error:  # safetensors has an exception of its own, which is no ValueError
        raise _damaged(folder / file, f"which is no safetensors file ({error})") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a folder with {CONFIG} and weights, received one without {CONFIG}: {folder}. {_ADVICE}"
        )
    if path.stat().st_size > _LARGEST:
        raise _damaged(
            path, f"whose {path.stat().st_size} bytes are more than the {_LARGEST} of any configuration"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "which is no JSON, or nested too deep") from error
    if not isinstance(config, dict) or config.get("library") != LIBRARY:
        raise ValueError(
            f"expected the {CONFIG} of a TempNet, received one of something else: {path}. Pass the folder that "
            "TempNet.save_pretrained wrote; for a published checkpoint of the paper use TempNet.from_reference."
        )
    if type(config.get("format")) is not int or config["format"] != FORMAT:
        raise ValueError(
            f"expected a checkpoint of format {FORMAT}, received one of format {config.get('format')!r}: {path}. "
            "pip install --upgrade dro-temp"
        )
    return config


def _weights_of_earlier(folder: Path) -> str | None:
    """Name of the weights of the checkpoint that is there, or None."""
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("library") != LIBRARY:
        raise FileExistsError(
            f"expected a folder without {CONFIG}, or with that of a TempNet, received one with that of something else: "
            f"{path}. Pass a folder of its own, for example {str(folder / 'tempnet')!r}."
        )
    named = config.get("weights")
    return _own_file(named.get("file")) if isinstance(named, dict) else None


def _own_file(name: object) -> str | None:
    """The name, unless it leads out of the folder or to something that we did not write."""
    if isinstance(name, str) and Path(name).name == name and Path(name).match(PATTERNS[1]):
        return name
    return None


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"expected a whole checkpoint, received {path}, {what}. {_ADVICE}")
