"""Do inputs of one concept get one temperature? Variance within concepts, neighbours, near-duplicates."""

from dro_temp.evaluation.concepts.duplicates import near_duplicates, same_concept
from dro_temp.evaluation.concepts.neighbours import NeighbourConsistency, neighbour_consistency
from dro_temp.evaluation.concepts.variance import SemanticConsistency, semantic_consistency

__all__ = [
    "NeighbourConsistency",
    "SemanticConsistency",
    "near_duplicates",
    "neighbour_consistency",
    "same_concept",
    "semantic_consistency",
]
