"""What TempNet reads, and how it turns it into a set of similarities for its pooling layer."""

from dro_temp.predictors.encoders.base import TempNetEncoder, encoder_of
from dro_temp.predictors.encoders.hidden import HiddenEncoder
from dro_temp.predictors.encoders.logits import LogitEncoder
from dro_temp.predictors.encoders.prototypes import PrototypeEncoder
from dro_temp.predictors.encoders.several import SeveralEncoder
from dro_temp.predictors.encoders.statistics import StatisticsEncoder

__all__ = [
    "HiddenEncoder",
    "LogitEncoder",
    "PrototypeEncoder",
    "SeveralEncoder",
    "StatisticsEncoder",
    "TempNetEncoder",
    "encoder_of",
]
