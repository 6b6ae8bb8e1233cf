"""What a finished run is used for: `eval` measures its model and lists doubtful labels, `view` shows both."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp._files import check_writable, whole_file
from dro_temp.cli.images import Labelled, thumbnails
from dro_temp.cli.loader import Transformed, in_order
from dro_temp.cli.pages import page_path, write_page, write_table
from dro_temp.cli.trained import load_history
from dro_temp.cli.vision.data import SCRIPTS, Columns, Source, of_classes
from dro_temp.cli.vision.measures import Predicted, predicted
from dro_temp.cli.vision.run import Trained, VisionRun
from dro_temp.evaluation import evaluate_classifier
from dro_temp.plotting import image_page

_DOUBTED = 20  # rows of the page's table


def evaluate(
    run: Path,
    data: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int = 10_000,
    doubtful: bool = True,
    batch: int = 256,
    workers: int = 0,
) -> None:
    """Accuracy, likelihood and calibration of a run's model; and its training images, the most doubtful labels first.

    The second is a table, doubtful.csv, in the run's folder: labels to check.

    Args:
        run: the folder that `fit` made.
        data: test images, as `fit` takes them; by default those that it held out, for scripts the test split.
        image_column: column of the images, if it has no usual name.
        label_column: column of the classes, if it has no usual name.
        limit: at most so many test images.
        doubtful: list the training images by how doubtful their labels are.
        batch: images at a time.
        workers: processes that load images.
    """
    check_count("--limit", limit, minimum=2)
    check_count("--batch", batch)
    check_count("--workers", workers, minimum=0)
    check_writable(run)
    options = VisionRun(run).finished_options()
    source = Source(options)
    columns = Columns(image_column or options["image_column"], label_column or options["label_column"])
    if data is not None or (options["data"] == SCRIPTS and options["val"] is None):
        test = of_classes(data or SCRIPTS, columns, source.names, "--data of eval").first(limit, 0)
    else:
        test = source.val.first(limit, 0)
    trained = VisionRun(run).load(source.names)
    batches = _Batches(trained, test, batch, workers)
    held_out = _Batches(trained, source.val.first(limit, 0), batch, workers)
    report = evaluate_classifier(trained.objective, batches, validation=held_out)
    print(f"\n{report}\n")
    if data is None and options["data"] != SCRIPTS:
        print("note: the best epoch was chosen on these images; pass --data with others\n")
    out = run / "eval.json"
    with whole_file(out) as file:
        file.write(json.dumps(report.asdict(), indent=2).encode())
    print(f"wrote {out}")
    if doubtful:
        found = predicted(trained.classifier, trained.objective, source.train, batch=batch, workers=workers)
        _write_doubtful(run / "doubtful.csv", trained, source.train, found)


class _Batches:
    """Images and labels, in order, as often as they are wanted."""

    def __init__(self, trained: Trained, samples: Labelled, batch: int, workers: int) -> None:
        data = Transformed(samples, trained.classifier.transform, torch.tensor)
        self.loader, self.device = in_order(data, batch, workers), next(trained.objective.parameters()).device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images.to(self.device), label.to(self.device)) for images, label, _ in self.loader)


def _write_doubtful(path: Path, trained: Trained, samples: Labelled, found: Predicted) -> None:
    names, order = trained.classifier.names, found.loss.argsort(descending=True, stable=True)
    weight = _weights(trained, found.loss)

    def row(i: int) -> list[object]:
        p, label, other = found.log_p[i].exp(), int(found.label[i]), int(found.predicted[i])
        numbers = (f"{float(x):.4g}" for x in (p[label], p[other], found.loss[i], weight[i]))
        return [samples.name(i), names[label], names[other], *numbers]

    titles = ("image", "label", "predicted", "p_label", "p_predicted", "loss", "weight")
    write_table(path, titles, map(row, order.tolist()))
    differ = int((found.predicted != found.label).sum())
    print(
        f"wrote {path}: {len(samples)} training images, the most doubtful labels first; the model predicts another "
        f"class for {differ}"
    )


def _weights(trained: Trained, losses: Tensor) -> Tensor:
    """Weight of each image in the run's risk over all of them, relative to the mean; 1 for the mean."""
    risk = trained.objective.risks["class"] if trained.objective.risks else None
    weights = torch.ones_like(losses) if risk is None else risk.weights(losses)  # type: ignore[operator]
    return weights * len(losses) / weights.sum()


def view(
    run: Path,
    limit: int = 240,
    near: int = 5,
    doubted: int = _DOUBTED,
    batch: int = 256,
    out: Path | None = None,
) -> None:
    """Write one web page: training images by temperature, histograms over training, doubtful labels; needs no network.

    Args:
        run: the folder that `fit` made.
        limit: images that are shown, spread evenly over the temperatures.
        near: classes that the card of an image shows, with their probabilities.
        doubted: images with the most doubtful labels, which are shown as well.
        batch: images at a time.
        out: the page; by default `page.html` in the run's folder.
    """
    check_count("--limit", limit, minimum=2)
    for name, value in (("near", near), ("doubted", doubted), ("batch", batch)):
        check_count(f"--{name}", value)
    page = page_path(run, out)
    source = Source(VisionRun(run).finished_options())
    trained = VisionRun(run).load(source.names)
    found = predicted(trained.classifier, trained.objective, source.train, batch=batch)
    order, names = found.tau.argsort(stable=True), source.names
    spread = order[torch.linspace(0, len(order) - 1, min(limit, len(order))).round().long()].tolist()
    worst = found.loss.argsort(descending=True, stable=True)[:doubted].tolist()
    shown = list(dict.fromkeys([*spread, *worst]))
    place = {i: k for k, i in enumerate(shown)}
    p, likely = found.log_p[shown].exp().topk(min(near, len(names)), dim=1)
    rows = [
        (
            place[i],
            [source.train.name(i), names[found.label[i]], names[found.predicted[i]], f"{found.loss[i]:.2f}"],
        )
        for i in worst
    ]
    html = image_page(
        thumbnails(source.train.part(shown)),
        [f"{names[found.label[i]]} ({source.train.name(i)})" for i in shown],
        found.tau[shown],
        near=[
            [(names[c], value) for c, value in zip(classes, values, strict=True)]
            for classes, values in zip(likely.tolist(), p.tolist(), strict=True)
        ],
        near_heading="classes by probability at temperature 1",
        tables={"Most doubtful labels": (("image", "given", "predicted", "loss"), rows)},
        history=load_history(run),
        title=f"{trained.options['model']} on {trained.options['data']}, {trained.options['scheme']}",
    )
    write_page(page, html)
