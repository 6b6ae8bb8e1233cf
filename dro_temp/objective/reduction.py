"""From one value per row to one number, and the numbers that one would log."""

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp._checks import check_positive, values_can_be_read
from dro_temp.interfaces import Rows


def refuse_non_finite(rows: dict[str, Rows], taus: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Raise at the first NaN or infinity, with the numbers of its rows."""
    if torch.compiler.is_compiling():
        return
    bad: dict[tuple[str, str], Tensor] = {}
    for view, r in rows.items():
        if r.features is not None:
            # NaN and infinity reach the extremes, which are found thirty times as fast.
            features = r.features.detach()
            bad["features", view] = ~(features.amax(1).isfinite() & features.amin(1).isfinite()) & r.valid
        bad["temperatures", view] = ~taus[view].detach().isfinite() & r.valid
        bad["loss", view] = ~values[view].detach().isfinite()
    if not bool(torch.cat(list(bad.values())).any()):  # the one wait for the device
        return
    for (what, view), mask in bad.items():
        if bool(mask.any()):
            positions = mask.nonzero()[:, 0].tolist()
            index = rows[view].index
            samples = "" if index is None else f" (samples {index[mask].tolist()[:8]})"
            raise FloatingPointError(
                f"expected finite {what} in view {view!r}, received NaN or infinity in rows {positions[:8]}"
                f"{samples}. Look at those inputs; lower the learning rate or clip gradients if the model "
                "diverged; pass check_finite=False if a gradient scaler is to handle overflow."
            )


def row_weight(rows: Rows, dtype: torch.dtype) -> Tensor:
    """How much each row counts: its weight, and 0 where its support is empty."""
    return rows.valid.to(dtype) if rows.weight is None else rows.weight.to(dtype) * rows.valid


def checked_count(count: float | Tensor | None) -> float | Tensor | None:
    """The count that sums are divided by, as one number > 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive, or several numbers.
    """
    if not isinstance(count, Tensor):
        if count is not None:
            check_positive("count", count)
        return count
    if count.numel() != 1 or count.is_complex() or count.dtype == torch.bool:
        raise ValueError(
            f"expected count as one number, received {count.dtype} of shape {list(count.shape)}. Pass count.sum(), the "
            "number of rows in the whole window."
        )
    if values_can_be_read(count):
        check_positive("count", count.item())
    return count.reshape(())


def weighted_mean(values: Tensor, weight: Tensor, count: float | Tensor | None, trains: bool) -> Tensor:
    """Weighted mean over rows, of all processes in training; or the weighted sum by a given count."""
    total = (values * weight).sum()
    # Data parallel training averages gradients over processes; undo it, for processes of unequal weight.
    total = total * distributed.world_size() if trains else total
    if count is not None:
        return total / count
    return total / whole_weight(weight, trains).clamp(min=torch.finfo(values.dtype).tiny)


def whole_weight(weight: Tensor, trains: bool) -> Tensor:
    """Weight of all rows, in training those of all processes."""
    # An evaluation may run on one process only, which must not wait for the others.
    return distributed.sum_over_processes(weight.sum()) if trains else weight.sum()


@torch.no_grad()
def temperature_metrics(view: str, loss: Tensor, tau: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What one would log of a view: its loss, and where its temperatures lie."""
    metrics = {"loss": loss.detach()}
    if len(tau):
        # Masked sums, not tau[valid]: a shape that depends on values would wait for the device.
        count = valid.sum().clamp(min=1)
        mean = tau.masked_fill(~valid, 0.0).sum() / count
        metrics |= {
            "tau_mean": mean,
            "tau_std": ((tau - mean).masked_fill(~valid, 0.0).square().sum() / count).sqrt(),
            "tau_min": tau.masked_fill(~valid, torch.inf).min(),
            "tau_max": tau.masked_fill(~valid, -torch.inf).max(),
        }
    return {f"{view}/{name}": value for name, value in metrics.items()}
