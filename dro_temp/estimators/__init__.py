"""What a minibatch cannot see: estimates of log E_j exp(h_ij / tau_i) that outlive the batch."""

from dro_temp.estimators._base import Estimator
from dro_temp.estimators.exact import Exact
from dro_temp.estimators.gamma import ConstantGamma, CosineGamma, GammaSchedule
from dro_temp.estimators.log_moving_average import LogMovingAverage
from dro_temp.estimators.scent import Scent

__all__ = ["ConstantGamma", "CosineGamma", "Estimator", "Exact", "GammaSchedule", "LogMovingAverage", "Scent"]
