"""One encoder, two augmented views of every sample."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._checks import check_kind
from dro_temp.hosts._pairs import unit
from dro_temp.hosts.labels import as_index
from dro_temp.interfaces import HostAdapter, Rows


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
        x, y = self.encode(first), self.encode(second)
        with distributed.raising_together(x.device) if self.objective_trains else nullcontext():
            index = as_index(index, x.device)
            if x.dim() != 2 or x.shape != y.shape:
                raise ValueError(
                    "expected the encoder to return [n, d] for both views with the same n and d, received "
                    f"{list(x.shape)} and {list(y.shape)}. Pool to one vector per input, and pass two views of each "
                    "sample."
                )
        all_x, all_y, start = x, y, 0
        if self.objective_trains:
            distributed.refuse_missing_group()
            all_x, start = distributed.gather_rows_with_gradient(x)
            all_y, _ = distributed.gather_rows_with_gradient(y)
        return {
            "first": _rows(x, all_x, all_y, start, index),
            "second": _rows(y, all_y, all_x, start, index),
        }


def _rows(x: Tensor, own_view: Tensor, other_view: Tensor, start: int, index: Tensor | None) -> Rows:
    """Scores against the row's own view without itself, then against the other view."""
    n, m = len(x), len(own_view)
    itself = torch.arange(start, start + n, device=x.device)
    others = torch.arange(max(m - 1, 0), device=x.device).expand(n, -1)
    others = others + (others >= itself[:, None])
    with torch.autocast(x.device.type, enabled=False):
        scores = torch.cat([(x @ own_view.T).gather(1, others), x @ other_view.T], 1)
    return Rows(scores, itself + max(m - 1, 0), x, index, target_in_support=False)
