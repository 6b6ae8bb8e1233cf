"""How many kernels a training step launches beyond its baseline's, and where: what a small batch on a GPU waits for.

    python tests/support/launches.py            # all cases
    python tests/support/launches.py --list     # and where each case's launches come from

Counted on the CPU, along the path that tensors of a device take: an operation that computes or copies counts once, a
view or an allocation not at all, a kernel of the library once. Encoders are left out, and so is the base optimizer. The
profiler of a GPU counts more: a sort, a sum over many rows or a scaled product is several kernels there.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Decided when Triton is first imported.
if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import dro_temp as dt
from dro_temp import _faults

PACKAGE = str(Path(dt.__file__).parent)
#: Operations that only allocate, or read what the host knows.
FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "_has_same_storage_numel",
}
FREE |= {"_local_scalar_dense", "lift_fresh", "promote_types", "scalar_tensor", "is_pinned"}


class Launches(TorchDispatchMode):
    """Counts launches by the function of the package that makes them, "backward" where autograd does."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.places.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not (func.is_view or name in FREE):
            self.places[f"{_place()}: {name}"] += 1
        return func(*args, **(kwargs or {}))


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]} {frame.f_code.co_name}"
        if frame.f_code.co_name == "backward":
            return "backward"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class DenseClassifier(dt.hosts.Classifier):
    """A classifier whose scores are a matrix, as a device stores those of small problems."""

    def rows(self, *args: Any, **batch: Any) -> dict[str, dt.Rows]:
        """Rows of the classifier."""
        return {view: rows.dense() for view, rows in super().rows(*args, **batch).items()}


@contextmanager
def counted() -> Iterator[Launches]:
    """Counts the launches inside, as of tensors on a device; a kernel that is interpreted here counts once."""
    # All that launch, so that none of them binds the counting function for good.
    from dro_temp.kernels.backends.triton import launch as module
    from dro_temp.kernels.backends.triton import log_table, readout, row_numbers, temperature_table  # noqa: F401

    launches, run = Launches(), module.launch

    def launch_once(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
        launches.places[f"{_place()}: {kernel.fn.__name__}"] += 1
        with torch.utils._python_dispatch._disable_current_modes():
            run(kernel, programs, *args, **meta)

    users = [
        m for name, m in sys.modules.items() if name.startswith("dro_temp.") and vars(m).get("launch") is run
    ]
    before, _faults.everywhere = _faults.everywhere, True
    for user in users:
        user.launch = launch_once  # type: ignore[attr-defined]
    try:
        with launches:
            yield launches
    finally:
        _faults.everywhere = before
        for user in users:
            user.launch = run  # type: ignore[attr-defined]


def clip(recipe: str = "tempnet", n: int = 256, d: int = 512) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A step of a recipe of pairs from the encoders' outputs on, and one of open_clip's loss."""
    torch.manual_seed(0)
    x, y = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    host = dt.hosts.TwoTower(torch.nn.Identity(), torch.nn.Identity())
    options = {"width": d} if recipe == "tempnet" else {}
    objective = getattr(dt.recipes, recipe)(host, num_samples=100_000, **options)
    for loss in objective.losses.values():
        loss.backend = "triton"
    scale, place, index = torch.tensor(14.0, requires_grad=True), torch.arange(n), torch.randperm(100_000)[:n]

    def baseline() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
            logits = scale * a @ b.T, scale * b @ a.T
            loss = (F.cross_entropy(logits[0], place) + F.cross_entropy(logits[1], place)) / 2
        loss.backward()

    return _step(objective, (x, y), {"index": index}), baseline


def classifier(n: int = 64, d: int = 384, classes: int = 1000) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A step of a classifier with TempNet from its features on, and one of its cross-entropy."""
    torch.manual_seed(0)
    x, head, labels = (
        torch.randn(n, d, requires_grad=True),
        torch.nn.Linear(d, classes),
        torch.randint(classes, (n,)),
    )
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(d), tau_min=0.1, tau_max=4.0)
    loss = dt.KLRobustLoss(3.0, backend="triton")
    objective = dt.Objective(DenseClassifier(torch.nn.Identity(), head), tempnet, loss)

    def baseline() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(head(x), labels)
        loss.backward()

    return _step(objective, (x, labels), {}), baseline


def _step(objective: dt.Objective, args: tuple[Any, ...], batch: dict[str, Any]) -> Callable[[], Any]:
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(*args, **batch).loss
        loss.backward()
        objective.commit()
        for p in objective.parameters():
            p.grad = None

    return step


CASES = {
    "CLIP, 256 pairs, tempnet": clip,
    "CLIP, 256 pairs, sogclr": partial(clip, "sogclr"),
    "CLIP, 256 pairs, isogclr": partial(clip, "isogclr"),
    "classifier, 64 images": classifier,
}


def added(case: str, **sizes: int) -> tuple[int, Counter[str]]:
    """Launches of a step beyond the baseline's, and where the step makes its own; smaller sizes have as many."""
    step, baseline = CASES[case](**sizes)
    with counted():
        step()  # first-time work is done by then
    with counted() as ours:
        step()
    with counted() as theirs:
        baseline()
    return ours.total - theirs.total, ours.places


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="where the launches come from")
    listed = parser.parse_args().list
    for case in CASES:
        number, places = added(case)
        print(f"{case}: {number} launches more than the baseline")
        for place, times in (
            sorted(places.items(), key=lambda x: (x[0].split(":")[0], -x[1])) if listed else ()
        ):
            print(f"  {times:4}  {place}")


if __name__ == "__main__":
    main()
