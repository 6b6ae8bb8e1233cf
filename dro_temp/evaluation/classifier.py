"""How good are a classifier's probabilities? Accuracy, likelihood, Brier score and calibration."""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dro_temp._checks import check_bounds, check_count, check_floats, check_kind, check_tensor
from dro_temp._modes import evaluating
from dro_temp._optional import optional_module
from dro_temp.evaluation._batches import (
    HostBatch,
    Predictors,
    ScoredRows,
    check_batches,
    named_predictors,
    row_blocks,
    with_progress,
)
from dro_temp.evaluation._reports import TAU_TITLES, Comparison, tau_cells
from dro_temp.evaluation._temperature_sums import TemperatureSums, best_constants
from dro_temp.functional.reliability import Reliability, reliability_sums
from dro_temp.interfaces import HostAdapter, TemperaturePredictor
from dro_temp.objective import Objective, TemperatureWarning

ONE, CONSTANT = "tau = 1", "best constant"


def expected_calibration_error(
    confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], *, bins: int = 15
) -> float:
    r"""Mean distance between confidence and accuracy, over bins of equal width.

    $$\mathrm{ECE} = \sum_b \frac{|B_b|}{n}\, \bigl|\mathrm{acc}(B_b) - \mathrm{conf}(B_b)\bigr|$$

    A number in [0, 1], from the arguments of [`reliability`][dro_temp.evaluation.reliability], which raises the same
    errors. It takes confidences, and so also serves tokens, whose probabilities do not fit into memory.
    `torchmetrics.classification.MulticlassCalibrationError` takes all probabilities, gathers over processes, and has
    other norms. The two differ only for a confidence of exactly 1, frequent in float32 for an overconfident model: it
    belongs to the last bin here and has a bin of its own there, which makes their value the same or larger.

    Example:
        >>> confidence = torch.ones(4)
        >>> expected_calibration_error(confidence, torch.tensor([True, True, True, False]))
        0.25

    Source: Naeini et al. 2015; Guo et al., arXiv 1706.04599.
    """
    return reliability(confidence, correct, bins=bins).error


def reliability(confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], *, bins: int = 15) -> Reliability:
    """Confidence and accuracy by bins of confidence: what `plotting.reliability_diagram` draws.

    Args:
        confidence: probability of the most probable outcome of each row, in [0, 1].
        correct: True where that outcome is the target.
        bins: number of bins of [0, 1]; a confidence on an edge belongs to the bin above it.

    Raises:
        ValueError: no rows, shapes that differ, or a confidence outside [0, 1].
        TypeError: `correct` is not boolean, or `bins` no int.

    Example:
        >>> by_bin = reliability(torch.tensor([0.25, 0.75, 1.0]), torch.tensor([True, False, True]), bins=2)
        >>> by_bin.count, by_bin.confidence, by_bin.correct
        ((1.0, 2.0), (0.25, 1.75), (1.0, 1.0))

    Source: Guo et al., arXiv 1706.04599.
    """
    check_floats("confidence", confidence)
    check_tensor("correct", correct)
    if confidence.dim() != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise ValueError(
            "expected confidence [n] and correct [n] with n > 0, received "
            f"{list(confidence.shape)} and {list(correct.shape)}. Give both one number per row."
        )
    if correct.dtype != torch.bool:
        raise TypeError(f"expected correct as booleans, received {correct.dtype}. Pass predicted == target.")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError(
            f"expected confidences in [0, 1], received some from {float(confidence.min()):.4g} to "
            f"{float(confidence.max()):.4g}. Pass logits.softmax(1).amax(1)."
        )
    confidence, correct = confidence.detach().cpu(), correct.cpu()
    sums = reliability_sums(confidence, correct, torch.ones_like(confidence), check_count("bins", bins))
    return Reliability(*(tuple(column) for column in sums.tolist()))


@dataclass(frozen=True)
class CalibrationScheme:
    """One way to choose temperatures, on the test data.

    Args:
        name: which.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error of the most probable class, in [0, 1].
        brier: mean squared distance of the probabilities from the one-hot label, in [0, 2].
        tau_mean: mean temperature.
        tau_quantiles: temperature by share of rows below it: 0.5 is the median.
        reliability: confidence and accuracy by bins of confidence, for `plotting.reliability_diagram`.
    """

    name: str
    nll: float
    ece: float
    brier: float
    tau_mean: float
    tau_quantiles: dict[float, float]
    reliability: Reliability


