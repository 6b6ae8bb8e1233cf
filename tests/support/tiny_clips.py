"""Tiny random models of pairs: one of every kind that open_clip and transformers have; nothing is downloaded."""

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

VOCABULARY, LENGTH, IMAGE = 99, 8, 32
PAD, END = 1, VOCABULARY - 1


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A model in eval mode, the same weights at every call.

    Weights that a library draws with 0.02 vanish in so narrow a model: an ALIGN's image features would all be zero.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1.5 * (len(parameter) / parameter.numel()) ** 0.5)
        return model


def tokens(n: int) -> tuple[Tensor, Tensor]:
    """Random texts of different lengths that end with the last word and are padded, and their mask."""
    g = torch.Generator().manual_seed(n)
    ids = torch.randint(4, END, (n, LENGTH), generator=g)
    length = torch.randint(3, LENGTH + 1, (n, 1), generator=g)
    place = torch.arange(LENGTH)[None]
    ids = torch.where(place == length - 1, END, torch.where(place < length, ids, PAD))
    return ids, (place < length).long()


# --- open_clip -----------------------------------------------------------------------------------------------

_VIT = {"image_size": IMAGE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
_RESNET = {"image_size": IMAGE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
_TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 1}


def _timm(name: str, **options: Any) -> dict[str, Any]:
    return {"image_size": IMAGE, "timm_model_name": name, "timm_pool": "", "timm_proj": "linear"} | options


def _open_clip(kind: str, vision: dict, text: dict | None = None, **options: Any) -> nn.Module:
    return getattr(importlib.import_module("open_clip"), kind)(16, vision, text or _TEXT, **options)


def _hf_text(folder: Path) -> dict[str, Any]:
    import transformers

    config = transformers.RobertaConfig(
        **_width(16), vocab_size=VOCABULARY, max_position_embeddings=LENGTH + 2, pad_token_id=PAD
    )
    config.save_pretrained(folder)  # open_clip wants a name or a folder
    return {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_proj_type": "mlp"}


def _naflex() -> nn.Module:
    """timm's NaFlex towers have no tiny size of their own, and open_clip asks for names alone."""
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    model = _open_clip("CustomTextCLIP", _timm("test_vit", timm_pool="token"))
    cfg = NaFlexVitCfg(patch_size=16, embed_dim=64, depth=1, num_heads=2, reg_tokens=2, fc_norm=True)
    model.visual.trunk = NaFlexVit(cfg, num_classes=0, img_size=IMAGE)
    return model


def _coca() -> nn.Module:
    tower = {"output_tokens": True}
    vision = _VIT | tower | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
    words = _TEXT | {"width": 16}  # that of the common space, as in the published ones
    coca = importlib.import_module("open_clip").CoCa
    return coca(16, words | {"attn_pooler_heads": 2}, words | tower | {"embed_cls": True}, vision)


OPEN_CLIPS: dict[str, Callable[[Path], nn.Module]] = {
    "vit": lambda folder: _open_clip("CLIP", _VIT),
    "vit-output-dict": lambda folder: _open_clip("CLIP", _VIT, output_dict=True),
    "resnet": lambda folder: _open_clip("CLIP", _RESNET),
    "timm-vit": lambda folder: _open_clip("CustomTextCLIP", _timm("test_vit", timm_pool="token")),
    "timm-convnext": lambda folder: _open_clip(
        "CustomTextCLIP", _timm("test_convnext"), output_dict=True, nonscalar_logit_scale=True
    ),
    "timm-naflex": lambda folder: _naflex(),
    "hf-text": lambda folder: _open_clip("CustomTextCLIP", _VIT, _hf_text(folder)),
    "siglip": lambda folder: _open_clip(
        "CustomTextCLIP",
        _timm("test_vit", timm_pool="avg"),
        _TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        init_logit_bias=-10.0,
        init_logit_scale=2.3,
    ),
    "coca": lambda folder: _coca(),
}


def open_clip(kind: str, folder: Path = Path()) -> nn.Module:
    """A tiny model of open_clip.

    Args:
        kind: one of `OPEN_CLIPS`.
        folder: where "hf-text" writes its text tower's config.
    """
    return seeded(lambda: OPEN_CLIPS[kind](folder))


def open_clip_batch(n: int) -> dict[str, Tensor]:
    """Images and texts."""
    g = torch.Generator().manual_seed(n)
    return {"images": torch.randn(n, 3, IMAGE, IMAGE, generator=g), "texts": tokens(n)[0]}


# --- transformers --------------------------------------------------------------------------------------------


def _width(width: int, layers: int = 1) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": 2}


_WORDS = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "pad_token_id": PAD}
_WORDS |= {"bos_token_id": 0, "eos_token_id": END}
_HF_TEXT = _width(16) | _WORDS
_PATCHES = _width(16) | {"image_size": IMAGE, "patch_size": 16}
_PAIR = {"text_config": _HF_TEXT, "vision_config": _PATCHES, "projection_dim": 12}
_SPACE = {"text_config": _HF_TEXT, "vision_config": _PATCHES}  # without projections of its own
_NO_BOS = {k: v for k, v in _HF_TEXT.items() if k not in ("bos_token_id", "eos_token_id")}

# What a class's configuration is built with.
CONFIGS: dict[str, dict[str, Any]] = {
    "Aimv2Model": _PAIR,
    "AlignModel": {
        "text_config": _NO_BOS,
        "vision_config": {"image_size": IMAGE, "hidden_dim": 64, "width_coefficient": 0.2}
        | {"depth_coefficient": 0.2},
        "projection_dim": 64,
    },
    "AltCLIPModel": _PAIR | {"text_config": _HF_TEXT | {"project_dim": 20}},
    "BlipModel": _PAIR | {"text_config": _HF_TEXT | {"sep_token_id": END, "encoder_hidden_size": 16}},
    "ChineseCLIPModel": _PAIR,
    "CLIPModel": _PAIR,
    "CLIPSegModel": _PAIR | {"extract_layers": (0,)},
    "ClapModel": {
        "text_config": _HF_TEXT | {"projection_dim": 12},
        "audio_config": {"spec_size": 32, "num_mel_bins": 8, "patch_size": 4, "patch_stride": (4, 4)}
        | {"window_size": 2, "depths": (1, 1), "num_attention_heads": (2, 2), "num_hidden_layers": 2}
        | {"patch_embeds_hidden_size": 8, "hidden_size": 16, "projection_dim": 12},
        "projection_dim": 12,
    },
    "FlavaModel": {
        "text_config": _NO_BOS,
        "image_config": _PATCHES,
        "multimodal_config": _width(16),
        "hidden_size": 16,
        "projection_dim": 12,
        "init_codebook": False,
    },
    "GroupViTModel": _PAIR
    | {
        "vision_config": _PATCHES
        | {"depths": (1, 1), "num_group_tokens": (4, 0), "num_output_groups": (2, 2), "patch_size": 8}
        | {"num_hidden_layers": 2},
        "projection_intermediate_dim": 20,
    },
    "MetaClip2Model": _PAIR,
    "OwlViTModel": _PAIR,
    "Owlv2Model": _PAIR,
    "SiglipModel": _SPACE | {"text_config": _HF_TEXT | {"projection_size": 16}},
    "Siglip2Model": {
        "text_config": _HF_TEXT | {"projection_size": 16},
        "vision_config": _width(16) | {"patch_size": 16, "num_patches": 4},
    },
    "Tipsv2Model": _SPACE,
    "VideoPrismClipModel": {
        "text_config": _NO_BOS,
        "vision_config": _PATCHES
        | {"tubelet_size": (1, 16, 16), "num_frames": 2, "num_spatial_layers": 1, "num_temporal_layers": 1}
        | {"num_auxiliary_layers": 1},
    },
    "VisionTextDualEncoderModel": {},
    "XCLIPModel": {
        "text_config": _HF_TEXT,
        "vision_config": _PATCHES
        | {"num_frames": 2, "mit_hidden_size": 12, "mit_intermediate_size": 24}
        | {"mit_num_hidden_layers": 1, "mit_num_attention_heads": 2},
        "projection_dim": 12,
        "prompt_num_attention_heads": 2,
        "prompt_layers": 1,
    },
}


def hf(name: str) -> nn.Module:
    """A tiny model of transformers.

    Args:
        name: of a class, one of `CONFIGS`.
    """
    import transformers

    cls = getattr(transformers, name)
    config = cls.config_class
    if name != "VisionTextDualEncoderModel":
        return seeded(lambda: cls(config(**CONFIGS[name])))
    towers = transformers.CLIPVisionConfig(**_PATCHES), transformers.BertConfig(**_HF_TEXT)
    return seeded(lambda: cls(config.from_vision_text_configs(*towers, projection_dim=12)))


def hf_batch(name: str, n: int) -> dict[str, Tensor]:
    """What the processor of a class would return."""
    g = torch.Generator().manual_seed(n)
    ids, mask = tokens(n)
    text = {"input_ids": ids, "attention_mask": mask}
    if name == "ClapModel":
        return text | {"input_features": torch.randn(n, 1, 128, 8, generator=g)}
    if name == "Siglip2Model":
        shapes = torch.tensor([[2, 2]]).expand(n, 2)
        patches = torch.randn(n, 4, 3 * 16 * 16, generator=g)
        mask = torch.ones(n, 4, dtype=torch.long)
        return text | {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    if name in ("XCLIPModel", "VideoPrismClipModel"):
        videos = "pixel_values" if name == "XCLIPModel" else "pixel_values_videos"
        return text | {videos: torch.randn(n, 2, 3, IMAGE, IMAGE, generator=g)}
    return text | {"pixel_values": torch.randn(n, 3, IMAGE, IMAGE, generator=g)}


def dual_encoders() -> list[str]:
    """The classes of the installed transformers that have a method for texts and one for what goes with them."""
    import transformers

    found = []
    models = Path(importlib.import_module("transformers.models").__path__[0])
    for file in sorted(models.glob("*/modeling_*.py")):
        if "def get_text_features" not in file.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            other = any(hasattr(value, f"get_{side}_features") for side in ("image", "audio", "video"))
            if own and other and hasattr(value, "get_text_features"):
                assert hasattr(transformers, name), name
                found.append(name)
    return found
