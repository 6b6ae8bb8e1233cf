"""Classification by the nearest training items."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_positive
from dro_temp.evaluation._batches import with_progress
from dro_temp.evaluation._inputs import check_features, check_ks, check_labels, expected_hits, in_blocks, unit

BANK = 16_384  # training items in a tile of similarities


def knn_accuracy(
    train: Float[Tensor, "m d"],
    train_label: Int[Tensor, "m"],
    test: Float[Tensor, "n d"],
    test_label: Int[Tensor, "n"],
    *,
    k: int = 200,
    tau: float = 0.07,
    progress: bool = False,
) -> float:
    r"""Accuracy, in percent, of the weighted vote of the k nearest training items.

    $$\mathrm{votes}_{ic} = \sum_{j \in \mathrm{top}_k(s_{i\cdot}),\ y_j = c} e^{s_{ij} / \tau}, \qquad
    s_{ij} = \cos(x_i, x_j)$$

    A tie between classes counts for each of them in part. Which of several training items that tie for the k-th place
    vote is not specified. Similarities are computed tile by tile, never all at once.

    Args:
        train: features that vote, any length.
        train_label: class number of each.
        test: features to classify.
        test_label: class number of each.
        k: number of neighbours, at most the number of training items.
        tau: temperature of the votes, > 0; a large one weighs all neighbours equally.
        progress: show a progress bar.

    Raises:
        ValueError: features that are no finite matrices of one width, labels that do not fit, a k above the number
            of training items, or a temperature that is not positive.
        TypeError: features or labels of a wrong dtype.

    Example:
        >>> knn_accuracy(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 0]), k=1)
        50.0

    Source: Wu et al., arXiv 1805.01978 (InstDisc): k = 200, tau = 0.07.
    """
    check_features(train=train, test=test)
    train_label = check_labels("train_label", train_label, len(train)).to(train.device)
    test_label = check_labels("test_label", test_label, len(test)).to(train.device)
    (k,) = check_ks((k,), len(train), "training items")
    check_positive("tau", tau)
    classes = 1 + int(torch.stack([train_label.max(), test_label.max()]).max())
    hits = 0.0
    with torch.no_grad():
        bank = unit(train)
        parts = in_blocks(BANK, unit(test).to(bank), test_label)
        for queries, label in with_progress(parts, "neighbours" if progress else None):
            similarity, neighbour = nearest(queries, bank, k)
            weight = (
                (similarity - similarity[:, :1]) / tau
            ).exp()  # relative to the nearest: nothing overflows
            votes = weight.new_zeros(len(queries), classes).scatter_add_(1, train_label[neighbour], weight)
            hits += float(expected_hits(votes, label, (1,)).sum())
    return 100.0 * hits / len(test)


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest dot products [n k], highest first, and the rows of the bank that they belong to."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), BANK):
        tile = queries @ bank[start : start + BANK].T
        number = torch.arange(start, start + tile.shape[1], device=tile.device).expand_as(tile)
        best = torch.cat([best, tile], dim=1)
        best, place = best.topk(min(k, best.shape[1]), dim=1)
        rows = torch.cat([rows, number], dim=1).gather(1, place)
    return best, rows
