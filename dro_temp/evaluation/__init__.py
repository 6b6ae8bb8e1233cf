"""How good a model is, as plain numbers."""

from dro_temp.evaluation.amortisation import amortisation_gap
from dro_temp.evaluation.calibration import expected_calibration_error, reliability
from dro_temp.evaluation.captions import CaptionRecall, caption_recall
from dro_temp.evaluation.class_accuracy import ClassAccuracy, zero_shot, zero_shot_accuracy
from dro_temp.evaluation.classifier import evaluate_classifier
from dro_temp.evaluation.classifier_report import CalibrationScheme, ClassifierReport
from dro_temp.evaluation.consistency import SemanticConsistency, semantic_consistency
from dro_temp.evaluation.duplicates import near_duplicates, same_concept
from dro_temp.evaluation.gap_log import GapLog
from dro_temp.evaluation.gap_report import AmortisationGap, TemperatureSpread
from dro_temp.evaluation.language import evaluate_language
from dro_temp.evaluation.neighbourhoods import NeighbourConsistency, neighbour_consistency
from dro_temp.evaluation.neighbours import knn_accuracy
from dro_temp.evaluation.probes import ProbeReport, linear_probe
from dro_temp.evaluation.prompts import class_embeddings
from dro_temp.evaluation.report import LanguageReport, TemperatureScheme
from dro_temp.evaluation.retrieval import retrieval_recall
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
    "expected_calibration_error",
    "knn_accuracy",
    "linear_probe",
    "near_duplicates",
    "neighbour_consistency",
    "reliability",
    "retrieval_recall",
    "same_concept",
    "semantic_consistency",
    "zero_shot",
    "zero_shot_accuracy",
]
