"""The worst case within a KL ball around the data."""

import torch

from dro_temp import functional as F
from dro_temp._checks import check_feasible, check_kind, check_radius
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.interfaces import Estimator, TemperaturePredictor
from dro_temp.risks.standalone import StandaloneRisk
from dro_temp.risks.tilted import checked_estimator, estimated_log_mean


class KLRisk(StandaloneRisk):
    r"""$\max_{\mathrm{KL}(p\|U) \le \rho} \mathbb{E}_p l = \min_\tau \tau (\log \mathbb{E}_i\, e^{l_i/\tau} + \rho)$.

    Without a `tau` each batch gets its exact optimum: samples then count as $p_i \propto e^{l_i/\tau}$ with
    $\mathrm{KL}(p\|U) = \rho$. With one, the right-hand side is taken at that tau. It bounds the risk of the batch from
    above, and a `LearnableTemperature` converges to the tau of the whole data set.

    The dual of a batch is biased, as `TiltedRisk` is; an estimator of one number corrects that.

    Args:
        rho: radius of the ball in nats, 0 <= rho < log n. The worst case rests on about $e^{-\rho} n$ samples.
        tau: a predictor that reads nothing of a sample: `LearnableTemperature` or `ConstantTemperature`, in units of
            the losses; each batch's best if None.
        estimator: with a `tau`, `LogMovingAverage(1)`, say, whose memory needs a `CompositionalOptimizer`; None: the
            batch alone.

    Raises:
        TypeError: a radius, tau or estimator of another kind.
        ValueError: rho < 0, or, at a call without an estimator, rho >= log n; a tau that reads samples; an estimator
            without a tau.

    Example:
        >>> import torch, dro_temp as dt
        >>> losses = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> dt.KLRisk(0.5)(losses), dt.KLRisk(0.5, tau=dt.ConstantTemperature(1.0))(losses)
        (tensor(2.5510), tensor(2.5539))

    Source: arXiv 2404.04575, section 3, over samples in place of outcomes; arXiv 2012.06951 (ABSGD).
    """

    def __init__(
        self, rho: float, *, tau: TemperaturePredictor | None = None, estimator: Estimator | None = None
    ) -> None:
        super().__init__()
        check_radius(rho)
        if tau is not None:
            instead = (
                "Pass LearnableTemperature(1.0, tau_max=10.0), ConstantTemperature(1.0), or leave it out."
            )
            check_kind("tau", tau, TemperaturePredictor, instead)
            if tau.reads:
                raise ValueError(
                    f"expected a tau that reads nothing of a sample, since all samples have one, received "
                    f"{type(tau).__name__}, which reads {', '.join(sorted(tau.reads))}. {instead}"
                )
        elif estimator is not None:
            raise ValueError(
                f"expected a tau for the estimator, whose one number belongs to one temperature, received "
                f"{type(estimator).__name__} and tau=None. Pass tau=LearnableTemperature(1.0, tau_max=10.0) too, or "
                "leave the estimator out."
            )
        self.rho = float(rho)
        self.tau = tau
        self.estimator = checked_estimator(estimator)

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The worst case of the batch, or the dual at the given temperature."""
        # An estimator has seen an unknown number of samples. Counting waits for the device.
        if self.estimator.row_by_row and not torch.compiler.is_compiling():
            count = int((weight > 0).sum())
            if count:
                check_feasible(self.rho, count)
        if self.tau is None:
            return F.mean_under(F.kl_ball_weights(losses, weight, rho=self.rho), losses)
        tau = self.tau(shape=torch.Size([])).to(losses.dtype)
        # An infinite exponent is infinite at every tau: it adds 0 to tau's gradient, where the quotient would add NaN.
        fixed_tau = tau.detach()
        exponents = losses / fixed_tau
        infinite = exponents.isinf()
        exponents = torch.where(infinite, exponents, losses.masked_fill(infinite, 0.0) / tau)
        log_g = F.weighted_log_mean_exp(exponents, weight)
        log_mean = estimated_log_mean(self.estimator, log_g, weight)
        finite = log_mean.masked_fill(log_mean.isinf(), 0.0)
        return torch.where(log_mean.isinf(), fixed_tau * log_mean, tau * (finite + self.rho))
