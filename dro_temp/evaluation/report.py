"""What a language model's temperatures achieve, as numbers and as a table."""

from dataclasses import dataclass

from dro_temp.evaluation._schemes import TAU_TITLES, Compared, tau_cells
from dro_temp.evaluation._share import share_cell
from dro_temp.evaluation._table import html_table, markdown_table

#: Quantiles of the temperatures that are reported.
SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

#: The scheme beside which gains are measured.
BY_ROBUST = "best constant (robust)"


@dataclass(frozen=True)
class TemperatureScheme:
    """One way to choose temperatures, on the test data.

    Args:
        name: which.
        perplexity: exp of the mean negative log-likelihood per token.
        ece: expected calibration error of the most probable token, in [0, 1].
        robust_loss: mean of tau (log-mean-exp of margins / tau + rho); None, as the next two, without a radius.
        gap: mean robust loss above that of the optimum of each token: the amortisation gap.
        recovered: share of the optimum's gain over the best constant temperature: 0 for that constant, 1 for the
            optimum, negative for what is worse than the constant; NaN where there is nothing to gain. The table shows a
            dash where the gain would be shown as 0.0000.
        tau_mean: mean temperature.
        tau_quantiles: temperature by share of tokens below it: 0.5 is the median.
    """

    name: str
    perplexity: float
    ece: float
    robust_loss: float | None
    gap: float | None
    recovered: float | None
    tau_mean: float
    tau_quantiles: dict[float, float]


@dataclass(frozen=True)
class LanguageReport(Compared[TemperatureScheme]):
    """Temperatures of a language model compared on one text.

    `report[name]` is the scheme of that name, `report.asdict()` plain numbers, as JSON holds them.

    Args:
        tokens: number of tokens that were predicted.
        vocabulary: number of outcomes, m.
        rho: radius of the robust loss; None if it was evaluated without one.
        schemes: `tau = 1`, `best constant (likelihood)`, `best constant (robust)`, each predictor's name, `optimum`;
            the third and the last only with a radius.
    """

    tokens: int
    vocabulary: int
    rho: float | None
    schemes: tuple[TemperatureScheme, ...]

    def table(self) -> str:
        """A Markdown table, aligned to be read as plain text too; the robust loss's columns only with a radius."""
        return markdown_table(self._lines())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        about = f"{self.tokens:,} tokens, m = {self.vocabulary:,}"
        return html_table(self._lines(), about if self.rho is None else f"{about}, rho = {self.rho:g}")

    def _lines(self) -> list[list[str]]:
        robust = ["robust loss", "gap", "recovered (%)"] if self.rho is not None else []
        header = ["temperature", "perplexity", "ECE (%)", *robust, *TAU_TITLES]
        to_gain = next((x.gap for x in self.schemes if x.name == BY_ROBUST and x.gap is not None), 0.0)
        return [header, *(_cells(scheme, to_gain) for scheme in self.schemes)]


def _cells(scheme: TemperatureScheme, to_gain: float) -> list[str]:
    cells = [scheme.name, f"{scheme.perplexity:.2f}", f"{100 * scheme.ece:.2f}"]
    if scheme.robust_loss is not None and scheme.gap is not None and scheme.recovered is not None:
        cells += [f"{scheme.robust_loss:.4f}", f"{scheme.gap:.4f}", share_cell(scheme.recovered, to_gain)]
    return [*cells, *tau_cells(scheme)]
