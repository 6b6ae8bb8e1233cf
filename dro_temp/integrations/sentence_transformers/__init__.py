"""sentence-transformers: a loss for its trainer, the callback that keeps what the loss remembers, sample numbers."""

from dro_temp.integrations.sentence_transformers.loss import RobustRankingLoss
from dro_temp.integrations.sentence_transformers.numbers import number_samples

__all__ = ["RobustRankingLoss", "number_samples"]
