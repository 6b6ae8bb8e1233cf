"""Retrieval between images and captions, several captions to an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp.evaluation._features import check_features, check_ks, check_labels
from dro_temp.evaluation.retrieval import retrieval_recall


@dataclass(frozen=True)
class CaptionRecall:
    """Recall at k both ways, in percent.

    Args:
        image_to_text: for each k, share of images with one of their captions among the k most similar.
        text_to_image: for each k, share of captions with their image among the k most similar.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over both ways and all k; times their number it is the RSUM of the literature."""
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

    A tie is a miss, as in `retrieval_recall`, which does the work: the n x m similarities are never held at once.

    Args:
        images: embeddings; normalise them for cosine similarity.
        texts: embeddings of all captions, in any order.
        image_of: number of each caption's image, its row in `images`. An image without captions is there to be
            confused with, but is no query.
        ks: numbers of items looked at, each at least 1 and at most the number of images and of captions.
        progress: show progress bars.

    Raises:
        ValueError: features that are not finite matrices of one width, a caption of an image that does not exist,
            or a k above the number of items.
        TypeError: features or numbers of a wrong dtype.
        ImportError: `progress` without rich.

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
