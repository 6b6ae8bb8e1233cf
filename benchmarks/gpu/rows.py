"""The head of a language model: a temperature for each token, against the products alone and against cross-entropy.

Tables are of steps in a row, as training launches them, and of replays in a CUDA graph, the device's own time: without
a model's layers before it the head of a fast device may wait for its host.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import dro_temp as dt
from benchmarks.gpu.measure import busy_ms, compare
from dro_temp.predictors import HiddenEncoder, StatisticsEncoder, SumEncoder

RHO, TAU = 4.0, 0.8
SHAPES = ((8192, 2048, 128256), (4096, 4096, 128256))
DRY_SHAPES = ((24, 16, 96), (16, 32, 96))
BF16 = torch.bfloat16
#: Steps that are timed together, as training runs them: the host launches ahead of the device.
IN_A_ROW = 3
Step = Callable[[], object]


def predictors(d: int, vocabulary: int, device: torch.device) -> dict[str, dt.TemperaturePredictor]:
    """A constant; a network over hidden states and statistics; the paper's, over logits."""
    bounds = {"tau_min": 0.1, "tau_max": 2.0}
    both = SumEncoder([HiddenEncoder(d, width=64), StatisticsEncoder(width=64)])
    made = {
        "constant": dt.ConstantTemperature(TAU),
        "hidden+statistics": dt.TempNet(both, **bounds),
        "logits": dt.TempNet.for_logits(vocabulary, dropout=0.0, **bounds),
    }
    return {name: predictor.to(device) for name, predictor in made.items()}


#: What reads values on the host, and cannot be captured.
PEERS = ("liger", "cut-cross-entropy", "quack")


def peers() -> dict[str, Callable[..., Tensor]]:
    """Fused cross-entropies of other packages, of those that are installed."""
    found: dict[str, Callable[..., Tensor]] = {}
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["liger"] = lambda hidden, weight, target: liger(weight, hidden, target)
    except ImportError:
        print("liger-kernel is not installed")
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = linear_cross_entropy
    except ImportError:
        print("cut-cross-entropy is not installed")
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy

        found["quack"] = chunked_linear_cross_entropy
    except ImportError:
        print("quack-kernels is not installed")
    return found


def contenders(
    tokens: int, d: int, vocabulary: int, *, frozen: bool, device: torch.device
) -> dict[str, Step]:
    """Steps by name; the first is the floor."""
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    hidden = torch.randn(tokens, d, device=device, dtype=BF16).requires_grad_(not frozen)
    weight = (torch.randn(vocabulary, d, device=device) * d**-0.5).to(BF16).requires_grad_(not frozen)
    target = torch.randint(vocabulary, (tokens,), device=device)
    z = torch.empty(tokens, vocabulary, device=device, dtype=BF16)
    h, w = hidden.detach(), weight.detach()
    dh, dw = torch.empty_like(h), torch.empty_like(w)

    def clear(parameters=()):
        hidden.grad = weight.grad = None
        for p in parameters:
            p.grad = None

    def products() -> None:
        torch.mm(h, w.T, out=z)
        if not frozen:
            torch.mm(z, w, out=dh)
            torch.mm(z.T, h, out=dw)

    steps: dict[str, Step] = {"floor": products}

    def plain(function: Callable[..., Tensor]) -> Step:
        def step() -> None:
            clear()
            function(hidden, weight, target).backward()

        return step

    def cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), target)

    if not frozen:
        compiled = torch.compile(cross_entropy, dynamic=False) if on_gpu else cross_entropy
        steps["cross-entropy, compiled"] = plain(compiled)
        if on_gpu:
            steps |= {name: plain(function) for name, function in peers().items()}

    def ours(predictor: dt.TemperaturePredictor, score_dtype: torch.dtype | None) -> Step:
        robust = dt.KLRobustLoss(RHO, backend="triton" if on_gpu else "torch")
        rows = dt.Rows(dt.LinearScores(hidden, weight, score_dtype=score_dtype), target, features=h)
        parameters = list(predictor.parameters())

        def step() -> None:
            clear(parameters)
            output = robust.evaluate(rows, predictor)
            assert output.mean is not None or not on_gpu
            (output.values.mean() if output.mean is None else output.mean).backward()

        return step

    for name, predictor in predictors(d, vocabulary, device).items():
        if frozen and name == "constant":
            continue
        for score_dtype in (BF16, None):
            steps[f"{name}, {'bf16' if score_dtype else 'fp32'} scores"] = ours(predictor, score_dtype)
    return steps


def check(tokens: int = 256, d: int = 512, vocabulary: int = 32000) -> None:
    """Errors against float64, of both precisions of scores, at temperatures from 0.05 to 2."""
    device = torch.device("cuda")
    g = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, d, device=device, generator=g).to(BF16)
    weight = (3 * torch.randn(vocabulary, d, device=device, generator=g) * d**-0.5).to(BF16)
    target = torch.randint(vocabulary, (tokens,), device=device, generator=g)
    print("\nerror of log g and gradients, scores of deviation 3: largest, and relative norm")
    for tau in (0.05, 0.1, 0.3, 1.0, 2.0):
        line = f"  tau {tau:4.2f}"
        truth = None
        for dtype, score_dtype in ((torch.float64, None), (BF16, None), (BF16, BF16)):
            x, w = (t.to(dtype, copy=True).requires_grad_() for t in (hidden, weight))
            rows = dt.Rows(dt.LinearScores(x, w, score_dtype=score_dtype), target)
            temperature = torch.full(
                (tokens,), tau, device=device, dtype=torch.float64 if truth is None else None
            )
            temperature.requires_grad_()
            backend = "reference" if truth is None else "triton"
            output = dt.EntropicRiskLoss(backend=backend).evaluate(rows, temperature)
            output.values.mean().backward()
            found = [v.detach().double() for v in (output.values, x.grad, w.grad, temperature.grad)]
            if truth is None:
                truth = found
                continue
            worst = float((found[0] - truth[0]).abs().max())
            mean = float((found[0] - truth[0]).mean())
            norms = [float((a - b).norm() / b.norm()) for a, b in zip(found[1:], truth[1:], strict=True)]
            line += f" | {'bf16' if score_dtype else 'fp32'} scores: {worst:.1e} (mean {mean:+.0e})"
            line += " dh {:.1e} dW {:.1e} dtau {:.1e}".format(*norms)
        print(line, flush=True)


def main(rounds: int, device: torch.device) -> dict[str, object]:
    """All shapes, training and frozen; the profile of one step."""
    results: dict[str, object] = {}
    on_gpu = device.type == "cuda"
    if on_gpu:
        check()
    for shape in SHAPES if on_gpu else DRY_SHAPES:
        for frozen in (False, True):
            title = f"rows {shape}{', frozen host' if frozen else ''}"
            steps = contenders(*shape, frozen=frozen, device=device)
            common = {"rounds": rounds, "device": device}
            results[title] = compare(title, steps, "floor", in_a_row=IN_A_ROW if on_gpu else 1, **common)
            if on_gpu:
                graphs = {name: steps[name] for name in results[title] if name not in PEERS}
                results[f"{title}, as graphs"] = compare(
                    f"{title}, as graphs", graphs, "floor", as_graph=True, **common
                )
                for name in (x for x in results[title] if x.endswith("bf16 scores")):
                    launches, busy, longest = busy_ms(steps[name])
                    print(f"  {name}: {launches} launches, {busy:.2f} ms of work")
                    for kernel, ms, count in longest:
                        print(f"    {ms:7.3f} ms {count:4d} x {kernel[:110]}")
            del steps
            torch.cuda.empty_cache()
    return results
