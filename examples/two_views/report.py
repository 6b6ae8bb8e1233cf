"""The table, the numbers, and a histogram of the temperatures."""

import json
import platform
import statistics
from typing import Any

import timm
import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

import dro_temp as dt
from dro_temp.plotting import temperature_histogram

from .config import Options

COLUMNS = {"knn": "kNN (%)", "probe": "linear probe (%)", "val_knn": "validation kNN (%)"}

#: Results of each seed, for each kind of features.
Results = dict[str, list[dict[str, float]]]


def write(o: Options, results: Results, tau: dict[str, torch.Tensor], console: Console) -> None:
    """Print the table; write it, the numbers and the picture to --out."""
    o.out.mkdir(parents=True, exist_ok=True)
    (o.out / "results.json").write_text(json.dumps(_results(o, results, tau), indent=1) + "\n")
    picture = o.out / "temperature_histogram.png"
    picture.unlink(missing_ok=True)  # remove the picture of another scheme
    if tau:
        temperature_histogram({f"{o.scheme}, {view} view": x for view, x in tau.items()}).savefig(picture)
    table = Table(title="Classification of characters, in fonts not used in training", box=HORIZONTALS)
    for head in ("frozen features", *COLUMNS.values()):
        table.add_column(head, justify="left" if head == "frozen features" else "right")
    for name, runs in results.items():
        table.add_row(name, *(_cell([run[column] for run in runs]) for column in COLUMNS))
    console.print(table)
    guess, seeds = f"chance is {100 / o.names:.2g} %", len(o.seeds)
    console.print(
        f"{o.names} characters: {guess}. Mean ± standard deviation, {seeds} seed(s).", highlight=False
    )
    for view, x in tau.items():  # of the first seed
        console.print(f"τ of training images, {view} view: {x.mean():.3f} ± {x.std():.3f}", highlight=False)
    console.print(
        "written:", *(f"\n  {path}" for path in sorted(o.out.iterdir())), highlight=False, soft_wrap=True
    )


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _results(o: Options, results: Results, tau: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "options": o.of_a_run(),
        "seeds": list(o.seeds),
        "results": results,
        "tau": {view: {"mean": float(x.mean()), "std": float(x.std())} for view, x in tau.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "dro_temp": dt.__version__,
        },
    }
