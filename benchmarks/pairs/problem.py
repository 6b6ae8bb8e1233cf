"""Features of both sides of a batch of pairs, and a TempNet for each side."""

from argparse import Namespace
from dataclasses import dataclass

import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.harness import Problem

RHO = 2.0
GAMMA = 0.8
BATCHES = 4  # in an epoch


@dataclass(frozen=True)
class PairsProblem(Problem):
    """Inputs of a contrastive loss with moving averages.

    Args:
        image: unit features, [pairs d].
        text: unit features, [pairs d].
        index: the pairs' numbers in the data set, [pairs].
        num_samples: size of the data set.
        tempnets: one TempNet per side.
    """

    image: Tensor
    text: Tensor
    index: Tensor
    num_samples: int
    tempnets: dict[str, dt.TempNet]

    def tables(self) -> dict[str, dt.IndividualTemperature]:
        """One temperature for each sample and side, updated by its own gradient."""
        bounds = {"tau_min": 0.01, "tau_max": 0.2}
        return {view: dt.IndividualTemperature(self.num_samples, **bounds) for view in self.tempnets}

    def leaves(self) -> list[Tensor]:
        """Features of both sides, and the parameters of both TempNets."""
        return [self.image, self.text, *(p for net in self.tempnets.values() for p in net.parameters())]


class UnitFeatures(dt.HostAdapter):
    """A host without towers, whose inputs are unit features, as for the other libraries' losses."""

    views = dt.hosts.TwoTower.views
    mirrored = dt.hosts.TwoTower.mirrored

    def rows(self, image: Tensor, text: Tensor, index: Tensor | None = None) -> dict[str, dt.Rows]:
        """Rows of both sides, without normalisation and its gradient."""
        target = torch.arange(len(image), device=image.device)
        sides = {"image": (image, text), "text": (text, image)}
        return {
            view: dt.Rows(dt.LinearScores(own, other), target, own, index, target_in_support=False)
            for view, (own, other) in sides.items()
        }


def make_problem(shape: tuple[int, ...], options: Namespace) -> PairsProblem:
    """A problem of shape (pairs, d); a pair's cosine is near 0.7, as after some training, others' near 0."""
    pairs, d = shape
    torch.manual_seed(0)
    with torch.device(options.device):
        # In place: memory that is freed here but retained by the process would hide part of a step's.
        image = _unit(torch.empty(pairs, d).normal_())
        text = _unit(torch.empty(pairs, d).normal_(std=d**-0.5).add_(image))
        index = torch.randperm(BATCHES * pairs)[:pairs]
        tempnets = {
            view: dt.TempNet(d, tau_min=0.01, tau_max=0.2, dropout=options.dropout)
            for view in dt.hosts.TwoTower.views
        }
    return PairsProblem(image.requires_grad_(), text.requires_grad_(), index, BATCHES * pairs, tempnets)


def _unit(x: Tensor) -> Tensor:
    return x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True))
