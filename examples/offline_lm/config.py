"""The options of the example."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Config:
    """Train a small GPT-2 on the source of Python's standard library, freeze it, and train a TempNet on it.

    Finished steps are saved in --out: after Ctrl-C the same command resumes. It takes a few minutes on two CPU
    cores.
    """

    inputs: tuple[Literal["hidden", "logits", "statistics"], ...] = ("hidden", "statistics")
    """What the TempNet reads of each token; `logits` alone is the paper's network."""
    rho: float = 3.0
    """Radius of the robust loss in nats, below log(vocabulary): larger for more even, lower temperatures."""
    tau_min: float = 0.2
    """Lower bound of temperatures."""
    tau_max: float = 4.0
    """Upper bound."""
    tau_init: float = 0.5
    """Where temperatures start. Far above the optimum the network forgets its inputs and learns one temperature."""
    steps: int = 400
    """Steps of 16 blocks of 128 tokens, for the model and again for the TempNet."""
    vocabulary: int = 1024
    """Tokens of the byte-level tokenizer, 1,024 to 8,192."""
    size: int = 6_000_000
    """Characters of text; a tenth each is held out for validation and for the test."""
    eval_blocks: int = 400
    """Blocks of 128 tokens that temperatures are compared on, and as many that the best constants are chosen on."""
    shown: int = 3000
    """Characters of the text on the page."""
    new_tokens: int = 80
    """Tokens to generate."""
    prompt: str = "def read_config(path):\n    "
    """The prompt that generation continues."""
    out: Path = Path("runs/causal-lm")
    """Folder for checkpoints and page.html."""
    quick: bool = False
    """Only show that everything runs: 20 steps on a fifteenth of the text."""

    def path(self, what: str) -> Path:
        """Path of a checkpoint; it depends on the options."""
        words = [what, self.vocabulary, self.size, self.steps]
        if what == "tempnet":
            words += [*self.inputs, self.rho, self.tau_min, self.tau_max, self.tau_init]
        return self.out / ("-".join(map(str, words)) + ".pt")
