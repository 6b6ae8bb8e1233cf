"""Hugging Face transformers."""

from dro_temp.integrations.transformers.generation import TemperatureLogitsProcessor
from dro_temp.integrations.transformers.log import log_temperatures
from dro_temp.integrations.transformers.loss_func import robust_loss_func
from dro_temp.integrations.transformers.training import TrainableLM

__all__ = ["TemperatureLogitsProcessor", "TrainableLM", "log_temperatures", "robust_loss_func"]
