"""Ranges of options that several commands have, checked in the words of the command line."""

import math


def check_seed(seed: int) -> None:
    """Raise unless all generators take this seed, NumPy's included, which transformers seeds as well."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected --seed from 0 to {2**32 - 1}, received --seed {seed}. Pass --seed 0.")


def check_temperatures(tau_min: float, tau_max: float) -> None:
    """Raise unless these are bounds of temperatures."""
    if not 0.0 < tau_min < tau_max < math.inf:
        raise ValueError(
            f"expected temperature bounds with 0 < --tau_min < --tau_max, received --tau_min {tau_min} --tau_max "
            f"{tau_max}. Widen or swap them: --tau_min 0.1 --tau_max 2.0."
        )
