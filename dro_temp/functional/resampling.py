"""The bootstrap: samples with replacement, and intervals."""

import torch
from torch import Tensor

from dro_temp._checks import check_count


def generator(seed: int) -> torch.Generator:
    """A random number generator with this seed."""
    return torch.Generator().manual_seed(check_count("seed", seed, 0))


def times_drawn(groups: int, chance: torch.Generator) -> Tensor:
    """How often each group is in one bootstrap sample, float64 [groups]."""
    return torch.randint(groups, (groups,), generator=chance).bincount(minlength=groups).double()


def interval(drawn: Tensor, confidence: float) -> tuple[float, float]:
    """The central interval of `drawn`, [resamples], without its NaN; NaN if nothing remains."""
    finite = drawn.double()
    finite = finite[finite.isfinite()]
    if len(finite) == 0:
        return float("nan"), float("nan")
    tails = torch.tensor([0.5 - confidence / 2, 0.5 + confidence / 2], dtype=torch.float64)
    low, high = finite.quantile(tails).tolist()
    return low, high
