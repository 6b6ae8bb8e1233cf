"""How good are a classifier's probabilities? Accuracy, likelihood, Brier score and calibration."""

from dro_temp.evaluation.classifier.calibration import expected_calibration_error, reliability
from dro_temp.evaluation.classifier.probabilities import (
    CalibrationScheme,
    ClassifierReport,
    evaluate_classifier,
)
from dro_temp.functional.reliability import Reliability

__all__ = [
    "CalibrationScheme",
    "ClassifierReport",
    "Reliability",
    "evaluate_classifier",
    "expected_calibration_error",
    "reliability",
]
