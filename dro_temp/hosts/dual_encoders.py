"""Models with two towers of other libraries: open_clip's and Hugging Face's."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._modes import evaluating
from dro_temp.hosts.pairs import TwoTower, freeze_own_scale, pair_rows, unit
from dro_temp.interfaces import HostAdapter, Rows


class OpenCLIP(TwoTower):
    r"""Any model of open_clip, scored by cosine similarity: $s_{ij} = x_i^\top y_j$ with $\|x\| = \|y\| = 1$.

    $x$ and $y$ come from the model's own `encode_image` and `encode_text`, with its towers, pooling and projections,
    whatever its `output_dict`; the model's logits are these scores times its scale, plus its bias. Rows are those of
    `TwoTower`.

    Temperatures come from predictors. The model's own `logit_scale` and `logit_bias` are unused and frozen
    (`requires_grad=False`). The caption decoder of a CoCa model does not run and gets no gradient; under
    DistributedDataParallel freeze it with `freeze_unused`.

    Args:
        model: the model, for example the first of what `open_clip.create_model_and_transforms` returns.
        frozen: True to leave the model alone.

    Raises:
        TypeError: a model without `encode_image` or `encode_text`.
        ValueError: at a call, no images, no texts, not as many of one as of the other, or towers of two widths.

    Example:
        >>> import dro_temp as dt, open_clip
        >>> vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
        >>> text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
        >>> host = dt.hosts.OpenCLIP(open_clip.CLIP(24, vision, text))
        >>> rows = host(torch.randn(4, 3, 16, 16), torch.randint(99, (4, 8)))
        >>> list(rows), rows["image"].support_size, host.width
        (['image', 'text'], 3, 24)
    """

    def __init__(self, model: nn.Module, *, frozen: bool = False) -> None:
        missing = [name for name in ("encode_image", "encode_text") if not hasattr(model, name)]
        if missing:
            raise TypeError(
                f"expected a model with encode_image and encode_text, received {type(model).__name__} without "
                f"{' and '.join(missing)}. Pass what open_clip.create_model returns, unwrapped (model.module of "
                "DistributedDataParallel: wrap the objective instead), or use TwoTower(image_encoder, text_encoder)."
            )
        HostAdapter.__init__(self, frozen=frozen)  # the encoders are the model's own methods
        self.model = model
        freeze_own_scale(model)

    def encode_image(self, images: Any) -> Tensor:
        """Unit vectors [n d] of images, in float32 or better: what image rows' predictors read."""
        return unit(self.model.encode_image(images), "image tower")  # type: ignore[operator]

    def encode_text(self, texts: Tensor) -> Tensor:
        """Unit vectors [n d] of tokenised texts, in float32 or better: what text rows' predictors read."""
        return unit(self.model.encode_text(texts), "text tower")  # type: ignore[operator]

    def rows(
        self, images: Any = None, texts: Tensor | None = None, index: Any = None, group: Any = None
    ) -> dict[str, Rows]:
        """As `TwoTower.rows`, of preprocessed images, and of tokens [n length] as the model's tokenizer makes them."""
        if images is None or texts is None:
            raise ValueError(
                f"expected images and texts, received no {'images' if images is None else 'texts'}. "
                "Call host(images, texts, index=index); for one side alone use encode_image or encode_text."
            )
        return super().rows(images, texts, index, group)

    @property
    def width(self) -> int:
        """Width d of the common space, for `TempNet(host.width, ...)`; determined by running one text."""
        # A CLIP takes texts of its full length only, a Hugging Face tower shorter ones than its config says.
        length = len(getattr(self.model, "positional_embedding", range(8)))
        tokens = torch.zeros(1, length, dtype=torch.long, device=next(self.model.parameters()).device)
        with evaluating(self.model):
            return self.encode_text(tokens).shape[1]


