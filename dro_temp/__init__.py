"""Personalised temperatures and distributionally robust losses for PyTorch."""

from dro_temp import (
    datasets,
    distributed,
    estimators,
    evaluation,
    functional,
    hosts,
    kernels,
    losses,
    plotting,
    predictors,
)
from dro_temp.estimators import ConstantGamma, CosineGamma, Estimator, Exact, GammaSchedule, LogMovingAverage
from dro_temp.functional import Scale, ScoreTransform, SoftCap
from dro_temp.interfaces import (
    Evaluated,
    FrozenHead,
    HostAdapter,
    LinearScores,
    LogMeanExpLoss,
    Reading,
    RobustLoss,
    Rows,
    Staged,
    Summary,
    Support,
    TemperaturePredictor,
)
from dro_temp.losses import InfoNCELoss, KLRobustLoss
from dro_temp.objective import Objective, Output
from dro_temp.optim import CompositionalOptimizer
from dro_temp.predictors import (
    ConstantTemperature,
    GradientUpdate,
    IndividualTemperature,
    LearnableTemperature,
    LogitEncoder,
    OptimalTemperature,
    PrototypeEncoder,
    TempNet,
    TempNetEncoder,
)

__version__ = "0.1.0"

__all__ = [
    "CompositionalOptimizer",
    "ConstantGamma",
    "ConstantTemperature",
    "CosineGamma",
    "Estimator",
    "Evaluated",
    "Exact",
    "FrozenHead",
    "GammaSchedule",
    "GradientUpdate",
    "HostAdapter",
    "IndividualTemperature",
    "InfoNCELoss",
    "KLRobustLoss",
    "LearnableTemperature",
    "LinearScores",
    "LogMeanExpLoss",
    "LogMovingAverage",
    "LogitEncoder",
    "Objective",
    "OptimalTemperature",
    "Output",
    "PrototypeEncoder",
    "Reading",
    "RobustLoss",
    "Rows",
    "Scale",
    "ScoreTransform",
    "SoftCap",
    "Staged",
    "Summary",
    "Support",
    "TempNet",
    "TempNetEncoder",
    "TemperaturePredictor",
    "datasets",
    "distributed",
    "estimators",
    "evaluation",
    "functional",
    "hosts",
    "kernels",
    "losses",
    "plotting",
    "predictors",
]
