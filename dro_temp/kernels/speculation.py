"""Gradients formed in forward, before it is known what comes back."""

from dataclasses import replace

import torch
from torch import Tensor

from dro_temp._typing import PerRow
from dro_temp.kernels.rows import Expected
from dro_temp.kernels.sweep import Swept, Upstream

# What comes back was computed by the same formula, and multiplied by one factor: a few roundings apart.
_ROUNDINGS = 64


class Speculation:
    """Holds gradients that are right if what comes back is proportional to what was expected.

    A mean, a sum, a loss scale, accumulation: each multiplies all rows by one factor. Anything else (a second
    loss on the same values, a penalty on temperatures) is noticed, and costs a second sweep.

    Args:
        expected: what will come back; None where no gradient adds up rows, so that each row is rescaled by
            itself and nothing need be known.
    """

    def __init__(self, expected: Expected | None) -> None:
        self._expected = expected
        self._u: list[Tensor] = []
        self._v: list[Tensor] = []
        self._swept: Swept | None = None

    @property
    def upstream(self) -> Upstream | None:
        """What the sweep multiplies into its rows."""
        return None if self._expected is None else self._record

    def _record(self, log_g: PerRow, tau: PerRow, rows: slice) -> tuple[PerRow, PerRow]:
        assert self._expected is not None
        u, v = self._expected(log_g, tau, rows)
        self._u.append(u)
        self._v.append(v)
        return u, v

    def filled(self, swept: Swept) -> "Speculation":
        """With the gradients that the sweep found."""
        self._swept = swept
        return self

    def rescaled(self, u: PerRow, v: PerRow, *, tau_predicted: bool) -> Swept | None:
        """The gradients, or None if they are not what was expected. Not to be called twice: it works in place.

        Args:
            u: dL/dlog_g.
            v: dL/dtau.
            tau_predicted: whether the sweep saw to tau's gradient, so that v matters.
        """
        swept = self._swept
        assert swept is not None
        if self._expected is None:
            queries = None if swept.queries is None else swept.queries.mul_(u[:, None])
            return replace(swept, queries=queries)
        factor = self._factor(u, v, tau_predicted)
        if factor is None:
            return None
        if factor != 1.0:
            for gradient in (swept.queries, swept.keys, swept.bias, *swept.parameters):
                if gradient is not None:
                    gradient.mul_(factor)
        return swept

    def _factor(self, u: PerRow, v: PerRow, tau_predicted: bool) -> float | None:
        if not len(u):
            return 1.0
        u0, v0 = torch.cat(self._u), torch.cat(self._v)
        factor = (u.double() @ u0.double()) / u0.double().square().sum()
        close = _close(u, u0, factor)
        if tau_predicted:
            close &= _close(v, v0, factor)
        number, proportional = torch.stack([factor, close.double()]).tolist()  # one wait for the device
        return number if proportional else None


def _close(came: PerRow, expected: PerRow, factor: Tensor) -> Tensor:
    wanted = expected.double() * factor
    tolerance = _ROUNDINGS * torch.finfo(came.dtype).eps * wanted.abs()
    return ((came.double() - wanted).abs() <= tolerance).all()
