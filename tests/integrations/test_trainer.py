"""The stock Trainer, and TRL's, train an objective: exactly, resumably, in several processes."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from isolation import forget_accelerate

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers

import dro_temp as dt
from dro_temp.integrations.transformers import TrainableLM, robust_loss_func

VOCABULARY = 61
BOUNDS = {"tau_min": 0.3, "tau_max": 3.0}
# peft asks a model for what transformers has renamed.
BY_PEFT = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Nothing left in accelerate, which remembers its first device and precision for the whole process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    forget_accelerate()


def language_model(kind: str = "gpt2"):
    """GPT-2 has a tied head, Llama one of its own."""
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=1, **sizes, **off
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def tempnet(dropout: float = 0.0) -> dt.TempNet:
    torch.manual_seed(1)
    return dt.TempNet.for_logits(VOCABULARY, width=8, dropout=dropout, **BOUNDS)


def trainable(kind: str = "gpt2", *, frozen: bool = False, dropout: float = 0.0) -> TrainableLM:
    host = dt.hosts.CausalLM(language_model(kind), frozen=frozen)
    return TrainableLM(dt.Objective(host, tempnet(dropout), dt.KLRobustLoss(rho=2.0)))


def sentences(count: int = 12) -> list[dict]:
    """Of 4 to 15 tokens, the first few of which are a prompt that is not to be predicted."""
    g = torch.Generator().manual_seed(2)
    made = []
    for k in range(count):
        length = int(torch.randint(4, 16, (), generator=g))
        tokens = torch.randint(2, VOCABULARY, (length,), generator=g)
        labels = tokens.clone()
        labels[: k % 3] = -100
        made.append({"input_ids": tokens, "labels": labels, "index": torch.tensor(k)})
    return made


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(s["input_ids"]) for s in samples)

    def pad(x: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, longest - len(x)), value=value)

    batch = {
        "input_ids": torch.stack([pad(s["input_ids"], 0) for s in samples]),
        "attention_mask": torch.stack([pad(torch.ones_like(s["input_ids"]), 0) for s in samples]),
        "labels": torch.stack([pad(s["labels"], -100) for s in samples]),
    }
    return batch | ({"index": torch.stack([s["index"] for s in samples])} if "index" in samples[0] else {})


def arguments(folder: Path | str, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 6,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 4.0,  # large, so that the rounding of weights is small beside their updates
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(**(settings | changes))


def trainer(model, folder: Path | str, *, optimizers=(None, None), **changes):
    kinds = {"eval_dataset", "compute_metrics", "callbacks", "compute_loss_func"}
    own = {name: changes.pop(name) for name in kinds & changes.keys()}
    return transformers.Trainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=sentences(),
        data_collator=collate,
        optimizers=optimizers,
        **own,
    )


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(model: torch.nn.Module, folder, **changes) -> dict[str, torch.Tensor]:
    """What training adds to each weight."""
    before = weights(model)
    trainer(model, folder, **changes).train()
    return {name: p - before[name] for name, p in weights(model).items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two updates, relative to the larger update of that weight."""
    assert a.keys() == b.keys()
    assert all(bool(x.any()) for x in a.values())
    return max(float((a[k] - b[k]).norm() / a[k].norm()) for k in a)


# --- Accumulation and processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("average", [True, False])
def test_small_batches_add_up_to_a_large_one(kind, average, tmp_path):
    whole = trained(trainable(kind), tmp_path)
    three = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    parts = trained(trainable(kind), tmp_path, **three, average_tokens_across_devices=average)
    assert distance(whole, parts) < 1e-5


def test_a_step_is_that_of_the_objective_itself(tmp_path):
    whole = trained(trainable(), tmp_path, max_steps=1, per_device_train_batch_size=12)
    model = trainable()
    before = weights(model)
    batch = collate(sentences())
    del batch["index"]
    model.objective(**batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=4.0).step()
    by_hand = {name: p - before[name] for name, p in weights(model).items()}
    assert distance(whole, by_hand) < 1e-5


