"""open_clip's own loop, unchanged, with our loss: equal to the house's objective, in one process and in two."""

import copy
import io
import logging
import pickle

import open_clip_loops as loops
import pytest
import small
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt
from dro_temp.datasets import SampleTable
from dro_temp.integrations.open_clip import (
    ModelGroups,
    NumberedStream,
    NumberedTexts,
    OpenClipLoss,
    read_numbers,
)

pytest.importorskip("open_clip")
pytest.importorskip("open_clip_train")

VIEWS = dt.hosts.TwoTower.views
PLAN = small.batches(6, size=8)


def assert_same(first: nn.Module, second: nn.Module, digits: float = small.TRAINED_APART) -> None:
    state = second.state_dict()
    for name, value in first.state_dict().items():
        if not name.endswith("watched"):
            small.assert_same_to_rounding(value, state[name], digits, name)


def features(n: int = 6, seed: int = 0, **options):
    g = torch.Generator().manual_seed(seed)
    options = {"generator": g, "dtype": torch.float64} | options
    return [nn.functional.normalize(torch.randn(n, 4, **options), dim=1).requires_grad_() for _ in VIEWS]


# The loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", small.PREDICTORS)
def test_the_loop_trains_as_the_house_does(predictor):
    """Every step of the real `train_one_epoch`: weights, temperatures, memory."""
    model, loss = loops.trained(PLAN, predictor)
    expected, objective = loops.house(PLAN, predictor)
    assert_same(expected, model)
    for part in ("predictors", "losses"):
        assert_same(getattr(objective, part), getattr(loss.objective, part))
    assert int(loss.objective.losses["image"].estimator.steps) == len(PLAN)
    assert loss.objective.host.step_marker.item() == 0.0
    assert model.logit_scale.item() == loops.clip().logit_scale.item()


def test_a_risk_over_pairs_records_their_weights():
    """`risk` is an option of the objective: a `RecordedRisk` takes image and text of a pair as one sample."""
    best = dt.OptimisticRisk(dt.risks.RisingRadius(dt.KLRisk(0.0), 0.4, steps=len(PLAN), start=0.1))
    loss = loops.clip_loss(risk=dt.risks.RecordedRisk(best, small.N))
    model = read_numbers(loops.clip())
    loops.run(model, loss, loss.optimizer(loops.sgd(model), tau_lr=0.1), PLAN)
    risk = loss.objective.risks["all"]
    assert {s.sample for s in risk.suspects()} == set(torch.cat(PLAN).tolist())
    assert best.risk.rho == pytest.approx(0.4)


