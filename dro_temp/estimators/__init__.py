"""Estimators of the inner mean: what corrects the bias of a minibatch."""

from dro_temp.estimators.exact import Exact
from dro_temp.estimators.moving_average import CosineGamma, LogMovingAverage, Scent

__all__ = ["CosineGamma", "Exact", "LogMovingAverage", "Scent"]
