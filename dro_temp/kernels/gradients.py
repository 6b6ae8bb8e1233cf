"""Closed-form gradients of log-mean-exp, block by block."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.passes import NOT_AN_OUTCOME, Tilted
from dro_temp.kernels.products import LOW, AddUp, add_up, gradient_dtype, product
from dro_temp.kernels.rows import Products


@dataclass(frozen=True)
class Needs:
    """Which gradients are wanted."""

    queries: bool = False
    keys: bool = False
    bias: bool = False
    parameters: bool = False

    @property
    def sums_over_rows(self) -> bool:
        """True if some gradient adds up rows: each row's weight in the loss must then be known in the sweep."""
        return self.keys or self.bias or self.parameters


class ProductGradients:
    r"""Gradients of $\sum_i u_i \log g_i$ with respect to queries, keys and bias.

    $\partial \log g_i / \partial s_{ij} = (p_{ij} - 1[j = t_i]) / \tau_i$. The weights are never normalised:
    $u_i / (\tau_i \sum_j e_{ij})$ is multiplied into the small side of each product.

    Args:
        products: what is scored.
        needs: gradients wanted.
        work: precision of the sums.
        add_up: how rows are added up.
    """

    def __init__(self, products: Products, needs: Needs, work: torch.dtype, add_up: AddUp = add_up) -> None:
        self._p, self._work, self._add_up = products, work, add_up
        self._keys = products.keys.to(gradient_dtype(products.keys))
        self.wanted = needs.queries or needs.keys or needs.bias
        p = products
        self.queries = dense_like(p.queries, work) if needs.queries else None
        self.keys = dense_like(p.keys, work) if needs.keys else None
        if self.keys is not None and not len(p.queries):
            self.keys.zero_()  # no block will come to overwrite it
        self.bias = torch.zeros_like(p.bias, dtype=work) if needs.bias and p.bias is not None else None

    @property
    def factor(self) -> torch.dtype:
        """Precision that a block's weights are wanted in: that of the products, if those are all that reads them."""
        alone = self._p.bias is None and self._p.transform is None
        return self._keys.dtype if alone else self._work

    @property
    def means(self) -> bool:
        """Whether E_p[s] comes with the product that the queries' gradient needs anyway, as precise as the scores."""
        exact = self._keys.dtype not in LOW and self._p.transform is None
        return self.queries is not None and exact

    def pull(self, block: slice, tilted: Tilted) -> PerRow:
        r"""$\mathrm{E}_p[s] - \max s$ of each row, from the product that the queries' gradient needs anyway."""
        if self.queries is None:
            assert tilted.excess is not None
            return tilted.excess
        pulled = product(tilted.weights, self._keys, self.queries[block])
        if tilted.excess is not None:
            return tilted.excess
        moment = (pulled * self._p.queries[block]).sum(1) * self._p.scale
        if self._p.bias is not None:
            moment = moment + tilted.weights @ self._p.bias.to(pulled.dtype).clamp(min=NOT_AN_OUTCOME)
        return moment / tilted.total - tilted.top

    def add(
        self, block: slice, tilted: Tilted, tau: PerRow, u: PerRow, slope_at_target: PerRow | None
    ) -> None:
        """Add a block's share.

        Args:
            block: its rows.
            tilted: its weights, times the transform's slope if there is one.
            tau: its temperatures.
            u: dL/dlog_g of its rows.
            slope_at_target: the transform's slope at each row's target, or None.
        """
        p, target = self._p, self._p.target[block].long()
        at_target = -u / tau if slope_at_target is None else -u / tau * slope_at_target
        share = u / tau / tilted.total
        if self.bias is not None:
            self.bias.add_(share @ tilted.weights).index_add_(0, target, at_target)
        share, at_target = (share * p.scale)[:, None], at_target * p.scale
        if self.queries is not None:
            self.queries[block].mul_(share).add_(at_target[:, None] * p.keys[target])
        if self.keys is not None:
            queries = p.queries[block].to(self.keys.dtype)
            first = block.start == 0
            self._add_up(self.keys, tilted.weights, queries * share, self._keys.dtype, first=first)
            self.keys.index_add_(0, target, queries * at_target[:, None])


def dense_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Row by row, whatever the layout of x: `empty_like` would hand on that of a transposed weight."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def multiply_slopes_(weights: Scores, slopes: Scores, target: Tensor) -> PerRow:
    """Carry weights through a transform; return the slope at each row's target."""
    weights.mul_(slopes)
    return slopes.gather(1, target[:, None]).squeeze(1)