def _in_a_process(rank: int, port: int, folder: str, average: bool, results) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "ddp_backend": "gloo"}
    with_loss = {"eval_dataset": sentences(6), "per_device_eval_batch_size": 3}
    model = trainable()
    before = weights(model)
    run = trainer(model, folder, **settings, **with_loss, average_tokens_across_devices=average)
    run.train()
    update = {name: (p - before[name]).tolist() for name, p in weights(model).items()}
    results[rank] = update, run.evaluate()["eval_loss"]
    torch.distributed.destroy_process_group()


def _two_processes(folder, average):
    from processes import free_port, start

    return [
        ({name: torch.tensor(x) for name, x in update.items()}, loss)
        for update, loss in start(_in_a_process, free_port(), str(folder), average, world=2)
    ]


def test_two_processes_train_as_one(tmp_path):
    model = trainable()
    before = weights(model)
    run = trainer(model, tmp_path, eval_dataset=sentences(6), per_device_eval_batch_size=6)
    run.train()
    alone = {name: p - before[name] for name, p in weights(model).items()}
    for together, eval_loss in _two_processes(tmp_path, average=True):
        assert distance(alone, together) < 1e-5
        assert eval_loss == pytest.approx(run.evaluate()["eval_loss"], rel=1e-5)


# --- What moves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_frozen_host_does_not_move(kind, tmp_path):
    update = trained(trainable(kind, frozen=True), tmp_path)
    assert all(bool(x.any()) == (".predictors." in name) for name, x in update.items())


def test_joint_training_moves_both(tmp_path):
    assert all(bool(x.any()) for x in trained(trainable("llama"), tmp_path).values())


def test_temperatures_have_a_rate_of_their_own_and_no_decay(tmp_path):
    model = trainable()
    groups = model.objective.param_groups(lr=1e-3, tau_lr=1e-2, weight_decay=0.5)
    run = trainer(model, tmp_path, optimizers=(torch.optim.AdamW(groups), None), lr_scheduler_type="linear")
    run.train()
    assert run.args.weight_decay == 0.0  # the Trainer's own groups take this one for networks, too
    assert [(g["name"], g["initial_lr"], g["weight_decay"]) for g in run.optimizer.param_groups] == [
        ("host", 1e-3, 0.5),
        ("temperature", 1e-2, 0.0),
    ]


def test_mixed_precision(tmp_path):
    run = trainer(trainable(), tmp_path, bf16=True, eval_dataset=sentences(6))
    loss = run.train().training_loss
    assert loss == pytest.approx(trainer(trainable(), tmp_path).train().training_loss, rel=1e-2)
    assert run.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant, tmp_path):
    plain = trained(trainable("llama"), tmp_path)
    how = {"use_reentrant": reentrant}
    settings = {"activation_checkpointing": True, "activation_checkpointing_kwargs": how}
    model = trainable("llama")
    assert distance(plain, trained(model, tmp_path, **settings)) < 1e-6
    assert model.objective.host.model.is_activation_checkpointing


