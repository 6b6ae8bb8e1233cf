"""Train one model on several processes: every row sees the columns of all, with the same result as one process.

python examples/distributed.py                                    one process
torchrun --nproc-per-node 2 examples/distributed.py               the same losses
torchrun --nproc-per-node 2 examples/distributed.py --backend eager  gathers gradients in place of numbers per row

The same command resumes after Ctrl-C, also with another number of processes.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import tyro
from glyphs.model import WIDTH, TextEncoder, image_encoder
from rich.progress import track
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import dro_temp as dt
from dro_temp.datasets import GlyphCaptions, WordTokenizer


@dataclass(frozen=True)
class Options:
    """Train two small towers with a TempNet each on glyph-caption pairs."""

    size: int = 4_000
    """Pairs to train on."""
    epochs: int = 3
    """Passes over them."""
    batch: int = 128
    """Pairs in a step, of all processes together."""
    lr: float = 2e-3
    """Learning rate of the towers; the TempNets' is half of it."""
    rho: float = 2.0
    """Radius of the robust loss in nats."""
    backend: Literal["auto", "reference"] = "auto"
    """"auto" sends features and three numbers per row, "reference" features and their gradients."""
    out: Path = Path("runs/distributed")
    """Folder for the checkpoint."""
    quick: bool = False
    """Only show that everything runs: 256 pairs, one epoch."""


def objective_for(o: Options, words: int) -> dt.Objective:
    """Build the objective; DistributedDataParallel starts all processes from the first one's weights."""
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(image_encoder(), TextEncoder(words))
    encoder = {"prototypes": 64, "dropout": 0.0}  # dropout would differ between processes
    predictor = {view: dt.TempNet(WIDTH, tau_min=0.01, tau_max=0.2, **encoder) for view in host.views}
    loss = {
        view: dt.KLRobustLoss(o.rho, estimator=dt.LogMovingAverage(o.size), backend=o.backend)
        for view in host.views
    }
    return dt.Objective(host, predictor, loss)


def run(o: Options) -> list[float]:
    """Train; return the mean loss of each epoch."""
    data = GlyphCaptions("train", size=o.size)
    tokenizer = WordTokenizer.fit(data.captions)
    world, first = dt.distributed.world_size(), dt.distributed.rank() == 0

    def together(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images, captions, index = zip(*samples, strict=True)
        return torch.stack(images), tokenizer(captions), torch.tensor(index)

    # Rank r takes every world-th sample, so that all ranks' batches are the batch that one process would see.
    sampler = DistributedSampler(data, num_replicas=world, rank=dt.distributed.rank(), seed=0)
    loader = DataLoader(data, o.batch // world, sampler=sampler, collate_fn=together)

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    objective = objective_for(o, len(tokenizer.vocabulary)).to(device)
    base = torch.optim.AdamW(objective.param_groups(lr=o.lr, tau_lr=o.lr / 2))
    optimizer = dt.CompositionalOptimizer(base, objective, gamma=0.8)
    file, losses = o.out / f"{o.size}-{o.batch}-{o.rho}-{o.lr}.pt", []
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"]
    model = DistributedDataParallel(objective) if world > 1 else objective

    for epoch in range(len(losses), o.epochs):
        sampler.set_epoch(epoch)
        total, sent = torch.zeros((), device=device), 0
        for images, texts, index in track(loader, f"epoch {epoch + 1}", disable=not first):
            with dt.distributed.counting_traffic() as traffic:
                output = model(images.to(device), texts.to(device), index=index.to(device))
                output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total, sent = total + output.loss.detach(), traffic.sent
        losses.append(float(dt.distributed.sum_over_processes(total)) / world / len(loader))
        if first:
            o.out.mkdir(parents=True, exist_ok=True)
            state = {
                "objective": objective.state_dict(),
                "optimizer": optimizer.state_dict(),
                "losses": losses,
            }
            torch.save(state, file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)  # the checkpoint is replaced atomically
            print(f"epoch {epoch + 1}: loss {losses[-1]:.6f}, {sent} bytes sent in the last step by the loss")
    return losses


def main(args: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    options = tyro.cli(Options, args=args, prog="distributed.py", description=__doc__)
    if options.quick:
        options = replace(options, size=256, epochs=1, batch=64)
    if "WORLD_SIZE" in os.environ:  # torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        run(options)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the last finished epoch")
        return 130
    except ValueError as error:
        print(f"distributed.py: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
