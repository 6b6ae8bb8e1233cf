"""Who computes a contrastive loss."""

import contextlib
import io
from functools import partial

import torch
from harness import Contender, Step, cuda
from torch import Tensor

import dro_temp as dt
from dro_temp.kernels import byte_budget
from pairs.formula import Side
from pairs.problem import GAMMA, RHO, PairsProblem, UnitFeatures

STRIPE = 2**28  # numbers in the floor's buffer: at most 1 GiB, so that it can be measured at any size


def floor(p: PairsProblem, products: int) -> Step:
    """The products s = x y^T (twice, if four), dx = s y, dy = s^T x, into memory that is there."""
    x, y = p.image.detach(), p.text.detach()
    n = len(x)
    rows = max(min(n, STRIPE // n), 1)
    s, dx, dy = x.new_empty(rows, n), torch.empty_like(x), torch.zeros_like(y)

    def step() -> None:
        for start in range(0, n, rows):
            stripe = x[start : start + rows]
            z = s[: len(stripe)]
            for _ in range(products - 2):
                torch.mm(stripe, y.T, out=z)
            torch.mm(z, y, out=dx[start : start + rows])
            dy.addmm_(z.T, stripe, beta=float(start > 0))

    return step


def plain_formula(p: PairsProblem) -> Step:
    """Both sides' robust losses with TempNets and moving averages, as the paper writes them down."""
    sides = {view: Side(p.num_samples, p.image.device) for view in p.tempnets}

    def step() -> Tensor:
        p.clear()
        similarities = p.image @ p.text.T
        image = sides["image"](similarities, p.tempnets["image"](p.image), p.index)
        text = sides["text"](similarities.T, p.tempnets["text"](p.text), p.index)
        loss = (image + text) / 2
        loss.backward()
        return loss.detach()

    return step


def tempnets(p: PairsProblem) -> Step:
    """Both networks alone, forward and backward: what they cost whatever the loss does."""

    def step() -> Tensor:
        p.clear()
        loss = sum(
            net(x.detach()).sum() for net, x in zip(p.tempnets.values(), (p.image, p.text), strict=True)
        )
        loss.backward()
        return loss.detach()

    return step


def dro_temp(p: PairsProblem, backend: str, cache: bool = False, networks: bool = False) -> Step:
    """This library, through its objective.

    A temperature per image and per caption, either from networks or from tables that follow each one's gradient.
    """
    predictors = p.tempnets if networks else p.tables()
    loss = {
        view: dt.KLRobustLoss(RHO, estimator=dt.LogMovingAverage(p.num_samples, gamma=GAMMA), backend=backend)
        for view in p.tempnets
    }
    objective = dt.Objective(UnitFeatures(), predictors, loss).to(p.image.device)

    def step() -> Tensor:
        p.clear()
        # Room for whatever it may want to keep, or none at all.
        with byte_budget(2**50 if cache else 0):
            loss = objective(p.image, p.text, index=p.index).loss
            loss.backward()
        objective.commit()
        return loss.detach()

    return step


def open_clip(p: PairsProblem) -> Step:
    from open_clip.loss import ClipLoss

    function = ClipLoss()
    scale = torch.tensor(1 / 0.07, device=p.image.device, requires_grad=True)

    def step() -> Tensor:
        p.clear()
        scale.grad = None
        loss = function(p.image, p.text, scale)
        loss.backward()
        return loss.detach()

    return step


def libauc(p: PairsProblem) -> Step:
    from libauc.losses.contrastive import GCLoss_v2

    with contextlib.redirect_stdout(io.StringIO()):  # it says which schedule it uses
        function = GCLoss_v2(N=p.num_samples, tau=0.07, gamma=GAMMA)

    # Its tables stay on the CPU, and so do the numbers that it looks up in them.
    index = p.index.cpu()

    def step() -> Tensor:
        p.clear()
        loss, _ = function(p.image, p.text, index)
        loss.backward()
        return loss.detach()

    return step


CLIP = {"package": "open_clip_torch", "module": "open_clip"}
CONTENDERS = (
    Contender("floor3", partial(floor, products=3), "three matrix products, similarities kept", memory=False),
    Contender("floor4", partial(floor, products=4), "four, similarities computed twice", memory=False),
    Contender("plain-formula", plain_formula, "robust loss, TempNets, moving averages in plain PyTorch"),
    Contender("open_clip", open_clip, "InfoNCE with one temperature, no averages", **CLIP),
    Contender(
        "libauc",
        libauc,
        "GCLoss_v2: moving averages, one constant temperature",
        package="libauc",
        module="libauc",
    ),
    Contender("tempnets", tempnets, "both networks alone, without a loss", memory=False),
    Contender(
        "dro_temp-eager",
        partial(dro_temp, backend="reference"),
        "robust loss with a temperature per sample, all at once",
    ),
    Contender(
        "dro_temp-cached",
        partial(dro_temp, backend="cpu", cache=True),
        "the same, streamed with passes in C; similarities kept for backward",
    ),
    Contender(
        "dro_temp-recomputing",
        partial(dro_temp, backend="cpu"),
        "the same; similarities computed twice",
    ),
    Contender(
        "dro_temp-cached-tempnets",
        partial(dro_temp, backend="cpu", cache=True, networks=True),
        "temperatures from networks; similarities kept",
    ),
    Contender(
        "dro_temp-recomputing-tempnets",
        partial(dro_temp, backend="cpu", networks=True),
        "temperatures from networks; similarities computed twice",
    ),
    Contender(
        "dro_temp-plain",
        partial(dro_temp, backend="torch"),
        "the same in plain PyTorch, where there is no C compiler",
    ),
    Contender("dro_temp-triton", partial(dro_temp, backend="triton"), "the same, by a GPU kernel", (cuda,)),
)
