"""Train a small language model and its TempNet together, from scratch, on Python's own source code.

  python examples/causal_lm_joint.py              a few minutes on two cores; resumes after Ctrl-C
  python examples/causal_lm_joint.py --quick

Three models start from the same weights and see the same batches: one trained with cross-entropy, one with the
robust loss and a TempNet, and, as a control, one with the robust loss at the mean of the TempNet's temperatures.
Each is evaluated at tau = 1, at its own temperatures and at its best constant.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from offline_lm.model import LENGTH, small_gpt2
from offline_lm.training import train
from rich.console import Console
from rich.table import Table

import dro_temp as dt
from dro_temp.datasets import PythonText, token_blocks
from dro_temp.evaluation import evaluate_language


@dataclass(frozen=True)
class Options:
    """What to train, and how long."""

    steps: int = 400
    """Steps of 16 blocks of 128 tokens, for each model."""
    vocabulary: int = 1024
    """Tokens of the byte-level tokenizer, 1,024 to 8,192."""
    size: int = 6_000_000
    """Characters of text; a tenth each is held out for validation and for the test."""
    rho: float = 3.2
    """Radius of the robust loss in nats, below log(vocabulary)."""
    lr: float = 2e-3
    """Learning rate of the model."""
    tau_lr: float = 1e-3
    """Learning rate of the TempNet."""
    eval_blocks: int = 200
    """Blocks that models are compared on, and as many that the best constants are chosen on."""
    seed: int = 0
    """Of the weights."""
    out: Path = Path("runs/causal-lm-joint")
    """Folder for checkpoints."""
    quick: bool = False
    """Only show that everything runs: 10 steps on a fifteenth of the text."""


def run(o: Options) -> Table:
    """Train all three and compare them."""
    o.out.mkdir(parents=True, exist_ok=True)
    texts = {split: PythonText(split, size=o.size) for split in ("train", "validation", "test")}
    tokenizer = texts["train"].tokenizer(o.vocabulary)
    blocks = {split: token_blocks(text.tokens(tokenizer), LENGTH) for split, text in texts.items()}
    some = {split: blocks[split][: o.eval_blocks].split(8) for split in ("validation", "test")}
    table = Table("trained with", "perplexity at tau = 1", "own tau", "best constant", "mean own tau")

    def compare(name: str, predictor: dt.TemperaturePredictor | None, loss: dt.RobustLoss) -> float:
        """Train a new model with this predictor (None: a TempNet) and loss; return its mean temperature."""
        torch.manual_seed(o.seed)
        model = small_gpt2(o.vocabulary, tokenizer.eos_token_id)
        if predictor is None:
            predictor = dt.TempNet.for_lm(model, tau_min=0.5, tau_max=5.0, tau_init=1.0, rho=o.rho)
        objective = dt.Objective(dt.hosts.CausalLM(model), predictor, loss)
        file = o.out / f"{name}-{o.vocabulary}-{o.size}-{o.steps}-{o.rho}-{o.lr}-{o.tau_lr}-{o.seed}.pt"
        groups = objective.param_groups(lr=o.lr, tau_lr=o.tau_lr)
        train(file, objective, groups, lambda x: objective(input_ids=x).loss, blocks["train"], o.steps)
        own = {"own": predictor}
        host = objective.host
        report = evaluate_language(
            host, own, some["test"], validation=some["validation"], rho=o.rho, tau_min=0.5, tau_max=5.0
        )
        schemes = [report[scheme] for scheme in ("tau = 1", "own", "best constant (likelihood)")]
        table.add_row(
            name, *(f"{scheme.perplexity:.2f}" for scheme in schemes), f"{report['own'].tau_mean:.3f}"
        )
        return report["own"].tau_mean

    compare("cross-entropy", dt.ConstantTemperature(1.0), dt.LikelihoodLoss())
    mean = compare("tempnet", None, dt.KLRobustLoss(o.rho))
    compare("constant", dt.ConstantTemperature(mean), dt.KLRobustLoss(o.rho))
    return table


def main(args: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    options = tyro.cli(Options, args=args, prog="causal_lm_joint.py", description=__doc__)
    if options.quick:
        options = replace(options, steps=10, size=400_000, eval_blocks=8)
    try:
        Console().print(run(options))
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the last checkpoint (every 50 steps)")
        return 130
    except ValueError as error:
        print(f"causal_lm_joint.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
