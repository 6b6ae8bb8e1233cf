"""Train a small language model and its TempNet together, from scratch, on text that is on every machine.

  python examples/causal_lm_joint.py --help
  python examples/causal_lm_joint.py --steps 400

The robust loss and cross-entropy start from the same weights and see the same batches. Two controls keep the
comparison honest: the model trained with the robust loss is also read at tau = 1 and at its best constant.
"""

from dataclasses import dataclass

import torch
import tyro
from rich.progress import track
from transformers import GPT2Config, GPT2LMHeadModel

import dro_temp as dt


@dataclass
class Options:
    """What to train, and how long."""

    steps: int = 400  #: optimizer steps
    batch: int = 16  #: blocks in a step
    block: int = 128  #: tokens in a block
    vocabulary: int = 2048  #: of the byte-level tokenizer
    size: int = 6_000_000  #: characters of text
    rho: float = 3.2  #: radius of the robust loss
    lr: float = 2e-3  #: learning rate of the model
    tau_lr: float = 1e-3  #: learning rate of the TempNet
    seed: int = 0  #: of weights and batches


def trained(options: Options, rows: torch.Tensor, robust: bool) -> tuple[GPT2LMHeadModel, dt.TempNet | None]:
    """A model after training, with its TempNet if the loss was robust."""
    torch.manual_seed(options.seed)
    sizes = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": options.block}
    config = GPT2Config(vocab_size=options.vocabulary, bos_token_id=0, eos_token_id=0, **sizes)
    model = GPT2LMHeadModel(config)
    host, tempnet = dt.hosts.CausalLM(model), None
    predictor: dt.TemperaturePredictor = dt.ConstantTemperature(1.0)
    loss: dt.RobustLoss = dt.LikelihoodLoss()
    if robust:
        predictor = tempnet = dt.TempNet.for_lm(model, inputs="logits", tau_min=0.5, tau_max=5.0)
        loss = dt.KLRobustLoss(options.rho)
    objective = dt.Objective(host, predictor, loss)
    optimizer = torch.optim.AdamW(objective.param_groups(lr=options.lr, tau_lr=options.tau_lr))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=options.steps
    )
    batches = torch.Generator().manual_seed(options.seed)
    name = "robust loss, TempNet" if robust else "cross-entropy"
    for _ in track(range(options.steps), description=name):
        batch = rows[torch.randint(len(rows), (options.batch,), generator=batches)]
        optimizer.zero_grad()
        objective(input_ids=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), tempnet


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, rows: torch.Tensor, predictor: dt.TemperaturePredictor) -> float:
    """Exponential of the mean negative log-likelihood at the predictor's temperatures."""
    host = dt.hosts.CausalLM(model, frozen=True)
    objective = dt.Objective(host, predictor, dt.LikelihoodLoss()).eval()
    return float(torch.stack([objective(input_ids=part).loss for part in rows.split(16)]).mean().exp())


def main(options: Options) -> None:
    """Train both, print the comparison."""
    data = {split: dt.datasets.PythonText(split, size=options.size) for split in ("train", "validation")}
    tokenizer = data["train"].tokenizer(options.vocabulary)
    rows = {
        split: dt.datasets.token_blocks(text.tokens(tokenizer), options.block) for split, text in data.items()
    }
    plain, _ = trained(options, rows["train"], robust=False)
    robust, tempnet = trained(options, rows["train"], robust=True)
    assert tempnet is not None
    held_out = rows["validation"][:64]
    constants = torch.logspace(-0.2, 0.2, 9).tolist()
    best = {
        name: min(perplexity(model, held_out, dt.ConstantTemperature(tau)) for tau in constants)
        for name, model in (("cross-entropy", plain), ("robust", robust))
    }
    print(f"cross-entropy at tau = 1      {perplexity(plain, held_out, dt.ConstantTemperature(1.0)):8.2f}")
    print(f"cross-entropy, best constant  {best['cross-entropy']:8.2f}")
    print(f"robust loss at tau = 1        {perplexity(robust, held_out, dt.ConstantTemperature(1.0)):8.2f}")
    print(f"robust loss, best constant    {best['robust']:8.2f}")
    print(f"robust loss, its own tau      {perplexity(robust, held_out, tempnet.eval()):8.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
