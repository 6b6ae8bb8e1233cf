"""Drawing anew, with replacement: how sure one can be of a number."""

import torch
from torch import Tensor

from dro_temp._checks import check_count


def generator(seed: int) -> torch.Generator:
    """A source of chance of its own."""
    return torch.Generator().manual_seed(check_count("seed", seed, 0))


def times_drawn(groups: int, chance: torch.Generator) -> Tensor:
    """How often each group is in one bootstrap sample, float64 [groups]."""
    return torch.randint(groups, (groups,), generator=chance).bincount(minlength=groups).double()


def interval(drawn: Tensor, confidence: float) -> tuple[float, float]:
    """The middle share of what was drawn, [resamples], without NaN; NaN if nothing remains."""
    known = drawn.double()
    known = known[known.isfinite()]
    if len(known) == 0:
        return float("nan"), float("nan")
    tails = torch.tensor([0.5 - confidence / 2, 0.5 + confidence / 2], dtype=torch.float64)
    low, high = known.quantile(tails).tolist()
    return low, high
