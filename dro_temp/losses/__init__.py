"""Losses on rows: each maps (rows, tau) to one value per row. Penalties: each maps the rows of all views to one."""

from dro_temp.losses.consistency import CyclicPenalty
from dro_temp.losses.frozen_host import FrozenHostLoss, SelectiveSmoothingLoss, SelfWeightedLoss
from dro_temp.losses.kl_robust import EntropicRiskLoss, KLRobustLoss
from dro_temp.losses.likelihood import InfoNCELoss, LikelihoodLoss, ScaledLikelihoodLoss
from dro_temp.losses.log_mean_exp import LogMeanExpLoss
from dro_temp.losses.queued import KeyQueue, QueuedLoss
from dro_temp.losses.sigmoid import SigmoidLoss
from dro_temp.losses.supervised import SupervisedContrastiveLoss

__all__ = [
    "CyclicPenalty",
    "EntropicRiskLoss",
    "FrozenHostLoss",
    "InfoNCELoss",
    "KLRobustLoss",
    "KeyQueue",
    "LikelihoodLoss",
    "LogMeanExpLoss",
    "QueuedLoss",
    "ScaledLikelihoodLoss",
    "SelectiveSmoothingLoss",
    "SelfWeightedLoss",
    "SigmoidLoss",
    "SupervisedContrastiveLoss",
]
