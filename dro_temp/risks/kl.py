"""Risks whose adversary pays for its KL distance from the data, or stays within a ball of it."""

import math
from functools import partial

import torch

from dro_temp import _faults
from dro_temp import functional as F
from dro_temp._checks import check_kind, check_radius, check_tilt
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.estimators import Exact
from dro_temp.interfaces import Estimator, TemperaturePredictor
from dro_temp.interfaces.predictor import check_reads_nothing
from dro_temp.risks.standalone import StandaloneRisk


class TiltedRisk(StandaloneRisk):
    r"""$\frac1t \log \mathbb{E}_i\, e^{t l_i}$: for t > 0 bad samples count more, for t < 0 less.

    With t > 0 it is KL-regularised DRO, $\max_p \mathbb{E}_p l - \frac1t \mathrm{KL}(p\|U)$, with the temperature
    tau = 1/t. With t < 0 samples that cannot be fitted, such as wrong labels, hardly count:
    $p_i \propto e^{-|t| l_i}$. Towards t = 0 it is the mean.

    The log of a batch's mean is biased downwards. An estimator averages that one number over steps: the value is its
    estimate, and the gradient $\nabla g / u$ in place of $\nabla g / g$.

    Args:
        tilt: t, in the inverse unit of the losses, of either sign, not 0.
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
        self.estimator = _checked_estimator(estimator)

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The log of the batch's mean, or its estimate with the compositional gradient, over t."""
        log_g = F.weighted_log_mean_exp(self.tilt * losses, weight)
        return _estimated_log_mean(self.estimator, log_g, weight) / self.tilt


class KLRisk(StandaloneRisk):
    r"""$\max_{\mathrm{KL}(p\|U) \le \rho} \mathbb{E}_p l = \min_\tau \tau (\log \mathbb{E}_i\, e^{l_i/\tau} + \rho)$.

    Without a `tau` each batch gets its exact optimum: samples then count as $p_i \propto e^{l_i/\tau}$ with
    $\mathrm{KL}(p\|U) = \rho$. With one, the right-hand side is taken at that tau. It bounds the risk of the batch from
    above, and a `LearnableTemperature` converges to the tau of the whole data set.

    The dual of a batch is biased, as `TiltedRisk` is; an estimator of one number corrects that.

    Args:
        rho: radius of the ball in nats, >= 0. The worst case rests on about $e^{-\rho} n$ samples. From log n on the
            ball holds every distribution, and the worst case is the greatest loss: so for a short last batch, and in
            evaluation. Training needs batches with rho < log n.
        tau: a predictor that reads nothing of a sample: `LearnableTemperature` or `ConstantTemperature`, in units of
            the losses; each batch's best if None.
        estimator: with a `tau`, `LogMovingAverage(1)`, say, whose memory needs a `CompositionalOptimizer`; None: the
            batch alone.

    Raises:
        TypeError: `rho` is not a number, `tau` not a TemperaturePredictor, or `estimator` not an Estimator.
        ValueError: rho < 0; a tau that reads samples; an estimator without a tau; in training without an estimator,
            rho >= log n of the first batch, and of each until one has been larger.

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
            check_reads_nothing("tau", tau, instead)
        elif estimator is not None:
            raise ValueError(
                f"expected a tau for the estimator, whose one number belongs to one temperature, received "
                f"{type(estimator).__name__} and tau=None. Pass tau=LearnableTemperature(1.0, tau_max=10.0) too, or "
                "leave the estimator out."
            )
        self.rho = float(rho)
        self.tau = tau
        self.estimator = _checked_estimator(estimator)
        self._most_samples = 0  # of a training batch: which of them are short is no part of a state

    def check_radius(self, rho: float, weight: PerRow) -> None:
        """Raise if no training batch so far has had samples enough for this radius."""
        # An estimator has seen an unknown number of samples.
        if torch.compiler.is_compiling() or not (self.estimator.row_by_row and self.training):
            return
        if not torch.is_grad_enabled() or rho < math.log(max(self._most_samples, 1)):
            return
        count = (weight > 0).sum()
        if count.is_cuda or _faults.everywhere:  # how many count is told later: reading it would wait
            _faults.check(count, partial(self._too_few, rho))
        elif (error := self._too_few(rho, int(count))) is not None:
            raise error

    def _too_few(self, rho: float, count: int) -> ValueError | None:
        """The error of a ball that holds every distribution over all batches until this one, of so many samples."""
        self._most_samples = most = max(self._most_samples, count)
        if rho == 0.0 or count == 0 or rho < math.log(most):
            return None
        enough = f" of {math.floor(math.exp(rho)) + 1} samples or more" if rho < 30.0 else ""
        return ValueError(
            f"expected rho < log n, received rho={rho} with batches of n={most} samples (log n = "
            f"{math.log(most):.4g}): the KL ball holds every distribution, and one sample alone would count. Lower "
            f"rho, or take larger batches{enough}."
        )

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The worst case of the batch, or the dual at the given temperature."""
        self.check_radius(self.rho, weight)
        if self.tau is None:
            return F.mean_under(F.kl_ball_weights(losses, weight, rho=self.rho), losses)
        tau = self.tau(shape=torch.Size([])).to(losses.dtype)
        # An infinite exponent is infinite at every tau: it adds 0 to tau's gradient, where the quotient would add NaN.
        fixed_tau = tau.detach()
        exponents = losses / fixed_tau
        infinite = exponents.isinf()
        exponents = torch.where(infinite, exponents, losses.masked_fill(infinite, 0.0) / tau)
        log_g = F.weighted_log_mean_exp(exponents, weight)
        log_mean = _estimated_log_mean(self.estimator, log_g, weight)
        finite = log_mean.masked_fill(log_mean.isinf(), 0.0)
        return torch.where(log_mean.isinf(), fixed_tau * log_mean, tau * (finite + self.rho))


def _checked_estimator(estimator: Estimator | None) -> Estimator:
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


def _estimated_log_mean(estimator: Estimator, log_g: Scalar, weight: PerRow) -> Scalar:
    """The estimate of the data set's log-mean after this batch, with the compositional gradient."""
    entry = torch.zeros(1, dtype=torch.int64, device=log_g.device)
    row = log_g.reshape(1)
    log_u = estimator.propose(entry, row, (weight > 0).any().reshape(1))
    return F.compositional_log_mean(row, log_u)[0]