@BY_PEFT
@pytest.mark.parametrize("head", ["plain", "adapted", "saved"])
def test_an_adapter_is_trained_and_saved_alone(head, tmp_path):
    peft = pytest.importorskip("peft")

    def adapted() -> TrainableLM:
        wanted = {"target_modules": ["q_proj"] + ["lm_head"] * (head == "adapted")}
        wanted |= {"modules_to_save": ["lm_head"]} if head == "saved" else {}
        torch.manual_seed(3)
        lora = peft.get_peft_model(language_model("llama"), peft.LoraConfig(r=2, **wanted))
        return TrainableLM(dt.Objective(dt.hosts.CausalLM(lora), tempnet(), dt.KLRobustLoss(rho=2.0)))

    model = adapted()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    update = trained(model, tmp_path, save_strategy="steps", save_steps=1, max_steps=3)
    assert {name for name, x in update.items() if x.any()} == trains
    state = model.state_dict()
    assert trains <= state.keys()
    assert not any(name.endswith("embed_tokens.weight") for name in state)

    resumed = adapted()
    trainer(resumed, tmp_path, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in weights(model).items():
        assert torch.equal(value, resumed.get_parameter(name)), name


# --- Checkpoints ---------------------------------------------------------------------------------------------


class StopAfter(transformers.TrainerCallback):
    """Pulls the plug."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        ("gpt2", True),
        ("llama", False),
        pytest.param("gpt2", False, marks=pytest.mark.slow),
        pytest.param("llama", True, marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(kind, frozen, tmp_path):
    settings = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    whole = trainable(kind, frozen=frozen, dropout=0.5)
    trainer(whole, tmp_path / "whole", **settings).train()
    first = trainable(kind, frozen=frozen, dropout=0.5)
    trainer(first, tmp_path / "parts", **settings, callbacks=[StopAfter(4)]).train()
    assert not torch.equal(*(m.objective.predictors["token"].readout.last.weight for m in (whole, first)))
    second = trainable(kind, frozen=frozen, dropout=0.5)
    trainer(second, tmp_path / "parts", **settings).train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, second.get_parameter(name)), name


def test_a_checkpoint_holds_what_is_trained_once(tmp_path):
    from safetensors.torch import load_file

    settings = {"save_strategy": "steps", "save_steps": 2}
    trainer(trainable(frozen=True), tmp_path / "frozen", **settings).train()
    saved = load_file(tmp_path / "frozen" / "checkpoint-2" / "model.safetensors")
    assert {name.split(".")[1] for name in saved} == {"predictors"}
    joint = trainable()
    trainer(joint, tmp_path / "joint", **settings).train()
    saved = load_file(tmp_path / "joint" / "checkpoint-2" / "model.safetensors")
    assert set(saved) == {
        name for name, _ in joint.named_parameters()
    }  # the tied head under one of its names
    joint.load_state_dict(saved)  # strictly: the other name is not missed


def test_what_is_frozen_late_is_still_saved():
    model = trainable()
    model.objective.host.requires_grad_(False)
    assert any(name.startswith("objective.host.") for name in model.state_dict())
    thawed = trainable(frozen=True)
    thawed.objective.host.requires_grad_(True)
    assert any(name.startswith("objective.host.") for name in thawed.state_dict())


def test_what_is_missing_is_missed():
    model = trainable(frozen=True)
    state = model.state_dict()
    del state["objective.predictors.token.readout.last.bias"]
    with pytest.raises(RuntimeError, match=r"readout\.last\.bias"):
        model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == [
        "objective.predictors.token.readout.last.bias"
    ]


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    model = trainable()
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    run = trainer(
        model,
        tmp_path,
        **settings,
        learning_rate=20.0,  # the worse the longer
        max_steps=3,
        load_best_model_at_end=True,
        eval_dataset=sentences(6),
    )
    run.train()
    assert run.state.best_metric == pytest.approx(run.evaluate()["eval_loss"], rel=1e-6)


# --- Evaluation ----------------------------------------------------------------------------------------------


def test_evaluation_gives_the_loss_and_each_tokens_temperature(tmp_path):
    seen = {}

    def metrics(prediction):
        seen["values"], seen["tau"] = (torch.tensor(x) for x in prediction.predictions)
        seen["labels"] = torch.tensor(prediction.label_ids)
        return {"tau": float(seen["tau"][seen["tau"] != -100].mean())}

    data = sentences(7)
    model = trainable(dropout=0.5)
    run = trainer(model, tmp_path, eval_dataset=data, compute_metrics=metrics, per_device_eval_batch_size=2)
    found = run.evaluate()
    counted = seen["labels"] != -100
    counted[:, 0] = False
    assert seen["tau"].shape == seen["values"].shape == seen["labels"].shape
    assert torch.equal(seen["tau"] != -100, counted)
    assert torch.equal(seen["values"] != -100, counted)
    one_by_one = [model.eval()(x["input_ids"][None], labels=x["labels"][None]) for x in data]
    for k, single in enumerate(one_by_one):
        places = counted[k, : single["tau"].shape[1]]
        torch.testing.assert_close(seen["tau"][k][counted[k]], single["tau"][0][places])
        torch.testing.assert_close(seen["values"][k][counted[k]], single["values"][0][places])
    assert found["eval_tau"] == pytest.approx(float(seen["tau"][counted].mean()))
    everything = trainer(model, tmp_path, eval_dataset=data, per_device_eval_batch_size=7).evaluate()
    assert everything["eval_loss"] == pytest.approx(float(seen["values"][counted].mean()), rel=1e-5)


def test_a_batch_without_labels_is_worth_nothing():
    model = trainable()
    tokens = torch.randint(VOCABULARY, (2, 5))
    nothing = model(tokens, labels=torch.full_like(tokens, -100), num_items_in_batch=torch.tensor(0))["loss"]
    assert nothing.item() == 0.0
    nothing.backward()


# --- Memory --------------------------------------------------------------------------------------------------


class NumberedTokens(dt.hosts.CausalLM):
    """Knows each token of the data set by a number."""

    def rows(self, *args, index, **inputs):
        rows = super().rows(*args, **inputs)["token"]
        length = len(rows) // len(index)
        number = (index[:, None] * 16 + torch.arange(length)).flatten()
        return {"token": replace(rows, index=number)}


def remembering(loss: dt.KLRobustLoss) -> TrainableLM:
    predictor = dt.IndividualTemperature(12 * 16, tau_init=1.0, **BOUNDS)
    return TrainableLM(dt.Objective(NumberedTokens(language_model()), predictor, loss))


def test_memory_is_committed_by_the_compositional_optimizer(tmp_path):
    model = remembering(dt.KLRobustLoss(rho=2.0))
    base = torch.optim.AdamW(model.objective.param_groups(lr=1e-3))
    optimizer = dt.CompositionalOptimizer(base, model.objective)
    settings = {"remove_unused_columns": False, "save_strategy": "steps", "save_steps": 2}
    parts = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    run = trainer(model, tmp_path, optimizers=(optimizer, None), **settings, **parts)
    run.train()
    tau = model.objective.predictors["token"].tau.detach()
    expected = {k * 16 + t for k, s in enumerate(sentences()) for t in range(len(s["labels"]) - 1)
                if s["labels"][t + 1] != -100}  # fmt: skip
    assert set((tau != 1.0).nonzero()[:, 0].tolist()) == expected
    assert not model.objective.pending
    again = remembering(dt.KLRobustLoss(rho=2.0))
    run = trainer(again, tmp_path, **settings, max_steps=2)
    run._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert torch.equal(again.objective.predictors["token"].tau.detach(), tau)


def test_memory_that_nobody_commits_is_refused(tmp_path):
    loss = dt.KLRobustLoss(rho=2.0, estimator=dt.LogMovingAverage(12 * 16))
    with pytest.raises(RuntimeError, match=r"expected .* committed.*CompositionalOptimizer"):
        trainer(remembering(loss), tmp_path, remove_unused_columns=False).train()


def over_texts() -> tuple[TrainableLM, dt.risks.RecordedRisk]:
    risk = dt.risks.RecordedRisk(dt.OptimisticRisk(dt.CVaRRisk(0.5)), 12)
    host = dt.hosts.CausalLM(language_model())
    return TrainableLM(dt.Objective(host, tempnet(), dt.KLRobustLoss(rho=2.0), risk=risk)), risk


def test_a_risk_over_texts_is_that_of_the_objective_and_finds_suspects(tmp_path):
    """The Trainer keeps the column `index`, which the model's forward names."""
    model, risk = over_texts()
    before = weights(model)
    optimizer = dt.CompositionalOptimizer(
        torch.optim.SGD(model.objective.param_groups(lr=4.0)), model.objective
    )
    one = {"max_steps": 1, "per_device_train_batch_size": 12, "optimizers": (optimizer, None)}
    trainer(model, tmp_path, **one).train()
    ours = {name: p - before[name] for name, p in weights(model).items()}
    other, expected = over_texts()
    output = other.objective(**collate(sentences()))
    output.loss.backward()
    torch.optim.SGD(other.parameters(), lr=4.0).step()
    other.objective.commit()
    assert distance(ours, {name: p - before[name] for name, p in weights(other).items()}) < 1e-5
    labels = collate(sentences())["labels"][:, 1:] != -100
    sums = output.values["token"].reshape(labels.shape).sum(1)
    texts = (sums / labels.sum(1)).detach()
    listed = risk.suspects()
    assert [s.sample for s in listed] == [s.sample for s in expected.suspects()]
    torch.testing.assert_close(torch.tensor([s.loss for s in listed]), texts[[s.sample for s in listed]])
    assert listed[0].loss == pytest.approx(float(texts.max()), rel=1e-5)


def test_parts_of_a_window_count_by_their_labels_under_a_risk():
    model, _ = over_texts()
    batch, total = collate(sentences()), 0.0
    items = (batch["labels"][:, 1:] != -100).sum()
    for part in (slice(0, 4), slice(4, 12)):
        piece = {name: x[part] for name, x in batch.items()}
        share = (piece["labels"][:, 1:] != -100).sum() / items
        loss = model(**piece, num_items_in_batch=items)["loss"]
        torch.testing.assert_close(loss, share * model.objective(**piece).loss)
        total += share
    assert total == pytest.approx(1.0)


# --- A loss for trainers that keep the model -----------------------------------------------------------------


def with_tempnet(kind: str = "gpt2"):
    model = language_model(kind)
    model.tempnet = tempnet()
    # The Trainer knows classes named ...ForCausalLM; of GPT2LMHeadModel it would count first labels, too.
    model.loss_type = "ForCausalLM"
    return model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_loss_function_trains_as_the_objective_does(kind, tmp_path):
    model = with_tempnet(kind)
    func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))
    three = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    by_func = trained(model, tmp_path, compute_loss_func=func, **three)
    by_objective = {
        name.removeprefix("objective.host.model.").replace("objective.predictors.token.", "tempnet."): x
        for name, x in trained(trainable(kind), tmp_path).items()
    }
    assert distance(by_func, by_objective) < 1e-5


