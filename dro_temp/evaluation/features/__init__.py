"""What do frozen features tell about classes? Class names, neighbours and linear probes as classifiers."""

from dro_temp.evaluation.features.class_names import (
    ClassAccuracy,
    class_embeddings,
    evaluate_zero_shot,
    zero_shot_accuracy,
)
from dro_temp.evaluation.features.logistic_regression import ProbeReport, linear_probe
from dro_temp.evaluation.features.nearest import knn_accuracy

__all__ = [
    "ClassAccuracy",
    "ProbeReport",
    "class_embeddings",
    "evaluate_zero_shot",
    "knn_accuracy",
    "linear_probe",
    "zero_shot_accuracy",
]
