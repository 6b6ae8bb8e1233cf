"""Read this package first: what passes between the parts, and the contracts.

A **host** (`HostAdapter`) turns a batch into `Rows`: scores over a support of outcomes, one target each. A
**predictor** (`TemperaturePredictor`) maps each row to a temperature. A **loss** (`RobustLoss`) maps rows and
temperatures to one value per row; a **penalty** (`Penalty`) maps the rows of all views to one number; a **risk**
(`SampleRisk`) reduces one loss per sample to one number. An **estimator** (`Estimator`) corrects the minibatch's bias
in the inner mean of a row.

`ScoreStatistics`, `FoldedProjection` and `FrozenHead` compute what predictors read. Nothing here streams or trains, or
keeps memory from step to step: memory is in `state`, kernels are in `kernels`, and `Objective` puts the parts together.
"""

from dro_temp.interfaces.host import HostAdapter
from dro_temp.interfaces.loss import BackendChoice, Estimator, LossOutput, Penalty, RobustLoss
from dro_temp.interfaces.predictor import PredictorInputs, Readable, TemperaturePredictor
from dro_temp.interfaces.risk import SampleRisk
from dro_temp.interfaces.rows import LinearScores, Rows, Support
from dro_temp.interfaces.statistics import Decoder, FoldedProjection, FrozenHead, ScoreStatistics

__all__ = [
    "BackendChoice",
    "Decoder",
    "Estimator",
    "FoldedProjection",
    "FrozenHead",
    "HostAdapter",
    "LinearScores",
    "LossOutput",
    "Penalty",
    "PredictorInputs",
    "Readable",
    "RobustLoss",
    "Rows",
    "SampleRisk",
    "ScoreStatistics",
    "Support",
    "TemperaturePredictor",
]
