"""Train a model with an image and a text tower."""

from pathlib import Path
from typing import Any

from dro_temp._checks import check_count, check_share
from dro_temp.cli.clip.data import GLYPHS, Source
from dro_temp.cli.clip.measures import validation
from dro_temp.cli.clip.models import OFFLINE, Clip, check_model, load
from dro_temp.cli.clip.run import ClipRun
from dro_temp.cli.clip.schemes import Scheme, arguments, build, default_hold, needs_reference
from dro_temp.cli.clip.shards import ShardEpochs
from dro_temp.cli.loader import Epochs, ShuffledEpochs, Transformed
from dro_temp.cli.messages import require, say
from dro_temp.cli.trackers import Tracker
from dro_temp.cli.training import Engine, Precision, Settings, Training, Validation, engine
from dro_temp.hosts import OpenCLIP, freeze_unused
from dro_temp.objective import Objective


def fit(
    output: Path,
    model: str = OFFLINE,
    weights: str | None = None,
    data: str = GLYPHS,
    val: str | None = None,
    val_pairs: int = 1000,
    image_column: str | None = None,
    caption_column: str | None = None,
    samples: int | None = None,
    zero_shot: str | None = None,
    templates: str | None = None,
    scheme: Scheme = "tempnet_queued",
    rho: float | None = None,
    tau: float | None = None,
    tau_init: float | None = None,
    tau_min: float | None = None,
    tau_max: float | None = None,
    gamma: float | None = None,
    scheme_options: dict[str, float] | None = None,
    reference: str | None = None,
    reference_weights: str | None = None,
    epochs: int = 10,
    batch: int = 128,
    chunk: int | None = None,
    lr: float = 1e-3,
    tau_lr: float = 1e-3,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    warmup: int = 100,
    hold: float | None = None,
    crop: float = 0.9,
    precision: Precision = "no",
    compile: bool = False,
    workers: int = 0,
    save_every: int = 200,
    log: tuple[Tracker, ...] = ("csv",),
    seed: int = 0,
) -> None:
    """Train a model with an image and a text tower, with a temperature for each input or one for all.

    Args:
        output: the run's folder; an interrupted run resumes, a finished one too if it is given more epochs.
        model: a name of open_clip's, a .json file of an architecture (towers of timm and Hugging Face included), a
            folder that open_clip saved, or "offline": a small model for glyphs.
        weights: where the model starts: a file, or open_clip's name of published weights. Random if left out.
        data: pairs: a .csv, .tsv or .jsonl file that names images and captions; a folder of images, each with a .txt
            file beside it, or with metadata.csv; webdataset shards, "pairs-{000..009}.tar"; a data set of `datasets`
            (a .parquet file, a saved folder, or a name on the hub, name:configuration@split); or "glyphs".
        val: held-out pairs, as data. By default some of the data are held out; of shards none.
        val_pairs: at most so many held-out pairs are searched after each epoch.
        image_column: column of the images, or of their paths, if it has no usual name.
        caption_column: column of the captions, if it has no usual name.
        samples: pairs in an epoch of shards; by default as many as there are.
        zero_shot: a folder with one folder of images for each class, classified after each epoch.
        templates: prompts for classes, "a photo of a {}.|a drawing of a {}.", or a file with one in each line.
        scheme: how temperatures and losses are made: a recipe of dro_temp.recipes.
        rho: radius of a robust loss; this and the next five have the scheme's own
            defaults, for glyphs rho 2.5 and temperatures from 0.01 to 0.2.
        tau: a constant temperature.
        tau_init: where temperatures start.
        tau_min: lower bound of temperatures.
        tau_max: upper bound.
        gamma: weight of the new batch in each sample's moving average.
        scheme_options: further arguments of the scheme, "{queue: 4096}".
        reference: the model that a scheme with a reference (drrho) compares with.
        reference_weights: its weights, a file or a name.
        epochs: passes over the data.
        batch: pairs in a step, per process.
        chunk: pairs that are encoded at once; batches beyond memory at the cost of a second forward.
        lr: learning rate of the model at its highest; a cosine goes down to 0.
        tau_lr: that of the temperatures.
        weight_decay: of the model's matrices.
        clip: largest norm of a gradient; 0 for no limit.
        warmup: steps in which the learning rate rises.
        hold: share of the steps in which temperatures stay where they start; 0.3 for tempnet_queued, else 0.
        crop: the smallest share of an image's area that a random crop leaves in training.
        precision: "bf16" or "fp16" computes in mixed precision.
        compile: compile with torch.compile.
        workers: processes that load images.
        save_every: steps between checkpoints; one follows each epoch, too.
        log: where numbers go: csv (log.csv in the run's folder), tensorboard, wandb.
        seed: of everything random.
    """
    options = {
        **locals(),
        "output": str(output),
        "log": list(log),
    }
    settings = Settings.of(options | {"hold": default_hold(scheme) if hold is None else hold})
    _check(options)
    run = ClipRun(output)
    run.check_options(options)
    check_model(model)
    start = run.start(epochs)
    if start is None:
        return
    with engine(settings, run, start) as started:
        source = Source(options)  # before a model is loaded
        if source.val is None:
            say("note: no pairs are held out, so the last epoch is kept; pass --val with some for validation")
        require("accelerate.utils").set_seed(seed)  # random weights
        trained = load(model, weights, scale=(crop, 1.0))
        training = _training(run, settings, started, options, source, trained)
        if started.accelerator.is_main_process:
            run.record(options)
        if training.fit(start):
            run.finish(trained, training)


