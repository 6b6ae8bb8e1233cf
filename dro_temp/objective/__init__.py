"""Objective = host + predictor + loss. With optim.py, the only place that knows all three."""

from dro_temp.objective.monitor import TemperatureWarning
from dro_temp.objective.objective import Objective, ObjectiveOutput

__all__ = ["Objective", "ObjectiveOutput", "TemperatureWarning"]
