"""Accuracy, likelihood and calibration of a classifier under several temperatures."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from dro_temp._checks import check_bounds, check_count, check_kind
from dro_temp._modes import evaluating
from dro_temp.evaluation._batches import HostBatch, blocks_of_rows, check_batches
from dro_temp.evaluation._class_sums import Hits, ProbabilitySums
from dro_temp.evaluation._constants import lowest_points
from dro_temp.evaluation._progress import shown
from dro_temp.evaluation._sums import RowFacts, TemperatureSums
from dro_temp.evaluation.classifier_report import ClassifierReport
from dro_temp.interfaces import HostAdapter, Rows, TemperaturePredictor
from dro_temp.objective import Objective, TemperatureWarning

ONE, CONSTANT = "tau = 1", "best constant"

Predictors = TemperaturePredictor | Mapping[str, TemperaturePredictor]


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
    constant is the one number that minimises the NLL of the validation data, exactly: classical temperature scaling,
    without a learning rate. A predictor that does not beat it is not worth its parameters. Where the search ends at
    one of its bounds, a `TemperatureWarning` says so.

    Rows labelled -100 do not count. The validation data are swept three times, the test data once; host and
    predictors run in evaluation mode and are then put back into their own.

    Args:
        host: a classifier with one view, or an Objective of one. For logits that are there already,
            `dt.hosts.Classifier(torch.nn.Identity())` with batches of logits [n m] and labels [n].
        test: batches: tuples of the host's arguments (inputs, labels), or keyword arguments, for example a DataLoader.
        validation: batches that the constant is chosen on, never the test data.
        predictors: one, or several by name; the Objective's own, or none, if None.
        tau_min: lower bound of the constant, > 0.
        tau_max: upper bound of the constant. Predictors have bounds of their own.
        bins: bins of the calibration error.
        progress: show progress bars.

    Raises:
        ValueError: predictors under names that are taken, bounds that are no interval, data without a label, rows that
            are weighted, or a host of several views or of pairs.
        TypeError: another kind of host, a tensor or a generator in place of batches, a batch without labels.
        FloatingPointError: scores that are NaN or infinite; -inf, a class that is masked, is right where no label is.
        ImportError: torchmetrics is not installed; `progress` without rich.

    Example:
        >>> import dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Identity())
        >>> label = (torch.arange(20) % 5 == 0).long()  # four fifths are of the class that is claimed at 95 %
        >>> batches = [(torch.tensor([[3.0, 0.0]]).repeat(20, 1), label)]
        >>> report = evaluate_classifier(host, batches, validation=batches)
        >>> report.accuracy, round(report["tau = 1"].ece, 3), round(report["best constant"].ece, 3)
        (80.0, 0.153, 0.0)

    Source: Guo et al., arXiv 1706.04599; Brier 1950.
    """
    host, named = _parts(host, predictors)
    check_bounds(tau_min, tau_max)
    check_count("bins", bins)
    check_batches("test", test)
    check_batches("validation", validation)
    hits = Hits()

    def on_validation(taus: list[float]) -> list[tuple[float]]:
        sums = [TemperatureSums(0.0, bins) for _ in taus]
        for facts in _facts(host, validation, "constant" if progress else None):
            for into, tau in zip(sums, taus, strict=True):
                into.add(facts, torch.full_like(facts.top, tau))
        return [(s.nll,) for s in sums]

    with evaluating(host, *named.values()):
        (constant,) = lowest_points(on_validation, 1, tau_min, tau_max)
        _warn_at_bound(constant, tau_min, tau_max)
        sums = {name: ProbabilitySums(bins) for name in (ONE, CONSTANT, *named)}
        for rows in _blocks(host, test, "test" if progress else None):
            facts = RowFacts(rows)
            hits.add(facts)
            for name, tau in {ONE: 1.0, CONSTANT: constant}.items():
                sums[name].add(facts, torch.full_like(facts.top, tau))
            for name, predictor in named.items():
                sums[name].add(facts, predictor.predict(rows))
    schemes = tuple(s.scheme(name) for name, s in sums.items())
    samples = sums[ONE].common.rows
    return ClassifierReport(samples, hits.classes, hits.accuracy, hits.balanced_accuracy, schemes)


