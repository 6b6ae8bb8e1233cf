"""Measure a run's TempNet."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from dro_temp._files import check_writable, whole_file
from dro_temp.cli.needs import needed
from dro_temp.cli.options import check_above_zero, check_least, check_radius
from dro_temp.cli.run import Run
from dro_temp.cli.text import OFFLINE, blocks, check_vocabulary, documents
from dro_temp.evaluation import evaluate_language
from dro_temp.hosts import CausalLM
from dro_temp.predictors import ConstantTemperature, TempNet


def evaluate(
    run: Path,
    data: str | None = None,
    column: str = "text",
    limit: int = 128,
    batch: int = 8,
    rho: float | None = None,
    tasks: tuple[str, ...] = (),
    task_folder: Path | None = None,
) -> None:
    """Perplexity, calibration and amortisation gap of a run's TempNet; lm-eval tasks with and without it.

    Args:
        run: the folder that `fit` made.
        data: held-out text, as `fit` takes it; half chooses the constant temperatures, half is the test. By default the
            test split of Python's source if that was trained on, else the data that was.
        column: where records hold their text.
        limit: blocks of text that are used.
        batch: blocks at a time.
        rho: radius of the robust loss; by default the one trained with, if there was one.
        tasks: lm-eval tasks; each is run at tau = 1 and with the TempNet.
        task_folder: where tasks of your own are.
    """
    check_least("limit", limit, 2)
    check_least("batch", batch)
    if rho is not None:
        check_above_zero("rho", rho)
    if task_folder is not None and not task_folder.is_dir():
        raise ValueError(f"expected a folder of tasks, received --task_folder {task_folder}. Check the path.")
    check_writable(run)
    model, tokenizer, tempnet, options = Run(run).load()
    host = CausalLM(model, frozen=True)
    check_vocabulary(tokenizer, host.vocabulary)
    source = data or options["data"]
    texts = documents(source, split="test" if source == OFFLINE else "train", column=column)
    rows = blocks(texts, tokenizer, options["block"])[:limit]
    if len(rows) < 2:
        raise ValueError(
            f"expected at least two blocks of {options['block']} tokens, received {len(rows)}. Pass more text: --data."
        )
    half = len(rows) // 2
    if rho is not None:
        check_radius(rho, host.vocabulary)
    radius = tempnet.rho if rho is None else rho
    report = evaluate_language(
        host,
        {"TempNet": tempnet},
        torch.split(rows[half:], batch),
        validation=torch.split(rows[:half], batch),
        rho=radius,
        progress=True,
    )
    trained_with = "trained for the likelihood, without a radius" if radius is None else f"rho = {radius:.4g}"
    print(f"\n{report.tokens} tokens, {trained_with}\n\n{report.table()}\n")
    if source == options["data"] and source != OFFLINE:
        print("note: this text was trained on; pass --data for text that was not\n")
    found = {"data": source, **report.asdict()}
    if tasks:
        found["tasks"] = _tasks(model, tokenizer, tempnet, tasks, task_folder)
    out = run / "eval.json"
    with whole_file(out) as file:
        file.write(json.dumps(_plain(found), indent=2, allow_nan=False).encode())
    print(f"wrote {out}")


def _plain(x: Any) -> Any:
    """JSON has no NaN: what is not there is null."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _tasks(
    model: Any, tokenizer: Any, tempnet: TempNet, tasks: tuple[str, ...], folder: Path | None
) -> dict[str, Any]:
    """Each task's numbers at tau = 1 and with the TempNet."""
    from dro_temp.integrations.lm_eval import tempered_lm

    manager = needed("lm_eval.tasks").TaskManager(
        include_path=None if folder is None else str(folder), include_defaults=folder is None
    )
    results = {}
    for name, predictor in (("tau = 1", ConstantTemperature(1.0)), ("TempNet", tempnet)):
        lm = tempered_lm(model, tokenizer, predictor, device=str(model.device))
        found = needed("lm_eval").simple_evaluate(
            lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0
        )
        results[name] = {
            task: {key: value for key, value in numbers.items() if isinstance(value, float)}
            for task, numbers in found["results"].items()
        }
        for task, numbers in results[name].items():
            print(
                f"{task}, {name}: " + ", ".join(f"{k.partition(',')[0]} {v:.4f}" for k, v in numbers.items())
            )
    return results
