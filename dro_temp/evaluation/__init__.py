"""How good a model is, as plain numbers."""

from dro_temp.evaluation.calibration import expected_calibration_error
from dro_temp.evaluation.language import evaluate_language
from dro_temp.evaluation.report import LanguageReport, TemperatureScheme
from dro_temp.evaluation.retrieval import retrieval_recall

__all__ = [
    "LanguageReport",
    "TemperatureScheme",
    "evaluate_language",
    "expected_calibration_error",
    "retrieval_recall",
]
