"""Perplexity, calibration and robust loss of a language model under several temperatures."""

import math
from collections.abc import Iterable, Iterator, Mapping

import torch

from dro_temp import functional as F
from dro_temp._checks import check_bounds, check_count, check_radius
from dro_temp._modes import evaluating
from dro_temp._typing import PerRow
from dro_temp.evaluation._batches import Batch, blocks_of_rows, check_batches
from dro_temp.evaluation._constants import lowest_points
from dro_temp.evaluation._share import recovered_share
from dro_temp.evaluation._sums import RowFacts, TemperatureSums
from dro_temp.evaluation.report import BY_ROBUST, SHARES, LanguageReport, TemperatureScheme
from dro_temp.interfaces import HostAdapter, Rows, TemperaturePredictor

ONE, BY_LIKELIHOOD = "tau = 1", "best constant (likelihood)"
OPTIMUM = "optimum"


def evaluate_language(
    host: HostAdapter,
    predictors: TemperaturePredictor | Mapping[str, TemperaturePredictor],
    test: Iterable[Batch],
    *,
    validation: Iterable[Batch],
    rho: float | None,
    tau_min: float | None = None,
    tau_max: float | None = None,
    bins: int = 15,
    progress: bool = False,
) -> LanguageReport:
    r"""What a predictor's temperatures are worth, between the best constant one and the optimum of every token.

    The robust loss of one token is $F(\tau) = \tau\,(\mathrm{nll}(s/\tau) - \log m + \rho)$, and the share of the
    optimum's gain that a predictor recovers

    $$\frac{\bar F(\tau_c) - \bar F(\tau_{\mathrm{net}})}{\bar F(\tau_c) - \bar F(\tau^*)},$$

    $\tau_c$ the best constant on the validation data and $\tau_i^* = \arg\min F_i$ within the bounds. It measures
    how well the predictor does what it is trained to do. Whether that helps the likelihood is another question,
    which the perplexity answers: the optimum gives every token's distribution the entropy $\log m - \rho$, and
    for a frozen model that often makes its likelihood worse.

    The validation data are swept three times, the test data once. Scores exist for some thousand tokens at a time;
    model and predictors run in evaluation mode and are then put back into their own.

    Args:
        host: a language model with one view, `dt.hosts.CausalLM(model)`.
        predictors: one, or several by name.
        test: batches, token numbers [batch length] or keyword arguments of the host, for example a DataLoader or
            `blocks.split(8)`.
        validation: batches that the constant temperatures are chosen on.
        rho: radius of the KL ball in nats; the training loss's own, 0 <= rho < log m. None for predictors that were
            trained for the likelihood: nothing is then said of the robust loss, nor of its optimum.
        tau_min: lower bound of the constants and of the optimum; the lowest of the predictors' if None.
        tau_max: upper bound; the highest of the predictors' if None.
        bins: bins of the calibration error.
        progress: show progress bars.

    Raises:
        ValueError: rho >= log m, no predictor or one under a name that is taken, bounds that are no interval, data
            without a token to predict, or a host with several views.
        TypeError: a tensor or a generator in place of batches.
        ImportError: `progress` without rich.

    Example:
        >>> import dro_temp as dt, transformers
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> host = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config), frozen=True)
        >>> tempnet = dt.TempNet(16, tau_min=0.01, tau_max=2.0)
        >>> test, validation = (torch.randint(99, (16, 8)).split(4) for _ in range(2))
        >>> report = evaluate_language(host, tempnet, test, validation=validation, rho=1.0)
        >>> [scheme.name for scheme in report.schemes][-2:], report["optimum"].gap
        (['predictor', 'optimum'], 0.0)
    """
    named = _named(predictors)
    if rho is not None:
        check_radius(rho)
    check_count("bins", bins)
    low = min(p.tau_min for p in named.values()) if tau_min is None else tau_min
    high = max(p.tau_max for p in named.values()) if tau_max is None else tau_max
    check_bounds(low, high)
    _check_views(host)
    check_batches("test", test)
    check_batches("validation", validation)

    def constants_on_validation(taus: list[float]) -> list[tuple[float, ...]]:
        sums = [TemperatureSums(rho, bins) for _ in taus]
        for rows in _checked(blocks_of_rows(host, validation, "constants" if progress else None), rho):
            facts = RowFacts(rows)
            for into, tau in zip(sums, taus, strict=True):
                into.add(facts, torch.full_like(facts.top, tau))
        return [(s.nll,) if rho is None else (s.nll, s.robust_loss) for s in sums]

    with evaluating(host, *named.values()):
        names = (BY_LIKELIHOOD,) if rho is None else (BY_LIKELIHOOD, BY_ROBUST)
        best = lowest_points(constants_on_validation, len(names), low, high)
        fixed = {ONE: 1.0, **dict(zip(names, best, strict=True))}
        optimum = () if rho is None else (OPTIMUM,)
        sums = {name: TemperatureSums(rho, bins) for name in (*fixed, *named, *optimum)}
        vocabulary = 0
        for rows in _checked(blocks_of_rows(host, test, "test" if progress else None), rho):
            facts, vocabulary = RowFacts(rows), rows.support_size
            for name, tau in fixed.items():
                sums[name].add(facts, torch.full_like(facts.top, tau))
            for name, predictor in named.items():
                sums[name].add(facts, predictor.predict(rows))
            if rho is not None:
                sums[OPTIMUM].add(facts, _optimum(rows, rho, low, high))
    return _report(sums, vocabulary, rho)


