"""Hidden states, a head and a TempNet over its logits."""

from argparse import Namespace
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.harness import Problem

RHO = 4.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LmProblem(Problem):
    """Inputs of a robust language-model loss.

    Args:
        hidden: hidden states, [tokens d].
        weight: the head's weight, [vocabulary d].
        target: next tokens, [tokens].
        tempnet: TempNet over the logits.
    """

    hidden: Tensor
    weight: Tensor
    target: Tensor
    tempnet: dt.TempNet

    def leaves(self) -> list[Tensor]:
        """Hidden states, weight and TempNet's parameters."""
        return [self.hidden, self.weight, *self.tempnet.parameters()]

    def to(self, dtype: torch.dtype) -> "LmProblem":
        """The same problem with hidden states and head of another dtype."""
        hidden, weight = (
            x.detach().to(dtype).requires_grad_(x.requires_grad) for x in (self.hidden, self.weight)
        )
        return replace(self, hidden=hidden, weight=weight)


def make_problem(shape: tuple[int, ...], options: Namespace) -> LmProblem:
    """A problem of shape (tokens, d, vocabulary); logits are standard normal."""
    tokens, d, vocabulary = shape
    torch.manual_seed(0)
    with torch.device(options.device):
        hidden = torch.empty(tokens, d, dtype=DTYPES[options.dtype]).normal_()
        weight = torch.empty(vocabulary, d, dtype=DTYPES[options.dtype]).normal_(std=d**-0.5)
        target = torch.randint(vocabulary, (tokens,))
        tempnet = dt.TempNet.for_logits(vocabulary, tau_min=0.1, tau_max=2.0, dropout=options.dropout)
    hidden.requires_grad_(not options.frozen)
    weight.requires_grad_(not options.frozen)
    return LmProblem(hidden, weight, target, tempnet)
