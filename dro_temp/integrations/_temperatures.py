"""Mean and spread of temperatures over many batches, without waiting for the device in between."""

import torch
from torch import Tensor

from dro_temp import distributed

#: Count, mean, and sum of squared distances from the mean.
_Moments = tuple[Tensor, Tensor, Tensor]


class TemperatureMoments:
    """Of the rows of several views, since they were last read; training and evaluation apart.

    Args:
        views: names of the views.
    """

    def __init__(self, views: tuple[str, ...]) -> None:
        self.views = views
        self._moments: dict[bool, dict[str, _Moments]] = {True: {}, False: {}}

    @torch.no_grad()
    def add(self, view: str, tau: Tensor, valid: Tensor | None = None, *, training: bool) -> None:
        """Take in a batch.

        Args:
            view: whose.
            tau: [n].
            valid: [n] True where a row counts; None: all do.
            training: whether it is a batch that trains.
        """
        tau = tau.detach().float()
        weight = torch.ones_like(tau) if valid is None else valid.to(tau)
        count = weight.sum()
        mean = (weight * tau).sum() / count.clamp(min=1)
        batch = count, mean, (weight * (tau - mean).square()).sum()
        before = self._moments[training].get(view)
        self._moments[training][view] = batch if before is None else _merged(before, batch)

    def clear(self, *, training: bool) -> None:
        """Forget what has come so far."""
        self._moments[training] = {}

    def read(self, *, training: bool, device: torch.device) -> dict[str, float]:
        """Means and standard deviations of all processes' rows, and start anew. All processes call it together.

        Args:
            training: whether of training.
            device: where processes add up.
        """
        moments = self._moments[training]
        self.clear(training=training)
        none = torch.zeros(3)
        found = [torch.stack(moments[v]).cpu() if v in moments else none for v in self.views]
        sums = torch.stack([_sums(*x.double()) for x in found])
        if distributed.world_size() > 1:
            sums = distributed.sum_over_processes(sums.to(device))
        read: dict[str, float] = {}
        for view, (count, total, squares) in zip(self.views, sums.tolist(), strict=True):
            if count:
                name = f"{view}/" if len(self.views) > 1 else ""
                mean = total / count
                read[f"{name}tau_mean"] = mean
                read[f"{name}tau_std"] = max(squares / count - mean**2, 0.0) ** 0.5
        return read


def _merged(a: _Moments, b: _Moments) -> _Moments:
    """Moments of two sets together; sums of squares would lose a small spread to rounding."""
    count = a[0] + b[0]
    share = b[0] / count.clamp(min=1)
    gap = b[1] - a[1]
    return count, a[1] + share * gap, a[2] + b[2] + gap.square() * a[0] * share


def _sums(count: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    return torch.stack([count, count * mean, spread + count * mean.square()])