def _check(options: dict[str, Any]) -> None:
    """Raise where an option is out of range, or two do not fit: before anything is read."""
    check_count("--val_pairs", options["val_pairs"], minimum=2)
    check_share("--crop", options["crop"])
    for name in ("samples", "chunk"):
        if options[name] is not None:
            check_count(f"--{name}", options[name])
    scheme = options["scheme"]
    arguments(options)
    if needs_reference(scheme) != (options["reference"] is not None):
        lacks = options["reference"] is None
        raise ValueError(
            f"expected {'a' if lacks else 'no'} reference with --scheme {scheme}, received "
            f"{'none' if lacks else '--reference ' + options['reference']}. "
            + ("Pass --reference ViT-B-32 --reference_weights FILE, say." if lacks else "Leave it out.")
        )
    if options["reference"] is not None:
        check_model(options["reference"], "--reference")


def _epochs(source: Source, options: dict[str, Any], clip: Clip) -> Epochs:
    """Batches for training."""
    seed, batch, workers = (options[name] for name in ("seed", "batch", "workers"))
    if source.train is None:
        return ShardEpochs(source.urls, source.samples, batch, clip.augment, clip.tokens, seed, workers)
    return ShuffledEpochs(Transformed(source.train, clip.augment, clip.tokens, seed), batch, seed, workers)


def _training(
    run: ClipRun, settings: Settings, started: Engine, options: dict[str, Any], source: Source, clip: Clip
) -> Training:
    data = _epochs(source, options, clip)
    host, reference = OpenCLIP(clip.model), None
    if options["reference"] is not None:
        reference = OpenCLIP(load(options["reference"], options["reference_weights"]).model, frozen=True)
    images, texts, _ = next(iter(data.batches(0, 0)))
    freeze_unused(host, images[:2], texts[:2])
    require("accelerate.utils").set_seed(settings.seed)
    objective = build(
        options,
        host,
        reference=reference,
        chunk=options["chunk"],
        width=host.width,
        num_samples=data.numbers,
        epochs=settings.epochs,
        steps_per_epoch=data.steps,
    )
    objective.eval().start_prototypes(images, texts)
    val, classified = source.val, source.classes
    validate = None
    if val is not None:

        def validate(objective: Objective) -> Validation:
            return validation(clip, host, objective, val, classified, settings.workers)

    return Training(run, settings, started, objective, data, validate)
