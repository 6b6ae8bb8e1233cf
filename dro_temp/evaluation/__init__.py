"""How good a model and its temperatures are, as plain numbers: one package per question asked.

`progress=True` needs rich, of the extra `recipes`.
"""

from dro_temp.evaluation.classifier.calibration import expected_calibration_error, reliability
from dro_temp.evaluation.classifier.probabilities import (
    CalibrationScheme,
    ClassifierReport,
    evaluate_classifier,
)
from dro_temp.evaluation.concepts.duplicates import near_duplicates, same_concept
from dro_temp.evaluation.concepts.neighbours import NeighbourConsistency, neighbour_consistency
from dro_temp.evaluation.concepts.variance import SemanticConsistency, semantic_consistency
from dro_temp.evaluation.features.class_names import (
    ClassAccuracy,
    class_embeddings,
    evaluate_zero_shot,
    zero_shot_accuracy,
)
from dro_temp.evaluation.features.logistic_regression import ProbeReport, linear_probe
from dro_temp.evaluation.features.nearest import knn_accuracy
from dro_temp.evaluation.gap.amortisation import AmortisationGap, TemperatureSpread, amortisation_gap
from dro_temp.evaluation.gap.over_training import GapLog
from dro_temp.evaluation.language.perplexity import LanguageReport, TemperatureScheme, evaluate_language
from dro_temp.evaluation.retrieval.recall import CaptionRecall, caption_recall, retrieval_recall
from dro_temp.functional.reliability import Reliability

__all__ = [
    "AmortisationGap",
    "CalibrationScheme",
    "CaptionRecall",
    "ClassAccuracy",
    "ClassifierReport",
    "GapLog",
    "LanguageReport",
    "NeighbourConsistency",
    "ProbeReport",
    "Reliability",
    "SemanticConsistency",
    "TemperatureScheme",
    "TemperatureSpread",
    "amortisation_gap",
    "caption_recall",
    "class_embeddings",
    "evaluate_classifier",
    "evaluate_language",
    "evaluate_zero_shot",
    "expected_calibration_error",
    "knn_accuracy",
    "linear_probe",
    "near_duplicates",
    "neighbour_consistency",
    "reliability",
    "retrieval_recall",
    "same_concept",
    "semantic_consistency",
    "zero_shot_accuracy",
]
