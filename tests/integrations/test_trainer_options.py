"""What else a Trainer is asked for: noisy embeddings, TRL, adapters that resume, temperatures in the log."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers
from test_trainer import (
    BY_PEFT,
    StopAfter,
    alone,  # noqa: F401  # a fixture
    arguments,
    arguments_that_both_have,
    collate,
    distance,
    language_model,
    sentences,
    tempnet,
    trainable,
    trained,
    trainer,
    weights,
    words,
)

import dro_temp as dt
from dro_temp.integrations.transformers import log_temperatures, robust_loss_func

# --- Noise on the embeddings ---------------------------------------------------------------------------------


def test_noise_on_embeddings_is_that_of_the_model_itself(tmp_path):
    plain = trained(trainable(), tmp_path)
    torch.manual_seed(5)
    noisy = trained(trainable(), tmp_path, neftune_noise_alpha=5.0)
    assert distance(plain, noisy) > 1e-3
    model = trainable()
    embeddings = model.get_input_embeddings()
    assert embeddings is model.objective.host.model.get_input_embeddings()
    trainer(model, tmp_path, neftune_noise_alpha=5.0).train()
    assert not embeddings._forward_hooks  # and they are quiet again


# --- TRL around an objective ---------------------------------------------------------------------------------


def sft(model, folder, **changes):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"input_ids": s["input_ids"].tolist()} for s in sentences()])
    own = {name: changes.pop(name) for name in {"callbacks", "compute_loss_func"} & changes.keys()}
    common = {k: v for k, v in arguments(folder).to_dict().items() if k in arguments_that_both_have(trl)}
    fixed = {"bf16": False, "activation_checkpointing": False, "max_length": 32, "output_dir": str(folder)}
    config = trl.SFTConfig(**(common | fixed | changes))
    return trl.SFTTrainer(
        model, config, train_dataset=data, processing_class=words(), eval_dataset=data, **own
    )


def test_trl_does_not_take_an_objective_for_a_language_model(tmp_path):
    # It would compute the likelihood from the model's backbone and head, and never call the objective.
    with pytest.raises(
        TypeError, match=r"received one of TRL.*transformers\.Trainer\(TrainableLM.*robust_loss_func"
    ):
        sft(trainable(), tmp_path)


# --- Adapters that resume ------------------------------------------------------------------------------------


def adapted():
    peft = pytest.importorskip("peft")
    model = language_model("llama")
    model.tempnet = tempnet()
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["tempnet"])
    return peft.get_peft_model(model, config)


@BY_PEFT
@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
@pytest.mark.parametrize("by", ["trl", "transformers"])
def test_an_adapter_and_its_temperatures_resume(by, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    settings["learning_rate"] = 1e-2

    def run(folder, **options):
        model = adapted()
        func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))
        make = sft if by == "trl" else trainer
        return model, make(model, folder, compute_loss_func=func, **settings, **options)

    whole, trained_whole = run(tmp_path / "whole")
    started = weights(whole)
    trained_whole.train()
    moved = {name for name, p in weights(whole).items() if not torch.equal(p, started[name])}
    assert {name.split(".")[-1] for name in moved} > {"log_sharpness"}
    assert any("lora" in name for name in moved)

    _, first = run(tmp_path / "parts", callbacks=[StopAfter(2)])
    first.train()
    second, resumed = run(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, second.get_parameter(name)), name


@BY_PEFT
def test_the_predictor_under_an_adapter_is_the_copy_that_is_trained():
    model = adapted()
    func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))
    assert func.predictor is model.tempnet.modules_to_save["default"]
    assert all(p.requires_grad for p in func.predictor.parameters())
    model.tempnet.modules_to_save["other"] = tempnet()
    model.tempnet._active_adapter = ["default", "other"]
    with pytest.raises(ValueError, match=r"one active adapter.*default, other.*set_adapter"):
        robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))


@BY_PEFT
def test_a_predictor_that_peft_would_not_save_is_noticed(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(language_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    lora.tempnet = tempnet()
    func = robust_loss_func(lora.tempnet, dt.KLRobustLoss(rho=2.0))
    run = trainer(lora, tmp_path, compute_loss_func=func, save_strategy="steps", save_steps=2)
    with pytest.warns(
        UserWarning, match=r"received one at 'tempnet', which its checkpoints leave out.*modules_to_save"
    ):
        run.train()


# --- Temperatures in the log ---------------------------------------------------------------------------------


def reads(history, key):
    return [entry[key] for entry in history if key in entry]


def of_all_rows(model, batches):
    """Mean and standard deviation over the rows of some batches."""
    model.eval()
    with torch.no_grad():
        tau = torch.cat(
            [model(**{k: v for k, v in b.items() if k != "index"})["tau"].flatten() for b in batches]
        )
    tau = tau[tau != -100]
    return float(tau.mean()), float(tau.std(correction=0))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_temperatures_are_in_the_log(accumulation, tmp_path):
    model = trainable()
    settings = {
        "logging_steps": 1,
        "max_steps": 3,
        "learning_rate": 0.0,  # so that every step shows the same temperatures
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 12 // accumulation,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    run = log_temperatures(trainer(model, tmp_path, eval_dataset=sentences(6), **settings))
    run.train()
    mean, std = of_all_rows(model, [collate(sentences())])
    assert std > 1e-4
    history = run.state.log_history
    assert reads(history, "tau_mean") == pytest.approx([mean] * 3, rel=1e-5)
    assert reads(history, "tau_std") == pytest.approx([std] * 3, rel=1e-3)
    assert len(reads(history, "loss")) == 3
    mean, std = of_all_rows(model, [collate(sentences(6))])
    assert reads(history, "eval_tau_mean") == pytest.approx([mean] * 2, rel=1e-5)  # after steps 2 and 3
    assert reads(history, "eval_tau_std") == pytest.approx([std] * 2, rel=1e-3)
    assert run.evaluate()["eval_tau_mean"] == pytest.approx(mean, rel=1e-5)
    assert run.evaluate(metric_key_prefix="held_out")["held_out_tau_mean"] == pytest.approx(mean, rel=1e-5)


def test_an_entry_is_of_all_steps_since_the_last(tmp_path):
    model = trainable()
    run = log_temperatures(trainer(model, tmp_path, logging_steps=2, max_steps=4, learning_rate=0.0))
    run.train()
    mean, _ = of_all_rows(model, [collate(sentences())])  # two steps of six see each text once
    assert reads(run.state.log_history, "tau_mean") == pytest.approx([mean] * 2, rel=1e-5)


class Board(transformers.TrainerCallback):
    """Stands where TensorBoard's and W&B's callbacks do, and sees what they do."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_those_who_write_the_log_see_the_temperatures(tmp_path):
    board = Board()
    run = log_temperatures(trainer(trainable(), tmp_path, logging_steps=1, callbacks=[board]))
    run.train()
    assert [set(x) >= {"loss", "tau_mean", "tau_std"} for x in board.seen] == [True, True, False]