@dataclass(frozen=True)
class ClassifierReport(Comparison[CalibrationScheme]):
    """Temperatures of a classifier compared on the same data.

    `report[name]` is the scheme of that name, `report.asdict()` plain numbers for JSON. Accuracies are not per scheme:
    a temperature divides all scores of a row, and leaves the order of its classes unchanged.

    Args:
        samples: number of rows with a label.
        classes: number of classes, m.
        accuracy: share of rows whose most probable class is right, in percent.
        balanced_accuracy: mean over the classes that have rows of that share, in percent.
        schemes: `tau = 1`, `best constant`, and each predictor's name.
    """

    samples: int
    classes: int
    accuracy: float
    balanced_accuracy: float
    schemes: tuple[CalibrationScheme, ...]

    @property
    def reliability(self) -> dict[str, Reliability]:
        """By scheme name: what `plotting.reliability_diagram` takes."""
        return {scheme.name: scheme.reliability for scheme in self.schemes}

    def _heading(self) -> str:
        return (
            f"{self.samples:,} rows, {self.classes:,} classes: accuracy {self.accuracy:.2f} %, "
            f"balanced {self.balanced_accuracy:.2f} %"
        )

    def _lines(self) -> list[list[str]]:
        lines = [["temperature", "NLL (nats)", "ECE (%)", "Brier", *TAU_TITLES]]
        for s in self.schemes:
            cells = [s.name, f"{s.nll:.4f}", f"{100 * s.ece:.2f}", f"{s.brier:.4f}"]
            lines.append([*cells, *tau_cells(s.tau_mean, s.tau_quantiles)])
        return lines


def evaluate_classifier(
    host: HostAdapter | Objective,
    test: Iterable[HostBatch],
    *,
    validation: Iterable[HostBatch],
    predictors: Predictors | None = None,
    tau_min: float = 0.01,
    tau_max: float = 100.0,
    bins: int = 15,
    progress: bool = False,
) -> ClassifierReport:
    r"""How good a classifier's probabilities are at tau = 1, at the best constant, and at predicted temperatures.

    With $p_i = \mathrm{softmax}(s_i / \tau_i)$ and $y_i$ the label of row i:

    $$\mathrm{NLL} = -\frac1n \sum_i \log p_{i, y_i}, \qquad
    \mathrm{Brier} = \frac1n \sum_i \sum_k \left(p_{ik} - 1[k = y_i]\right)^2,$$

    and the [calibration error][dro_temp.evaluation.expected_calibration_error] of the most probable class. The best
    constant minimises the NLL of the validation data: temperature scaling, solved exactly, without a learning rate. A
    predictor that does not beat it is not worth its parameters. A search that ends at one of its bounds warns with a
    `TemperatureWarning`.

    Rows labelled -100 do not count. The validation data are read three times, the test data once, in evaluation mode.

    Args:
        host: a classifier with one view, or an Objective of one. For precomputed logits,
            `dt.hosts.Classifier(torch.nn.Identity())` with batches of logits [n m] and labels [n].
        test: batches: tuples of the host's arguments (inputs, labels), or keyword arguments, for example a DataLoader.
        validation: batches that the constant is chosen on, never the test data.
        predictors: one, or several by name; by default the Objective's own, or none.
        tau_min: lower bound of the constant, > 0.
        tau_max: upper bound of the constant. Predictors have bounds of their own.
        bins: bins of the calibration error.
        progress: show progress bars.

    Raises:
        ValueError: predictors under reserved names, bounds that do not form an interval, data without a label,
            weighted rows, or a host of several views or of pairs.
        TypeError: another kind of host, a tensor or a generator in place of batches, a batch without labels.
        FloatingPointError: scores that are NaN or infinite; -inf is allowed for a masked class that is not
            the label of any row.
        ImportError: torchmetrics is not installed.

    Example:
        >>> import dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Identity())
        >>> label = (torch.arange(20) % 5 == 0).long()  # the model says class 0 at 95 %, which four fifths are
        >>> batches = [(torch.tensor([[3.0, 0.0]]).repeat(20, 1), label)]
        >>> report = evaluate_classifier(host, batches, validation=batches)
        >>> report.accuracy, round(report["tau = 1"].ece, 3), round(report["best constant"].ece, 3)
        (80.0, 0.153, 0.0)

    Source: Guo et al., arXiv 1706.04599; Brier 1950.
    """
    if isinstance(host, Objective):
        own = list(host.predictors.children())
        predictors = own[0] if predictors is None else predictors  # type: ignore[assignment]
        host = host.host
    check_kind("host", host, HostAdapter, "Wrap the model: dro_temp.hosts.Classifier(model).")
    named = named_predictors(predictors, (ONE, CONSTANT), host, "dt.hosts.Classifier(model)")
    check_bounds(tau_min, tau_max)
    check_count("bins", bins)
    check_batches(test=test, validation=validation)
    metrics = optional_module("torchmetrics.classification", "which counts right answers", extra="vision")
    accuracy: Any = None
    title = "constant" if progress else None
    with evaluating(host, *named.values()):
        (best,) = best_constants(lambda: _labelled_rows(host, validation, title), None, tau_min, tau_max)
        _warn_at_bound(best, tau_min, tau_max)
        taus: dict[str, float | TemperaturePredictor] = {ONE: 1.0, CONSTANT: best, **named}
        sums = {name: TemperatureSums(tau, 0.0, bins, brier=True) for name, tau in taus.items()}
        for rows in _labelled_rows(host, test, "test" if progress else None):
            # Not average="macro": it counts a class without rows, once it is predicted, as one always missed.
            accuracy = accuracy or metrics.MulticlassAccuracy(rows.rows.support_size, average="none")
            accuracy.update(rows.predicted.cpu(), rows.label.cpu())
            for s in sums.values():
                s.add(rows)
    schemes, of_class = [], accuracy.tp + accuracy.fn
    for name, s in sums.items():
        nll, _, tau, brier = s.means
        calibration = s.reliability
        schemes.append(CalibrationScheme(name, nll, calibration.error, brier, tau, s.quantiles, calibration))
    return ClassifierReport(
        samples=sums[ONE].rows,
        classes=int(accuracy.num_classes),
        accuracy=100.0 * int(accuracy.tp.sum()) / int(of_class.sum()),
        balanced_accuracy=100.0 * float(accuracy.compute()[of_class > 0].double().mean()),
        schemes=tuple(schemes),
    )


