"""What a predictor's temperatures recover of what the best ones would gain, as numbers and as a table."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from dro_temp.evaluation._share import recovered_share, share_cell
from dro_temp.evaluation._table import html_table, markdown_table


@dataclass(frozen=True)
class TemperatureSpread:
    """How temperatures are distributed over rows.

    Args:
        mean: mean.
        std: standard deviation, of the rows as a whole population.
        quantiles: temperature by share of rows below it: 0.5 is the median. Each is one that occurred.
        at_bound: share of rows, in [0, 1], within 1 % of a bound.
    """

    mean: float
    std: float
    quantiles: dict[float, float]
    at_bound: float


@dataclass(frozen=True)
class AmortisationGap:
    """What is lost by predicting temperatures instead of solving for the best one of every row.

    Losses are means over the sampled rows; intervals are percentile bootstrap intervals over these rows, `(low, high)`,
    with the data and the best constant held as they are.

    Args:
        view: kind of rows.
        rows: number of rows that were sampled.
        available: number of rows that count.
        outcomes: number of outcomes in a row's support, m; the least where rows differ.
        rho: radius of the robust loss.
        tau_min: lower bound of the optimum and of the constant.
        tau_max: upper bound.
        constant: the best constant temperature on these rows.
        loss: robust loss at the predicted temperatures.
        loss_optimum: at the best temperature of every row.
        loss_constant: at the best constant.
        loss_same_mean: at the mean of the predicted temperatures, as a constant.
        gap: `loss - loss_optimum`; >= 0 while predictions stay within the bounds.
        gap_interval: of the gap.
        recovered: share of the optimum's gain over the best constant: 0 for that constant, 1 for the optimum, negative
            for what is worse than the constant; NaN where there is nothing to gain.
        recovered_interval: of that share.
        rank_correlation: Spearman's, of the predicted with the best temperatures; NaN where one side is constant.
        rank_correlation_interval: of that correlation.
        tau: the predicted temperatures.
        optimum: the best ones.
        confidence: level of the intervals.
    """

    view: str
    rows: int
    available: int
    outcomes: int
    rho: float
    tau_min: float
    tau_max: float
    constant: float
    loss: float
    loss_optimum: float
    loss_constant: float
    loss_same_mean: float
    gap: float
    gap_interval: tuple[float, float]
    recovered: float
    recovered_interval: tuple[float, float]
    rank_correlation: float
    rank_correlation_interval: tuple[float, float]
    tau: TemperatureSpread
    optimum: TemperatureSpread
    confidence: float

    @property
    def recovered_by_mean(self) -> float:
        """Share that the mean of the predictions recovers as a constant, at most 0: what `recovered` owes to no row."""
        return recovered_share(self.loss_same_mean, self.loss_constant, self.loss_optimum)

    def asdict(self) -> dict[str, Any]:
        """Plain numbers, strings, tuples and dicts, as JSON holds them."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """A Markdown table, aligned to be read as plain text too."""
        return markdown_table(self._lines())

    def __str__(self) -> str:
        """The table between what was measured and how sure one can be of it."""
        return f"{self._measured()}\n{self.table()}\n{self._intervals()}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self._lines(), self._measured(), self._intervals())

    def _lines(self) -> list[list[str]]:
        header = ["temperature", "robust loss", "gap", "recovered (%)", "τ mean (std)", "τ 5 % / 50 % / 95 %"]
        constants = (f"{self.constant:.4g}", "same mean, constant", f"{self.tau.mean:.4g}")
        return [
            [*header, "at a bound (%)"],
            ["best constant", *self._losses(self.loss_constant), constants[0], "", ""],
            [constants[1], *self._losses(self.loss_same_mean), constants[2], "", ""],
            ["predicted", *self._losses(self.loss), *_cells(self.tau)],
            ["optimum", *self._losses(self.loss_optimum), *_cells(self.optimum)],
        ]

    def _measured(self) -> str:
        return (
            f"{self.view}: {self.rows:,} of {self.available:,} rows, m = {self.outcomes:,}, rho = {self.rho:g}, "
            f"tau from {self.tau_min:g} to {self.tau_max:g}"
        )

    def _intervals(self) -> str:
        gap, share, rank = (
            f"{name} {value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"
            for name, value, (low, high), digits, unit in (
                ("gap", self.gap, self.gap_interval, 4, ""),
                ("recovered", 100 * self.recovered, tuple(100 * x for x in self.recovered_interval), 1, " %"),
                ("rank correlation", self.rank_correlation, self.rank_correlation_interval, 2, ""),
            )
        )
        if share_cell(self.recovered, self.loss_constant - self.loss_optimum) == "–":
            share = "recovered –"
        return f"{gap}, {share}, {rank} ({100 * self.confidence:g} % bootstrap over rows)"

    def _losses(self, loss: float) -> list[str]:
        share = recovered_share(loss, self.loss_constant, self.loss_optimum)
        return [
            f"{loss:.4f}",
            f"{loss - self.loss_optimum:.4f}",
            share_cell(share, self.loss_constant - self.loss_optimum),
        ]


def _cells(tau: TemperatureSpread) -> list[str]:
    shares = " / ".join(f"{tau.quantiles[share]:.4g}" for share in (0.05, 0.5, 0.95))
    return [f"{tau.mean:.4g} ({tau.std:.2g})", shares, f"{100 * tau.at_bound:.1f}"]
