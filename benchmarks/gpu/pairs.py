"""Contrastive losses over a batch of pairs, both sides: a temperature for each, against the three products alone.

Inputs are unit features, so no tower is in the times. The floor is s = x y^T, dx = s y, dy = s^T x by the library, in
stripes where the scores have no room. Ours goes through the objective as in training: forward, backward, commit.

Every step is captured in a CUDA graph and replayed, which is the device's own time. A second table launches it
operation by operation: a host may need longer for that than a fast device for its work, unless towers give it time.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

import dro_temp as dt
from benchmarks.gpu.measure import compare
from benchmarks.pairs.contenders import floor, open_clip
from benchmarks.pairs.problem import GAMMA, RHO, PairsProblem, UnitFeatures

Step = Callable[[], object]
BF16, FP32 = torch.bfloat16, torch.float32
CASES = (
    (16_384, 512, BF16),
    (16_384, 1024, BF16),
    (65_536, 512, BF16),
    (16_384, 512, FP32),
    (16_384, 1024, FP32),
    (65_536, 512, FP32),
)
DRY_CASES = ((24, 16, BF16), (24, 16, FP32))
BOUNDS = {"tau_min": 0.01, "tau_max": 0.2}
#: More pairs than this, and the matrices of open_clip and SigLIP do not fit; float32 products take seconds.
MOST_DENSE = 40_000


def make(n: int, d: int, dtype: torch.dtype, device: torch.device) -> PairsProblem:
    """Matching pairs among noise: as late in training, where few other texts weigh."""
    torch.manual_seed(0)
    x = F.normalize(torch.randn(n, d, device=device), dim=1)
    y = F.normalize(x + torch.randn(n, d, device=device) * d**-0.5, dim=1)
    nets = {view: dt.TempNet(d, dropout=0.0, **BOUNDS).to(device) for view in ("image", "text")}
    x, y = (t.to(dtype).requires_grad_() for t in (x, y))
    index = torch.randperm(4 * n, device=device)[:n]
    return PairsProblem(x, y, index, 4 * n, nets)


def ours(p: PairsProblem, predictors, losses) -> Step:
    """A step of this library over the features."""
    objective = dt.Objective(UnitFeatures(), predictors, losses).to(p.image.device)
    parameters = list(objective.parameters())

    def step() -> None:
        p.clear()
        for parameter in parameters:
            parameter.grad = None
        objective(p.image, p.text, index=p.index).loss.backward()
        objective.commit()

    return step


def contenders(p: PairsProblem) -> dict[str, Step]:
    """Steps by name; the first is the floor."""
    n, device = len(p.image), p.image.device
    backend = "triton" if device.type == "cuda" else "torch"
    small, float32 = n <= MOST_DENSE, p.image.dtype == FP32
    steps: dict[str, Step] = {"floor": floor(p, products=3)}
    if small:
        try:
            steps["open_clip"] = open_clip(p)
            if device.type == "cuda" and not float32:
                steps["open_clip, compiled"] = compiled_open_clip(p)
        except ImportError:
            print("open_clip_torch is not installed")

    def averaged() -> dict[str, dt.KLRobustLoss]:
        return {
            view: dt.KLRobustLoss(
                RHO, estimator=dt.LogMovingAverage(p.num_samples, gamma=GAMMA), backend=backend
            )
            for view in p.tempnets
        }

    def constant() -> dict[str, dt.ConstantTemperature]:
        return {view: dt.ConstantTemperature(0.07) for view in p.tempnets}

    steps["table"] = ours(p, p.tables(), averaged())
    if float32 and not small:
        return steps  # one of ours is enough for its memory; a product of this size takes 90 ms
    steps["InfoNCE"] = ours(p, constant(), {view: dt.InfoNCELoss(backend=backend) for view in p.tempnets})
    steps["constant"] = ours(p, constant(), averaged())
    steps["TempNets"] = ours(p, p.tempnets, averaged())
    if small:
        steps["SigLIP"] = ours(p, constant(), {view: dt.SigmoidLoss() for view in p.tempnets})
    return steps


def compiled_open_clip(p: PairsProblem) -> Step:
    """open_clip's loss under torch.compile."""
    from open_clip.loss import ClipLoss

    function = torch.compile(ClipLoss(), dynamic=False)
    scale = torch.tensor(1 / 0.07, device=p.image.device, requires_grad=True)

    def step() -> None:
        p.clear()
        scale.grad = None
        function(p.image, p.text, scale).backward()

    return step


def title(n: int, d: int, dtype: torch.dtype) -> str:
    """Heads a table, and names it in the results."""
    return f"pairs {n}, d {d}, {str(dtype).removeprefix('torch.')} features"


def main(rounds: int, device: torch.device) -> dict[str, object]:
    """All sizes and precisions."""
    results: dict[str, object] = {}
    for case in CASES if device.type == "cuda" else DRY_CASES:
        # The networks' own products, in float32: beside bfloat16 features in TF32, as open_clip's and timm's scripts
        # and the Trainer's `tf32` set it; beside float32 features, whose products are the floor, exactly.
        torch.set_float32_matmul_precision("high" if case[2] == BF16 else "highest")
        steps = contenders(make(*case, device))
        common, eager = {"rounds": rounds, "device": device}, f"{title(*case)}, launched one by one"
        results[title(*case)] = compare(title(*case), steps, "floor", as_graph=True, **common)
        if case[2] == BF16:
            results[eager] = compare(eager, steps, "floor", **common)
        del steps
        torch.cuda.empty_cache()
    torch.set_float32_matmul_precision("highest")
    return results
