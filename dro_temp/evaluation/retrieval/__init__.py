"""Does a query find its own item? Recall at k."""

from dro_temp.evaluation.retrieval.recall import CaptionRecall, caption_recall, retrieval_recall

__all__ = ["CaptionRecall", "caption_recall", "retrieval_recall"]
