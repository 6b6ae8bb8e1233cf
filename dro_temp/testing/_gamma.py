"""What every schedule of gamma must do."""

from itertools import pairwise

import torch

from dro_temp.testing._cases import GammaCase


def stays_in_range(case: GammaCase) -> None:
    """0 < gamma <= 1 at every step."""
    schedule = case.build()
    for steps in (0, 1, 7, 1000, 10**9):
        assert 0.0 < float(schedule(torch.tensor(steps))) <= 1.0


def never_rises(case: GammaCase) -> None:
    """Memory grows longer with time, never shorter."""
    schedule = case.build()
    values = [float(schedule(torch.tensor(steps))) for steps in range(0, 2000, 7)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values))


def is_a_function_of_steps(case: GammaCase) -> None:
    """The same step gives the same gamma, whatever was asked before: resuming is exact."""
    schedule = case.build()
    first = float(schedule(torch.tensor(13)))
    schedule(torch.tensor(900))
    assert float(schedule(torch.tensor(13))) == first


CONTRACTS = (stays_in_range, never_rises, is_a_function_of_steps)
