"""The options of the example."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Method = Literal[
    "infonce", "infonce-constant", "tempnet", "tempnet-paper", "constant", "learnable", "individual"
]

EXAMPLES = """\
examples:
  python examples/clip_glyphs.py                              # the demo: InfoNCE against TempNet, minutes on a CPU
  python examples/clip_glyphs.py --resume                     # go on where Ctrl-C stopped it
  python examples/clip_glyphs.py --train-size 2000 --epochs 3 # a first look in well under a minute
  python examples/clip_glyphs.py --seeds 0 1 2 --methods infonce constant learnable individual tempnet
                                                              # every way to choose tau, with standard deviations
"""


@dataclass(frozen=True)
class Config:
    """Train an image and a text encoder on glyph-caption pairs, as in CLIP, and compare temperatures.

    Every glyph of the fonts that matplotlib ships is an image, its Unicode name ("greek small letter tau") the
    caption. Retrieval is tested twice: names seen in training, in fonts that were not; and names never seen.
    Tables, plots and checkpoints are written to --out; nothing is downloaded.
    """

    methods: tuple[Method, ...] = ("infonce", "tempnet")
    """What to train, one after the other. infonce: CLIP's loss, one learned temperature; infonce-constant: the same
    with one set by hand. The others minimise the robust loss, with a temperature predicted for each input
    (tempnet; tempnet-paper is the paper's own network), one number set by hand (constant), one number learned
    (learnable), or a table with one number per training pair (individual)."""

    seeds: tuple[int, ...] = (0,)
    """Each method is trained once per seed; with several, the table shows mean and standard deviation. Differences
    of about one point of R@1 need three or more."""

    epochs: int = 10
    """Passes over the training pairs. 10 to 20 are useful."""

    batch_size: int = 128
    """Pairs per step. Each row sees batch-size - 1 negatives; more make the in-batch comparison harder."""

    train_size: int = 8_000
    """Training pairs, drawn at random from all that the training fonts give."""

    eval_size: int = 10_000
    """At most so many pairs in each of the two validation and two test splits. Fewer make the recalls coarser:
    with 1,000 the sampling error of each is about 1.5 points."""

    out: Path = Path("runs/demo")
    """Folder for results.json, results.md, three plots and checkpoints/. What an earlier run left there is
    replaced when new results are there to replace it."""

    resume: bool = False
    """Continue from the checkpoints in --out: finished methods are skipped, an interrupted one continues at the next
    step, bit for bit as if it had not been interrupted. All other options must be as they were, save --methods
    and --seeds, which may grow."""

    lr: float = 4e-3
    """Learning rate of the two encoders (AdamW, cosine to 0). 1e-3 to 4e-3 are useful."""

    tau_lr: float = 2e-3
    """Learning rate of the temperatures that AdamW trains (tempnet, learnable, infonce). 5e-4 to 5e-3 are useful;
    the table of `individual` has its own update with step 0.01."""

    rho: float = 2.5
    """Radius of the robust loss in nats: how far from uniform the adversary may weigh the negatives. Larger means
    lower temperatures. 1 to 2.5 are useful here; KL in a batch is at most log(batch-size - 1)."""

    gamma: float = 0.8
    """Weight of the new batch in each row's running average over batches, in (0, 1]; 1 forgets all others."""

    tau_init: float = 0.1
    """Where every temperature starts, in units of cosine similarity; for `constant`, where it stays."""

    tau_min: float = 0.01
    """Lower bound of every temperature that is learned, > 0."""

    tau_max: float = 0.2
    """Upper bound. Temperatures that pile up at a bound say: widen it, or change rho."""

    hold: float = 0.3
    """Share of the training in which temperatures of `tempnet` stay where they start. At first all scores are nearly
    alike, and the temperatures that are best for those would take the encoders along to the lower bound."""

    replay: int = 256
    """Rows of earlier batches from which temperatures of `tempnet` learn at each step, beside the batch's own; 0 for
    none. They need no encoder, and a network that sees more rows comes closer to the best temperatures."""

    threads: int | None = None
    """CPU threads; as many as torch chooses if not given. Results depend on it in the last digits."""

    def __post_init__(self) -> None:
        """Check what the library cannot check."""
        for name, least in (
            ("epochs", 1),
            ("batch_size", 3),
            ("eval_size", 2),
            ("train_size", self.batch_size),
        ):
            if getattr(self, name) < least:
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"expected {option} of at least {least}, received {getattr(self, name)}. "
                    f"Type {option} {least} or more" + ", or a smaller --batch-size." * (name == "train_size")
                )
        for name, example in (("methods", "tempnet"), ("seeds", "0")):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(
                    f"expected --{name} to name at least one, each once, received {list(values)}. "
                    f"Type for example --{name} {' '.join(map(str, dict.fromkeys(values))) or example}."
                )

        if self.replay < 0:
            raise ValueError(f"expected --replay of at least 0, received {self.replay}. Type --replay 256.")
        if not 0 <= self.hold < 1:
            raise ValueError(f"expected --hold from 0 to below 1, received {self.hold}. Type --hold 0.3.")

    @property
    def queue(self) -> int:
        """Number of queued keys that train the temperatures of `tempnet`: most of the data set."""
        return max(1, 7 * self.train_size // 8)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch; the pairs left over differ between epochs."""
        return self.train_size // self.batch_size

    def of_a_run(self) -> dict[str, Any]:
        """The options that determine the result of a run, which must be the same when it is resumed."""
        return {k: v for k, v in asdict(self).items() if k not in ("methods", "seeds", "out", "resume")}
