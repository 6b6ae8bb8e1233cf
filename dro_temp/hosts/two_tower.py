"""Two encoders into one space."""

from typing import Any

from torch import Tensor, nn

from dro_temp._checks import check_kind
from dro_temp.hosts._pairs import pair_rows, unit
from dro_temp.interfaces import HostAdapter, Rows


class TwoTower(HostAdapter):
    r"""Any two encoders, scored by cosine similarity: $s_{ij} = x_i^\top y_j$ with $\|x\| = \|y\| = 1$.

    An image row scores one image against all texts of the batch, a text row one text against all images. The
    target is the row's own partner and is not in its support: the adversary weights the others. In training with
    several processes, rows are local and columns come from all of them.

    Args:
        image_encoder: module with `image_encoder(images) -> [n d]`; any length.
        text_encoder: module with `text_encoder(texts) -> [n d]`.
        frozen: True to leave both encoders alone.

    Raises:
        ValueError: encodings that are not two-dimensional, or differ in number or width.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> rows = host(torch.randn(8, 6), torch.randn(8, 5))
        >>> list(rows), rows["image"].support_size
        (['image', 'text'], 7)
    """

    views = mirrored = ("image", "text")
    checks_values = True

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, *, frozen: bool = False) -> None:
        super().__init__(frozen=frozen)
        for name, encoder in (("image_encoder", image_encoder), ("text_encoder", text_encoder)):
            check_kind(name, encoder, nn.Module, "Pass a torch.nn.Module that maps a batch to [n, d].")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder

    def encode_image(self, images: Any) -> Tensor:
        """Unit vectors [n d] of images, in float32 or better: what image rows' predictors read."""
        return unit(self.image_encoder(images), "image encoder")

    def encode_text(self, texts: Any) -> Tensor:
        """Unit vectors [n d] of texts, in float32 or better: what text rows' predictors read."""
        return unit(self.text_encoder(texts), "text encoder")

    def rows(self, images: Any, texts: Any, index: Any = None) -> dict[str, Rows]:
        """Image rows and text rows of a batch of pairs.

        Args:
            images: whatever the image encoder takes.
            texts: whatever the text encoder takes.
            index: the pairs' numbers in the data set, also as a list or an array.
        """
        image, text = self.encode_image(images), self.encode_text(texts)
        return pair_rows(image, text, index, gathers=self.objective_trains)
