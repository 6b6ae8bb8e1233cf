"""Read this package first: what passes between the parts, and the contracts.

A **host** (`HostAdapter`) turns a batch into `Rows`: scores over a support of outcomes, one target each. A
**predictor** (`TemperaturePredictor`) maps each row to a temperature. A **loss** (`RobustLoss`) maps rows and
temperatures to one value per row; a **penalty** (`Penalty`) maps the rows of all views to one number; a **risk**
(`SampleRisk`) reduces one loss per sample to one number. What they remember from step to step is `Staged`: proposed in
forward, written when an optimizer step was really taken.
"""

from dro_temp.interfaces.committable import Committable
from dro_temp.interfaces.frozen_head import Decoder, FrozenHead
from dro_temp.interfaces.host import HostAdapter
from dro_temp.interfaces.log_mean_exp import Impl, LogMeanExpLoss
from dro_temp.interfaces.loss import Choice, Evaluated, RobustLoss
from dro_temp.interfaces.penalty import Penalty
from dro_temp.interfaces.predictor import Readable, Reading, TemperaturePredictor
from dro_temp.interfaces.risk import SampleRisk
from dro_temp.interfaces.rows import Rows, Support
from dro_temp.interfaces.scores import LinearScores
from dro_temp.interfaces.staged import Staged, staged_modules
from dro_temp.interfaces.summary import Summary

__all__ = [
    "Choice",
    "Committable",
    "Decoder",
    "Evaluated",
    "FrozenHead",
    "HostAdapter",
    "Impl",
    "LinearScores",
    "LogMeanExpLoss",
    "Penalty",
    "Readable",
    "Reading",
    "RobustLoss",
    "Rows",
    "SampleRisk",
    "Staged",
    "Summary",
    "Support",
    "TemperaturePredictor",
    "staged_modules",
]
