"""Consistency between the two sides of pairs."""

from collections.abc import Mapping

from torch import Tensor

from dro_temp._checks import check_not_negative
from dro_temp._typing import Scalar
from dro_temp.interfaces import HostAdapter, LinearScores, Penalty, Rows


class CyclicPenalty(Penalty):
    r"""$\frac{a}{B} \sum_{ij} (x_i^\top x_j - y_i^\top y_j)^2 + \frac{c}{B} \sum_{ij} (x_i^\top y_j - x_j^\top y_i)^2$.

    Similarities among images should equal those among their texts, and that of image i to text j that of image j to
    text i. They are not divided by a temperature. $\frac1B \sum_{ij}$ is B times the mean over all pairs.

    The rows give all four products. In several processes each takes its own rows against the columns of all, so
    the mean over processes is the penalty of the whole batch, exactly. Materialises the score matrices.

    Args:
        in_modal: weight a, >= 0; 0 leaves that term uncomputed.
        cross_modal: weight c, >= 0.
        views: names of the two views.

    Raises:
        TypeError: a weight that is not a number.
        ValueError: a negative weight; at construction of the objective, a host whose two views are not one matrix
            read by rows and by columns; at a call, scores that are a matrix, or rows with weights.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> rows = host(torch.randn(8, 6), torch.randn(8, 5))
        >>> s = rows["image"].dense_scores
        >>> bool(torch.isclose(dt.CyclicPenalty(0.0, 0.25)(rows), 0.25 * 8 * (s - s.T).square().mean()))
        True

    Source: arXiv 2205.14459 (CyCLIP), equations 3 to 5, with its weights 0.25 and 0.25.
    """

    name = "cyclic"

    def __init__(
        self, in_modal: float = 0.25, cross_modal: float = 0.25, *, views: tuple[str, str] = ("image", "text")
    ) -> None:
        super().__init__()
        check_not_negative("in_modal", in_modal)
        check_not_negative("cross_modal", cross_modal)
        names = isinstance(views, tuple | list) and all(isinstance(view, str) for view in views)
        if not names or len(set(views)) != 2:
            raise ValueError(
                f"expected views as the names of two views, received views={views!r}. Pass views=('image', 'text'), "
                "the names that the host gives them."
            )
        self.in_modal, self.cross_modal, self.views = float(in_modal), float(cross_modal), tuple(views)

    def check_host(self, host: HostAdapter) -> None:
        """Raise unless the two views mirror each other."""
        if host.mirrored is None or set(host.mirrored) != set(self.views):
            mirrored = "none" if host.mirrored is None else list(host.mirrored)
            raise ValueError(
                f"expected a host whose views {list(self.views)} mirror each other for CyclicPenalty, received "
                f"{type(host).__name__} with views {list(host.views)}, of which mirror each other: {mirrored}. Use "
                "TwoTower, name the two with CyclicPenalty(views=...), or leave the penalty out."
            )

    def value(self, rows: Mapping[str, Rows]) -> Scalar:
        """The two terms, weighted."""
        image, text = (_products(view, rows[view]) for view in self.views)
        total = image.queries.sum() * 0.0
        if self.in_modal:
            # The keys of the text rows are the images of all processes.
            images, texts = LinearScores(image.queries, text.keys), LinearScores(text.queries, image.keys)
            total = total + self.in_modal * _distance(images, texts)
        if self.cross_modal:
            total = total + self.cross_modal * _distance(image, text)
        return total

    def extra_repr(self) -> str:
        """The weights."""
        return f"in_modal={self.in_modal}, cross_modal={self.cross_modal}"


def _distance(first: LinearScores, second: LinearScores) -> Tensor:
    """Mean over rows of the squared distance between two rows of scores."""
    total = (first.dense() - second.dense()).square().sum()
    return total / max(first.shape[0], 1)  # a process may hold no rows


def _products(view: str, rows: Rows) -> LinearScores:
    if not isinstance(rows.scores, LinearScores):
        raise ValueError(
            f"expected scores of view {view!r} that are products (LinearScores), whose factors CyclicPenalty "
            "compares, received a matrix. Return LinearScores(x, y) from the host, or leave the penalty out."
        )
    if rows.weight is not None:
        raise ValueError(
            f"expected rows without weights in view {view!r} for CyclicPenalty, whose pairs all count, received "
            "weights. Drop the padded pairs from the batch, or leave the penalty out."
        )
    return rows.scores
