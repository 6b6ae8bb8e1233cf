"""What a finished run is used for: `eval` measures its model, `view` shows its temperatures."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp._files import check_writable, whole_file
from dro_temp.cli.clip.data import GLYPHS, Columns, Source, classes, held_out_pairs, pairs, prompts
from dro_temp.cli.clip.measures import Embedded, embedded, temperatures, zero_shot
from dro_temp.cli.clip.run import ClipRun, Trained
from dro_temp.cli.images import Labelled, thumbnails
from dro_temp.cli.pages import page_path, write_page, write_table
from dro_temp.cli.trained import load_history
from dro_temp.datasets import SampleTable
from dro_temp.evaluation._reports import aligned
from dro_temp.plotting import image_page
from dro_temp.risks import RecordedRisk

_CANDIDATES = 2000  # images among which a page chooses
_WORST = 20  # rows of the table of false negatives


def evaluate(
    run: Path,
    data: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    limit: int = 5000,
    zero_shot: str | None = None,
    templates: str | None = None,
    batch: int = 256,
    workers: int = 0,
) -> None:
    """Retrieval, zero-shot accuracy and temperatures of a run's model.

    Args:
        run: the folder that `fit` made.
        data: pairs, as `fit` takes them; by default those that it held out, for glyphs the test splits.
        image_column: column of the images, if it has no usual name.
        caption_column: column of the captions, if it has no usual name.
        limit: at most so many pairs.
        zero_shot: a folder with one folder of images for each class; by default the one of `fit`.
        templates: prompts for classes, as `fit` takes them.
        batch: images at a time.
        workers: processes that load images.
    """
    check_count("--limit", limit, minimum=2)
    check_count("--batch", batch)
    check_count("--workers", workers, minimum=0)
    check_writable(run)
    options = ClipRun(run).finished_options()
    columns = Columns(image_column or options["image_column"], caption_column or options["caption_column"])
    if data is not None:
        parts = {data: held_out_pairs(data, columns, limit)}
    elif options["data"] == GLYPHS and options["val"] is None:
        parts = {
            "glyphs in fonts not seen": pairs(GLYPHS, columns, split="test_seen").first(limit, 0),
            "glyphs of names not seen": pairs(GLYPHS, columns, split="test_unseen").first(limit, 0),
        }
    else:
        parts = {"held-out pairs": _held_out(options).first(limit, 0)}
    chosen = classes(
        zero_shot or options["zero_shot"],
        prompts(templates or options["templates"]),
        glyphs=options["data"] == GLYPHS,
        split="test",
    )
    trained = ClipRun(run).load()
    results: dict[str, Any] = {}
    lines = [["pairs", "images", "captions", "R@1", "R@5", "R@10", "R@1 back", "R@5 back", "R@10 back"]]
    spread = [["temperatures", "mean", "std", "lowest", "highest"]]
    for name, samples in parts.items():
        found = embedded(trained.clip, trained.host, samples, batch=batch, workers=workers)
        recalls = found.recalls()
        lines.append(
            [name, str(len(found.places)), str(len(found.captions)), *(f"{x:.1f}" for x in recalls.values())]
        )
        tau = temperatures(trained.objective, found.vectors)
        results[name] = {**recalls, "temperatures": {view: _spread(x) for view, x in tau.items()}}
        for view, x in tau.items():
            of = "training pairs" if "index" in trained.objective.predictors[view].reads else name  # type: ignore[operator]
            spread.append([f"{of}: {view}", *(f"{value:.4g}" for value in _spread(x).values())])
    print(
        f"\nretrieval in percent, from images to captions and back\n\n{aligned(lines)}\n\n{aligned(spread)}\n"
    )
    if chosen is not None:
        results["zero_shot"] = measured = _zero_shot(trained, chosen, batch, workers)
        shown = ", ".join(
            f"{name.removeprefix('zero_shot_')} {value:.1f} %" for name, value in measured.items()
        )
        print(f"zero-shot, {len(chosen.samples)} images of {len(chosen.names)} classes: {shown}\n")
    out = run / "eval.json"
    with whole_file(out) as file:
        file.write(json.dumps(results, indent=2).encode())
    print(f"wrote {out}")
    _write_doubtful(run / "doubtful.csv", trained)


def _write_doubtful(path: Path, trained: Trained) -> None:
    """The training pairs by the weight that a risk gave them, if it recorded any: those of least first."""
    recorded = next(
        (risk for risk in trained.objective.risks.values() if isinstance(risk, RecordedRisk)), None
    )
    samples = Source(trained.options).train if recorded is not None else None
    if recorded is None or samples is None:
        return
    rows = (
        [samples.name(s.sample), samples.other(s.sample), *(f"{x:.4g}" for x in (s.weight, s.last, s.loss))]
        for s in recorded.suspects()
    )
    write_table(path, ("image", "caption", "weight", "last", "loss"), rows)
    print(f"wrote {path}: the training pairs, those of least weight, which may be wrong, first")


def _zero_shot(trained: Trained, chosen: Any, batch: int, workers: int) -> dict[str, float]:
    return zero_shot(trained.clip, trained.host, chosen, batch=batch, workers=workers)


def _spread(tau: Tensor) -> dict[str, float]:
    return {
        "mean": float(tau.mean()),
        "std": float(tau.std(correction=0)),
        "lowest": float(tau.min()),
        "highest": float(tau.max()),
    }


def _held_out(options: dict[str, Any]) -> Labelled:
    found = Source(options).val
    if found is None:
        raise ValueError(
            f"expected pairs that were not trained on, received a run on {options['data']} that held none out. Pass "
            "--data with some."
        )
    return found


def view(
    run: Path,
    data: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    limit: int = 240,
    near: int = 5,
    out: Path | None = None,
) -> None:
    """Write one web page: images by temperature, histograms over training, false negatives; it needs no network.

    Args:
        run: the folder that `fit` made.
        data: pairs, as `fit` takes them; by default those that it held out, or, where each training pair has a
            temperature of its own, some that it trained on.
        image_column: column of the images, if it has no usual name.
        caption_column: column of the captions, if it has no usual name.
        limit: images that are shown, spread evenly over the temperatures.
        near: other captions that the card of an image shows.
        out: the page; by default `page.html` in the run's folder.
    """
    check_count("--limit", limit, minimum=2)
    check_count("--near", near)
    page = page_path(run, out)
    trained = ClipRun(run).load()
    columns = Columns(
        image_column or trained.options["image_column"], caption_column or trained.options["caption_column"]
    )
    tables = any("index" in predictor.reads for predictor in trained.objective.predictors.values())  # type: ignore[operator]
    if data is not None and tables:
        raise ValueError(
            f"expected the pairs that were trained on, as --scheme {trained.options['scheme']} has a temperature for "
            f"each of those alone, received --data {data}. Leave --data out."
        )
    if tables:
        samples, numbers = _trained_on(trained)
    else:
        samples = _held_out(trained.options) if data is None else held_out_pairs(data, columns, _CANDIDATES)
        samples, numbers = samples.first(_CANDIDATES, 0), None
    found = embedded(trained.clip, trained.host, samples)
    if numbers is None:
        tau = temperatures(trained.objective, found.vectors)["image"]
    else:
        predictor: Any = trained.objective.predictors["image"]
        tau = predictor.tau.detach()[numbers[found.places]]
    tau = tau.expand(len(found.places))
    order = tau.argsort(stable=True)
    shown = order[torch.linspace(0, len(order) - 1, min(limit, len(order))).round().long()].tolist()
    lists, worst = _false_negatives(found, shown, near)
    html = image_page(
        thumbnails(samples.part(found.places[i] for i in shown)),
        [samples.other(found.places[i]) for i in shown],
        tau[shown],
        near=lists,
        tables={"Nearest false negatives": (("caption", "another caption", "similarity", "own"), worst)},
        history=load_history(run),
        title=f"{trained.options['model']} on {data or trained.options['data']}, {trained.options['scheme']}",
    )
    write_page(page, html)


def _trained_on(trained: Trained) -> tuple[Labelled, Tensor]:
    """Some training pairs, and their numbers."""
    source = Source(trained.options)
    if source.train is not None:
        chosen = range(0, len(source.train), len(source.train) // _CANDIDATES + 1)
        return source.train.part(chosen), torch.tensor(list(chosen))
    samples = held_out_pairs(trained.options["data"], Columns(), _CANDIDATES)
    table = SampleTable(ClipRun(Path(trained.options["output"])).written()["sizes"]["num_samples"])
    return samples, table.numbers(samples.name(i) for i in range(len(samples)))


def _false_negatives(
    found: Embedded, shown: list[int], near: int
) -> tuple[list[list[tuple[str, float]]], list[tuple[int, list[str]]]]:
    """For each image that is shown, the nearest captions of another meaning; and the nearest of all.

    A caption is the nearer to being a false negative, the less an image prefers its own to it.
    """
    images, texts = found.vectors["image"][shown], found.vectors["text"]
    scores = images @ texts.T
    own = found.label["image"][shown][:, None] == found.label["text"]
    mine = scores.masked_fill(~own, -2.0)
    others, place = scores.masked_fill(own, -2.0).topk(min(near, max(1, int((~own).sum(1).min()))), dim=1)
    lists = [
        [(found.captions[j], value) for j, value in zip(row, values, strict=True) if value > -2]
        for row, values in zip(place.tolist(), others.tolist(), strict=True)
    ]
    best, which = mine.max(dim=1)
    rows = [
        (
            i,
            [
                found.captions[int(which[i])],
                found.captions[int(place[i, 0])],
                f"{others[i, 0]:.3f}",
                f"{best[i]:.3f}",
            ],
        )
        for i in (best - others[:, 0]).argsort().tolist()[:_WORST]
        if others[i, 0] > -2
    ]
    return lists, rows
