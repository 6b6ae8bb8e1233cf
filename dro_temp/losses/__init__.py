"""Losses on rows: each maps (rows, tau) to one value per row."""

from dro_temp.losses.infonce import InfoNCELoss
from dro_temp.losses.kl_robust import KLRobustLoss
from dro_temp.losses.likelihood import LikelihoodLoss

__all__ = ["InfoNCELoss", "KLRobustLoss", "LikelihoodLoss"]
