"""What statistics of temperatures check."""

import torch
from torch import Tensor

from dro_temp._checks import check_floats, check_real


def check_tau(tau: Tensor) -> Tensor:
    """The temperatures as float64 on the CPU, those that differ by rounding of their dtype alone as one number.

    Raises:
        TypeError: no floating point numbers.
        ValueError: not one-dimensional, empty, or not finite.
    """
    check_floats("tau", tau)
    if tau.dim() != 1 or len(tau) == 0:
        raise ValueError(
            f"expected tau [n] with n > 0, received {list(tau.shape)}. Pass one temperature per row."
        )
    values = tau.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"expected finite temperatures, received NaN or infinity in {int((~values.isfinite()).sum())} of "
            f"{len(values)} rows. Leave those rows out: keep = tau.isfinite()."
        )
    spread, rounding = values.max() - values.min(), 4 * torch.finfo(tau.dtype).eps * values.abs().max()
    return torch.full_like(values, float(values[0])) if bool(spread <= rounding) else values


def check_confidence(confidence: float) -> None:
    """Raise unless `0 < confidence < 1`."""
    check_real("confidence", confidence, "Pass confidence=0.95.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"expected a confidence above 0 and below 1, received confidence={confidence}. Pass confidence=0.95."
        )
