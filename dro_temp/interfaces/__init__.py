"""Read this package first: what passes between the parts, and the three contracts.

A **host** (`HostAdapter`) turns a batch into `Rows`: scores over a support of outcomes, one target each. A
**predictor** (`TemperaturePredictor`) maps each row to a temperature. A **loss** (`RobustLoss`) maps rows and
temperatures to one value per row. What they remember from step to step is `Staged`: proposed in forward,
written when an optimizer step was really taken.
"""

from dro_temp.interfaces.host import HostAdapter
from dro_temp.interfaces.loss import RobustLoss
from dro_temp.interfaces.predictor import Readable, Reading, TemperaturePredictor
from dro_temp.interfaces.rows import Rows, Support
from dro_temp.interfaces.scores import LinearScores
from dro_temp.interfaces.staged import Staged, staged_modules

__all__ = [
    "HostAdapter",
    "LinearScores",
    "Readable",
    "Reading",
    "RobustLoss",
    "Rows",
    "Staged",
    "Support",
    "TemperaturePredictor",
    "staged_modules",
]
