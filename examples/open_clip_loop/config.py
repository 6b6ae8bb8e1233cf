"""The options of the example."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dro_temp import distributed


@dataclass(frozen=True)
class Options:
    """Train a tiny CLIP and its TempNets in open_clip's loop."""

    csv: Path | None = None
    """Image-caption pairs: a file with the columns filepath and title."""
    shards: str | None = None
    """Image-caption pairs: webdataset shards, with braces for many."""
    size: int = 1280
    """Pairs of glyphs, or pairs in one epoch of the shards."""
    epochs: int = 5
    """Passes over the pairs: 50 steps of one process, with the other defaults. A checkpoint follows each."""
    batch_size: int = 128
    """Pairs per step and process."""
    accum_freq: int = 1
    """Batches per step."""
    lr: float = 2e-3
    """Learning rate of the model at its highest."""
    tau_lr: float = 1e-3
    """Learning rate of the TempNets."""
    rho: float = 2.0
    """Radius of the robust loss in nats."""
    eval_pairs: int = 500
    """So many of the pairs are searched, before and after."""
    out: Path = Path("runs/clip-open-clip")
    """Folder for the checkpoint."""
    quick: bool = False
    """Only show that everything runs: two epochs of four steps."""

    def of_a_run(self) -> dict[str, Any]:
        """The options that determine the result, which must be the same when a run is resumed."""
        mine = {name: str(value) for name, value in asdict(self).items() if name not in ("out", "quick")}
        return mine | {"processes": distributed.world_size()}

    def arguments(self) -> SimpleNamespace:
        """The arguments that open_clip's parser would pass to its loop."""
        world = distributed.world_size()
        return SimpleNamespace(
            device="cpu", precision="fp32", accum_freq=self.accum_freq, batch_size=self.batch_size, distill=False,
            skip_scheduler=False, grad_clip_norm=1.0, horovod=False, distributed=world > 1, rank=distributed.rank(),
            world_size=world, log_every_n_steps=5, wandb=False, save_logs=False, val_frequency=1, epochs=self.epochs,
        )  # fmt: skip
