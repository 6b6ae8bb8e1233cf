"""Recall at k, with ties counted against the model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_count, check_floats, check_integers, check_several
from dro_temp.evaluation._progress import shown

_BLOCK = 2**22  # similarities held at once, 16 MiB in float32
_ROUNDING = (
    2.0**-20
)  # relative; a dot product of a few hundred float32 numbers is exact to about a tenth of it


def retrieval_recall(
    queries: Float[Tensor, "n d"],
    gallery: Float[Tensor, "m d"],
    query_label: Int[Tensor, "n"],
    gallery_label: Int[Tensor, "m"],
    ks: Sequence[int] = (1, 5),
    *,
    progress: bool = False,
) -> dict[int, float]:
    r"""Share of queries, in percent, with an item of their own label among the k most similar.

    $$\mathrm{rank}_i = 1 + \#\{j : y_j \ne y_i,\ \lnot (s_{ij} < \max_{j' : y_{j'} = y_i} s_{ij'})\}, \qquad
    \mathrm{R@}k = \frac{100}{n} \#\{i : \mathrm{rank}_i \le k\}$$

    with $s_{ij}$ the dot product in float32. Ties count against the model: every wrong item that is as similar as
    the best right one, up to rounding ($2^{-20} \|q_i\| \max_j \|g_j\|$), ranks before it, so that a collapsed
    model scores 0 rather than whatever the order of the gallery gives, and the order never matters. A similarity
    that is NaN counts against the model as well.

    Args:
        queries: embeddings to search with; normalise them for cosine similarity.
        gallery: embeddings to search in. The n x m similarities are never held at once.
        query_label: label of each query.
        gallery_label: label of each item; several items may share one.
        ks: numbers of items looked at, each at least 1.
        progress: show a progress bar.

    Returns:
        Percentage for each k.

    Raises:
        ValueError: no queries or no `ks`, shapes that do not fit, or a query whose label is not in the gallery.
        TypeError: a k that is no int.
        ImportError: `progress` without rich.

    Example:
        >>> items = torch.eye(4)
        >>> label = torch.arange(4)
        >>> retrieval_recall(items[[0, 1, 3, 2]], items, label, label, ks=(1, 4))
        {1: 50.0, 4: 100.0}
    """
    _check(queries, gallery, query_label, gallery_label, ks)
    with torch.no_grad():
        rank = _ranks(queries.float(), gallery.float(), query_label, gallery_label, progress)
    return {k: 100.0 * int((rank <= k).sum()) / len(rank) for k in ks}


def _ranks(
    queries: Tensor, gallery: Tensor, query_label: Tensor, gallery_label: Tensor, progress: bool
) -> Tensor:
    """Rank of the best right item, [n]."""
    # Not torchmetrics' RetrievalHitRate: it wants all n x m similarities as one list with a query number each, then
    # loops over queries in Python; ties go to whichever a sort puts first.
    slack = _ROUNDING * queries.norm(dim=1) * gallery.norm(dim=1).max()
    rows = max(1, _BLOCK // len(gallery))
    ranks = []
    blocks = (torch.split(x, rows) for x in (queries, query_label, slack))
    for query, label, tie in shown(list(zip(*blocks, strict=True)), "retrieval" if progress else None):
        similarity = query @ gallery.T
        right = label[:, None] == gallery_label[None, :]
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1)
        # "not below" in place of "at least": it also holds for NaN
        before = ~(similarity < (best - tie)[:, None]) & ~right
        ranks.append(1 + before.sum(dim=1))
    return torch.cat(ranks)


def _check(
    queries: Tensor, gallery: Tensor, query_label: Tensor, gallery_label: Tensor, ks: Sequence[int]
) -> None:
    check_several("ks", ks, "Pass ks=(1, 5).")
    check_floats("queries", queries)
    check_floats("gallery", gallery)
    check_integers("query_label", query_label)
    check_integers("gallery_label", gallery_label)
    if len(ks) == 0:
        raise ValueError("expected at least one k, received none. Pass ks=(1, 5).")
    for k in ks:
        check_count("k", k)
    shapes = [list(x.shape) for x in (queries, gallery, query_label, gallery_label)]
    matrices = queries.dim() == gallery.dim() == 2 and shapes[0][1] == shapes[1][1]
    if not matrices or shapes[2] != shapes[0][:1] or shapes[3] != shapes[1][:1] or 0 in shapes[0][:1]:
        raise ValueError(
            "expected queries [n d], gallery [m d], query_label [n] and gallery_label [m] with n > 0, received "
            f"{', '.join(map(str, shapes))}. Give one embedding and one label per item, in the same order."
        )
    missing = ~torch.isin(query_label, gallery_label)
    if bool(missing.any()):
        row = int(missing.nonzero()[0])
        raise ValueError(
            f"expected the label of every query in the gallery, received label {int(query_label[row])} of query {row} "
            f"(and {int(missing.sum()) - 1} more), which no item has. Leave those queries out, or enlarge the gallery: "
            "keep = torch.isin(query_label, gallery_label)."
        )
