"""Train a classifier of images."""

from pathlib import Path
from typing import Any

from dro_temp._checks import check_count, check_positive, check_within
from dro_temp.cli.loader import ShuffledEpochs, Transformed
from dro_temp.cli.messages import require
from dro_temp.cli.options import check_temperatures
from dro_temp.cli.trackers import Tracker
from dro_temp.cli.training import Engine, Precision, Settings, Training, Validation, engine
from dro_temp.cli.vision.data import SCRIPTS, Source
from dro_temp.cli.vision.measures import validation
from dro_temp.cli.vision.models import OFFLINE, Classifier, check_model, load
from dro_temp.cli.vision.run import VisionRun
from dro_temp.cli.vision.schemes import Risk, Scheme, build, check_rho, risk_of
from dro_temp.hosts import Timm
from dro_temp.objective import Objective


def fit(
    output: Path,
    model: str = OFFLINE,
    weights: str | None = None,
    image_size: int | None = None,
    data: str = SCRIPTS,
    val: str | None = None,
    val_images: int = 10_000,
    image_column: str | None = None,
    label_column: str | None = None,
    scheme: Scheme = "tempnet",
    rho: float = 1.0,
    tau: float = 1.0,
    tau_min: float = 0.05,
    tau_max: float = 4.0,
    risk: Risk = "mean",
    risk_level: float | None = None,
    label_smoothing: float = 0.0,
    epochs: int = 10,
    batch: int = 64,
    lr: float = 1e-3,
    tau_lr: float = 1e-3,
    weight_decay: float = 0.05,
    clip: float = 1.0,
    warmup: int = 100,
    hold: float | None = None,
    crop: float = 0.35,
    flip: float | None = None,
    augment: str | None = None,
    precision: Precision = "no",
    compile: bool = False,
    workers: int = 0,
    save_every: int = 200,
    log: tuple[Tracker, ...] = ("csv",),
    seed: int = 0,
) -> None:
    """Train a classifier of timm with a robust loss or risk, and find the labels that it doubts.

    Args:
        output: the run's folder; an interrupted run resumes, a finished one too if it is given more epochs.
        model: a name of timm's, local-dir:FOLDER, or "offline": a small model for glyphs.
        weights: where the model starts: a file, or "pretrained" for those that timm publishes. Random if left out.
        image_size: side of the images in pixels, if not the model's own.
        data: images with classes: a folder with one folder for each class (in train/, if there is one), a .csv, .tsv or
            .jsonl file that names images and classes, a data set of `datasets` (a .parquet file, a saved folder, or a
            name on the hub, name:configuration@split), or "scripts": glyphs by their script.
        val: held-out images, as data. By default the folder val/ beside train/, or else a tenth of the data.
        val_images: at most so many held-out images are classified after each epoch.
        image_column: column of the images, or of their paths, if it has no usual name.
        label_column: column of the classes, if it has no usual name.
        scheme: "cross_entropy"; "robust" for the KL-robust loss over the classes with a constant temperature,
            "robust_learnable" with a learned one, "tempnet" with one for each image; "likelihood" for temperatures of
            each image that make its label more likely.
        rho: radius of the robust loss, below log(classes).
        tau: the constant temperature, or where a learned one starts.
        tau_min: lower bound of temperatures.
        tau_max: upper bound.
        risk: how images are weighed: "mean"; "cvar", "chi_square", "kl" and "tilted" for the hardest ones; "optimistic"
            and "trimmed" against wrong labels.
        risk_level: alpha of "cvar" and "trimmed", the radius of "chi_square", "kl" and "optimistic", or the tilt.
        label_smoothing: share of the target that all classes get alike.
        epochs: passes over the data.
        batch: images in a step, per process.
        lr: learning rate of the model at its highest; a cosine goes down to 0.
        tau_lr: that of the temperatures.
        weight_decay: of the model's matrices.
        clip: largest norm of a gradient; 0 for no limit.
        warmup: steps in which the learning rate rises.
        hold: share of the steps in which temperatures stay where they start.
        crop: the smallest share of an image's area that a random crop leaves in training; 0.8 suits glyphs.
        flip: share of the images that are mirrored in training; 0.5, for glyphs 0.
        augment: timm's automatic augmentation, "rand-m9-mstd0.5", say.
        precision: "bf16" or "fp16" computes in mixed precision.
        compile: compile with torch.compile.
        workers: processes that load images.
        save_every: steps between checkpoints; one follows each epoch, too.
        log: where numbers go: csv (log.csv in the run's folder), tensorboard, wandb.
        seed: of everything random.
    """
    options = {**locals(), "output": str(output), "log": list(log)}
    settings = Settings.of(options)
    _check(options)
    run = VisionRun(output)
    run.check_options(options)
    check_model(model)
    start = run.start(epochs)
    if start is None:
        return
    with engine(settings, run, start) as started:
        source = Source(options)  # before a model is loaded
        check_rho(scheme, rho, len(source.names))
        require("accelerate.utils").set_seed(seed)  # random weights
        flip = (0.0 if data == SCRIPTS else 0.5) if flip is None else flip
        trained = load(
            model, source.names, weights=weights, side=image_size, crop=crop, flip=flip, augment=augment
        )
        training = _training(run, settings, started, options, source, trained)
        if started.accelerator.is_main_process:
            run.record(options)
        if training.fit(start):
            run.finish(trained, training)


def _check(options: dict[str, Any]) -> None:
    """Raise where an option is out of range: before anything is read."""
    check_count("--val_images", options["val_images"], minimum=2)
    if options["image_size"] is not None:
        check_count("--image_size", options["image_size"], minimum=8)
    check_positive("--tau", options["tau"])
    check_temperatures(options["tau_min"], options["tau_max"])
    for name in ("label_smoothing", "flip"):
        if options[name] is not None:
            check_within(f"--{name}", options[name], 0.0, 1.0)
    if not 0.0 < options["crop"] <= 1.0:
        raise ValueError(
            f"expected --crop above 0 and at most 1, received --crop {options['crop']}. Pass --crop 0.35, say."
        )
    if options["risk"] == "mean" and options["risk_level"] is not None:
        raise ValueError(
            f"expected no --risk_level with --risk mean, which has none, received {options['risk_level']}. Leave it "
            "out, or choose another --risk."
        )
    risk_of(options["risk"], options["risk_level"], 1)


def _training(
    run: VisionRun,
    settings: Settings,
    started: Engine,
    options: dict[str, Any],
    source: Source,
    classifier: Classifier,
) -> Training:
    dataset = Transformed(source.train, classifier.augment, int, settings.seed)
    data = ShuffledEpochs(dataset, settings.batch, settings.seed, settings.workers)
    host = Timm(classifier.model, label_smoothing=options["label_smoothing"])
    objective = build(host, options, settings.epochs * data.steps)

    def validate(objective: Objective) -> Validation:
        return validation(classifier, objective, source.val, settings.workers)

    return Training(run, settings, started, objective, data, validate)
