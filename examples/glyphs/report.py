"""Tables and plots of finished runs."""

import json
import os
import platform
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

import dro_temp as dt
from dro_temp import plotting

from .config import Config
from .data import Data
from .training import GAP_PAIRS, VIEWS, Run

#: Methods with a temperature per input.
PERSONAL = ("tempnet", "tempnet-paper", "individual")


def write(config: Config, runs: list[Run], data: Data, console: Console) -> None:
    """Write results.json, results.md and the plots to the folder of the config, and print the table."""
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    header, rows = _table(config, runs)
    notes = _notes(config, data)
    _replace(out / "results.json", json.dumps(_results(config, runs), indent=1, default=str) + "\n")
    _replace(out / "results.md", _markdown(header, rows, notes))
    written = [out / "results.json", out / "results.md", *_plots(out, runs, data), out / "checkpoints"]
    # Two lines per cell, so that the table fits into 120 columns, also with several seeds.
    table = Table(
        title="Retrieval of glyphs and their names", title_justify="left", box=HORIZONTALS, show_lines=True
    )
    for cell in header:
        table.add_column(_two_lines(cell), justify="left" if cell == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(_two_lines, row))
    console.print(table)
    for note in notes:
        console.print(note, style="dim", highlight=False)
    console.print("written:", *(str(path) for path in written), sep="\n  ", highlight=False, soft_wrap=True)


def _two_lines(cell: str) -> str:
    if cell.startswith("gap recovered"):
        return cell.replace(", ", ",\n")
    return (
        cell.replace(" R@1 / ", "\nR@1 / ").replace(" / ", "\n")
        if "/" in cell
        else cell.replace(" ", "\n", 1)
    )


def _results(config: Config, runs: list[Run]) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "dro_temp": dt.__version__,
            "matplotlib": matplotlib.__version__,  # matplotlib's fonts are the data
        },
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "seconds": round(run.seconds, 1),
                "metrics": run.result["metrics"],
                "gap_recovered": run.result["gap_recovered"],
                "history": run.history,
            }
            for run in runs
        ],
    }


def _table(config: Config, runs: list[Run]) -> tuple[list[str], list[list[str]]]:
    ways = [f"{split}/{way}" for split in ("test_seen", "test_unseen") for way in ("i2t", "t2i")]
    header = ["method"] + [way.removeprefix("test_").replace("/", " ") + " R@1 / R@5" for way in ways]
    header += ["mean R@1", "τ images", "τ names", "gap recovered, images / names"]
    rows = []
    for method in config.methods:
        metrics = [run.result["metrics"] for run in runs if run.method == method]

        def over_seeds(name: str, values: list[dict[str, float]] = metrics) -> str:
            return _mean_and_std([m[name] for m in values])

        def tau(view: str, values: list[dict[str, float]] = metrics, method: str = method) -> str:
            mean, std = (statistics.mean(m[f"tau_{view}_{part}"] for m in values) for part in ("mean", "std"))
            return f"{mean:.4f} ({std if std > 1e-6 else 0:.2g})" + "*" * (method == "individual")

        recalls = [f"{over_seeds(f'{way}_r1')} / {over_seeds(f'{way}_r5')}" for way in ways]
        gap = _recovered([run.result["gap_recovered"] for run in runs if run.method == method])
        rows.append([method, *recalls, over_seeds("mean_r1"), *(tau(view) for view in VIEWS), gap])
    return header, rows


def _recovered(seeds: list[dict[str, tuple[float, float, float]]]) -> str:
    """Share recovered in percent: one seed with the interval over rows, several with their standard deviation."""
    if not all(seeds):
        return "-"
    cells = []
    for view in VIEWS:
        share, low, high = (100 * x for x in seeds[0][view])
        spread = f"[{low:.0f}, {high:.0f}]"
        if len(seeds) > 1:
            shares = [100 * seed[view][0] for seed in seeds]
            share, spread = statistics.mean(shares), f"± {statistics.stdev(shares):.0f}"
        cells.append(f"{share:.0f} {spread}" if not share < -999 else "< -999")
    return " / ".join(cells)