def _warn_at_bound(constant: float, tau_min: float, tau_max: float) -> None:
    """Say so where the search ended at a bound: the best constant may lie beyond."""
    for name, bound, wider in (("tau_min", tau_min, tau_min / 100), ("tau_max", tau_max, tau_max * 100)):
        if math.isclose(constant, bound, rel_tol=1e-6):
            warnings.warn(
                f"expected the best constant temperature between tau_min={tau_min:g} and tau_max={tau_max:g}, received "
                f"the bound {name} itself: a better one may lie beyond. Pass {name}={wider:g}. If it ends there too, "
                "the scores say nothing of the labels (or, at tau_min, never miss one).",
                TemperatureWarning,
                stacklevel=3,
            )


def _parts(
    host: HostAdapter | Objective, predictors: Predictors | None
) -> tuple[HostAdapter, dict[str, TemperaturePredictor]]:
    """The host alone, and predictors by name."""
    if isinstance(host, Objective):
        (own,) = host.predictors.children() if len(host.host.views) == 1 else (None,)
        predictors = own if predictors is None else predictors  # type: ignore[assignment]
        host = host.host
    check_kind("host", host, HostAdapter, "Wrap the model: dro_temp.hosts.Classifier(model).")
    if len(host.views) != 1:
        raise ValueError(
            f"expected a host with one view, of classes, received {type(host).__name__} with {list(host.views)}. "
            "Pass dt.hosts.Classifier(model)."
        )
    if isinstance(predictors, TemperaturePredictor):
        return host, {"predictor": predictors}
    named = {} if predictors is None else dict(predictors)
    if {ONE, CONSTANT} & set(named):
        raise ValueError(
            f"expected predictors under names other than {ONE!r} and {CONSTANT!r}, received {', '.join(named)}. "
            "Pass {'tempnet': tempnet}."
        )
    return host, named


def _facts(host: HostAdapter, batches: Iterable[HostBatch], title: str | None) -> Iterator[RowFacts]:
    return (RowFacts(rows) for rows in _blocks(host, batches, title))


def _blocks(host: HostAdapter, batches: Iterable[HostBatch], title: str | None) -> Iterator[Rows]:
    """Rows with labels, a block at a time; raise where they are none of a classifier's."""
    found = False
    for rows in blocks_of_rows(host, _labelled(shown(batches, title)), None):
        if not rows.target_in_support or (rows.weight is not None and bool((rows.weight != 1).any())):
            raise ValueError(
                f"expected rows of classes, each of weight 1, received rows of {type(host).__name__} that are pairs "
                "or weighted. Pass dt.hosts.Classifier(model), and label what is not to count with -100."
            )
        scores = rows.dense_scores
        label = scores.gather(1, rows.target.long()[:, None])
        # -inf is an outcome that cannot happen: a class that a model has masked.
        if not bool((scores < torch.inf).all() & (label > -torch.inf).all()):
            raise FloatingPointError(
                "expected finite scores, or -inf for a class that is masked and no label, received NaN or infinity. "
                "Look at the inputs, or load a checkpoint from before the model diverged; label rows of a masked class "
                "-100."
            )
        found = True
        yield rows
    if not found:
        raise ValueError(
            "expected data with at least one label, received none. Pass batches of inputs and labels, not all of them "
            "-100."
        )


def _labelled(batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
    for batch in batches:
        if isinstance(batch, Tensor):
            raise TypeError(
                f"expected batches of inputs and labels, received one tensor of shape {list(batch.shape)} in place of "
                "a batch. Pass [(inputs, labels)]."
            )
        yield batch
