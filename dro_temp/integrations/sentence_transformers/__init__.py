"""sentence-transformers: a loss for its trainer, the callback that commits and saves its memory, sample numbers."""

from dro_temp.integrations.sentence_transformers.ranking_loss import RobustRankingLoss, number_samples

__all__ = ["RobustRankingLoss", "number_samples"]
