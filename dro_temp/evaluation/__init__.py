"""How good a model is, as plain numbers."""

from dro_temp.evaluation.retrieval import retrieval_recall

__all__ = ["retrieval_recall"]