def test_with_one_learned_temperature_and_infonce_it_is_open_clips_own():
    from open_clip.loss import ClipLoss

    x, y = features()
    scale = torch.tensor(14.0, dtype=torch.float64)
    theirs = ClipLoss()(x, y, scale)
    predictor = dt.LearnableTemperature(1 / 14.0)
    ours = OpenClipLoss(predictor, dt.InfoNCELoss()).double()(x, y, scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # 1/14 is rounded to float32 on its way
    for a, b in zip(torch.autograd.grad(ours, [x, y]), torch.autograd.grad(theirs, [x, y]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_a_scalar_or_a_dict():
    loss, (x, y) = loops.clip_loss(estimator=dt.estimators.Exact), features()
    alone = loss(x, y, torch.tensor(14.0))
    named = loss(image_features=x, text_features=y, logit_scale=torch.tensor(14.0), output_dict=True)
    assert list(named) == ["contrastive_loss"]
    assert alone.shape == ()
    torch.testing.assert_close(named["contrastive_loss"], alone, rtol=0, atol=0)
    tau = loss.metrics["image/tau_mean"]
    assert 0.05 <= float(tau) <= 1.0
    assert not tau.requires_grad


def test_the_models_own_scale_and_bias_have_a_gradient_of_zero():
    """DistributedDataParallel waits for one."""
    model, loss = loops.clip(bias=True), loops.clip_loss(estimator=dt.estimators.Exact)
    images, texts = (torch.stack(side) for side in zip(*loops.pairs(), strict=True))
    loss(**model(images, texts), output_dict=True)["contrastive_loss"].backward()
    assert model.logit_scale.grad == 0
    assert model.logit_bias.grad == 0
    before = loss(**model(images, texts))
    with torch.no_grad():
        model.logit_scale += 1.0
    assert loss(**model(images, texts)) == before


@pytest.mark.parametrize("predictor", small.PREDICTORS)
def test_accumulation_is_one_large_batch(predictor):
    """The real loop: each of two passes sees all rows, one half of them with gradient."""
    halves = [half for batch in PLAN for half in batch.chunk(2)]
    model, loss = loops.trained(halves, predictor, accum_freq=2)
    expected, whole = loops.trained(PLAN, predictor)
    assert_same(expected, model)
    assert_same(whole, loss)
    assert int(loss.objective.losses["text"].estimator.steps) == len(PLAN)


def test_a_queue_takes_the_rows_of_an_accumulated_batch_once():
    """Every pass shows the loss all rows of the window."""
    options = {"num_samples": small.N, "width": 4, "rho": 0.5, "queue": 16, "replay": 4}
    losses = []
    for plan, accum_freq in ((PLAN, 1), ([half for batch in PLAN for half in batch.chunk(2)], 2)):
        torch.manual_seed(0)
        loss = OpenClipLoss.from_recipe(dt.recipes.tempnet_queued, accum_freq=accum_freq, **options).double()
        for module in loss.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model = loops.clip()
        optimizer = loss.optimizer(loops.sgd(model), tau_lr=0.1)
        loops.run(read_numbers(model), loss, optimizer, plan, accum_freq=accum_freq)
        losses.append(loss)
    assert_same(*losses)
    assert int(losses[1].objective.tau_losses["image"].queue.seen) == 8 * len(PLAN)


def test_a_recipe_comes_with_all_of_its_parts():
    loss = OpenClipLoss.from_recipe(dt.recipes.cyclip, in_modal=0.5)
    assert list(loss.objective.penalties) == ["cyclic"]
    x, y = features(dtype=torch.float32)
    assert loss(x, y) == loss.metrics["loss"]
    frozen = dt.hosts.TwoTower(nn.Linear(4, 4), nn.Linear(4, 4), frozen=True)
    with pytest.raises(TypeError, match=r"received one with WithReference. Use another recipe"):
        OpenClipLoss.from_recipe(dt.recipes.drrho, reference=frozen, num_samples=20)


def test_a_step_that_the_scaler_skips_leaves_no_trace():
    first, second = torch.arange(6), torch.arange(6, 12)
    model, loss = loops.clip().float(), loops.clip_loss().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38, backoff_factor=1e-38)
    dataset = [(image.float(), text) for image, text in loops.pairs()]
    optimizer = loss.optimizer(loops.sgd(model))
    from types import SimpleNamespace

    from open_clip_train.train import train_one_epoch

    loader = loops.Loader([first, second], NumberedTexts(dataset))
    args = SimpleNamespace(**(loops.ARGS | {"grad_clip_norm": 1.0}))
    for predictor in loss.objective.predictors.values():  # so that 1e38 times a gradient is no number
        predictor.tau_max = 100.0
    train_one_epoch(read_numbers(model), loops.data_of(loader), loss, 0, optimizer, scaler, None, None, args)
    estimator = loss.objective.losses["image"].estimator
    assert estimator.log_u.isfinite().nonzero().flatten().tolist() == second.tolist()
    assert int(estimator.steps) == 1


def test_gradients_are_clipped_by_the_loop():
    model, loss = loops.trained(PLAN[:1], grad_clip_norm=1e-9)
    assert_same(loops.clip(), model, digits=1e-8)
    assert int(loss.objective.losses["image"].estimator.steps) == 1


@pytest.mark.parametrize("predictor", ["tempnet", "constant", "individual"])
def test_saved_and_resumed_it_goes_on_as_if_nothing_had_happened(predictor):
    whole = loops.trained(PLAN, predictor)

    model, loss = loops.clip(), loops.clip_loss(predictor)
    optimizer = loss.optimizer(loops.sgd(model), tau_lr=0.1)
    loops.run(read_numbers(model), loss, optimizer, PLAN[:3])
    file = io.BytesIO()
    saved = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": loss.state_dict()}
    torch.save(saved, file)

    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    model, loss = loops.clip(), loops.clip_loss(predictor)
    optimizer = loss.optimizer(loops.sgd(model), tau_lr=0.1)
    model.load_state_dict(checkpoint["state_dict"])
    loss.load_state_dict(checkpoint["loss"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    loops.run(read_numbers(model), loss, optimizer, PLAN[3:])
    for a, b in zip((model, loss), whole, strict=True):
        assert_same(a, b, digits=0.0)


def test_temperatures_may_have_a_learning_rate_that_no_schedule_touches():
    from open_clip_train.scheduler import cosine_lr

    model, loss = loops.clip(), loops.clip_loss()
    optimizer = loss.optimizer(loops.sgd(model), tau_lr=0.05)
    schedule = cosine_lr(ModelGroups(optimizer), 0.3, 0, 10)
    for step, lr in ((0, 0.3), (5, 0.15)):
        schedule(step)
        assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(lr), 0.05]
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # makes new groups
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    ours = {id(p) for p in loss.parameters()}
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == ours


def test_parameters_that_the_optimizer_has_already_are_not_added_again():
    model, loss = loops.clip(), loops.clip_loss()
    base = torch.optim.AdamW([*model.parameters(), *loss.parameters()])
    assert len(loss.optimizer(base).param_groups) == 1


def test_gamma_reaches_the_estimators():
    model, loss = loops.clip(), loops.clip_loss()
    loss.optimizer(loops.sgd(model), gamma=0.25)
    assert loss.objective.losses["image"].estimator.gamma == 0.25


def test_prototypes_start_from_features():
    loss, (x, y) = loops.clip_loss(), features(8)
    loss.objective.start_prototypes(x, y)
    prototypes = loss.objective.predictors["image"].encoder.prototypes
    torch.testing.assert_close(prototypes, y[: len(prototypes)], rtol=0, atol=1e-12)


def test_half_precision_features_are_scored_in_float32():
    x, y = features(dtype=torch.float32)
    loss = OpenClipLoss(dt.ConstantTemperature(0.05), dt.KLRobustLoss(0.5))
    half = [side.detach().bfloat16() for side in (x, y)]
    expected = loss(*(side.float() for side in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*half)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


# Several processes ---------------------------------------------------------------------------------------


def _together(rank: int, world: int, predictor: str, accum_freq: int) -> list[dict]:
    logging.disable(logging.INFO)
    torch.manual_seed(rank)  # as open_clip's main does before it makes the loss
    model = loops.clip()
    loss = loops.clip_loss(predictor, accum_freq=accum_freq)
    with torch.no_grad():  # another start on every process: that of the first counts
        for parameter in loss.objective.predictors.parameters():
            parameter.add_(0.1 * rank)
    plan = [part for batch in PLAN for part in batch.chunk(world)[rank].chunk(accum_freq)]
    wrapped = DistributedDataParallel(read_numbers(model))
    optimizer = loss.optimizer(loops.sgd(wrapped), tau_lr=0.1)
    loops.run(wrapped, loss, optimizer, plan, accum_freq=accum_freq, rank=rank, world_size=world)
    return [{name: value.tolist() for name, value in module.state_dict().items()} for module in (model, loss)]


def _all(rank: int, world: int) -> dict:
    return {
        (p, k): _together(rank, world, p, k) for p in ("tempnet", "constant", "individual") for k in (1, 2)
    }


def test_two_processes_train_as_one():
    """The model in DistributedDataParallel, the loss in none; also with accumulation."""
    together = in_processes(2, _all)
    for (predictor, accum_freq), first in together[0].items():
        assert first == together[1][predictor, accum_freq]  # to the last bit
        for module, found in zip(loops.trained(PLAN, predictor), first, strict=True):
            for name, value in module.state_dict().items():
                got = torch.tensor(found[name], dtype=torch.float64)
                small.assert_same_to_rounding(got, value.double(), small.TRAINED_APART, name)


# Numbers -------------------------------------------------------------------------------------------------


def _open_clip_model(kind: str = "CLIP", **options):
    import open_clip

    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    return getattr(open_clip, kind)(24, vision, text, **({"output_dict": True} | options))


def _batch(n: int = 3):
    g = torch.Generator().manual_seed(0)
    dataset = [
        (torch.randn(3, 16, 16, generator=g), torch.randint(99, (8,), generator=g)) for _ in range(2 * n)
    ]
    numbered = NumberedTexts(dataset)
    chosen = range(n, 2 * n)
    plain, ours = ([source[i] for i in chosen] for source in (dataset, numbered))
    return [tuple(torch.stack(side) for side in zip(*batch, strict=True)) for batch in (plain, ours)]


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("training", [True, False])
def test_numbers_travel_and_the_model_does_not_notice(kind, training):
    bare, model = _open_clip_model(kind), read_numbers(_open_clip_model(kind)).train(training)
    (images, texts), (_, numbered) = _batch()
    for arguments in ({"args": (images, numbered)}, {"kwargs": {"image": images, "text": numbered}}):
        out = model(*arguments.get("args", ()), **arguments.get("kwargs", {}))
        assert out.pop("index").tolist() == [3, 4, 5]
        expected = bare(images, texts)
        assert list(out) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(out[name], value, rtol=0, atol=0)
    assert "index" not in model(images, texts)
    assert "index" not in model(image=images)
    assert model(text=numbered)["index"].tolist() == [3, 4, 5]


def test_a_failed_forward_leaves_no_number_behind():
    model = read_numbers(_open_clip_model())
    (images, texts), (_, numbered) = _batch()
    with pytest.raises(RuntimeError):
        model(images[:, :, :3], numbered)
    assert "index" not in model(images, texts)


def test_checkpoints_are_open_clips_own():
    model = read_numbers(_open_clip_model())
    with torch.no_grad():
        model.visual.proj.add_(1.0)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    plain = _open_clip_model()
    plain.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in model.named_parameters()]
    (images, texts), _ = _batch()
    torch.testing.assert_close(plain(images, texts)["image_features"], model(images, texts)["image_features"])
    model.lock_image_tower()
    assert not model.visual.proj.requires_grad
    assert type(model) is type(plain)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_read_numbers_by_themselves(copied):
    _, (images, numbered) = _batch()
    model = read_numbers(_open_clip_model())
    other = copied(model)
    del model
    assert other(images, numbered)["index"].tolist() == [3, 4, 5]


def test_a_compiled_model_reads_numbers():
    compiled = torch.compile(read_numbers(loops.clip()), backend="eager")
    for index in PLAN[:3]:
        images, texts = next(iter(loops.Loader([index])))
        assert torch.equal(compiled(images, texts)["index"], index)


def test_the_loops_evaluation_takes_texts_with_numbers_and_without():
    from types import SimpleNamespace

    from open_clip_train.train import evaluate

    model, found = read_numbers(loops.clip()), []
    for dataset in (loops.pairs(), NumberedTexts(loops.pairs())):
        data = loops.data_of(loops.Loader(PLAN, dataset), "val")
        found.append(evaluate(model, data, 1, SimpleNamespace(**loops.ARGS)))
    assert found[0] == found[1]
    assert found[0]["num_samples"] == 48


def test_rows_of_a_csv_file_travel(tmp_path):
    from open_clip_train.data import CsvDataset
    from PIL import Image

    lines = ["filepath\ttitle"]
    for i in range(3):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i}.png")
        lines.append(f"{tmp_path / f'{i}.png'}\tcaption {i}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))

    def tokenizer(texts):
        return torch.tensor([[1, int(text.split()[1])] for text in texts])

    csv = CsvDataset(str(tmp_path / "pairs.csv"), lambda im: im.getpixel((0, 0))[0], "filepath", "title")
    csv.tokenize = tokenizer
    assert [(image, texts.tolist()) for image, texts in map(NumberedTexts(csv).__getitem__, range(3))] == [
        (i, [[1, i, i]]) for i in range(3)
    ]


@pytest.fixture
def shards(tmp_path):
    wds = pytest.importorskip("webdataset")
    from PIL import Image

    with wds.ShardWriter(str(tmp_path / "pairs-%03d.tar"), maxcount=5, verbose=0) as writer:
        for i in range(10):
            image = Image.new("RGB", (4, 4), (i, i, i))
            writer.write({"__key__": f"{i:06d}", "png": image, "txt": str(i)})
    return str(tmp_path / "pairs-{000..001}.tar")


def _grey(image):
    return torch.tensor(image.getpixel((0, 0))[0])


def _number(text):
    return torch.tensor([9, int(text)])


def _assert_numbered(batches, table: SampleTable, times: int = 1) -> None:
    seen = []
    for images, texts in batches:
        assert texts.shape[1:] == (1, 3)
        for image, (nine, said, number) in zip(images.tolist(), texts[:, 0].tolist(), strict=True):
            assert (nine, said) == (9, image)
            assert number == table(f"{image:06d}")
            seen.append(image)
    assert sorted(seen) == sorted(list(range(10)) * times)


def test_keys_of_a_webdataset_travel(shards):
    import webdataset as wds

    table = SampleTable(1000)
    pipeline = (
        wds.WebDataset(shards, shardshuffle=2)
        .shuffle(10)
        .decode("pil")
        .rename(image="png", text="txt")
        .map_dict(image=_grey, text=_number)
        .map(NumberedStream(table))
        .to_tuple("image", "text")
        .batched(2)
    )
    for _ in range(2):
        _assert_numbered(wds.WebLoader(pipeline, batch_size=None, num_workers=2), table)


@pytest.mark.parametrize("is_train", [True, False], ids=["train", "validation"])
def test_keys_of_open_clips_own_pipeline_travel(shards, is_train):
    from types import SimpleNamespace

    import webdataset as wds
    from open_clip_train.data import get_wds_dataset

    args = SimpleNamespace(
        train_data=shards,
        val_data=shards,
        train_num_samples=10,
        val_num_samples=10,
        train_data_upsampling_factors=None,
        batch_size=5,
        workers=1,
        world_size=1,
        seed=0,
    )
    info = get_wds_dataset(args, _grey, is_train=is_train, tokenizer=lambda text: [_number(text)])
    table = SampleTable(1000)
    # Its last two stages make a tuple and a batch of what the others made.
    info.dataloader.pipeline[0].dataset.pipeline.insert(-2, wds.map(NumberedStream(table)))
    _assert_numbered(info.dataloader, table)


def test_a_key_may_be_made_of_several_fields():
    def key(sample):
        return f"{sample['__url__']}/{sample['__key__']}"

    stream = NumberedStream(SampleTable(10**9), text="tokens", key=key)
    tokens = torch.tensor([1, 2])
    first, second = (
        stream({"__url__": u, "__key__": "0", "tokens": tokens})["tokens"] for u in ("a.tar", "b.tar")
    )
    assert first[0, -1] == SampleTable(10**9)("a.tar/0")
    assert first[0, -1] != second[0, -1]


# Bad input -----------------------------------------------------------------------------------------------


def test_memory_of_no_sample_needs_no_numbers():
    level = dt.predictors.LevelTemperature(
        dt.TempNet(4, tau_min=0.01, tau_max=1.0), tau=0.1, tau_min=0.01, tau_max=0.3
    )
    risk = dt.OptimisticRisk(dt.risks.RisingRadius(dt.KLRisk(0.0), 0.3, steps=5))
    loss = OpenClipLoss(
        {"image": level, "text": dt.ConstantTemperature(0.1)},
        dt.InfoNCELoss(),
        risk={"image": risk, "text": dt.risks.MeanRisk()},
    )
    sides = (torch.nn.functional.normalize(torch.randn(8, 4)) for _ in range(2))
    assert loss(*sides).isfinite()


def test_missing_numbers_are_refused():
    for predictor, estimator in (("constant", None), ("individual", dt.estimators.Exact)):
        with pytest.raises(
            ValueError, match=r"expected sample numbers .* received index=None. Wrap the data"
        ):
            loops.clip_loss(predictor, estimator)(*features(), torch.tensor(1.0))


def test_held_out_batches_need_no_numbers():
    loss, (x, y) = loops.clip_loss(), features()
    with torch.no_grad():
        first = loss(x, y, torch.tensor(1.0))
    assert loss.eval()(x, y, torch.tensor(1.0)).detach() == first
    assert not loss.objective.pending


def test_a_number_beyond_the_table_is_refused():
    with pytest.raises(IndexError, match=rf"from 0 to {small.N - 1}, received numbers from 19 to {small.N}"):
        loops.clip_loss()(*features(), index=torch.arange(19, 25))


def test_numbers_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"expected index of shape \[6\].*received \[5\]"):
        loops.clip_loss()(*features(), index=torch.arange(5))


def test_features_that_are_not_of_length_one_are_refused():
    x, y = features()
    with pytest.raises(
        ValueError, match=r"expected text_features of length one, received 3 in row 2.*normalize=True"
    ):
        loops.clip_loss()(x, torch.cat([y[:2], 3 * y[2:]]), index=torch.arange(6))


def test_what_is_not_a_number_is_the_objectives_to_report():
    x, y = features()
    with torch.no_grad():
        x[1, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"expected finite features in view 'image'.*rows \[1\]"):
        loops.clip_loss()(x, y, index=torch.arange(6))


@pytest.mark.parametrize("shape", [(6, 2, 4), (4,)])
def test_features_that_are_not_two_dimensional_are_refused(shape):
    received = r"\[" + ", ".join(map(str, shape)) + r"\]"
    with pytest.raises(ValueError, match=rf"expected image_features \[n, d\], received {received}"):
        loops.clip_loss()(torch.randn(shape), features()[1], index=torch.arange(6))


def test_a_side_that_the_model_was_not_given_is_refused():
    out = loops.clip()(image=small.data()[0])
    with pytest.raises(ValueError, match=r"expected text_features \[n, d\], received NoneType"):
        loops.clip_loss()(**out, index=torch.arange(small.N))


@pytest.mark.parametrize(
    ("name", "what"), [("logits", "caption loss"), ("dist_image_features", "distillation")]
)
def test_outputs_with_a_loss_of_their_own_are_refused(name, what):
    with pytest.raises(TypeError, match=rf"received '{name}' as well, which is for .*{what}"):
        loops.clip_loss()(*features(), index=torch.arange(6), **{name: torch.zeros(())})


@pytest.mark.parametrize("predictor", ["tempnet", "constant", "individual"])
def test_an_optimizer_that_commits_nothing_is_refused(predictor):
    model, loss = loops.clip(), loops.clip_loss(predictor)
    with pytest.raises(
        RuntimeError, match=r"after accum_freq=1 backwards.*loss.optimizer\(optimizer\) in place"
    ):
        loops.run(read_numbers(model), loss, loops.sgd(model), PLAN)
    assert not loss.objective.pending


def test_an_accumulation_that_the_loss_was_not_told_of_is_refused():
    model, loss = loops.clip(), loops.clip_loss()
    with pytest.raises(RuntimeError, match=r"accum_freq=1 .*OpenClipLoss\(..., accum_freq=args.accum_freq\)"):
        loops.run(read_numbers(model), loss, loss.optimizer(loops.sgd(model)), PLAN, accum_freq=2)


def test_a_model_that_returns_a_tuple_is_refused():
    _, (images, numbered) = _batch()
    model = read_numbers(_open_clip_model(output_dict=False))
    with pytest.raises(
        TypeError, match=r"expected a model that returns a dict, received tuple from CLIP.*output_dict=True"
    ):
        model(images, numbered)


def test_texts_that_cannot_carry_a_number_are_refused():
    for tokens, error, message in (
        (torch.zeros(3), TypeError, r"expected tokens as integers, received torch.float32"),
        ("caption", TypeError, r"expected tokens as integers, received str. Tokenise first"),
        (torch.zeros(1, 3, dtype=torch.long), ValueError, r"tokens of one text, \[L\], received \[1, 3\]"),
    ):
        with pytest.raises(error, match=message):
            NumberedTexts([("image", tokens)])[0]
    with pytest.raises(ValueError, match=r"expected items \(image, tokens\), received one of 3 parts"):
        NumberedTexts([("image", torch.zeros(3, dtype=torch.long), 5)])[0]
    with pytest.raises(KeyError, match=r"tokens under 'text', received one with '__key__', 'txt'. Put this"):
        NumberedStream(SampleTable(5))({"__key__": "a", "txt": "caption"})


def test_accum_freq_is_a_number_of_batches():
    with pytest.raises(ValueError, match=r"expected accum_freq >= 1, received accum_freq=0"):
        loops.clip_loss(accum_freq=0)
