"""A model of open_clip as a host."""

from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._modes import evaluating
from dro_temp.hosts.pairs import TwoTower, freeze_own_scale, unit
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

    def rows(self, images: Any = None, texts: Tensor | None = None, index: Any = None) -> dict[str, Rows]:
        """As `TwoTower.rows`, of preprocessed images, and of tokens [n length] as the model's tokenizer makes them."""
        if images is None or texts is None:
            raise ValueError(
                f"expected images and texts, received no {'images' if images is None else 'texts'}. "
                "Call host(images, texts, index=index); for one side alone use encode_image or encode_text."
            )
        return super().rows(images, texts, index)

    @property
    def width(self) -> int:
        """Width d of the common space, for `TempNet(host.width, ...)`; determined by running one text."""
        # A CLIP takes texts of its full length only, a Hugging Face tower shorter ones than its config says.
        length = len(getattr(self.model, "positional_embedding", range(8)))
        tokens = torch.zeros(1, length, dtype=torch.long, device=next(self.model.parameters()).device)
        with evaluating(self.model):
            return self.encode_text(tokens).shape[1]
