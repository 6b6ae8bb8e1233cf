"""What is lost by predicting temperatures instead of solving for them."""

from collections.abc import Iterable

from dro_temp._checks import check_count
from dro_temp.evaluation._batches import HostBatch
from dro_temp.evaluation._sampled_losses import sampled_losses
from dro_temp.evaluation._statistics import check_confidence
from dro_temp.evaluation.gap_report import AmortisationGap
from dro_temp.objective import Objective


def amortisation_gap(
    objective: Objective,
    batches: Iterable[HostBatch],
    *,
    rows: int = 2000,
    seed: int = 0,
    tau_min: float | None = None,
    tau_max: float | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    progress: bool = False,
) -> dict[str, AmortisationGap]:
    r"""How near predicted temperatures come to the best one of every row, in the loss that they are trained on.

    With $F_i(\tau) = \tau (\log \frac1m \sum_j e^{h_{ij}/\tau} + \rho)$, the optimum
    $\tau_i^* = \arg\min F_i$ within the bounds and the best constant $\tau_c = \arg\min_\tau \bar F(\tau)$:

    $$\mathrm{gap} = \bar F(\tau_{\mathrm{net}}) - \bar F(\tau^*) \ge 0, \qquad
    \mathrm{recovered} = \frac{\bar F(\tau_c) - \bar F(\tau_{\mathrm{net}})}{\bar F(\tau_c) - \bar F(\tau^*)}.$$

    The constant is chosen on the very rows that it is judged on, which no predictor was: that favours the constant, so
    that the share is a conservative one.

    Rows of classes and tokens have their own support. Rows of pairs have all *other* items of `batches` for theirs,
    whatever the batches are: pass the data that the statement is to be about, in the order of `hosts.TwoTower(images,
    texts, index)`, say. Their support is then what the loss estimates in training.

    Data are swept once. Scores exist a block of rows at a time; what is held is the embeddings of all items for pairs,
    and the sampled rows of a host that gives a score matrix. Everything runs in evaluation mode; modes, random
    numbers, memories and proposals are afterwards as they were.

    Args:
        objective: whose losses are all `KLRobustLoss`; host and predictors may be any.
        batches: what the host is called with: a tensor, a tuple of its arguments, or keyword arguments, which may hold
            `index` for predictors that know samples by their numbers.
        rows: rows of each view, drawn at random without replacement; all if there are fewer. Those of weight 0 are
            left out.
        seed: of the drawing, and of the resampling.
        tau_min: lower bound of the optimum and of the constant; that of each view's predictor if None.
        tau_max: upper bound; that of each view's predictor if None.
        resamples: bootstrap samples.
        confidence: level of the intervals.
        progress: show progress bars.

    Returns:
        One `AmortisationGap` for each view; printed, it is a table.

    Raises:
        TypeError: no Objective, another loss, a tensor or a generator in place of batches, or a host whose rows of
            pairs are no products (`hosts.TwoViews`).
        ValueError: bounds that are no interval (a constant predictor has none), no rows, rho >= log m.
        FloatingPointError: scores or temperatures that are not finite.
        ImportError: `progress` without rich.

    Example:
        >>> import dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
        >>> predictor = dt.OptimalTemperature(1.0, tau_min=0.01, tau_max=4.0)
        >>> objective = dt.Objective(host, predictor, dt.KLRobustLoss(rho=1.0))
        >>> batches = [(torch.randn(32, 6), torch.randint(10, (32,))) for _ in range(3)]
        >>> gap = amortisation_gap(objective, batches)["class"]
        >>> gap.rows, gap.outcomes, round(gap.recovered, 3)
        (96, 10, 1.0)

    Source: arXiv 2404.04575, equation 6, for $F_i$.
    """
    check_count("resamples", resamples)
    check_confidence(confidence)
    found = sampled_losses(
        objective, batches, rows=rows, seed=seed, tau_min=tau_min, tau_max=tau_max, progress=progress
    )
    return {view: sampled.gap(resamples, confidence, seed) for view, sampled in found.items()}
