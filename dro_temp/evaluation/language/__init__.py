"""What are temperatures worth to a language model? Perplexity, calibration and robust loss."""

from dro_temp.evaluation.language.perplexity import LanguageReport, TemperatureScheme, evaluate_language

__all__ = ["LanguageReport", "TemperatureScheme", "evaluate_language"]
