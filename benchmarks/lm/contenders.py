"""Losses over a vocabulary, with or without a temperature for each token."""

import math
from argparse import Namespace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import dro_temp as dt
from benchmarks.harness import Contender, Step, compiler, cuda
from benchmarks.lm.problem import RHO, LmProblem
from dro_temp.kernels.products import cpu_multiplies_bfloat16


def floor(p: LmProblem) -> Step:
    """The products z = h W^T, dh = z W, dW = z^T h, into preallocated memory."""
    hidden, weight = p.hidden.detach(), p.weight.detach()
    z = hidden.new_empty(len(hidden), len(weight))
    dh, dw = torch.empty_like(hidden), torch.empty_like(weight)

    def step() -> None:
        torch.mm(hidden, weight.T, out=z)
        torch.mm(z, weight, out=dh)
        torch.mm(z.T, hidden, out=dw)

    return step


def plain_formula(p: LmProblem) -> Step:
    """The loss by its formula: all logits, TempNet on them, tau times a log-softmax at 1 / tau."""

    def step() -> Tensor:
        p.clear()
        logits = (p.hidden @ p.weight.T).float()
        tau = p.tempnet(support=dt.Support(logits.detach()))
        log_p = F.log_softmax(logits / tau[:, None], dim=1).gather(1, p.target[:, None]).squeeze(1)
        loss = (tau * (RHO - math.log(logits.shape[1]) - log_p)).mean()
        loss.backward()
        return loss.detach()

    return step


def dro_temp(p: LmProblem, backend: str) -> Step:
    """This library; its kernels compute the scores block by block."""
    rows = dt.Rows(dt.LinearScores(p.hidden, p.weight), p.target)
    robust = dt.KLRobustLoss(RHO, backend=backend)

    def step() -> Tensor:
        p.clear()
        loss = robust.evaluate(rows, p.tempnet).values.mean()
        loss.backward()
        return loss.detach()

    return step


def dro_temp_fp32(p: LmProblem) -> Step:
    """The same from float32 inputs, the baseline of half precision."""
    return dro_temp(p.to(torch.float32), "cpu")


def _cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).float(), target)


def cross_entropy(p: LmProblem, compiled: bool = False) -> Step:
    """The usual loss, without temperatures."""
    # Not dynamic: otherwise the second shape of a run would get less specialised kernels than the first.
    function = torch.compile(_cross_entropy, dynamic=False) if compiled else _cross_entropy

    def step() -> Tensor:
        p.clear()
        loss = function(p.hidden, p.weight, p.target)
        loss.backward()
        return loss.detach()

    return step


def cut_cross_entropy(p: LmProblem, impl: str) -> Step:
    from cut_cross_entropy import linear_cross_entropy

    def step() -> Tensor:
        p.clear()
        loss = linear_cross_entropy(p.hidden, p.weight, p.target, impl=impl)
        loss.backward()
        return loss.detach()

    return step


def liger(p: LmProblem) -> Step:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    function = LigerFusedLinearCrossEntropyLoss()

    def step() -> Tensor:
        p.clear()
        loss = function(p.weight, p.hidden, p.target)
        loss.backward()
        return loss.detach()

    return step


def _training(options: Namespace) -> str | None:
    return "nothing to train with a frozen host" if options.frozen else None


def _multiplies(options: Namespace) -> str | None:
    """Without bfloat16 instructions a CPU emulates them, up to a hundred times slower than float32."""
    if options.dtype == "bf16" and options.device == "cpu" and not cpu_multiplies_bfloat16():
        return "this processor has no bfloat16 instructions"
    return None


def _half(options: Namespace) -> str | None:
    return None if options.dtype == "bf16" else "the baseline of --dtype bf16 only"


CCE = {"package": "cut-cross-entropy", "module": "cut_cross_entropy"}
LIGER = {"package": "liger-kernel", "module": "liger_kernel"}
CONTENDERS = (
    Contender(
        "floor", floor, "the three matrix products alone, full size", (_training, _multiplies), memory=False
    ),
    Contender(
        "plain-formula",
        plain_formula,
        "robust loss and TempNet in plain PyTorch, all logits at once",
        (_multiplies,),
    ),
    Contender("cross-entropy", cross_entropy, "PyTorch's, without temperatures", (_training, _multiplies)),
    Contender(
        "cross-entropy-compiled",
        partial(cross_entropy, compiled=True),
        "the same under torch.compile; compilation is not timed",
        (_training, _multiplies, compiler),
        compiled=True,
    ),
    Contender(
        "cce-compiled",
        partial(cut_cross_entropy, impl="torch_compile"),
        "cut-cross-entropy's path for all devices, without temperatures",
        (_training, _multiplies, compiler),
        compiled=True,
        **CCE,
    ),
    Contender("cce", partial(cut_cross_entropy, impl="cce"), "its GPU kernel", (_training, cuda), **CCE),
    Contender("liger", liger, "fused cross-entropy without temperatures", (_training, cuda), **LIGER),
    Contender(
        "dro_temp-reference",
        partial(dro_temp, backend="reference"),
        "robust loss and TempNet, logits at once",
    ),
    Contender("dro_temp-torch", partial(dro_temp, backend="torch"), "the same, streamed in plain PyTorch"),
    Contender("dro_temp-cpu", partial(dro_temp, backend="cpu"), "the same, with passes in C"),
    Contender("dro_temp-triton", partial(dro_temp, backend="triton"), "the same, by a GPU kernel", (cuda,)),
    # It has its own inputs, whose gradients the problem does not count.
    Contender("dro_temp-fp32", dro_temp_fp32, "streamed, from float32 inputs", (_half,), memory=False),
)
