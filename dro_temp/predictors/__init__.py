"""Temperature predictors: from one number for all to a network that reads each row."""

from dro_temp.predictors.encoders import (
    HiddenEncoder,
    LogitEncoder,
    PrototypeEncoder,
    StatisticsEncoder,
    SumEncoder,
    TempNetEncoder,
)
from dro_temp.predictors.entropy import DynatempRule, EdtRule, EntropyRule, EntropyTemperature
from dro_temp.predictors.individual import GradientUpdate, IndividualTemperature
from dro_temp.predictors.language_models import HeadShape
from dro_temp.predictors.level import LevelTemperature
from dro_temp.predictors.one_for_all import ConstantTemperature, LearnableTemperature
from dro_temp.predictors.optimal import OptimalTemperature
from dro_temp.predictors.readouts import PooledReadout, ResidualReadout, TempNetReadout
from dro_temp.predictors.tempnet import TempNet

__all__ = [
    "ConstantTemperature",
    "DynatempRule",
    "EdtRule",
    "EntropyRule",
    "EntropyTemperature",
    "GradientUpdate",
    "HeadShape",
    "HiddenEncoder",
    "IndividualTemperature",
    "LearnableTemperature",
    "LevelTemperature",
    "LogitEncoder",
    "OptimalTemperature",
    "PooledReadout",
    "PrototypeEncoder",
    "ResidualReadout",
    "StatisticsEncoder",
    "SumEncoder",
    "TempNet",
    "TempNetEncoder",
    "TempNetReadout",
]