def _mean_and_std(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _notes(config: Config, data: Data) -> list[str]:
    n = len(config.seeds)
    seen, unseen = (data.splits[split] for split in ("test_seen", "test_unseen"))
    over = "1 seed" if n == 1 else f"{n} seeds, mean ± standard deviation over them"
    sampled = f"[95 % over {min(GAP_PAIRS, config.train_size):,} pairs]"
    notes = [
        f"Recalls in percent, {over}. Seen: {len(seen)} images of {len(seen.names)} training names, in fonts "
        f"without training images. Unseen: {len(unseen)} images of {len(unseen.names)} names without training "
        f"images. Chance is {100 / len(seen.names):.2f} and {100 / len(unseen.names):.2f} (i2t R@1).",
        "i2t: images to names; t2i: names to images. τ: mean (standard deviation over inputs) on test_seen.",
        "gap recovered: percent of what the best τ of every training pair would gain in the robust loss over the best "
        f"constant one, {sampled if n == 1 else 'mean ± standard deviation over seeds'}; 0 is that constant, negative "
        "is worse. -: trained on another loss.",
    ]
    if "individual" in config.methods:
        notes.append("*: over the training pairs; a table holds no temperature for any other input.")
    return notes


def _markdown(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([table, *(note.replace("*:", "\\*:") for note in notes)]) + "\n"


def _plots(out: Path, runs: list[Run], data: Data) -> list[Path]:
    figures = {"curves.png": plotting.training_curves(_curves(runs))}
    first = runs[0].seed
    shown = {run.method: run for run in runs if run.seed == first}
    if any(method in shown for method in PERSONAL):
        figures["temperature_histogram.png"] = plotting.temperature_histogram(_temperatures(shown))
    if "tempnet" in shown:
        pairs = data.splits["test_seen"]
        # One image per name, or similar fonts would fill the sheet with one glyph.
        place = {name: i for i, name in reversed(list(enumerate(pairs.name_index.tolist())))}
        one = torch.tensor([place[name] for name in range(len(pairs.names))])
        tau = shown["tempnet"].result["tau"]["image"]
        figures["extremes.png"] = plotting.image_extremes(pairs.images[one], pairs.names, tau[one])
    for name in ("curves.png", "temperature_histogram.png", "extremes.png"):
        if name in figures:
            figures[name].savefig(out / name)
        else:
            (out / name).unlink(missing_ok=True)  # remove the picture of an earlier experiment
    return [out / name for name in figures]


def _temperatures(shown: dict[str, Run]) -> dict[str, torch.Tensor]:
    tau: dict[str, torch.Tensor] = {}
    for method, inputs in (("tempnet", "test"), ("tempnet-paper", "test"), ("individual", "training")):
        if method in shown:
            image, text = (shown[method].result["tau"][view] for view in VIEWS)
            tau |= {f"{method}, {inputs} images": image, f"{method}, {inputs} names": text}
    if "infonce" in shown:
        tau["infonce, all inputs"] = shown["infonce"].result["tau"]["image"]
    return tau


def _curves(runs: list[Run]) -> dict[str, dict[str, list[float]]]:
    shown: dict[str, dict[str, list[float]]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        seeds = [run.history for run in runs if run.method == method]

        def mean(*names: str, seeds: list[dict[str, list[float]]] = seeds) -> list[float]:
            columns = [history[name] for history in seeds for name in names]
            return [statistics.mean(values) for values in zip(*columns, strict=True)]

        shown[method] = {
            "loss (each method's own)": mean("loss"),
            "mean temperature τ": mean("tau_image", "tau_text"),
            "validation R@1 (%)": mean("val_r1"),
        }
    return shown


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_suffix(path.suffix + ".partial")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