def test_without_a_count_the_loss_function_is_a_mean():
    model = with_tempnet()
    batch = collate(sentences(4))
    del batch["index"]
    func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))
    labels = batch.pop("labels")
    found = func(model(**batch), labels)
    objective = dt.Objective(dt.hosts.CausalLM(model), model.tempnet, dt.KLRobustLoss(rho=2.0))
    torch.testing.assert_close(found, objective(**batch, labels=labels).loss)


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
def test_trl_trains_with_the_loss_function(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"input_ids": s["input_ids"].tolist()} for s in sentences()])
    config = trl.SFTConfig(
        **{k: v for k, v in arguments(tmp_path).to_dict().items() if k in arguments_that_both_have(trl)}
        | {"bf16": False, "activation_checkpointing": False, "max_length": 32, "output_dir": str(tmp_path)}
    )
    model = with_tempnet()
    before = weights(model)
    func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))
    run = trl.SFTTrainer(
        model, config, train_dataset=data, processing_class=words(), compute_loss_func=func, eval_dataset=data
    )
    run.train()
    by_trl = {name: p - before[name] for name, p in weights(model).items()}
    assert run.evaluate()["eval_loss"] > 0

    whole = [s | {"labels": s["input_ids"]} for s in sentences()]
    other = trainable()
    before = weights(other)
    stock = trainer(other, tmp_path)
    stock.train_dataset = whole
    stock.train()
    by_objective = {
        name.removeprefix("objective.host.model.").replace("objective.predictors.token.", "tempnet."): p
        - before[name]
        for name, p in weights(other).items()
    }
    assert distance(by_trl, by_objective) < 1e-5


