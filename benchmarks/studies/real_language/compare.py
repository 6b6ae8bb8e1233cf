"""Temperatures for each token of a frozen language model, on text of five kinds.

Needs the files of `cache.py`. Every method's trials run with a seed of their own and are selected on validation text by
likelihood, and by calibration error where that selects another; the selected trial is fitted with every seed and
tested. Differences are paired by document. Interrupt it with Ctrl-C; the same command resumes it.

  python -m benchmarks.studies.real_language.compare --model FOLDER
"""

import argparse
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.timing import machine
from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import TUNING_SEED, Job, Options, all_done, chosen
from benchmarks.studies.common.summary import Summary, publish
from benchmarks.studies.real_language.bootstrap import differences
from benchmarks.studies.real_language.cache import FOLDER, Tokens, load, model_of, tokenizer_of
from benchmarks.studies.real_language.figures import draw_forest
from benchmarks.studies.real_language.methods import METHODS
from benchmarks.studies.real_language.tables import TITLE, table
from dro_temp.functional.reliability import reliability_sums

BINS = 15


# --- one run ---


@functools.cache
def _data(out: Path, model: Path) -> tuple[dict[str, Tokens], Tensor, Tensor]:
    """Splits, which token ids end a line, and the weights of the head."""
    tokens = {split: load(split, out) for split in ("train", "validation", "test")}
    return tokens, line_ends(model), model_of(model).lm_head.weight.detach()


@functools.cache
def line_ends(model: Path) -> Tensor:
    """True for token ids whose text ends in a line break."""
    words = tokenizer_of(model)
    return torch.tensor([words.decode([k]).endswith("\n") for k in range(len(words))])


def run(
    method: str, seed: int, options: Options, *, tuning: bool, out: Path, model: Path, kept: bool = False
) -> dict[str, Any]:
    """Fit, and measure on validation text or, unless it is a trial, on test text; a network may be kept."""
    start = time.process_time()
    data, ends, head = _data(out, model)
    starts = {split: ends[tokens.previous] for split, tokens in data.items()}
    predict = METHODS[method].fit(data["train"], starts["train"], head, seed, options)
    measured = {
        split: measures(data[split], predict(data[split], starts[split]), documents=split == "test")
        for split in (("validation",) if tuning else ("validation", "test"))
    }
    if kept and hasattr(predict, "network"):
        torch.save(predict.network.state_dict(), out / f"{method.replace(', ', '-').replace(' ', '_')}.pt")
    return {
        "chosen_by": measured["validation"]["nll"],
        **measured,
        "seconds": time.process_time() - start,
    }


def measures(tokens: Tokens, tau: Tensor, *, documents: bool = False) -> dict[str, Any]:
    """Metrics overall and by kind; with documents, also what a bootstrap over them needs."""
    c = tokens.curves
    nll, brier, confidence = c.nll(tau).double(), c.brier(tau).double(), c.confidence(tau)
    result: dict[str, Any] = {}
    for kind in (None, *range(len(tokens.kinds))):
        of = torch.ones(len(tokens), dtype=torch.bool) if kind is None else tokens.kind == kind
        bins = _bins(confidence[of], c.correct[of])
        suffix = "" if kind is None else f"_{tokens.kinds[kind]}"
        result |= {
            f"nll{suffix}": float(nll[of].mean()),
            f"ece{suffix}": calibration_error(bins),
            f"brier{suffix}": float(brier[of].mean()),
            f"tau_mean{suffix}": float(tau[of].mean()),
        }
    result |= {f"tau_{q}": float(tau.quantile(q / 100)) for q in (5, 50, 95)}
    if documents:
        n = int(tokens.document.max()) + 1
        each = [tokens.document == d for d in range(n)]
        result["document_nll"] = [round(float(nll[of].mean()), 6) for of in each]
        result["document_brier"] = [round(float(brier[of].mean()), 6) for of in each]
        bins = torch.stack([_bins(confidence[of], c.correct[of]) for of in each])
        result["document_tokens"] = len(tokens) // n  # the same for each
        result["document_gap"] = [[round(x, 4) for x in row] for row in (bins[:, 1] - bins[:, 2]).tolist()]
    return result


def _bins(confidence: Tensor, correct: Tensor) -> Tensor:
    """Count, confidence and hits by bin, [3 bins]."""
    return reliability_sums(confidence, correct, torch.ones_like(confidence), BINS)


def calibration_error(bins: Tensor) -> float:
    """Expected calibration error, in percent."""
    return 100 * float((bins[1] - bins[2]).abs().sum() / bins[0].sum())


# --- the study ---


def study(names: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Test runs of each method's trials that validation selects, by likelihood and, if different, by calibration."""

    def job(method: str, seed: int, trial: Options, label: str | None = None) -> Job:
        kept = label is None and seed == options.seeds[0]  # not that of the calibration error
        extra = {"out": options.cache, "model": options.model, "kept": kept}
        return Job(method, seed, trial, options.out / "runs", run, label, extra)

    trials = all_done(
        [job(m, TUNING_SEED, trial) for m in names for trial in METHODS[m].trials], options.workers, "tuning"
    )
    best = chosen(trials)
    calibrated = chosen([{**t, "chosen_by": t["validation"]["ece"]} for t in trials])
    jobs = []
    for name in names:
        seeds = options.seeds[: METHODS[name].seeds]
        jobs += [job(name, seed, best[name]) for seed in seeds]
        if calibrated[name] != best[name]:
            jobs += [job(name, seed, calibrated[name], f"{name}, by ECE") for seed in seeds]
    return all_done(jobs, options.workers, "testing")


def summary_of(tests: Sequence[Mapping[str, Any]], about: Mapping[str, Any], tokens: Tokens) -> Summary:
    """Means over seeds; differences are those of documents, with the seeds' mean for each."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for test in tests:
        by_method.setdefault(test["method"], []).append(test)
    records = []
    for method, runs in by_method.items():
        record: dict[str, Any] = {"method": method, "options": runs[0]["options"], "seeds": len(runs)}
        for metric in (key for key, value in runs[0]["test"].items() if not isinstance(value, list)):
            values = torch.tensor([r["test"][metric] for r in runs], dtype=torch.float64)
            record[metric] = [float(values.mean()), float(values.std()) if len(runs) > 1 else 0.0]
        records.append(record)
    _, first = torch.unique(tokens.document, return_inverse=True)
    kind = torch.zeros(int(first.max()) + 1, dtype=torch.long).scatter(0, tokens.document, tokens.kind)
    return Summary({**machine(), **about}, records, differences(by_method, kind, tokens.kinds))


def main() -> None:
    """Run the study."""
    arguments = parser(__doc__, "runs/real_language", methods=METHODS)
    arguments.add_argument("--model", type=Path, required=True, help="folder of the language model")
    arguments.add_argument(
        "--cache", type=Path, default=FOLDER, help="folder of `cache.py` (default: %(default)s)"
    )
    options = arguments.parse_args()
    tests = study(options.methods, options)
    about = {"seeds": options.seeds, "text": json.loads((options.cache / "cache.json").read_text())["test"]}
    summary = summary_of(tests, about, load("test", options.cache))
    publish("real_language", TITLE, "temperatures", summary, table("temperatures", summary), options)
    draw_forest(summary, options.out / "real_language_forest.png")


if __name__ == "__main__":
    main()
