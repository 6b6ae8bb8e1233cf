"""What is summed up over the rows of a classifier: hits, and at each choice of temperatures the probabilities."""

from typing import Any

import torch

from dro_temp._optional import optional_module
from dro_temp._typing import PerRow
from dro_temp.evaluation._sums import RowFacts, TemperatureSums
from dro_temp.evaluation.classifier_report import CalibrationScheme
from dro_temp.evaluation.report import SHARES


class Hits:
    """Accuracies by torchmetrics, which must be there before anything is computed.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self) -> None:
        self._torchmetrics = optional_module(
            "torchmetrics.classification", "which counts right answers", extra="vision"
        )
        self._counted: Any = None

    def add(self, facts: RowFacts) -> None:
        """Take in a block of rows."""
        if self._counted is None:
            # Not average="macro": a class without rows counts there, once it is predicted, as one always missed.
            self._counted = self._torchmetrics.MulticlassAccuracy(facts.outcomes, average="none")
        self._counted.update(facts.predicted.cpu(), facts.label.cpu())

    @property
    def accuracy(self) -> float:
        """Share of rows that are right, in percent."""
        rows = self._counted.tp + self._counted.fn
        return 100.0 * int(self._counted.tp.sum()) / int(rows.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that have rows, in percent."""
        there = self._counted.tp + self._counted.fn > 0
        return 100.0 * float(self._counted.compute()[there].double().mean())

    @property
    def classes(self) -> int:
        """Number of outcomes."""
        return int(self._counted.num_classes)


class ProbabilitySums:
    r"""Sums over rows whose temperatures one scheme chose: those of language models, and the Brier score.

    Written for $p = \mathrm{softmax}(s / \tau)$: $\sum_k (p_k - 1[k = y])^2$. torchmetrics 1.9 has none for classes.
    """

    def __init__(self, bins: int) -> None:
        self.common = TemperatureSums(0.0, bins)
        self._brier = 0.0

    def add(self, facts: RowFacts, tau: PerRow) -> None:
        """Take in a block of rows."""
        self.common.add(facts, tau)
        apart = ((facts.scores - facts.top[:, None]) / tau.to(facts.scores.dtype)[:, None]).softmax(1)
        apart[torch.arange(len(apart)), facts.label] -= 1
        self._brier += float(apart.square().sum(1).double().sum())

    def scheme(self, name: str) -> CalibrationScheme:
        """Their means."""
        common = self.common
        return CalibrationScheme(
            name=name,
            nll=common.nll,
            ece=common.calibration.error,
            brier=self._brier / common.count,
            tau_mean=common.tau_mean,
            tau_quantiles=common.quantiles(SHARES),
            reliability=common.calibration.reliability,
        )