def _optimum(rows: Rows, rho: float, low: float, high: float) -> PerRow:
    return F.optimal_tau(rows.dense_scores, rho=rho, tau_min=low, tau_max=high)


def _named(
    predictors: TemperaturePredictor | Mapping[str, TemperaturePredictor],
) -> dict[str, TemperaturePredictor]:
    named = {"predictor": predictors} if isinstance(predictors, TemperaturePredictor) else dict(predictors)
    taken = {ONE, BY_LIKELIHOOD, BY_ROBUST, OPTIMUM} & set(named)
    if not named or taken:
        raise ValueError(
            f"expected at least one predictor, under names other than {ONE!r}, {BY_LIKELIHOOD!r}, {BY_ROBUST!r} and "
            f"{OPTIMUM!r}, received {', '.join(named) or 'none'}. Pass {{'tempnet': tempnet}}."
        )
    return named


def _check_views(host: HostAdapter) -> None:
    if len(host.views) != 1:
        raise ValueError(
            f"expected a host with one view, of tokens, received {type(host).__name__} with {list(host.views)}. "
            "Pass dt.hosts.CausalLM(model)."
        )


def _checked(blocks: Iterable[Rows], rho: float | None) -> Iterator[Rows]:
    """Raise where rho leaves nothing to choose, or there is nothing to evaluate."""
    found = False
    for rows in blocks:
        if rho and rho >= math.log(rows.support_size):
            raise ValueError(
                f"expected rho < log m = {math.log(rows.support_size):.4g} for a vocabulary of {rows.support_size} "
                f"tokens, received rho={rho}: every temperature would collapse to tau_min. "
                f"Pass rho={0.5 * math.log(rows.support_size):.2g} or so, the rho that the predictor was trained with."
            )
        found = True
        yield rows
    if not found:
        raise ValueError(
            "expected data with at least one token to predict, received none. Pass batches of at least two tokens, "
            "not all of them labelled -100."
        )


def _report(sums: Mapping[str, TemperatureSums], vocabulary: int, rho: float | None) -> LanguageReport:
    schemes = tuple(
        TemperatureScheme(
            name=name,
            perplexity=math.exp(min(s.nll, 700.0)),  # more is no double
            ece=s.calibration.error,
            robust_loss=None if rho is None else s.robust_loss,
            gap=None if rho is None else s.robust_loss - sums[OPTIMUM].robust_loss,
            recovered=None
            if rho is None
            else recovered_share(s.robust_loss, sums[BY_ROBUST].robust_loss, sums[OPTIMUM].robust_loss),
            tau_mean=s.tau_mean,
            tau_quantiles=s.quantiles(SHARES),
        )
        for name, s in sums.items()
    )
    return LanguageReport(sums[ONE].rows, vocabulary, rho, schemes)