def test_tensorboard_writes_the_temperatures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = log_temperatures(trainer(trainable(), tmp_path, logging_steps=1, report_to=["tensorboard"]))
    run.train()
    (file,) = tmp_path.rglob("events.out.*")
    events = EventAccumulator(str(file)).Reload()
    assert len(events.Scalars("train/tau_mean")) == 2


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
@pytest.mark.parametrize("by", ["trl", "transformers"])
def test_temperatures_of_a_loss_function(by, tmp_path):
    model = language_model("llama")
    model.tempnet = tempnet()
    func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=2.0))
    settings = {"logging_steps": 1, "per_device_train_batch_size": 12, "learning_rate": 0.0, "max_steps": 1}
    run = log_temperatures(
        (sft if by == "trl" else trainer)(model, tmp_path, compute_loss_func=func, **settings)
    )
    run.train()
    texts = sentences() if by == "transformers" else [s | {"labels": s["input_ids"]} for s in sentences()]
    other = trainable("llama")
    mean, std = of_all_rows(other, [collate(texts)])
    assert reads(run.state.log_history, "tau_mean") == pytest.approx([mean], rel=1e-5)
    assert reads(run.state.log_history, "tau_std") == pytest.approx([std], rel=1e-3)


def test_each_view_of_a_ranking_loss(tmp_path):
    pytest.importorskip("sentence_transformers")
    import tiny_sentence_encoder  # noqa: F401
    from test_sentence_transformers import remembering
    from test_sentence_transformers import trainer as ranking

    loss = remembering()
    run = log_temperatures(ranking(loss, tmp_path, logging_steps=1, learning_rate=0.0))
    run.train()
    history = run.state.log_history
    for view in loss.views:
        means = reads(history, f"{view}/tau_mean")
        assert len(means) == len(reads(history, "loss"))
        assert means[-1] == pytest.approx(float(loss.metrics[f"{view}/tau_mean"]), rel=1e-5)


def test_means_over_many_batches_lose_nothing_to_rounding():
    from dro_temp.integrations._temperature_log import TemperatureMoments

    sums = TemperatureMoments(("a", "b"))
    tau = 1 + 1e-4 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    for batch in tau:
        sums.add("a", torch.cat([batch, torch.tensor([99.0])]), torch.arange(41) < 40, training=True)
        sums.add("a", torch.full((3,), 7.0), training=False)
    read = sums.read(training=True, device=torch.device("cpu"))
    assert read["a/tau_mean"] == pytest.approx(float(tau.double().mean()), rel=1e-7)
    assert read["a/tau_std"] == pytest.approx(float(tau.double().std(correction=0)), rel=1e-3)
    assert "b/tau_mean" not in read
    assert sums.read(training=True, device=torch.device("cpu")) == {}


def test_a_trainer_of_something_else_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"received Trainer of a GPT2LMHeadModel.*TrainableLM"):
        log_temperatures(trainer(language_model(), tmp_path))


def test_what_is_no_trainer_at_all_is_refused():
    with pytest.raises(TypeError, match=r"received Linear without a model\. Write"):
        log_temperatures(torch.nn.Linear(2, 2))


def _in_a_process(rank, world):
    from dro_temp.integrations._temperature_log import TemperatureMoments

    sums = TemperatureMoments(("a", "b"))
    sums.add("a", torch.tensor([[1.0, 2.0, 6.0], [4.0]][rank]), training=True)
    if rank == 1:  # the other has seen none
        sums.add("b", torch.tensor([3.0, 5.0]), training=True)
    return sums.read(training=True, device=torch.device("cpu"))


def test_an_entry_is_of_all_processes():
    from processes import in_processes

    tau = torch.tensor([1.0, 2.0, 6.0, 4.0])
    expected = {"a/tau_mean": float(tau.mean()), "a/tau_std": float(tau.std(correction=0))}
    expected |= {"b/tau_mean": 4.0, "b/tau_std": 1.0}
    assert in_processes(2, _in_a_process) == [pytest.approx(expected)] * 2
