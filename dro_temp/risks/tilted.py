"""The tilted mean."""

from dro_temp import functional as F
from dro_temp._checks import check_tilt
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.interfaces import Estimator
from dro_temp.risks._held import as_estimator, held_log_mean
from dro_temp.risks.standalone import StandaloneRisk


class TiltedRisk(StandaloneRisk):
    r"""$\frac1t \log \mathbb{E}_i\, e^{t l_i}$: for t > 0 bad samples count more, for t < 0 less.

    With t > 0 it is KL-regularised DRO, $\max_p \mathbb{E}_p l - \frac1t \mathrm{KL}(p\|U)$, with the temperature
    tau = 1/t. With t < 0 samples that cannot be fitted, such as wrong labels, hardly count:
    $p_i \propto e^{-|t| l_i}$. Towards t = 0 it is the mean.

    The log of a batch's mean is, on average, below the log of the data set's. An estimator holds that one number over
    steps: the value is the held one, and the gradient $\nabla g / u$ in place of $\nabla g / g$.

    Args:
        tilt: t, in units of one over the losses', of either sign, not 0.
        estimator: `LogMovingAverage(1)`, say; the batch by itself if None. Its memory wants a `CompositionalOptimizer`.

    Raises:
        TypeError: the tilt is no number, or the estimator none.
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
        self.estimator = as_estimator(estimator)

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The log of the batch's mean, or the held one with the compositional gradient."""
        log_g = F.weighted_log_mean_exp(self.tilt * losses, weight)
        return held_log_mean(self.estimator, log_g, weight) / self.tilt

    def extra_repr(self) -> str:
        """The tilt."""
        return f"tilt={self.tilt}"
