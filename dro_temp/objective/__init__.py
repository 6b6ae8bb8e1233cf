"""Objective = host + predictor + loss. With optim.py, the only place that knows all three."""

from dro_temp.objective.objective import Objective
from dro_temp.objective.output import Output
from dro_temp.objective.watch import TemperatureWarning

__all__ = ["Objective", "Output", "TemperatureWarning"]
