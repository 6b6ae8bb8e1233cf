"""How good a classifier's probabilities are under several temperatures, as numbers and as a table."""

from dataclasses import dataclass

from dro_temp.evaluation._schemes import TAU_TITLES, Compared, tau_cells
from dro_temp.evaluation._table import html_table, markdown_table
from dro_temp.functional.reliability import Reliability


@dataclass(frozen=True)
class CalibrationScheme:
    """One way to choose temperatures, on the test data.

    Args:
        name: which.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error of the most probable class, in [0, 1].
        brier: mean squared distance of the probabilities from the right class, in [0, 2].
        tau_mean: mean temperature.
        tau_quantiles: temperature by share of rows below it: 0.5 is the median.
        reliability: confidences and hits by bins of confidence, for `plotting.reliability_diagram`.
    """

    name: str
    nll: float
    ece: float
    brier: float
    tau_mean: float
    tau_quantiles: dict[float, float]
    reliability: Reliability


@dataclass(frozen=True)
class ClassifierReport(Compared[CalibrationScheme]):
    """Temperatures of a classifier compared on the same data.

    `report[name]` is the scheme of that name, `report.asdict()` plain numbers, as JSON holds them.

    Accuracies stand here, not with the schemes: a temperature divides all scores of a row alike, and leaves the
    order of its classes as it is.

    Args:
        samples: number of rows with a label.
        classes: number of outcomes, m.
        accuracy: share of rows whose most probable class is right, in percent.
        balanced_accuracy: the mean over the classes that have rows of that share, in percent.
        schemes: `tau = 1`, `best constant`, and each predictor's name.
    """

    samples: int
    classes: int
    accuracy: float
    balanced_accuracy: float
    schemes: tuple[CalibrationScheme, ...]

    @property
    def reliability(self) -> dict[str, Reliability]:
        """By the schemes' names: what `plotting.reliability_diagram` takes."""
        return {scheme.name: scheme.reliability for scheme in self.schemes}

    def table(self) -> str:
        """A Markdown table of the schemes, aligned to be read as plain text too."""
        return markdown_table(self._lines())

    def __str__(self) -> str:
        """The accuracies, and the table."""
        return f"{self._accuracies()}\n\n{self.table()}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self._lines(), self._accuracies())

    def _accuracies(self) -> str:
        return (
            f"{self.samples:,} rows, {self.classes:,} classes: accuracy {self.accuracy:.2f} %, "
            f"balanced {self.balanced_accuracy:.2f} %"
        )

    def _lines(self) -> list[list[str]]:
        header = ["temperature", "NLL (nats)", "ECE (%)", "Brier", *TAU_TITLES]
        return [header, *(_cells(scheme) for scheme in self.schemes)]


def _cells(scheme: CalibrationScheme) -> list[str]:
    return [
        scheme.name,
        f"{scheme.nll:.4f}",
        f"{100 * scheme.ece:.2f}",
        f"{scheme.brier:.4f}",
        *tau_cells(scheme),
    ]
