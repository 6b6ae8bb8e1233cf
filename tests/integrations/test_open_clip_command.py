"""open_clip's own command with our loss: its data, its flags, its checkpoints."""

import json
import random
import subprocess
import sys
import types

import numpy as np
import open_clip_runs as runs
import pytest
import torch

import dro_temp as dt
from dro_temp._schemes import options_of, schemes
from dro_temp.datasets import SampleTable

main_module = pytest.importorskip("open_clip_train.main")

from dro_temp.integrations.open_clip import (  # noqa: E402
    ModelGroups,
    NumberedTexts,
    OpenClipLoss,
    main,
    read_numbers,
    training,
)
from dro_temp.integrations.open_clip.options import Options  # noqa: E402
from dro_temp.integrations.open_clip.training import Training, embedding_width  # noqa: E402

LOG_U = "objective.losses.{}.estimator.log_u"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_data(tmp_path_factory.mktemp("glyphs"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Two epochs of a TempNet on a CSV file, with validation."""
    return runs.run(data, tmp_path_factory.mktemp("whole"), epochs=2, val_data=data.csv)


def assert_same(a, b, digits: float = 0.0) -> None:
    """Weights, temperatures and memory of two checkpoints."""
    for first, second in ((a["state_dict"], b["state_dict"]), (a["dro_temp"]["loss"], b["dro_temp"]["loss"])):
        assert list(first) == list(second)
        for name, value in first.items():
            if digits:
                torch.testing.assert_close(value, second[name], rtol=digits, atol=digits, msg=name)
            else:
                assert torch.equal(value, second[name]), name


# What a run leaves ---------------------------------------------------------------------------------------


def test_memory_knows_every_row_of_the_csv_file(finished):
    assert finished.status == 0
    loss = finished.checkpoint["dro_temp"]["loss"]
    for view in ("image", "text"):
        assert loss[LOG_U.format(view)].shape == (runs.SIZE,)
        assert bool(loss[LOG_U.format(view)].isfinite().all())
        assert int(loss[f"objective.losses.{view}.estimator.steps"]) == 4


def test_its_checkpoint_is_plain_open_clips(finished, data):
    """The model, the optimizer and the keys are those of open_clip; ours is one more."""
    import open_clip

    saved = finished.checkpoint
    assert set(saved) == {"epoch", "name", "state_dict", "optimizer", "dro_temp"}
    plain = open_clip.create_model(data.model, pretrained=None)
    plain.load_state_dict(saved["state_dict"], strict=True)
    assert len(saved["optimizer"]["param_groups"]) == 2
    assert len(saved["optimizer"]["state"]) == len(list(plain.parameters()))
    assert plain.logit_scale == open_clip.create_model(data.model, pretrained=None).logit_scale


def test_options_and_temperatures_are_where_open_clip_writes_its_own(finished):
    params = (finished.folder / "params.txt").read_text()
    assert "scheme: tempnet\n" in params
    assert "rho: 1.0\n" in params
    assert "batch_size: 16\n" in params
    lines = [line for line in finished.log.splitlines() if "Train Epoch" in line]
    assert len(lines) == 4
    assert all("Image/tau_mean: 0.0" in line and "Text/tau_std: " in line for line in lines)
    total = float(lines[0].split(" Loss: ")[1].split()[0])
    assert total == pytest.approx(float(lines[0].split("Contrastive_loss: ")[1].split()[0]))
    assert "Eval Epoch: 2 image_to_text_mean_rank" in finished.log
    assert (finished.folder / "checkpoints" / "results.jsonl").exists()


@pytest.mark.parametrize("most", [None, 20])
def test_samples_of_little_weight_are_listed(data, tmp_path, monkeypatch, most):
    if most is not None:
        monkeypatch.setattr(training, "_MOST_SUSPECTS", most)
    found = runs.run(data, tmp_path, scheme="noisy_pairs")
    header, *lines = (found.folder / "suspects.csv").read_text().splitlines()
    assert header == "sample,weight,last,loss"
    samples = [int(line.split(",")[0]) for line in lines]
    assert len(set(samples)) == len(samples) == (most or runs.SIZE)
    assert set(samples) <= set(range(runs.SIZE))


def test_everything_that_main_calls_is_its_own_again(finished):
    import open_clip
    from open_clip_train import data, train

    assert main_module.torch is torch
    assert main_module.create_loss is open_clip.create_loss
    assert main_module.get_data is data.get_data
    assert main_module.train_one_epoch is train.train_one_epoch


def test_it_trains_as_the_loop_by_hand_does(finished, data, tmp_path):
    """To the last bit: the same calls in a loop of one's own."""
    import open_clip
    from open_clip_train.data import CsvDataset
    from open_clip_train.params import parse_args
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch
    from torch.utils.data import DataLoader

    words = runs.flags(data, tmp_path, epochs=2, scheme=None, rho=None)
    args = parse_args(words)
    args.distributed = args.horovod = args.distill = args.wandb = False
    args.rank, args.world_size = 0, 1
    main_module.random_seed(0, 0)
    model, transform, _ = open_clip.create_model_and_transforms(
        data.model, None, aug_cfg=args.aug_cfg, output_dict=True
    )
    main_module.random_seed(0, 0)
    read_numbers(model)
    csv = CsvDataset(data.csv, transform, "filepath", "title", tokenizer=open_clip.get_tokenizer(data.model))
    loader = DataLoader(NumberedTexts(csv), 16, shuffle=True, drop_last=True)
    loader.num_samples, loader.num_batches = runs.SIZE, 2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = OpenClipLoss.from_recipe(dt.recipes.tempnet, num_samples=runs.SIZE, width=16, rho=1.0)
    flat = [p for p in model.parameters() if p.ndim < 2]
    rest = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": args.wd}]
    base = torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)
    scheduler = cosine_lr(ModelGroups(base), args.lr, args.warmup, 4)
    optimizer = loss.optimizer(base, tau_lr=args.lr)
    training = {"train": types.SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    begun = False

    def started(image_features, text_features, **others):
        nonlocal begun
        if not begun:
            loss.objective.start_prototypes(image_features, text_features)
            begun = True
        return loss(image_features, text_features, **others)

    with runs.logging_restored():
        for epoch in range(2):
            train_one_epoch(model, training, started, epoch, optimizer, None, scheduler, None, args)
    # Validation between the epochs drew a seed.
    by_hand = {"state_dict": model.state_dict(), "dro_temp": {"loss": loss.state_dict()}}
    assert_same(runs.run(data, tmp_path, epochs=2).checkpoint, by_hand)


# Flags ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def constant(data, tmp_path_factory):
    """One epoch with a constant temperature, in which nothing is drawn but the order of the samples."""
    return runs.run(data, tmp_path_factory.mktemp("constant"), **CONSTANT)


# Plain descent: Adam makes a step of the rounding where a gradient is zero. Of a wrapped model, timm decays others.
CONSTANT = {"scheme": "sogclr", "rho": None, "tau": 0.1, "opt": "timm/sgd", "lr": 0.1, "wd": 0.0}


@pytest.mark.parametrize(
    ("changes", "digits"),
    [
        ({"grad_checkpointing": True}, 0.0),
        ({"local_loss": True, "gather_with_grad": True}, 0.0),
        ({"accum_freq": 2, "batch_size": 8}, 1e-4),
        ({"accum_freq": 2, "batch_size": 8, "grad_checkpointing": True, "local_loss": True}, 1e-4),
        ({"precision": "amp_bf16"}, 0.1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_flags_that_change_how_and_not_what(constant, data, tmp_path, changes, digits):
    found = runs.run(data, tmp_path, **CONSTANT, **changes)
    assert_same(found.checkpoint, constant.checkpoint, digits)


def test_shards(data, tmp_path):
    """The usual flags together, with the shards' names in the keys: every sample's entry is written."""
    options = {"accum_freq": 2, "batch_size": 4, "precision": "amp_bf16", "grad_checkpointing": True}
    found = runs.run(
        data,
        tmp_path,
        train_data=data.shards,
        train_num_samples=runs.SIZE,
        epochs=2,
        table_size=1000,
        **options,
    )
    loss = found.checkpoint["dro_temp"]["loss"]
    for view in ("image", "text"):
        log_u = loss[LOG_U.format(view)]
        assert len(log_u) == 1000
        written = set(log_u.isfinite().nonzero().flatten().tolist())
        assert written == set(SampleTable(1000).numbers(data.keys).tolist())


def test_a_table_for_shards_has_four_entries_for_each_sample(data, tmp_path):
    """Their number is in a file beside the shards; and shards may be drawn with replacement."""
    sizes = {f"pairs-{i:03d}.tar": runs.SIZE // 2 for i in range(2)}
    (data.folder / "sizes.json").write_text(json.dumps(sizes))
    found = runs.run(data, tmp_path, train_data=data.shards, dataset_resampled=True, save_frequency=0)
    log_u = found.checkpoint["dro_temp"]["loss"][LOG_U.format("text")]
    assert len(log_u) == 4 * runs.SIZE
    written = set(log_u.isfinite().nonzero().flatten().tolist())
    assert len(written) >= 8
    assert written <= set(SampleTable(4 * runs.SIZE).numbers(data.keys).tolist())


def test_float16_with_a_gradient_scaler(data, tmp_path):
    found = runs.run(data, tmp_path, precision="amp")
    assert found.checkpoint["scaler"]["scale"] > 0
    assert int(found.checkpoint["dro_temp"]["loss"]["objective.losses.text.estimator.steps"]) in (0, 1, 2)


def test_temperatures_are_held_and_then_trained(data, tmp_path, monkeypatch):
    rates = []
    real = torch.optim.AdamW.step

    def step(self, *args, **options):
        rates.append([round(group["lr"], 6) for group in self.param_groups])
        return real(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    options = {"scheme": "tempnet_queued", "epochs": 5, "queue": 24, "replay": 8, "tau_lr": 0.5, "hold": 0.5}
    found = runs.run(data, tmp_path, lr_scheduler="const", **options)
    assert found.status == 0
    tau = [group for *_, group in rates]
    assert tau == [0, 0, 0, 0, 0, 0.5, 0.5, 0.45, 0.3, 0.15]
    assert [model for model, *_ in rates] == [0.001] * 10
    assert int(found.checkpoint["dro_temp"]["loss"]["objective.tau_losses.image.queue.seen"]) == 10 * 16


SLOW = [
    {"lr_scheduler": "const-cooldown", "epochs_cooldown": 1, "grad_clip_norm": 1.0},
    {"skip_scheduler": True, "save_most_recent": True, "delete_previous_checkpoint": True},
    {"siglip": True, "scheme": "siglip", "rho": None},
    {"dataset_type": "synthetic", "train_data": None, "train_num_samples": 40},
    {"precision": "pure_bf16"},
    {"precision": "bf16"},
    {"lock_text": True, "lock_text_unlocked_layers": 1, "lock_text_freeze_layer_norm": True},
    {"lock_image": True, "lock_image_unlocked_groups": 1},
    {"workers": 2, "epochs": 2},
    {"torchcompile": True},
    {
        "force_custom_text": True,
        "force_patch_dropout": 0.5,
        "force_image_size": 48,
        "force_context_length": 10,
    },
    {"opt": "timm/lion", "beta1": 0.9, "beta2": 0.99},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", SLOW, ids="-".join)
def test_further_flags(data, tmp_path, changes):
    found = runs.run(data, tmp_path, **changes)
    assert found.status == 0
    written = found.checkpoint["dro_temp"]["loss"].get(LOG_U.format("text"))
    assert written is None or int(written.isfinite().sum()) >= runs.SIZE
    assert all(bool(value.isfinite().all()) for value in found.checkpoint["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", schemes())
def test_every_scheme(data, tmp_path, scheme):
    options = {"rho": 1.0 if scheme in options_of()["rho"].defaults else None}
    found = runs.run(data, tmp_path, scheme=scheme, epochs=2, accum_freq=2, batch_size=8, **options)
    assert found.status == 0
    assert found.log.count("Train Epoch") == 4


# Resuming ------------------------------------------------------------------------------------------------


class InterruptedRunError(Exception):
    pass


def _interrupted(data, logs, monkeypatch, after: int = 1, **changes) -> None:
    real = main_module.train_one_epoch

    def stops(model, data, loss, epoch, *others, **options):
        if epoch == after:
            raise InterruptedRunError
        real(model, data, loss, epoch, *others, **options)

    with monkeypatch.context() as patch:
        patch.setattr(main_module, "train_one_epoch", stops)
        with pytest.raises(InterruptedRunError):
            runs.run(data, logs, **changes)


@pytest.mark.parametrize("how", ["latest", "file"])
def test_an_interrupted_run_ends_like_one_that_was_not(finished, data, tmp_path, monkeypatch, how):
    options = {"epochs": 2, "val_data": data.csv}
    _interrupted(data, tmp_path, monkeypatch, **options)
    monkeypatch.undo()
    torch.manual_seed(7)  # a process of its own, which has drawn other numbers
    random.seed(7)
    np.random.seed(7)
    resumed = {"resume": "latest"}
    if how == "file":
        resumed = {"resume": str(tmp_path / "run" / "checkpoints" / "epoch_1.pt"), "name": "resumed"}
    found = runs.run(data, tmp_path, **options, **resumed)
    assert_same(found.checkpoint, finished.checkpoint)
    for part in ("optimizer", "random"):
        assert repr(found.checkpoint["dro_temp"][part]) == repr(finished.checkpoint["dro_temp"][part])
    assert str(found.checkpoint["optimizer"]) == str(finished.checkpoint["optimizer"])


def test_temperatures_follow_the_learning_rate_of_a_resumed_run(finished, data, tmp_path):
    found = runs.run(data, tmp_path, epochs=2, resume=str(finished.files[0]), lr=1e-2)
    assert found.checkpoint["dro_temp"]["optimizer"]["options"]["lr"] == 1e-2


def test_plain_open_clip_resumes_from_its_file(finished, data, tmp_path):
    words = runs.flags(data, tmp_path, scheme=None, rho=None, epochs=3, resume=str(finished.files[-1]))
    with runs.logging_restored(), pytest.warns(UserWarning, match="pin_memory"):
        main_module.main(words)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "epoch_3.pt", weights_only=True)
    assert "dro_temp" not in saved
    before = finished.checkpoint["state_dict"]
    assert not torch.equal(saved["state_dict"]["visual.proj"], before["visual.proj"])


def test_a_checkpoint_of_another_run_is_refused(finished, data, tmp_path, capsys):
    plain = tmp_path / "plain.pt"
    torch.save({k: v for k, v in finished.checkpoint.items() if k != "dro_temp"}, plain)
    for changes, words in (
        ({"resume": str(plain)}, f"type --pretrained {plain} in place of --resume"),
        (
            {"resume": str(finished.files[0]), "rho": 0.5},
            "received --rho 0.5. Type --rho 1.0, or start another run",
        ),
        (
            {"resume": str(finished.files[0]), "tau_lr": 0.5},
            "received --tau-lr 0.5. Leave --tau-lr out, or start",
        ),
        ({"resume": str(finished.files[0]), "rho": None}, "received no --rho. Type --rho 1.0, or"),
        (
            {"resume": str(finished.files[0]), "train_data": data.shards, "train_num_samples": runs.SIZE},
            f"expected the {runs.SIZE} sample numbers",
        ),
    ):
        name = str(len(words))
        assert runs.run(data, tmp_path, epochs=3, name=name, **changes).status == 2
        said = capsys.readouterr().err
        assert words in said.splitlines()[-1], said


def test_weights_of_any_checkpoint_start_another_run(finished, data, tmp_path, monkeypatch):
    from open_clip import factory

    # A model of a folder would take its weights from there.
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", runs.MODEL)
    options = CONSTANT | {"model": "tiny", "pretrained": str(finished.files[-1]), "lr": 1e-12}
    found = runs.run(data, tmp_path, **options)
    for name, value in finished.checkpoint["state_dict"].items():
        torch.testing.assert_close(found.checkpoint["state_dict"][name], value, rtol=1e-6, atol=1e-7)


# Several processes ---------------------------------------------------------------------------------------


def _torchrun(data, logs, **changes) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Without the dashes torchrun takes --logs for an abbreviation of its own --logs-specs.
    command += ["-m", "--", "dro_temp.integrations.open_clip", *runs.flags(data, logs, **changes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    file = max((logs / changes.get("name", "run") / "checkpoints").glob("epoch_*.pt"))
    return torch.load(file, weights_only=True)


@pytest.mark.slow
def test_two_processes_train_as_one(data, tmp_path):
    """A step sees all samples, so that their order does not matter; also in halves of halves."""
    whole = runs.run(data, tmp_path / "one", **CONSTANT, batch_size=runs.SIZE, epochs=3).checkpoint
    flags = {"local_loss": True, "gather_with_grad": True}
    for name, changes in (
        ("two", {"batch_size": 16}),
        ("accumulated", {"batch_size": 8, "accum_freq": 2} | flags),
    ):
        found = _torchrun(data, tmp_path / name, **CONSTANT, epochs=3, **changes)
        found["state_dict"] = {k.removeprefix("module."): v for k, v in found["state_dict"].items()}
        assert_same(found, whole, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("train_data", ["csv", "shards"])
def test_all_flags_in_two_processes_and_resumed(data, tmp_path, train_data):
    options = {
        "batch_size": 4, "accum_freq": 2, "precision": "amp_bf16", "grad_checkpointing": True, "local_loss": True,
        "gather_with_grad": True, "workers": 1, "epochs": 2, "val_data": data.csv,
        "train_data": getattr(data, train_data), "train_num_samples": runs.SIZE,
        "table_size": 10_000 if train_data == "shards" else None,
    }  # fmt: skip
    whole = _torchrun(data, tmp_path / "whole", **options)
    first = tmp_path / "whole" / "run" / "checkpoints" / "epoch_1.pt"
    resumed = _torchrun(data, tmp_path / "resumed", **options, resume=str(first))
    assert len(whole["dro_temp"]["random"]) == 2
    for saved in (whole, resumed):
        loss = saved["dro_temp"]["loss"]
        assert int(loss[LOG_U.format("text")].isfinite().sum()) == runs.SIZE
        assert int(loss["objective.losses.text.estimator.steps"]) == 4
    if train_data == "csv":  # webdataset shuffles by the time of day
        assert_same(resumed, whole)


# Evaluation ----------------------------------------------------------------------------------------------


def test_evaluation_alone(finished, data, tmp_path):
    found = runs.run(
        data, tmp_path, train_data=None, val_data=data.shards, val_num_samples=runs.SIZE, resume=str(finished.files[-1])
    )  # fmt: skip
    assert found.status == 0
    assert "Eval Epoch: 2 image_to_text_mean_rank" in found.log


def test_zero_shot(data, tmp_path, monkeypatch):
    import open_clip_train.zero_shot as theirs

    folder = tmp_path / "imagenet"
    for name, i in (("a", 0), ("b", 1)):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes((data.folder / f"{i}.png").read_bytes())
    monkeypatch.setattr(theirs, "IMAGENET_CLASSNAMES", ["dot", "comma", "tau", "rho", "x"])
    found = runs.run(data, tmp_path, imagenet_val=folder, zeroshot_frequency=1)
    assert "imagenet-zeroshot-val-top5: 1.0000" in found.log


def test_tensorboard_and_wandb_get_temperatures(data, tmp_path, monkeypatch):
    from open_clip_train import train

    written, logged = {}, []

    class SummaryWriter:
        def __init__(self, folder):
            written["folder"] = folder

        def add_scalar(self, name, value, step):
            written[name, step] = value

    def log(values, step):
        logged.append(values)

    def init(**options):
        assert options["config"]["scheme"] == "tempnet"

    wandb = types.SimpleNamespace(init=init, save=str, log=log, finish=str)
    monkeypatch.setattr(main_module, "tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    for module in (main_module, train):
        monkeypatch.setattr(module, "wandb", wandb)
    runs.run(data, tmp_path, report_to="tensorboard,wandb")
    for step in (0, 1):
        assert 0.005 < written["train/image/tau_mean", step] < 0.05
        assert written["train/loss", step] == written["train/contrastive_loss", step]
        assert logged[step]["train/image/tau_mean"] == written["train/image/tau_mean", step]


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": "coca_ViT-B-32"},
            "--model coca_ViT-B-32, which has a caption loss. Type another --model, or",
        ),
        (
            {"distill_model": "ViT-B-32", "distill_pretrained": "openai"},
            "received --distill-model, a loss of its",
        ),
        (
            {"siglip": True},
            "received --siglip with --scheme tempnet. Type --scheme siglip, leave --siglip out, or",
        ),
        ({"horovod": True}, "received --horovod"),
        ({"torchscript": True}, "received --torchscript"),
        ({"trace": True}, "received --trace"),
        ({"loss_dist_impl": "reduce"}, "received --loss-dist-impl"),
        ({"hold": 0.5, "skip_scheduler": True}, "received --skip-scheduler with --hold"),
        (
            {"scheme": "sogclr"},
            "expected options of --scheme sogclr (--tau, --gamma), received --rho. Leave it out",
        ),
        ({"scheme": "drrho"}, "invalid choice: 'drrho'"),
        ({"rho": "many"}, "argument --rho: invalid float value: 'many'"),
        ({"rho": -1}, "received rho=-1.0"),
        ({"tau_min": 0.5}, "received tau_min=0.5"),
        ({"tau_lr": 0}, "expected a finite --tau-lr > 0"),
        ({"hold": 1}, "expected --hold in [0, 1), received --hold 1.0. Type --hold 0.3"),
        ({"table_size": 0}, "expected --table-size >= 1"),
        ({"table_size": 7}, "expected --table-size with shards, received --table-size 7"),
        (
            {"scheme": "sogclr", "rho": None, "tau_lr": 9.0},
            "received --tau-lr 9.0 with --scheme sogclr. Leave",
        ),
        ({"scheme": "isogclr", "hold": 0.5}, "received --hold 0.5 with --scheme isogclr. Leave --hold out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(data, tmp_path, capsys, changes, words):
    assert runs.run(data, tmp_path, **changes).status == 2
    said = capsys.readouterr().err
    assert said.startswith("python -m dro_temp.integrations.open_clip: expected ")
    assert said.count("\n") == 1
    assert words in said
    assert not any(tmp_path.iterdir())


def test_too_little_data_is_told(data, tmp_path, capsys):
    assert runs.run(data, tmp_path, accum_freq=3).status == 2
    assert "received 2 batches of 16 with --accum-freq 3. Type a smaller" in capsys.readouterr().err


def test_a_name_that_exists_is_open_clips_own_error(finished, data, capsys):
    assert runs.run(data, finished.folder.parent).status == 1
    assert "Experiment already exists" in capsys.readouterr().out


def test_another_version_of_open_clip_is_told():
    module = types.ModuleType("theirs")
    vars(module).update({k: v for k, v in vars(main_module).items() if k not in ("__name__", "create_loss")})
    module.zero_shot = sys.modules["open_clip_train.zero_shot"]
    before = dict(vars(module))
    words = (
        r"expected theirs to call create_loss, received open_clip_torch .* which does not. Run: pip install"
    )
    with pytest.raises(ImportError, match=words), Training(Options()).inside(module, module.zero_shot):
        pass
    assert vars(module) == before


@pytest.mark.parametrize("word", ["--help", "--hel", "--he", "-h"])
def test_help_has_our_options_first(capsys, word):
    assert main([word]) == 0
    said = capsys.readouterr().out
    places = [
        said.index(word) for word in ("examples", "a recipe of", "--tau-min X", "--train-num-samples TRAIN")
    ]
    assert places == sorted(places)
    assert "tempnet_queued" in said


@pytest.mark.parametrize(
    "kind",
    ["vit", "resnet", "timm-vit", "timm-convnext", "siglip", pytest.param("hf-text", marks=pytest.mark.slow)],
)
def test_the_width_of_embeddings(kind, tmp_path):
    import tiny_clips

    assert embedding_width(tiny_clips.open_clip(kind, tmp_path)) == 16
