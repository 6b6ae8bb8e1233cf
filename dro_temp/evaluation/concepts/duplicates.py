"""How many other items of a data set are nearly the same: false negatives of a contrastive loss."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_tensor, check_within
from dro_temp.evaluation._batches import with_progress
from dro_temp.evaluation._inputs import ROUNDING, check_features, check_labels, unit

_TILE = 2048  # items on either side of a tile of similarities, 16 MiB in float32


def same_concept(concept: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    r"""Number of other items with the same concept, $\#\{j \ne i : y_j = y_i\}$.

    Args:
        concept: number of each item's concept, for example `GlyphCaptions.name_index`.

    Raises:
        ValueError: no items, not one number per item, or negative numbers.
        TypeError: numbers of another than an integer dtype.

    Example:
        >>> same_concept(torch.tensor([7, 3, 7, 7]))
        tensor([2, 0, 2, 2])
    """
    check_tensor("concept", concept)
    if concept.dim() != 1 or len(concept) == 0:
        raise ValueError(
            f"expected concept [n] with n > 0, received {list(concept.shape)}. Pass one number per item."
        )
    concept = check_labels("concept", concept, len(concept))
    _, place, count = torch.unique(concept, return_inverse=True, return_counts=True)
    others: Tensor = count[place] - 1
    return others


def near_duplicates(
    features: Float[Tensor, "n d"], *, threshold: float = 0.95, progress: bool = False
) -> Int[Tensor, "n"]:
    r"""Number of other items whose cosine similarity reaches a threshold, $\#\{j \ne i : \cos(x_i, x_j) \ge t\}$.

    Computed tile by tile, each pair once: time is quadratic in n, memory linear.

    Args:
        features: one vector per item, of any length.
        threshold: minimum similarity, in [0, 1], up to rounding ($2^{-20}$): 1 counts exact duplicates.
        progress: show a progress bar.

    Raises:
        ValueError: features that are no finite matrix, or a threshold outside [0, 1].
        TypeError: features that are not floating point.

    Example:
        >>> near_duplicates(torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]))
        tensor([1, 1, 0])
    """
    check_features(features=features)
    check_within("threshold", threshold, 0.0, 1.0)
    with torch.no_grad():
        tiles = torch.split(unit(features), _TILE)
        count = [torch.zeros(len(tile), dtype=torch.long, device=features.device) for tile in tiles]
        for i, tile in enumerate(with_progress(tiles, "near-duplicates" if progress else None)):
            for j in range(i, len(tiles)):
                near = tile @ tiles[j].T >= threshold - ROUNDING
                if i == j:
                    near.fill_diagonal_(False)
                else:
                    count[j] += near.sum(dim=0)
                count[i] += near.sum(dim=1)
    return torch.cat(count)
