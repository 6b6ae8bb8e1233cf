"""Personalised temperatures and distributionally robust losses for PyTorch.

At the top level is what a training script types; contracts are in `dro_temp.interfaces`, encoders and readouts of a
TempNet in `dro_temp.predictors`, schedules of gamma in `dro_temp.estimators`, memory in `dro_temp.state`.
"""

from dro_temp import (
    datasets,
    distributed,
    estimators,
    evaluation,
    functional,
    hosts,
    interfaces,
    losses,
    plotting,
    predictors,
    recipes,
    risks,
    state,
)
from dro_temp import (
    kernels as kernels,
)
from dro_temp import (
    objective as objective,
)
from dro_temp._version import __version__ as __version__
from dro_temp.estimators import LogMovingAverage, Scent
from dro_temp.integrations.transformers import TemperatureLogitsProcessor
from dro_temp.interfaces import HostAdapter, LinearScores, RobustLoss, Rows, Support, TemperaturePredictor
from dro_temp.losses import (
    CyclicPenalty,
    EntropicRiskLoss,
    InfoNCELoss,
    KLRobustLoss,
    LikelihoodLoss,
    QueuedLoss,
    SelectiveSmoothingLoss,
    SelfWeightedLoss,
    SigmoidLoss,
    SupervisedContrastiveLoss,
)
from dro_temp.objective import Objective, TemperatureWarning
from dro_temp.optim import CompositionalOptimizer, hold_temperatures
from dro_temp.predictors import (
    ConstantTemperature,
    EntropyTemperature,
    IndividualTemperature,
    LearnableTemperature,
    OptimalTemperature,
    TempNet,
)
from dro_temp.risks import ChiSquareRisk, CVaRRisk, GroupRisk, KLRisk, OptimisticRisk, TiltedRisk

__all__ = [
    "CVaRRisk",
    "ChiSquareRisk",
    "CompositionalOptimizer",
    "ConstantTemperature",
    "CyclicPenalty",
    "EntropicRiskLoss",
    "EntropyTemperature",
    "GroupRisk",
    "HostAdapter",
    "IndividualTemperature",
    "InfoNCELoss",
    "KLRisk",
    "KLRobustLoss",
    "LearnableTemperature",
    "LikelihoodLoss",
    "LinearScores",
    "LogMovingAverage",
    "Objective",
    "OptimalTemperature",
    "OptimisticRisk",
    "QueuedLoss",
    "RobustLoss",
    "Rows",
    "Scent",
    "SelectiveSmoothingLoss",
    "SelfWeightedLoss",
    "SigmoidLoss",
    "SupervisedContrastiveLoss",
    "Support",
    "TempNet",
    "TemperatureLogitsProcessor",
    "TemperaturePredictor",
    "TemperatureWarning",
    "TiltedRisk",
    "datasets",
    "distributed",
    "estimators",
    "evaluation",
    "functional",
    "hold_temperatures",
    "hosts",
    "interfaces",
    "losses",
    "plotting",
    "predictors",
    "recipes",
    "risks",
    "state",
]
