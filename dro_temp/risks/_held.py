"""One log-number held over steps, for risks that are the log of a mean over the whole data set."""

import torch

from dro_temp import functional as F
from dro_temp._checks import check_kind
from dro_temp._typing import PerRow, Scalar
from dro_temp.estimators import Exact
from dro_temp.interfaces import Estimator


def as_estimator(estimator: Estimator | None) -> Estimator:
    """The estimator, or the batch's own mean."""
    estimator = Exact() if estimator is None else estimator
    check_kind("estimator", estimator, Estimator, "Pass LogMovingAverage(1), or leave it out.")
    numbers = getattr(estimator, "num_samples", 1)
    if numbers != 1:
        raise ValueError(
            f"expected an estimator of one number, since a risk is one number for all samples, received "
            f"{type(estimator).__name__} of {numbers}. Pass LogMovingAverage(1), or leave it out."
        )
    return estimator


def held_log_mean(estimator: Estimator, log_g: Scalar, weight: PerRow) -> Scalar:
    """The estimate of the log-mean after this batch, entry 0, with the compositional gradient."""
    first = torch.zeros(1, dtype=torch.int64, device=log_g.device)
    row = log_g.reshape(1)
    log_u = estimator.propose(first, row, (weight > 0).any().reshape(1))
    return F.compositional_log_mean(row, log_u)[0]
