"""Models of open_clip with two towers, by name or configuration, and their own file format."""

import difflib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dro_temp._files import whole_file
from dro_temp._optional import optional_module
from dro_temp.cli.messages import in_one_line, require

#: The small model for glyphs, which needs no network.
OFFLINE = "offline"
#: Names of the files in a folder that open_clip loads as "local-dir:FOLDER".
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@dataclass(frozen=True)
class Clip:
    """A model and what it reads its inputs with.

    Args:
        model: of open_clip.
        tokenizer: from strings to tokens [n length].
        transform: from an image to a tensor, as in evaluation.
        augment: the same with the random changes of training.
        config: the architecture, as open_clip's files of configuration have it.
    """

    model: nn.Module
    tokenizer: Any
    transform: Callable[[Any], Tensor]
    augment: Callable[[Any], Tensor]
    config: dict[str, Any]

    def tokens(self, caption: str) -> Tensor:
        """The tokens of one text."""
        tokens: Tensor = self.tokenizer([caption])[0]
        return tokens

    def save(self, folder: Path) -> None:
        """Write a folder that open_clip loads: open_clip.create_model_and_transforms("local-dir:FOLDER")."""
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = {k: v for k, v in dict(self.model.visual.preprocess_cfg).items() if v is not None}  # type: ignore[union-attr, arg-type]
        config = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        with whole_file(folder / CONFIG) as file:
            file.write(json.dumps(config, indent=2).encode())
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(str(folder))
        state = {name: x.contiguous().clone() for name, x in self.model.state_dict().items()}
        with whole_file(folder / WEIGHTS) as file:
            file.write(require("safetensors.torch").save(state, metadata={"format": "pt"}))


def check_model(name: str, option: str = "--model") -> None:
    """Raise where a name is no model's, before data are read: a name of open_clip, a file, a folder, or of the hub."""
    open_clip = _open_clip()
    if name == OFFLINE or ":" in name or name in open_clip.list_models():
        return
    path = Path(name).expanduser()
    if path.is_dir() or path.suffix == ".json" or name.startswith((".", "/", "~")):
        expected = path / CONFIG if path.is_dir() else path
        if not expected.is_file():
            raise ValueError(
                f"expected the configuration of a model, received {option} {name}: {str(expected)!r} is not there. "
                "Check the path: a .json file as open_clip has them, or a folder that it saved."
            )
        return
    near = difflib.get_close_matches(name, [OFFLINE, *open_clip.list_models()], n=1, cutoff=0.0)
    raise ValueError(
        f"expected a model of open_clip, a .json file of one, a folder or {OFFLINE!r}, received {option} {name}. Type "
        f"{option} {near[0]}; open_clip.list_models() has {len(open_clip.list_models())}."
    )


def load(name: str, weights: str | None = None, scale: tuple[float, float] | None = None) -> Clip:
    """A model in evaluation mode with its tokenizer and transforms.

    Args:
        name: as `check_model` takes it.
        weights: a file, or open_clip's name of some; random weights if None, except for a folder that has some.
        scale: share of an image's area that a random crop keeps in training, from and to; open_clip's own if None.
    """
    open_clip = _open_clip()
    try:
        name, config = _registered(open_clip, name)
        saved = name.startswith(("local-dir:", "hf-hub:"))
        loads = saved or weights is not None
        # A text tower of Hugging Face starts from its own weights, unless its configuration says otherwise.
        text = not loads and config.get("text_cfg", {}).get("hf_model_pretrained", True)
        with _quiet():
            model = open_clip.create_model(name, pretrained=weights, load_weights=loads, pretrained_text=text)
        tokenizer = open_clip.get_tokenizer(name)
    except ImportError:
        raise
    except Exception as error:
        if str(error).startswith("expected "):
            raise
        # A configuration, a file or a connection that is not there: one answer.
        raise ValueError(
            f"expected a model of open_clip in {name!r}{f' with weights {weights!r}' if weights else ''}, received "
            f"none that can be loaded: {in_one_line(error, 300).rstrip('.')}. Check --model and --weights; without a "
            "network pass files and folders on this machine."
        ) from error
    transforms = open_clip.transform
    settings = transforms.PreprocessCfg(**model.visual.preprocess_cfg)
    augment = {} if scale is None else {"aug_cfg": transforms.AugmentationCfg(scale=scale)}
    return Clip(
        model.eval(),
        tokenizer,
        transforms.image_transform_v2(settings, is_train=False),
        transforms.image_transform_v2(settings, is_train=True, **augment),
        config,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warning about random weights, which are meant."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _open_clip() -> Any:
    return optional_module("open_clip", "whose models `dro-temp clip` trains", extra="clip")


def _registered(open_clip: Any, name: str) -> tuple[str, dict[str, Any]]:
    """The name under which open_clip knows a model, and its configuration."""
    if name == OFFLINE:
        with resources.as_file(resources.files(__package__).joinpath("offline.json")) as path:
            open_clip.add_model_config(path)
    elif Path(name).expanduser().suffix == ".json":
        path = Path(name).expanduser()
        try:
            open_clip.add_model_config(path)
        except ValueError as error:
            raise ValueError(
                f"expected a configuration of open_clip in {name!r}, received no JSON ({in_one_line(error)}). Mend the "
                "file."
            ) from None
        name = path.stem
        if open_clip.get_model_config(name) is None:
            raise ValueError(
                f"expected embed_dim, vision_cfg and text_cfg in {str(path)!r}, received a file that lacks some. "
                "Start from a file of open_clip's own: open_clip/model_configs."
            )
    elif Path(name).expanduser().is_dir():
        name = f"local-dir:{Path(name).expanduser()}"
    return name, open_clip.get_model_config(name) or {}
