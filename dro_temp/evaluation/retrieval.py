"""Recall at k, with ties counted against the model: by labels, and between images and captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_floats, check_integers
from dro_temp.evaluation._batches import with_progress
from dro_temp.evaluation._inputs import ROUNDING, check_features, check_ks, check_labels, in_blocks


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
    model scores 0, and the order of the gallery never matters. A similarity that is NaN counts against the model as
    well.

    Args:
        queries: embeddings to search with; normalise them for cosine similarity.
        gallery: embeddings to search in. The n x m similarities never exist at once.
        query_label: label of each query.
        gallery_label: label of each item; several items may share one.
        ks: numbers of items considered, each at least 1.
        progress: show a progress bar.

    Returns:
        Percentage for each k.

    Raises:
        ValueError: no queries or no `ks`, shapes that do not fit, or a query whose label is not in the gallery.
        TypeError: a k that is not an int.

    Example:
        >>> items = torch.eye(4)
        >>> label = torch.arange(4)
        >>> retrieval_recall(items[[0, 1, 3, 2]], items, label, label, ks=(1, 4))
        {1: 50.0, 4: 100.0}
    """
    ks = check_ks(ks)
    check_floats("queries", queries)
    check_floats("gallery", gallery)
    check_integers("query_label", query_label)
    check_integers("gallery_label", gallery_label)
    shapes = q, g, *labels = [list(x.shape) for x in (queries, gallery, query_label, gallery_label)]
    if not (len(q) == len(g) == 2 and q[1] == g[1] and labels == [q[:1], g[:1]] and len(queries) > 0):
        raise ValueError(
            "expected queries [n d], gallery [m d], query_label [n] and gallery_label [m] with n > 0, received "
            f"{', '.join(map(str, shapes))}. Give one embedding and one label per item, in the same order."
        )
    missing = (~torch.isin(query_label, gallery_label)).nonzero()[:, 0].tolist()
    if missing:
        raise ValueError(
            f"expected the label of every query in the gallery, received label {int(query_label[missing[0]])} of query "
            f"{missing[0]} (and {len(missing) - 1} more), which no item has. Leave those queries out, or enlarge the "
            "gallery: keep = torch.isin(query_label, gallery_label)."
        )
    queries, gallery = queries.float(), gallery.float()
    slack = ROUNDING * queries.norm(dim=1) * gallery.norm(dim=1).max()
    blocks = in_blocks(len(gallery), queries, query_label, slack)
    ranks = []  # of the best right item of each query
    # Not torchmetrics' RetrievalHitRate: it wants all n x m similarities as one list with a query number each, then
    # loops over queries in Python; ties go to whichever a sort puts first.
    with torch.no_grad():
        for query, label, tie in with_progress(blocks, "retrieval" if progress else None):
            similarity = query @ gallery.T
            right = label[:, None] == gallery_label
            best = similarity.masked_fill(~right, -torch.inf).amax(dim=1)
            # "not below" in place of "at least": it also holds for NaN
            before = ~(similarity < (best - tie)[:, None]) & ~right
            ranks.append(1 + before.sum(dim=1))
    rank = torch.cat(ranks)
    return {k: 100.0 * int((rank <= k).sum()) / len(rank) for k in ks}


@dataclass(frozen=True)
class CaptionRecall:
    """Recall at k in both directions, in percent.

    Args:
        image_to_text: for each k, share of images with one of their captions among the k most similar.
        text_to_image: for each k, share of captions with their image among the k most similar.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over both directions and all k; the RSUM of the literature is the sum."""
        values = [*self.image_to_text.values(), *self.text_to_image.values()]
        return sum(values) / len(values)


def caption_recall(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "m d"],
    image_of: Int[Tensor, "m"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    progress: bool = False,
) -> CaptionRecall:
    r"""Recall at k between images and captions, as on Flickr30K and COCO with five captions to an image.

    With $c(j)$ the image of caption j and $s_{ij}$ the dot product:

    $$\text{image to text: } \frac{100}{n} \#\{i : \exists j \in \mathrm{top}_k(s_{i\cdot}),\ c(j) = i\}, \qquad
    \text{text to image: } \frac{100}{m} \#\{j : c(j) \in \mathrm{top}_k(s_{\cdot j})\}$$

    A tie is a miss, as in `retrieval_recall`, which does the work: the n x m similarities never exist at once.

    Args:
        images: embeddings; normalise them for cosine similarity.
        texts: embeddings of all captions, in any order.
        image_of: number of each caption's image, its row in `images`. An image without captions is a
            distractor, but no query.
        ks: numbers of items considered, each at least 1 and at most the number of images and of captions.
        progress: show progress bars.

    Raises:
        ValueError: features that are not finite matrices of one width, a caption of an image that does not exist,
            or a k above the number of items.
        TypeError: features or numbers of a wrong dtype.

    Example:
        >>> images = torch.eye(2)
        >>> texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # the second describes the wrong image
        >>> caption_recall(images, texts, torch.tensor([0, 0, 1]), ks=(1,))
        CaptionRecall(image_to_text={1: 50.0}, text_to_image={1: 66.66666666666667})

    Source: Karpathy and Fei-Fei, arXiv 1412.2306.
    """
    check_features(images=images, texts=texts)
    image_of = check_labels("image_of", image_of, len(texts), len(images)).to(images.device)
    ks = check_ks(ks, min(len(images), len(texts)), "images or captions, whichever is less")
    texts = texts.to(images.device)
    queries = torch.unique(image_of)
    number = torch.arange(len(images), device=images.device)
    return CaptionRecall(
        retrieval_recall(images[queries], texts, queries, image_of, ks, progress=progress),
        retrieval_recall(texts, images, image_of, number, ks, progress=progress),
    )
