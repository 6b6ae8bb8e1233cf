"""Two views of one timm backbone: rows against loops, four schemes, what is remembered, and what is learned."""

import importlib
import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from isolation import EXAMPLES, imported_example
from torch import nn

import dro_temp as dt

for package in ("tyro", "timm", "torchvision", "matplotlib", "rich"):
    pytest.importorskip(package)

SCHEMES = ("simclr", "sogclr", "isogclr", "tempnet")
TINY = ["--names", "20", "--batch-size", "32", "--epochs", "2"]


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as `python examples/self_supervised.py` imports them."""
    with imported_example("self_supervised") as module:
        yield module


@pytest.fixture
def options(example):
    return example.Options(names=20, batch_size=32, epochs=2)


@pytest.fixture(scope="module")
def images(example):
    return example.load(20, 0).train.images


def _vectors(encoder, images):
    z = encoder(images)
    return z / z.square().sum(1, keepdim=True).sqrt()


# Rows of a real backbone ------------------------------------------------------------------------------------


@pytest.fixture
def encoder(example):
    torch.manual_seed(0)
    encoder = example.Encoder("test_resnet").double()
    for weight in encoder.parameters():
        if not weight.any():  # timm starts each residual branch at zero, so that nothing flows into it
            nn.init.normal_(weight)
    return encoder


def test_scores_equal_loops_and_gradients_reach_the_backbone(encoder):
    first, second = torch.rand(2, 5, 1, 32, 32, dtype=torch.float64)
    encoder.eval()  # no statistics of the batch: the loop below may call it again
    rows = dt.hosts.TwoViews(encoder)(first, second)
    views = {"first": _vectors(encoder, first), "second": _vectors(encoder, second)}
    for (name, x), (_, y) in zip(views.items(), reversed(views.items()), strict=True):
        scores = rows[name].dense_scores
        for i in range(5):
            own = [x[i] @ x[j] for j in range(5) if j != i]
            torch.testing.assert_close(scores[i], torch.stack(own + [x[i] @ z for z in y]))
            assert rows[name].target[i] == 4 + i
    rows["first"].dense_scores.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.backbone.parameters())


def test_simclr_is_nt_xent(encoder):
    tau, z = 0.3, torch.rand(2, 4, 1, 32, 32, dtype=torch.float64)
    objective = dt.recipes.simclr(dt.hosts.TwoViews(encoder), tau=tau).double().eval()
    vectors = [*_vectors(encoder, z[0]), *_vectors(encoder, z[1])]
    terms = []
    for i, x in enumerate(vectors):
        scores = {j: x @ y / tau for j, y in enumerate(vectors) if j != i}
        terms.append(torch.stack(list(scores.values())).exp().sum().log() - scores[(i + 4) % 8])
    torch.testing.assert_close(objective(*z).loss, torch.stack(terms).mean())


@pytest.mark.parametrize("clip", [0.05, 3.0])
def test_a_temperature_moves_by_its_clipped_gradient(clip):
    torch.manual_seed(0)
    host = dt.hosts.TwoViews(nn.Linear(6, 4))
    bounds = {"tau_min": 0.01, "tau_max": 2.0, "tau_init": 0.5}
    objective = dt.recipes.isogclr(host, 8, rho=1.0, tau_step=0.1, tau_clip=clip, **bounds).double()
    optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.0)), objective)
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    output = objective(*x, index=torch.arange(8))
    margins = objective.host(*x)["first"]
    h = margins.dense_scores - margins.dense_scores.gather(1, margins.target[:, None])
    h = torch.stack(
        [torch.cat([row[:t], row[t + 1 :]]) for row, t in zip(h, margins.target, strict=True)]
    ).detach()
    tau = torch.full((8,), 0.5, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad((tau * ((h / tau[:, None]).exp().mean(1).log() + 1.0)).sum(), tau)[0]
    assert (slope.abs() > 0.05).all()  # so that the smaller clip binds, and the larger one does not
    assert (slope.abs() < 3.0).all()
    output.loss.backward()
    optimizer.step()
    moved = 0.5 - objective.predictors["first"].tau
    torch.testing.assert_close(moved, 0.1 * 0.9 * slope.clamp(-clip, clip).to(moved), rtol=1e-5, atol=1e-7)


# Four schemes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_three_steps_remember_both_views_of_each_image(example, options, images, scheme):
    run = example.Run(replace(options, scheme=scheme), 0, images)
    seen = torch.cat([run._batch(step) for step in range(3)])
    before = [p.detach().clone() for p in run.encoder.backbone.parameters()]
    run.objective.train()
    assert all(torch.tensor(list(run.train_step().values())).isfinite().all() for _ in range(3))
    after = list(run.encoder.backbone.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if scheme == "simclr":
        assert run.objective.memory_modules() == []
        return
    first, second = (run.objective.losses[view].estimator.log_u for view in ("first", "second"))
    for log_u in (first, second):
        assert log_u.isfinite().nonzero().flatten().tolist() == sorted(set(seen.tolist()))
    visited = first.isfinite()
    assert (first[visited] != second[visited]).all()
    assert not run.objective.pending


def test_each_image_has_a_temperature_of_its_own_in_each_view(example, options, images):
    run = example.Run(replace(options, scheme="isogclr"), 0, images)
    run.fit()
    tau = run.temperatures()
    assert not torch.equal(tau["first"], tau["second"])
    assert all(len(x.unique()) > len(images) // 2 for x in tau.values())


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict | list):
        assert len(a) == len(b)
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_same(a[key], b[key])
    else:
        assert a == b


@pytest.mark.parametrize(
    "scheme", [s if s == "tempnet" else pytest.param(s, marks=pytest.mark.slow) for s in SCHEMES]
)
def test_a_resumed_run_is_the_same_bit_for_bit(example, options, images, scheme, tmp_path):
    options = replace(options, scheme=scheme)
    whole, cut, resumed = (example.Run(options, 0, images) for _ in range(3))
    assert whole.fit()
    assert not cut.fit(should_stop=lambda: cut.step == 3)
    cut.save(tmp_path)
    resumed.restore(tmp_path)
    assert resumed.step == 3
    assert resumed.fit()
    for part in ("objective", "optimizer"):
        assert_same(*(getattr(run, part).state_dict() for run in (resumed, whole)))


@pytest.mark.parametrize("recipe", ["infonce", "siglip", "scent", "tempnet_queued"])
def test_other_recipes_train_two_views_too(recipe):
    host = dt.hosts.TwoViews(nn.Linear(6, 4))
    rest = {"scent": (20,), "tempnet_queued": (20, 4)}.get(recipe, ())
    more = {"rho": 1.0} if recipe == "tempnet_queued" else {}
    objective = getattr(dt.recipes, recipe)(host, *rest, **more)
    optimizer = dt.CompositionalOptimizer(torch.optim.Adam(objective.param_groups(lr=1e-2)), objective)
    for index in torch.randperm(20).view(2, 10):
        output = objective(torch.randn(10, 6), torch.randn(10, 6), index=index)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert output.loss.isfinite()


# Data -------------------------------------------------------------------------------------------------------


def test_views_are_distorted_one_by_one_and_stay_images(example, images):
    from two_views.data import augmentation, view

    same = images[:1].expand(16, -1, -1)
    torch.manual_seed(0)
    seen = view(same, augmentation())
    assert seen.shape == (16, 1, 32, 32)
    assert seen.dtype == torch.float32
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    assert len(seen.flatten(1).unique(dim=0)) == 16


def test_splits_share_names_and_no_font(example):
    data = example.load(20, 3)
    assert data.train.name.bincount().min() >= 9
    assert data.train.name.unique().tolist() == list(range(20))
    for split in (data.val, data.test):
        assert set(split.name.tolist()) <= set(range(20))
        known = {image.numpy().tobytes() for image in data.train.images}
        assert not any(image.numpy().tobytes() in known for image in split.images)
    with pytest.raises(ValueError, match="Type --names"):
        example.load(100_000, 3)


# The example ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [pytest.param("simclr", marks=pytest.mark.slow), "tempnet"])
def test_the_example_reports(example, scheme, tmp_path, capsys):
    assert example.main([*TINY, "--scheme", scheme, "--seeds", "0", "1", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (scheme, "untrained", "pixels", "linear probe (%)", "chance is 5 %"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: len(runs) for name, runs in results["results"].items()} == {
        scheme: 2,
        "untrained": 2,
        "pixels": 2,
    }
    assert all(0 <= x <= 100 for runs in results["results"].values() for run in runs for x in run.values())
    assert (tmp_path / "temperature_histogram.png").exists() == bool(results["tau"]) == (scheme == "tempnet")
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 2


def test_help_mentions_every_option(example, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "examples:" in said
    for field in fields(example.Options):
        assert "--" + field.name.replace("_", "-") in said


def test_ctrl_c_keeps_what_was_trained_and_resume_goes_on(example, tmp_path, capsys):
    out = ["--out", str(tmp_path), "--epochs", "400", "--names", "20"]
    script = str(EXAMPLES / "self_supervised.py")
    code = (
        "import os, signal, runpy, sys\n"
        f"sys.argv = [{script!r}, *{out!r}]\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "from two_views.training import Run\n"
        "step = Run.train_step\n"
        "def interrupted(run):\n"
        "    seen = step(run)\n"
        "    if run.step == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return seen\n"
        "Run.train_step = interrupted\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert "step 2 of 800" in done.stdout
    assert "--resume" in done.stdout
    state = torch.load(tmp_path / "checkpoints" / "tempnet-seed0.pt", weights_only=True)
    assert state["step"] == 2
    assert example.main([*out[:2], "--names", "20", "--epochs", "3", "--resume"]) == 2
    assert "Type --epochs 400 --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--epochs", "0"], "--epochs of at least 1"),
        (["--names", "3"], "a smaller --batch-size"),
        (["--names", "100000"], "Type --names 300"),
        (["--seeds", "1", "1"], "Type --seeds 1"),
        (["--scheme", "isogclr", "--rho", "-1"], "rho"),
        (["--tau", "0"], "tau"),
    ],
)
def test_refuses_options_that_make_no_sense(example, typed, said, tmp_path, capsys):
    try:
        code = example.main([*typed, "--out", str(tmp_path / "new")])
    except SystemExit as stopped:  # by the command line's own parser
        code = stopped.code
    assert code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_training_without_names_finds_more_names(example):
    """In fonts that it never saw; four seeds, one with each scheme, gained 12 to 17 points."""
    from two_views.evaluation import evaluate

    data = example.load(60, 0)
    run = example.Run(example.Options(names=60, epochs=5), 0, data.train.images)
    run.objective.eval()
    before = evaluate(run.encoder.backbone, data)["knn"]
    run.fit()
    after = evaluate(run.encoder.backbone, data)["knn"]
    assert after > before + 5


# The study --------------------------------------------------------------------------------------------------


@pytest.fixture
def study():
    for package in ("scipy", "sklearn"):
        pytest.importorskip(package)
    return importlib.import_module("benchmarks.studies.self_supervised.compare")


def _summary(study, tests):
    return study.summarise(tests, study.metrics, compared=("knn", "probe"))


def test_schemes_have_as_many_trials(study):
    assert {len(study.TRIALS[scheme]) for scheme in SCHEMES} == {2}


def test_the_table_is_scheme_minus_simclr(study):
    found = {"simclr": (50.0, 52.0, 51.0), "tempnet": (53.0, 54.5, 54.5), "pixels": (70.0, 70.0, 70.0)}
    tests = [
        {"method": name, "seed": seed, "options": {"tau": 0.1}, "metrics": {"knn": x, "probe": x}}
        for name, values in found.items()
        for seed, x in enumerate(values)
    ]
    simclr, tempnet, pixels = study.table(_summary(study, tests)).splitlines()[2:]
    assert "| +3.0 [" in tempnet
    assert "3 of 3" in tempnet
    assert " of 3" not in simclr + pixels


def test_the_controls_compare_losses_at_one_temperature(study):
    tests = [
        {"method": name, "seed": seed, "options": {"tau": tau}, "metrics": {"knn": x + seed + by * seed}}
        for name, tau, x, by in (
            ("simclr", 0.2, 50.0, 0.0),
            ("simclr, not chosen", 0.1, 40.0, 0.0),
            ("sogclr", 0.1, 42.0, 0.1),
            ("sogclr, not chosen", 0.2, 49.0, 0.1),
        )
        for seed in range(3)
    ]
    low, high = study.at_the_same_temperature(_summary(study, tests))
    assert "tau 0.1, SogCLR minus SimCLR: +2.1 [" in low
    assert "3 of 3" in low
    assert "tau 0.2, SogCLR minus SimCLR: -0.9 [" in high
    assert "0 of 3" in high


def test_a_run_of_the_study_reads_test_images_only_where_it_is_no_trial(study):
    setting = {"names": 20, "epochs": 1, "batch_size": 64, "lr": 2e-3}
    trial = study.run("tempnet", 0, {"rho": 1.0}, tuning=True, setting=setting)
    tested = study.run("tempnet", 0, {"rho": 1.0}, tuning=False, setting=setting)
    assert {"knn", "probe"} <= set(tested["metrics"]) - set(trial["metrics"])
    assert trial["chosen_by"] == tested["chosen_by"] == -trial["metrics"]["val_knn"]
    assert set(study.run("pixels", 0, {}, tuning=True, setting=setting)["metrics"]) == {"val_knn"}
