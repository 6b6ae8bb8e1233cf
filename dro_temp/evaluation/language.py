"""What are temperatures worth to a language model? Perplexity, calibration and robust loss."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dro_temp._checks import check_bounds, check_count, check_feasible, check_radius
from dro_temp._modes import evaluating
from dro_temp.evaluation._batches import (
    Batch,
    Predictors,
    ScoredRows,
    check_batches,
    named_predictors,
    row_blocks,
)
from dro_temp.evaluation._reports import TAU_TITLES, Comparison, recovered_share, share_cell, tau_cells
from dro_temp.evaluation._temperature_sums import TemperatureSums, best_constants
from dro_temp.interfaces import HostAdapter, TemperaturePredictor
from dro_temp.predictors import OptimalTemperature

ONE, BY_LIKELIHOOD, BY_ROBUST = "tau = 1", "best constant (likelihood)", "best constant (robust)"
OPTIMUM = "optimum"


@dataclass(frozen=True)
class TemperatureScheme:
    """One way to choose temperatures, on the test data.

    Args:
        name: which.
        perplexity: exp of the mean negative log-likelihood per token.
        ece: expected calibration error of the most probable token, in [0, 1].
        robust_loss: mean of tau (log-mean-exp of margins / tau + rho); None, as the next two, without a radius.
        gap: mean robust loss above that of the optimum of each token: the amortisation gap.
        recovered: share of the optimum's gain over the best constant, as in `AmortisationGap`. The table shows a dash
            where the attainable gain rounds to 0.0000.
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
class LanguageReport(Comparison[TemperatureScheme]):
    """Temperatures of a language model compared on one text.

    `report[name]` is the scheme of that name, `report.asdict()` plain numbers for JSON. The table has the columns of
    the robust loss only if there is a radius.

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

    def _heading(self) -> str:
        heading = f"{self.tokens:,} tokens, m = {self.vocabulary:,}"
        return heading if self.rho is None else f"{heading}, rho = {self.rho:g}"

    def _lines(self) -> list[list[str]]:
        robust = ["robust loss", "gap", "recovered (%)"] if self.rho is not None else []
        gain = next((x.gap for x in self.schemes if x.name == BY_ROBUST and x.gap is not None), 0.0)
        lines = [["temperature", "perplexity", "ECE (%)", *robust, *TAU_TITLES]]
        for s in self.schemes:
            cells = [s.name, f"{s.perplexity:.2f}", f"{100 * s.ece:.2f}"]
            if s.robust_loss is not None and s.gap is not None and s.recovered is not None:
                cells += [f"{s.robust_loss:.4f}", f"{s.gap:.4f}", share_cell(s.recovered, gain)]
            lines.append([*cells, *tau_cells(s.tau_mean, s.tau_quantiles)])
        return lines


def evaluate_language(
    host: HostAdapter,
    predictors: Predictors,
    test: Iterable[Batch],
    *,
    validation: Iterable[Batch],
    rho: float | None,
    tau_min: float | None = None,
    tau_max: float | None = None,
    bins: int = 15,
    progress: bool = False,
) -> LanguageReport:
    r"""Predicted temperatures of a language model, between the best constant one and the optimum of every token.

    The robust loss of one token is $F(\tau) = \tau\,(\mathrm{nll}(s/\tau) - \log m + \rho)$. The gap, and the share of
    the optimum's gain that a predictor recovers, are those of
    [`amortisation_gap`][dro_temp.evaluation.amortisation_gap], with the best constant of the validation data: how well
    the predictor optimises its training objective. Whether that helps the likelihood, the perplexity tells: the
    optimum gives every token the entropy $\log m - \rho$, and often makes the likelihood of a frozen model worse.

    The validation data are read three times, the test data once, in evaluation mode, a few thousand tokens at a time.

    Args:
        host: a language model with one view, `dt.hosts.CausalLM(model)`.
        predictors: one, or several by name.
        test: batches, token ids [batch length] or keyword arguments of the host, for example a DataLoader or
            `blocks.split(8)`.
        validation: batches that the constant temperatures are chosen on.
        rho: radius of the KL ball in nats, that of the training loss, 0 <= rho < log m. None for predictors that were
            trained for the likelihood: the report then has no robust loss and no optimum.
        tau_min: lower bound of the constants and of the optimum; by default the lowest of the predictors'.
        tau_max: upper bound; by default the highest of the predictors'.
        bins: bins of the calibration error.
        progress: show progress bars.

    Raises:
        ValueError: rho >= log m, no predictor or one under a reserved name, bounds that do not form an interval, data
            without a token to predict, or a host with several views.
        TypeError: a tensor or a generator in place of batches.

    Example:
        >>> import torch, transformers
        >>> import dro_temp as dt
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> host = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config), frozen=True)
        >>> tempnet = dt.TempNet(16, tau_min=0.01, tau_max=2.0)
        >>> test, validation = (torch.randint(99, (16, 8)).split(4) for _ in range(2))
        >>> report = evaluate_language(host, tempnet, test, validation=validation, rho=1.0)
        >>> [scheme.name for scheme in report.schemes][-2:], report["optimum"].gap
        (['predictor', 'optimum'], 0.0)
    """
    reserved = ONE, BY_LIKELIHOOD, BY_ROBUST, OPTIMUM
    named = named_predictors(predictors, reserved, host, "dt.hosts.CausalLM(model)")
    if not named:
        raise ValueError("expected at least one predictor, received none. Pass {'tempnet': tempnet}.")
    if rho is not None:
        check_radius(rho)
    check_count("bins", bins)
    low = min(p.tau_min for p in named.values()) if tau_min is None else tau_min
    high = max(p.tau_max for p in named.values()) if tau_max is None else tau_max
    check_bounds(low, high)
    check_batches(test=test, validation=validation)
    title = "constants" if progress else None
    with evaluating(host, *named.values()):
        best = best_constants(lambda: _token_rows(host, validation, rho, title), rho, low, high)
        names = ONE, BY_LIKELIHOOD, BY_ROBUST  # the last only with a radius
        taus: dict[str, float | TemperaturePredictor] = dict(zip(names, (1.0, *best), strict=False))
        taus |= named
        if rho is not None:
            taus[OPTIMUM] = OptimalTemperature(rho, tau_min=low, tau_max=high)
        sums = {name: TemperatureSums(tau, rho or 0.0, bins) for name, tau in taus.items()}
        for rows in _token_rows(host, test, rho, "test" if progress else None):
            for s in sums.values():
                s.add(rows)
    robust = {name: s.means[1] for name, s in sums.items()}
    schemes = []
    for name, s in sums.items():
        nll, loss, tau, _ = s.means
        gains: tuple[float | None, float | None, float | None] = (None, None, None)
        if rho is not None:
            recovered = recovered_share(loss, robust[BY_ROBUST], robust[OPTIMUM])
            gains = loss, loss - robust[OPTIMUM], recovered
        perplexity = math.exp(min(nll, 700.0))  # a larger one overflows float64
        schemes.append(TemperatureScheme(name, perplexity, s.reliability.error, *gains, tau, s.quantiles))
    return LanguageReport(sums[ONE].rows, rows.rows.support_size, rho, tuple(schemes))


def _token_rows(
    host: HostAdapter, batches: Iterable[Batch], rho: float | None, title: str | None
) -> Iterator[ScoredRows]:
    """Rows of tokens, block by block; raise where the ball of radius rho holds every distribution."""
    for rows in row_blocks(host, batches, title, "token to predict"):
        if rho is not None:
            m = rows.rows.support_size
            instead = f"Pass rho={0.5 * math.log(m):.2g} or so, the rho that the predictor was trained with."
            check_feasible(rho, m, instead=instead)
        yield rows