def arguments_that_both_have(trl) -> set[str]:
    return {"use_cpu", "report_to", "disable_tqdm", "save_strategy", "per_device_train_batch_size", "max_steps",
            "optim", "learning_rate", "lr_scheduler_type", "max_grad_norm", "dataloader_pin_memory"}  # fmt: skip


def words():
    """A tokenizer that nobody has to download."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({f"w{k}": k for k in range(VOCABULARY)}, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "w0", "eos_token": "w1", "bos_token": "w1", "unk_token": "w0"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special)


# --- Errors --------------------------------------------------------------------------------------------------


def test_other_objectives_are_refused():
    classifier = dt.Objective(
        dt.hosts.Classifier(torch.nn.Linear(6, 5)), dt.ConstantTemperature(1.0), dt.KLRobustLoss(0.5)
    )
    for wrong in (classifier, language_model()):
        with pytest.raises(TypeError, match=r"expected objective.*received.*CausalLM"):
            TrainableLM(wrong)


def test_labels_that_would_be_counted_wrongly_are_refused(tmp_path):
    model, tokens = trainable(), torch.randint(VOCABULARY, (2, 5))
    with pytest.raises(ValueError, match=r"expected labels.*received none.*DataCollator"):
        model(tokens)
    with pytest.raises(ValueError, match=r"expected labels.*received shift_labels"):
        model(tokens, labels=tokens, shift_labels=tokens)
    mask = torch.ones_like(tokens)
    mask[0, 3:] = 0
    with pytest.raises(ValueError, match=r"expected labels of -100 at padding, received 2 others"):
        model(tokens, mask, labels=tokens)
    with pytest.raises(ValueError, match=r"received none.*label_smoothing_factor"):
        trainer(model, tmp_path, label_smoothing_factor=0.1).train()


def test_a_predictor_of_hidden_states_has_nothing_to_read():
    loss = dt.KLRobustLoss(rho=2.0)
    with pytest.raises(ValueError, match=r"received TempNet.*reads \['features'\].*TrainableLM"):
        robust_loss_func(dt.TempNet(16, **BOUNDS), loss)
    with pytest.raises(ValueError, match=r"reads \['index'\]"):
        robust_loss_func(dt.IndividualTemperature(9, **BOUNDS), loss)
    moving = dt.KLRobustLoss(rho=2.0, estimator=dt.LogMovingAverage(9))
    with pytest.raises(ValueError, match=r"remembers samples \(LogMovingAverage\)"):
        robust_loss_func(dt.ConstantTemperature(1.0), moving)
    with pytest.raises(TypeError, match=r"The order is \(predictor, loss\)"):
        robust_loss_func(loss, tempnet())
    with pytest.raises(ValueError, match=r"expected labels.*received none"):
        robust_loss_func(tempnet(), loss)(None, None)


@BY_PEFT
def test_a_predictor_that_nobody_trains_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    apart = robust_loss_func(tempnet(), dt.KLRobustLoss(rho=2.0))
    with pytest.raises(RuntimeError, match=r"kept its gradients.*model\.tempnet = tempnet"):
        trainer(language_model(), tmp_path, compute_loss_func=apart).train()
    model = with_tempnet("llama")
    func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(RuntimeError, match=r"was frozen.*after adapters"):
        trainer(lora, tmp_path, compute_loss_func=func).train()