def _warn_at_bound(best: float, tau_min: float, tau_max: float) -> None:
    for name, bound, wider in (("tau_min", tau_min, tau_min / 100), ("tau_max", tau_max, tau_max * 100)):
        if math.isclose(best, bound, rel_tol=1e-6):
            warnings.warn(
                f"expected the best constant temperature between tau_min={tau_min:g} and tau_max={tau_max:g}, received "
                f"the bound {name} itself: a better one may lie beyond. Pass {name}={wider:g}. If it ends there too, "
                "the scores say nothing of the labels (or, at tau_min, never miss one).",
                TemperatureWarning,
                stacklevel=3,
            )


def _labelled_rows(
    host: HostAdapter, batches: Iterable[HostBatch], title: str | None
) -> Iterator[ScoredRows]:
    """Labelled rows, block by block, checked to be those of a classifier."""
    for rows in row_blocks(host, map(_with_labels, with_progress(batches, title)), None, "label"):
        if not rows.rows.target_in_support or bool((rows.weight != 1).any()):
            raise ValueError(
                f"expected rows of classes, each of weight 1, received rows of {type(host).__name__} that are pairs "
                "or weighted. Pass dt.hosts.Classifier(model), and label what is not to count with -100."
            )
        # -inf is an outcome that cannot happen: a class that a model has masked.
        if not bool((rows.scores < torch.inf).all() & (rows.target_score > -torch.inf).all()):
            raise FloatingPointError(
                "expected finite scores, or -inf for a class that is masked and no label, received NaN or infinity. "
                "Look at the inputs, or load a checkpoint from before the model diverged; label rows of a masked class "
                "-100."
            )
        yield rows


def _with_labels(batch: HostBatch) -> HostBatch:
    if isinstance(batch, Tensor):
        raise TypeError(
            f"expected batches of inputs and labels, received a tensor {list(batch.shape)}. Pass [(inputs, labels)]."
        )
    return batch
