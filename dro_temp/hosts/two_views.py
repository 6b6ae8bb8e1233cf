"""One encoder, two augmented views of every sample."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._checks import check_kind
from dro_temp.hosts._pairs import pair_rows, unit
from dro_temp.interfaces import HostAdapter, LinearScores, Rows


class TwoViews(HostAdapter):
    r"""Two views of each sample through one encoder: every row scores against both views of all samples but itself.

    $s_{ij} = x_i^\top z_j$ with unit vectors, z running over both views of the batch. The target is the sample's own
    other view; it and the row itself are not in the support, which leaves 2B - 2 negatives in a batch of B. In
    training with several processes, rows are local and columns come from all of them.

    The score matrix of each view, [B, 2B - 1], is materialised: 32 MB at 2,048 samples.

    Args:
        encoder: module with `encoder(inputs) -> [n d]`, projection head included; any length.
        frozen: True to leave it alone.

    Raises:
        ValueError: encodings that are not two-dimensional, or differ in number or width.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoViews(torch.nn.Linear(6, 4))
        >>> rows = host(torch.randn(8, 6), torch.randn(8, 6))
        >>> list(rows), rows["first"].support_size
        (['first', 'second'], 14)

    Source: arXiv 2002.05709 (SimCLR); arXiv 2202.12387 (SogCLR).
    """

    views = ("first", "second")

    def __init__(self, encoder: nn.Module, *, frozen: bool = False) -> None:
        super().__init__(frozen=frozen)
        check_kind("encoder", encoder, nn.Module, "Pass a torch.nn.Module that maps a batch to [n, d].")
        self.encoder = encoder

    def encode(self, inputs: Any) -> Tensor:
        """Unit vectors [n d], in float32 or better: what predictors read."""
        return unit(self.encoder(inputs), "encoder")

    def rows(self, first: Any, second: Any, index: Any = None) -> dict[str, Rows]:
        """Rows of both views of a batch.

        Args:
            first: one view of each sample, whatever the encoder takes.
            second: another view of the same samples, in the same order.
            index: the samples' numbers in the data set, also as a list or an array.
        """
        x, y, gathers = self.encode(first), self.encode(second), self.objective_trains
        x_rows, y_rows = pair_rows(x, y, index, gathers=gathers, views=("first", "second")).values()
        return {"first": _against_both(x_rows, y_rows), "second": _against_both(y_rows, x_rows)}


def _against_both(rows: Rows, mirror: Rows) -> Rows:
    """Scores against the row's own view without itself, then against the other view."""
    assert isinstance(rows.scores, LinearScores)
    assert isinstance(mirror.scores, LinearScores)
    x, own_view, other_view = rows.scores.queries, mirror.scores.keys, rows.scores.keys
    others = torch.arange(max(len(own_view) - 1, 0), device=x.device).expand(len(x), -1)
    others = others + (others >= rows.target[:, None])
    with torch.autocast(x.device.type, enabled=False):
        scores = torch.cat([(x @ own_view.T).gather(1, others), x @ other_view.T], 1)
    return replace(rows, scores=scores, target=rows.target + others.shape[1])
