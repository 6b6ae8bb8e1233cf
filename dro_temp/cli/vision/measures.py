"""What a classifier says of images: classes, probabilities, temperatures; and which labels it doubts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp.cli.images import Labelled
from dro_temp.cli.loader import Transformed, in_order
from dro_temp.cli.training import Validation
from dro_temp.cli.vision.models import Classifier
from dro_temp.evaluation._batches import moved
from dro_temp.objective import Objective


@dataclass(frozen=True)
class Predicted:
    """Of each image.

    Args:
        label: the given class.
        predicted: the most probable class.
        log_p: log-probabilities of the classes at temperature 1, [n classes].
        tau: its temperature.
        log_p_tau: log-probability of the given class at that temperature.
    """

    label: Tensor
    predicted: Tensor
    log_p: Tensor
    tau: Tensor
    log_p_tau: Tensor

    @property
    def loss(self) -> Tensor:
        """Cross-entropy of the given class, at temperature 1: how doubtful a label is."""
        return -self.log_p.gather(1, self.label[:, None])[:, 0]


@torch.no_grad()
def predicted(
    classifier: Classifier, objective: Objective, samples: Labelled, *, batch: int = 256, workers: int = 0
) -> Predicted:
    """Classes, probabilities and temperatures of images, in evaluation mode."""
    data = Transformed(samples, classifier.transform, torch.tensor)
    device = next(objective.parameters()).device
    parts: list[tuple[Tensor, ...]] = []
    for images, label, index in in_order(data, batch, workers):
        rows = objective.host(*moved([images, label], device), index=index.to(device))["class"]
        scores = rows.dense_scores.double()
        tau = objective.predictors["class"].predict(rows).expand(len(label))  # type: ignore[operator]
        at_tau = (scores / tau[:, None]).log_softmax(1).gather(1, rows.target[:, None])[:, 0]
        found = (label, scores.argmax(1), scores.log_softmax(1), tau, at_tau)
        parts.append(tuple(x.cpu() for x in found))
    return Predicted(*(torch.cat(column) for column in zip(*parts, strict=True)))


def validation(classifier: Classifier, objective: Objective, samples: Labelled, workers: int) -> Validation:
    """Accuracy, likelihood and temperatures of held-out images; the score is the first, then the second."""
    found = predicted(classifier, objective, samples, workers=workers)
    right = (found.predicted == found.label).double()
    by_class = [float(right[found.label == c].mean()) for c in set(found.label.tolist())]
    metrics = {
        "accuracy": 100 * float(right.mean()),
        "balanced": 100 * sum(by_class) / len(by_class),
        "nll": float(found.loss.mean()),
        "nll_tau": float(-found.log_p_tau.mean()),
        "tau": float(found.tau.mean()),
    }
    return Validation(metrics, (metrics["accuracy"], -metrics["nll"]), {"images": found.tau})
