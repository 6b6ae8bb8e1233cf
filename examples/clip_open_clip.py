"""open_clip's own training loop, unchanged, with a temperature for every image and every text.

python examples/clip_open_clip.py                               glyphs; resumes after Ctrl-C
torchrun --nproc-per-node 2 examples/clip_open_clip.py
python examples/clip_open_clip.py --csv pairs.csv               columns filepath and title
python examples/clip_open_clip.py --shards 'pairs-{000..009}.tar' --size 10000
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
import tyro
from open_clip_loop.checkpoint import Checkpoint
from open_clip_loop.config import Options
from open_clip_loop.data import load
from open_clip_loop.model import WIDTH, groups, tiny_clip
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import evaluate, train_one_epoch
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt
from dro_temp.integrations.open_clip import ModelGroups, OpenClipLoss, read_numbers


def run(o: Options) -> dict[str, dict[str, float]]:
    """Train, with retrieval before and after; return its metrics, on the first process."""
    data, numbers = load(o)
    args = o.arguments()
    bare = read_numbers(tiny_clip())
    model = DistributedDataParallel(bare) if args.distributed else bare

    tempnets = {view: dt.TempNet(WIDTH, tau_min=0.01, tau_max=0.2) for view in ("image", "text")}
    robust = {view: dt.KLRobustLoss(o.rho, estimator=dt.LogMovingAverage(numbers)) for view in tempnets}
    loss = OpenClipLoss(tempnets, robust, accum_freq=o.accum_freq)

    base = torch.optim.AdamW(groups(model), lr=o.lr)
    optimizer = loss.optimizer(base, tau_lr=o.tau_lr)
    steps = o.epochs * (data["train"].dataloader.num_batches // o.accum_freq)
    scheduler = cosine_lr(
        ModelGroups(optimizer), o.lr, steps // 10, steps
    )  # the TempNets' learning rate stays constant

    checkpoint = Checkpoint(o, state_dict=bare, loss=loss, optimizer=optimizer)
    done, results = checkpoint.restore()
    results = results or {"before": floats(evaluate(model, data, 0, args))}
    for epoch in range(done, o.epochs):
        torch.manual_seed(1_000 * epoch + args.rank)  # a resumed epoch has the same dropout
        train_one_epoch(model, data, loss, epoch, optimizer, None, scheduler, None, args)
        results["after"] = floats(evaluate(model, data, epoch + 1, args))
        results["tau"] = floats(loss.metrics)
        checkpoint.save(epoch + 1, results)
    return results


def floats(metrics: dict) -> dict[str, float]:
    """Metrics as plain numbers, for a checkpoint."""
    return {name: float(value) for name, value in metrics.items()}


def main(args: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    options = tyro.cli(Options, args=args, prog="clip_open_clip.py", description=__doc__)
    if options.quick:
        options = replace(options, size=128, epochs=2, batch_size=32, eval_pairs=64)
    if "WORLD_SIZE" in os.environ:  # torchrun
        torch.distributed.init_process_group("gloo")
    first = dt.distributed.rank() == 0
    logging.basicConfig(format="%(message)s", level=logging.INFO if first else logging.WARNING, force=True)
    try:
        results = run(options)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the last finished epoch")
        return 130
    except ValueError as error:
        print(f"clip_open_clip.py: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if first:
        for k in (1, 5, 10):
            both = [[results[when][f"{way}_R@{k}"] for way in WAYS] for when in ("before", "after")]
            before, after = (50 * sum(ways) for ways in both)
            print(f"R@{k}, mean of both directions: {before:.1f} % before, {after:.1f} % after")
        print("temperatures: " + ", ".join(f"{k} {v:.4f}" for k, v in results["tau"].items() if "/tau_" in k))
    return 0


WAYS = ("image_to_text", "text_to_image")

if __name__ == "__main__":
    sys.exit(main())
