"""How good a model and its temperatures are, as plain numbers: one module per question asked.

`progress=True` needs rich, of the extra `recipes`.
"""

from dro_temp.evaluation.amortisation import AmortisationGap, GapLog, TemperatureSpread, amortisation_gap
from dro_temp.evaluation.classifier import (
    CalibrationScheme,
    ClassifierReport,
    evaluate_classifier,
    expected_calibration_error,
    reliability,
)
from dro_temp.evaluation.concepts import (
    NeighbourConsistency,
    SemanticConsistency,
    near_duplicate_groups,
    near_duplicates,
    neighbour_consistency,
    same_concept,
    semantic_consistency,
)
from dro_temp.evaluation.features import (
    ClassAccuracy,
    ProbeReport,
    class_embeddings,
    evaluate_zero_shot,
    knn_accuracy,
    linear_probe,
    zero_shot_accuracy,
)
from dro_temp.evaluation.language import LanguageReport, TemperatureScheme, evaluate_language
from dro_temp.evaluation.retrieval import CaptionRecall, caption_recall, retrieval_recall
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
    "near_duplicate_groups",
    "near_duplicates",
    "neighbour_consistency",
    "reliability",
    "retrieval_recall",
    "same_concept",
    "semantic_consistency",
    "zero_shot_accuracy",
]