class HFDualEncoder(HostAdapter):
    r"""Any transformers model with two towers, scored by cosine similarity: CLIP, SigLIP, ALIGN, CLAP, ...

    The towers are the model's own `get_text_features`, and its `get_image_features`, or else `get_audio_features` or
    `get_video_features`: audio and video make the rows of the view "image". With $x$ and $y$ their outputs normalised
    to length one, $s_{ij} = x_i^\top y_j$, and the model's own logits are these scores times its scale (or divided
    by its temperature), plus its bias. Where a tower returns one vector per position, as FLAVA's do, the first is
    used, as in FLAVA's own loss. X-CLIP's `forward` also lets each video change each text, which is not a product of
    two vectors and is left out. Rows are those of `TwoTower`.

    Temperatures come from predictors. The model's own (`logit_scale`, `logit_bias`, `temperature`) is unused and frozen
    (`requires_grad=False`). Other parts may be unused as well, such as a text tower's pooler or FLAVA's multimodal
    encoder; under DistributedDataParallel freeze them with `freeze_unused`.

    Args:
        model: the model.
        frozen: True to leave the model alone.

    Raises:
        TypeError: a model without one of the methods.

    Example:
        >>> import dro_temp as dt, transformers
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = transformers.CLIPConfig(
        ...     text_config=sizes | {"vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98},
        ...     vision_config=sizes | {"image_size": 16, "patch_size": 8},
        ...     projection_dim=24,
        ... )
        >>> host = dt.hosts.HFDualEncoder(transformers.CLIPModel(config))
        >>> rows = host(pixel_values=torch.randn(4, 3, 16, 16), input_ids=torch.randint(99, (4, 8)))
        >>> list(rows), rows["image"].support_size, host.width
        (['image', 'text'], 3, 24)
    """

    views = mirrored = ("image", "text")

    def __init__(self, model: nn.Module, *, frozen: bool = False) -> None:
        super().__init__(frozen=frozen)
        self._image = _Tower(model, "get_image_features", "get_audio_features", "get_video_features")
        self._text = _Tower(model, "get_text_features")
        self.model = model
        freeze_own_scale(model)

    def encode_image(self, **inputs: Any) -> Tensor:
        """Unit vectors [n d] of what the model's `get_image_features` (or audio, or video) takes, `pixel_values`, say.

        They are in float32 or better, and are what image rows' predictors read.
        """
        return self._encode(self._image, inputs)

    def encode_text(self, **inputs: Any) -> Tensor:
        """As `encode_image`, of what `get_text_features` takes: `input_ids`, `attention_mask`."""
        return self._encode(self._text, inputs)

    def rows(self, index: Any = None, group: Any = None, **batch: Any) -> dict[str, Rows]:
        """Image rows and text rows of a batch of pairs.

        Args:
            index: the pairs' numbers in the data set, also as a list or an array.
            group: numbers of the pairs' groups, see `pair_rows`.
            **batch: what the model's processor returns. Each tower gets the arguments that it takes; what both
                take (an `attention_mask`) is the text's.

        Raises:
            TypeError: an argument that neither tower takes, or a tower that does not pool.
            ValueError: no images, no texts, not as many of one as of the other, or towers of two widths.
        """
        text = {name: value for name, value in batch.items() if name in self._text.takes}
        image = {name: value for name, value in batch.items() if name not in text}
        unknown = [name for name in image if name not in self._image.takes]
        if unknown:
            raise TypeError(
                f"expected arguments of {self._image.method} ({', '.join(self._image.takes)}) or "
                f"{self._text.method} ({', '.join(self._text.takes)}), received {', '.join(unknown)}. "
                "Take them out of the batch: host(**{name: batch[name] for name in ...}, index=index)."
            )
        images, texts = self._encode(self._image, image), self._encode(self._text, text)
        return pair_rows(images, texts, index, group=group, gathers=self.objective_trains)

    @property
    def width(self) -> int:
        """Width d of the common space, for `TempNet(host.width, ...)`; determined by running one text."""
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            return self.encode_text(input_ids=torch.zeros(1, 8, dtype=torch.long, device=device)).shape[1]

    def _encode(self, tower: "_Tower", inputs: dict[str, Any]) -> Tensor:
        given = {name: value for name, value in inputs.items() if value is not None}
        if not given.keys() & {tower.takes[0], "inputs_embeds"}:
            raise ValueError(
                f"expected {tower.takes[0]}, which {type(self.model).__name__}.{tower.method} encodes, received "
                f"{', '.join(given) or 'nothing'} for it. Pass both sides of the pairs, as the model's processor "
                "returns them; for one side alone use encode_image or encode_text."
            )
        output = getattr(self.model, tower.method)(**given)
        vectors = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
        if not isinstance(vectors, Tensor):
            raise TypeError(
                f"expected {tower.method} to return a tensor or an output with pooler_output, received "
                f"{type(output).__name__} without it. Such a model has no contrastive form of its own (or its config "
                "says return_dict=False): use TwoTower with modules that pool and project."
            )
        # Of one vector per position, the first stands for the whole input.
        return unit(vectors[:, 0] if vectors.dim() == 3 else vectors, tower.method)


class _Tower:
    """The first of some methods that a model has, and the arguments that it takes, its main input first."""

    def __init__(self, model: nn.Module, *methods: str) -> None:
        found = [name for name in methods if hasattr(model, name)]
        if not found:
            raise TypeError(
                f"expected a model with {' or '.join(methods)}, received {type(model).__name__}, which has none. "
                "Pass the model that holds both towers, unwrapped (CLIPModel, or the .flava of FlavaForPreTraining), "
                "or use TwoTower(image_encoder, text_encoder)."
            )
        parameters = inspect.signature(getattr(model, found[0])).parameters.values()
        self.method = found[0]
        self.takes = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
