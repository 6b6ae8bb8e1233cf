"""Runs of the command line in this process, interrupted at a step."""

from pathlib import Path
from typing import Any

import torch

from dro_temp.cli.main import main
from dro_temp.optim import CompositionalOptimizer

#: Killed at the end of a step, as `python -c CODE STEP ARGUMENTS`.
KILLED = (
    "import multiprocessing, os, signal, sys\n"
    # Workers that load data then see that their parent is gone; a server's children would go on.
    "multiprocessing.set_start_method('fork', force=True)\n"
    "from dro_temp.optim import CompositionalOptimizer\n"
    "from dro_temp.cli.main import main\n"
    "steps, step = [0], CompositionalOptimizer.step\n"
    "def counted(self, *args, **kwargs):\n"
    "    step(self, *args, **kwargs)\n"
    "    steps[0] += 1\n"
    "    if steps[0] == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
    "CompositionalOptimizer.step = counted\n"
    "sys.exit(main(sys.argv[2:]))\n"
)


def interrupted(arguments: list[str], step: int, monkeypatch: Any) -> int:
    """A command, with Ctrl-C after so many steps of the optimizer."""
    taken, original = [0], CompositionalOptimizer.step

    def counted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        taken[0] += 1
        if taken[0] == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CompositionalOptimizer, "step", counted)
        return main(arguments)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All that a run trained: its model, predictors, and memory."""
    from safetensors.torch import load_file

    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file) | torch.load(run / "objective.pt", weights_only=True)


def assert_equal(run: Path, other: Path) -> None:
    """Equal to the last bit."""
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    for name, x in one.items():
        assert torch.equal(x, two[name]), name
