"""Temperature predictors: from one number for all to a network that reads each row."""

from dro_temp.predictors.constant import ConstantTemperature
from dro_temp.predictors.encoders import LogitEncoder, PrototypeEncoder, TempNetEncoder
from dro_temp.predictors.individual import GradientUpdate, IndividualTemperature
from dro_temp.predictors.learnable import LearnableTemperature
from dro_temp.predictors.optimal import OptimalTemperature
from dro_temp.predictors.tempnet import TempNet

__all__ = [
    "ConstantTemperature",
    "GradientUpdate",
    "IndividualTemperature",
    "LearnableTemperature",
    "LogitEncoder",
    "OptimalTemperature",
    "PrototypeEncoder",
    "TempNet",
    "TempNetEncoder",
]
