"""The tilted mean, and its estimate over the whole data set."""

import torch

from dro_temp import functional as F
from dro_temp._checks import check_kind, check_tilt
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.estimators import Exact
from dro_temp.interfaces import Estimator
from dro_temp.risks.standalone import StandaloneRisk


class TiltedRisk(StandaloneRisk):
    r"""$\frac1t \log \mathbb{E}_i\, e^{t l_i}$: for t > 0 bad samples count more, for t < 0 less.

    With t > 0 it is KL-regularised DRO, $\max_p \mathbb{E}_p l - \frac1t \mathrm{KL}(p\|U)$, with the temperature
    tau = 1/t. With t < 0 samples that cannot be fitted, such as wrong labels, hardly count:
    $p_i \propto e^{-|t| l_i}$. Towards t = 0 it is the mean.

    The log of a batch's mean is biased downwards. An estimator averages that one number over steps: the value is its
    estimate, and the gradient $\nabla g / u$ in place of $\nabla g / g$.

    Args:
        tilt: t, in units of one over the losses', of either sign, not 0.
        estimator: `LogMovingAverage(1)`, say, whose memory needs a `CompositionalOptimizer`; None: the batch alone.

    Raises:
        TypeError: `tilt` is not a number, or `estimator` not an Estimator.
        ValueError: the tilt is 0 or not finite.

    Example:
        >>> import torch, dro_temp as dt
        >>> losses = torch.tensor([0.1, 0.2, 5.0])
        >>> dt.TiltedRisk(-1.0)(losses), dt.TiltedRisk(1.0)(losses)
        (tensor(0.5503), tensor(3.9169))
        >>> dt.TiltedRisk(-1.0).weights(losses)
        tensor([0.5229, 0.4732, 0.0039])

    Source: arXiv 2007.01162 (TERM); the estimator arXiv 2012.06951 (ABSGD).
    """

    def __init__(self, tilt: float, *, estimator: Estimator | None = None) -> None:
        super().__init__()
        check_tilt(tilt)
        self.tilt = float(tilt)
        self.estimator = checked_estimator(estimator)

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The log of the batch's mean, or its estimate with the compositional gradient, over t."""
        log_g = F.weighted_log_mean_exp(self.tilt * losses, weight)
        return estimated_log_mean(self.estimator, log_g, weight) / self.tilt


def checked_estimator(estimator: Estimator | None) -> Estimator:
    """The estimator, which must be of one number; `Exact` for None."""
    estimator = Exact() if estimator is None else estimator
    check_kind("estimator", estimator, Estimator, "Pass LogMovingAverage(1), or leave it out.")
    size = getattr(estimator, "num_samples", 1)
    if size != 1:
        raise ValueError(
            f"expected an estimator of one number, since a risk is one number for all samples, received "
            f"{type(estimator).__name__} of {size}. Pass LogMovingAverage(1), or leave it out."
        )
    return estimator


def estimated_log_mean(estimator: Estimator, log_g: Scalar, weight: PerRow) -> Scalar:
    """The estimate of the data set's log-mean after this batch, with the compositional gradient."""
    entry = torch.zeros(1, dtype=torch.int64, device=log_g.device)
    row = log_g.reshape(1)
    log_u = estimator.propose(entry, row, (weight > 0).any().reshape(1))
    return F.compositional_log_mean(row, log_u)[0]
