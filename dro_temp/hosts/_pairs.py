"""Shared by hosts of pairs: from the vectors of two encoders to image rows and text rows."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._tensors import LOW
from dro_temp.hosts.labels import as_index
from dro_temp.interfaces import LinearScores, Rows


def unit(vectors: Any, encoder: str) -> Tensor:
    """An encoder's output [n d] as vectors of length one, in float32 or better, also under autocast."""
    if not isinstance(vectors, Tensor):
        raise TypeError(
            f"expected the {encoder} to return a tensor [n, d], received {type(vectors).__name__}. "
            "Wrap it in a module that returns the pooled vectors alone."
        )
    with torch.autocast(vectors.device.type, enabled=False):
        return nn.functional.normalize(vectors.float() if vectors.dtype in LOW else vectors, dim=-1)


def pair_rows(
    image: Tensor,
    text: Tensor,
    index: Any = None,
    *,
    negatives: Tensor | None = None,
    gathers: bool = False,
    views: tuple[str, str] = ("image", "text"),
) -> dict[str, Rows]:
    r"""Rows of both sides of a batch of pairs, for a host of your own: $s_{ij} = x_i^\top y_j$, and its transpose.

    The target of each row is its own partner, which is no outcome. In several processes columns come from all of them,
    with their gradient: a host that scores its own batch alone would train on fewer outcomes, and nothing would tell.

    Args:
        image: vectors x of the first side, [n d], usually of length one.
        text: vectors y of the second side, [n d].
        index: the pairs' numbers in the data set, also as a list or an array.
        negatives: vectors [k d] of the second side that belong to no pair: columns without rows.
        gathers: True to take columns from all processes: `self.objective_trains` of a host. False where one process may
            run alone, as in an evaluation.
        views: names of the two sides; a host declares them as its `views`, and as `mirrored`.

    Returns:
        Rows of each view, with the vectors of its side as features.

    Raises:
        ValueError: vectors that are not [n d], or differ in number or width; an index of another length.
        RuntimeError: one of several processes that were launched, without a process group.

    Example:
        >>> import torch, dro_temp as dt
        >>> x, y = (torch.nn.functional.normalize(torch.randn(3, 8)) for _ in range(2))
        >>> rows = dt.hosts.pair_rows(x, y, views=("audio", "text"))
        >>> rows["audio"].target.tolist(), rows["text"].support_size
        ([0, 1, 2], 2)
    """
    together = gathers and distributed.world_size() > 1
    with distributed.raising_together(image.device) if together else nullcontext():
        index = index if isinstance(index, Tensor) else as_index(index, image.device)
        if image.dim() != 2 or image.shape != text.shape:
            raise ValueError(
                f"expected both encoders to return [n, d] with the same n and d, received {list(image.shape)} for "
                f"view {views[0]!r} and {list(text.shape)} for view {views[1]!r}. Pool to one vector per input, "
                "project both to one width, and pass as many images as texts, or two views of each sample."
            )
        if index is not None and index.shape != image.shape[:1]:
            raise ValueError(
                f"expected index of shape [{len(image)}], one per pair, received {list(index.shape)}. Pass each "
                "pair's number in the data set."
            )
    if gathers and not together:
        distributed.refuse_missing_group()
    start, image_scores = 0, LinearScores(image, text)
    text_scores = image_scores.transposed()
    if together:
        # Nothing flows back through the gathering where losses exchange per-row numbers instead.
        all_images, start = distributed.gather_rows_with_gradient(image)
        all_texts, _ = distributed.gather_rows_with_gradient(text)
        image_scores = LinearScores(image, all_texts, local_keys=text)
        text_scores = LinearScores(text, all_images, local_keys=image)
    if negatives is not None:
        further = distributed.gather_rows_with_gradient(negatives)[0] if together else negatives
        image_scores = LinearScores(image, torch.cat([image_scores.keys, further]))
    target = torch.arange(start, start + len(image), device=image.device)
    return {
        views[0]: Rows(image_scores, target, image, index, target_in_support=False),
        views[1]: Rows(text_scores, target, text, index, target_in_support=False),
    }


def freeze_own_scale(model: nn.Module) -> None:
    """Freeze the model's scalar parameters, such as `logit_scale`: DistributedDataParallel raises over unused ones."""
    for parameter in model.parameters(recurse=False):
        if parameter.numel() == 1:
            parameter.requires_grad_(False)
