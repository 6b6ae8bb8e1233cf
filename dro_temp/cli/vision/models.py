"""Classifiers of timm, and timm's own file format."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dro_temp._optional import optional_module
from dro_temp.cli.messages import in_one_line

#: The small model for glyphs, which needs no network.
OFFLINE = "offline"
#: Weights that timm publishes.
PRETRAINED = "pretrained"

_OFFLINE, _SIDE = "test_resnet", 32


@dataclass(frozen=True)
class Classifier:
    """A model and what it reads images with.

    Args:
        model: of timm.
        transform: from an image to a tensor, as in evaluation.
        augment: the same with the random changes of training.
        names: of the classes.
        settings: of the transforms, as timm has them.
    """

    model: nn.Module
    transform: Callable[[Any], Tensor]
    augment: Callable[[Any], Tensor]
    names: tuple[str, ...]
    settings: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write a folder that timm loads: timm.create_model("local-dir:FOLDER", pretrained=True)."""
        hub = optional_module("timm.models", "which writes a model", extra="vision")
        # timm reads the size of images and their normalisation from here.
        model: Any = self.model
        model.pretrained_cfg = {**model.pretrained_cfg, **self.settings}
        config = {**self.settings, "label_names": list(self.names), "num_classes": len(self.names)}
        hub.save_for_hf(self.model, folder, model_config=config, safe_serialization=True)


def check_model(name: str) -> None:
    """Raise where a name is no model's, before data are read."""
    if name == OFFLINE or ":" in name:
        return
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, [OFFLINE, *timm.list_models()], n=1, cutoff=0.0)
        raise ValueError(
            f"expected a model of timm, local-dir:FOLDER or {OFFLINE!r}, received --model {name}. Type --model "
            f"{near[0]}; timm.list_models() has {len(timm.list_models())}."
        )


def load(
    name: str,
    names: tuple[str, ...],
    *,
    weights: str | None = None,
    side: int | None = None,
    crop: float = 0.35,
    flip: float = 0.5,
    augment: str | None = None,
) -> Classifier:
    """A classifier in evaluation mode with its transforms.

    Args:
        name: as `check_model` takes it.
        names: of the classes.
        weights: a file, "pretrained" for those that timm publishes, or None for random ones.
        side: of the images in pixels, if not the model's own.
        crop: the smallest share of an image's area that a random crop leaves in training.
        flip: share of the images that are mirrored in training.
        augment: timm's automatic augmentation, "rand-m9-mstd0.5", or None.
    """
    timm = _timm()
    data = optional_module("timm.data", "which makes the transforms of a model", extra="vision")
    name, side = (_OFFLINE, side or _SIDE) if name == OFFLINE else (name, side)
    saved = ":" in name or weights == PRETRAINED
    options: dict[str, Any] = {"pretrained": saved, "num_classes": len(names)}
    if weights not in (None, PRETRAINED):
        options["checkpoint_path"] = weights
    try:
        model = timm.create_model(name, **options)
    except ImportError:
        raise
    except (
        Exception
    ) as error:  # a file or a connection that is not there, weights of another model: one answer
        raise ValueError(
            f"expected a model of timm, received --model {name}{f' --weights {weights}' if weights else ''}, which "
            f"cannot be loaded: {in_one_line(error, 300).rstrip('.')}. Check both; without a network pass a file on "
            "this machine, or leave --weights out."
        ) from error
    settings = data.resolve_model_data_config(model)
    if side is not None:
        settings |= {"input_size": (3, side, side), "crop_pct": 1.0}
    return Classifier(
        model.eval(),
        data.create_transform(**settings, is_training=False),
        data.create_transform(
            **{k: v for k, v in settings.items() if k not in ("crop_pct", "crop_mode")},
            is_training=True,
            scale=(crop, 1.0),
            hflip=flip,
            auto_augment=augment,
        ),
        names,
        settings,
    )


def _timm() -> Any:
    return optional_module("timm", "whose models `dro-temp vision` trains", extra="vision")
