"""Training and evaluation of one method."""

import functools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from offline_lm.model import LENGTH, small_gpt2
from torch import Tensor, nn

import dro_temp as dt
from benchmarks.studies.language_models.methods import Method
from dro_temp.datasets import PythonText, token_blocks
from dro_temp.evaluation import evaluate_language

VOCABULARY, STEPS, BATCH, WARM_UP = 1024, 400, 16, 20
BLOCKS = {"validation": 64, "test": 192}  # of 128 tokens
RHO, HOST_LR, TAU_INIT = 3.0, 2e-3, 0.5
BOUNDS = {"tau_min": 0.2, "tau_max": 4.0}


@functools.cache
def data() -> tuple[dict[str, Tensor], int]:
    """Blocks of each split, and the end token."""
    texts = {split: PythonText(split) for split in ("train", "validation", "test")}
    tokenizer = texts["train"].tokenizer(VOCABULARY)
    blocks = {split: token_blocks(text.tokens(tokenizer), LENGTH) for split, text in texts.items()}
    return blocks, tokenizer.eos_token_id


def fit(
    objective: dt.Objective,
    groups: list[dict[str, Any]],
    seed: int,
    path: list[float] | None = None,
    hold: float = 0.0,
) -> list[float]:
    """Train on the same batches for every method with this seed; returns the mean temperature of each step.

    Args:
        objective: what is trained.
        groups: its parameter groups.
        seed: of the batches.
        path: temperature of each step, in place of a constant predictor's own.
        hold: share of the steps in which temperatures stay at their start.
    """
    train = data()[0]["train"]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    objective.train()
    taus: list[float] = []
    for step in range(STEPS):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            on_hold = group["name"] == "temperature" and step < hold * STEPS
            group["lr"] = 0.0 if on_hold else peak * min((step + 1) / WARM_UP, 1 - step / STEPS)
        if path is not None:
            for predictor in objective.predictors.values():
                predictor.tau_min = predictor.tau_max = path[step]  # type: ignore[assignment]
        optimizer.zero_grad()
        output = objective(input_ids=train[torch.randint(len(train), (BATCH,), generator=generator)])
        output.loss.backward()
        taus.append(float(output.metrics["token/tau_mean"]))
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
    objective.eval()
    return taus


def model_of(seed: int, out: Path | None = None) -> Any:
    """A new model, or, given a folder, one trained with cross-entropy and stored there."""
    torch.manual_seed(seed)
    model = small_gpt2(VOCABULARY, data()[1])
    if out is None:
        return model
    file = out / "hosts" / f"{seed}.pt"
    if not file.exists():
        objective = dt.Objective(dt.hosts.CausalLM(model), dt.ConstantTemperature(1.0), dt.LikelihoodLoss())
        fit(objective, objective.param_groups(lr=HOST_LR), seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def trained(
    method: Method,
    seed: int,
    options: dict[str, float],
    out: Path,
    *,
    tuning: bool,
    path: list[float] | None = None,
) -> dict[str, Any]:
    """Reports on validation and, unless it is a trial, on test text; and the number that trials are selected by."""
    start = time.process_time()
    frozen = method.setting == "frozen"
    rho = options.get("rho", RHO)
    model = model_of(seed, out if method.setting != "joint" else None)
    model.requires_grad_(not frozen)
    host = dt.hosts.CausalLM(model, frozen=frozen)
    torch.manual_seed(seed)
    predictor: dt.TemperaturePredictor = dt.ConstantTemperature(options.get("tau", 1.0))
    if method.inputs:
        predictor = dt.TempNet.for_lm(
            model,
            inputs=method.inputs,
            width=method.width,
            tau_init=TAU_INIT,
            readout=method.readout,
            **BOUNDS,
        )
    objective = dt.Objective(host, predictor, dt.KLRobustLoss(rho) if method.robust else dt.LikelihoodLoss())
    # With a frozen model the tuned learning rate is the network's, otherwise the model's.
    tau_lr = options["lr"] if frozen else 1e-3
    taus = fit(objective, objective.param_groups(lr=options["lr"], tau_lr=tau_lr), seed, path, method.hold)
    parts = {split: data()[0][split][:n].split(8) for split, n in BLOCKS.items()}
    reports = {
        split: evaluate_language(
            host, {"own": predictor}, parts[split], validation=parts["validation"], rho=rho, **BOUNDS
        )
        for split in (("validation",) if tuning else parts)
    }
    own = reports["validation"]["own"]
    # Robust losses of different radii are not comparable, so methods that train the model are selected by perplexity.
    chosen_by = own.robust_loss if frozen and method.robust else own.perplexity
    schemes = {split: [asdict(scheme) for scheme in report.schemes] for split, report in reports.items()}
    return {
        "chosen_by": chosen_by,
        "schemes": schemes,
        "seconds": time.process_time() - start,
        "taus": [round(x, 5) for x in taus],
    }
