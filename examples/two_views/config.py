"""The options of the example."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Scheme = Literal["simclr", "sogclr", "isogclr", "tempnet"]
FONTS = 9  # number of training fonts that must have a name: 2,000 names qualify
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

HELP = """\
Train a timm backbone on glyphs without their names: two distorted views of one image should look alike.

Then the backbone is frozen, and its features say which of the --names characters a glyph is: by a vote of the nearest
training images, and by a linear layer. Test images are of fonts that training never saw. The same of the untrained
backbone and of bare pixels stand beside. Nothing is downloaded.

examples:
  python examples/self_supervised.py                                # TempNet, about a minute on a CPU
  python examples/self_supervised.py --scheme simclr --seeds 0 1 2  # the baseline, with standard deviations
  python examples/self_supervised.py --resume                       # go on where Ctrl-C stopped it
  python examples/self_supervised.py --names 50 --epochs 4          # a first look
"""


@dataclass(frozen=True)
class Options:
    """Two views of glyphs through one backbone."""

    scheme: Scheme = "tempnet"
    """Loss and temperature. simclr: within the batch, one constant temperature (--tau). The others estimate the loss
    over the whole data set: at the same constant (sogclr), with one temperature for each training image (isogclr), or
    with one that a network predicts (tempnet); --rho belongs to these two."""
    backbone: str = "test_resnet"
    """Any timm model that takes 32 x 32 images in grey; resnet10t is slower and larger."""
    names: int = 300
    """Characters, each drawn in nine training fonts: 9 x names images, and as many classes in the evaluation."""
    epochs: int = 6
    """Passes over them."""
    batch_size: int = 64
    """Images per step: each view of each has 2 x batch-size - 2 negatives."""
    lr: float = 2e-3
    """Learning rate of the encoder (AdamW, cosine to 0). 5e-4 to 4e-3 are useful."""
    tau_lr: float = 1e-3
    """Learning rate of the network that predicts temperatures (tempnet)."""
    tau: float = 0.2
    """Temperature, in units of cosine similarity: constant for simclr and sogclr, the start for the others."""
    rho: float = 1.0
    """Radius of the robust loss in nats; a larger one means lower temperatures. 0.5 to 2 are useful."""
    tau_step: float = 0.03
    """Step of a training image's own temperature along its gradient (isogclr); each is taken once in an epoch."""
    gamma: float = 0.8
    """Weight of the new batch in each row's running average over batches, in (0, 1]."""
    tau_min: float = 0.05
    """Lower bound of a temperature that is learned."""
    tau_max: float = 0.7
    """Upper bound."""
    seeds: tuple[int, ...] = (0,)
    """Each has its own split of the glyphs, weights and augmentation."""
    out: Path = Path("runs/self_supervised")
    """Folder for results.json, a histogram of the temperatures and checkpoints."""
    resume: bool = False
    """Continue from the checkpoints in --out, bit for bit; all other options as they were, save --seeds."""

    def __post_init__(self) -> None:
        """Check what the library cannot check."""
        for name, least in (("epochs", 1), ("batch_size", 2), ("names", -(-self.batch_size // FONTS))):
            if getattr(self, name) < least:
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"expected {option} of at least {least}, received {getattr(self, name)}. Type {option} {least}"
                    " or more" + ", or a smaller --batch-size." * (name == "names")
                )

        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"expected --seeds to name at least one, each once, received {list(self.seeds)}. Type --seeds "
                f"{' '.join(map(str, dict.fromkeys(self.seeds))) or 0}."
            )

    def of_a_run(self) -> dict[str, Any]:
        """The options that determine the result of one run."""
        return {k: v for k, v in asdict(self).items() if k not in ("seeds", "out", "resume")}
