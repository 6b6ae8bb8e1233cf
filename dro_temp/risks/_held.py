"""One log-number held over steps, for risks that are the log of a mean over the whole data set."""

import torch

from dro_temp._checks import check_kind
from dro_temp._typing import PerRow, Scalar
from dro_temp.estimators import Estimator, Exact


def as_estimator(estimator: Estimator | None) -> Estimator:
    """The estimator, or the batch's own mean."""
    estimator = Exact() if estimator is None else estimator
    check_kind("estimator", estimator, Estimator, "Pass LogMovingAverage(1), or leave it out.")
    return estimator


def held(estimator: Estimator, log_g: Scalar, weight: PerRow) -> Scalar | None:
    """The estimate of the log-mean after this batch; None where the batch's own is taken. It is entry 0."""
    first = torch.zeros(1, dtype=torch.int64, device=log_g.device)
    log_u = estimator.propose(first, log_g.reshape(1), (weight > 0).any().reshape(1))
    return None if log_u is None else log_u[0]
