"""Differences between methods over the same documents, by the bootstrap within each kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

RESAMPLES = 10_000
#: Methods that all others are compared with.
REFERENCES = ("tau = 1", "constant", "constant per kind")


def resampling_weights(kind: Tensor, seed: int = 0) -> Tensor:
    """How often each document is drawn, [RESAMPLES documents]: as many of each kind as there are."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(RESAMPLES, len(kind))
    for k in kind.unique():
        of = (kind == k).nonzero().squeeze(1)
        drawn = of[torch.randint(len(of), (RESAMPLES, len(of)), generator=generator)]
        weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float32))
    return weights


def interval(mean: float, resampled: Tensor) -> dict[str, float]:
    """Mean, 95 % percentile interval and two-sided p-value of a resampled difference."""
    low, high = torch.quantile(resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    smaller = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (smaller + 1) / (len(resampled) + 1))
    return {"mean": mean, "std": float(resampled.double().std()), "low": low, "high": high, "p": p}


def differences(
    by_method: Mapping[str, Sequence[Mapping[str, Any]]], kind: Tensor, kinds: Sequence[str]
) -> list[dict[str, Any]]:
    """Every method minus every reference: NLL, Brier score and calibration error.

    The last reference is compared by kind as well.
    """
    weights = resampling_weights(kind)
    per_document = {
        metric: {
            m: torch.tensor([run["test"][f"document_{metric}"] for run in runs], dtype=torch.float32).mean(0)
            for m, runs in by_method.items()
        }
        for metric in ("nll", "brier")
    }
    errors = {m: _errors(runs, weights) for m, runs in by_method.items()}
    rows = []
    for reference in (r for r in REFERENCES if r in by_method):
        done = REFERENCES[: REFERENCES.index(reference) + 1]
        for method in (m for m in by_method if m not in done):
            pair = {"method": method, "minus": reference}
            for metric, values in per_document.items():
                gain = values[method] - values[reference]
                by_kind = metric == "nll" and reference == REFERENCES[-1]
                for k in (None, *range(len(kinds))) if by_kind else (None,):
                    of = torch.ones_like(kind, dtype=torch.bool) if k is None else kind == k
                    resampled = (weights[:, of] @ gain[of]) / weights[:, of].sum(1)
                    rows.append(
                        {"metric": metric if k is None else f"{metric}_{kinds[k]}", **pair}
                        | interval(float(gain[of].double().mean()), resampled)
                        | _signs(gain[of])
                    )
            mean = _mean(by_method[method]) - _mean(by_method[reference])
            gain = errors[method] - errors[reference]
            rows.append({"metric": "ece", **pair} | interval(mean, gain) | _signs(None))
    return rows


def _signs(gain: Tensor | None) -> dict[str, int]:
    if gain is None:
        return {"seeds": 0, "higher": 0, "lower": 0}
    return {"seeds": len(gain), "higher": int((gain > 0).sum()), "lower": int((gain < 0).sum())}


def _mean(runs: Sequence[Mapping[str, Any]]) -> float:
    return sum(run["test"]["ece"] for run in runs) / len(runs)


def _errors(runs: Sequence[Mapping[str, Any]], weights: Tensor) -> Tensor:
    """Calibration error in percent of each resample, the seeds' mean; documents have equally many tokens."""
    each = []
    for run in runs:
        gaps = torch.tensor(run["test"]["document_gap"])  # confidence minus hits, [documents bins]
        tokens = weights.sum(1) * run["test"]["document_tokens"]
        each.append(100 * (weights @ gaps).abs().sum(1) / tokens)
    return torch.stack(each).mean(0)
