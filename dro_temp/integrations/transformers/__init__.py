"""Hugging Face transformers: training with its Trainer (or TRL's), and generation."""

from dro_temp.integrations._temperature_log import log_temperatures
from dro_temp.integrations.transformers.generation import TemperatureLogitsProcessor
from dro_temp.integrations.transformers.training import TrainableLM, robust_loss_func

__all__ = ["TemperatureLogitsProcessor", "TrainableLM", "log_temperatures", "robust_loss_func"]
