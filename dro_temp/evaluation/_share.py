"""How much of what there is to gain was gained."""

import math

_SMALLEST_GAIN = 1e-6  # relative to the loss: below it a share of the gain is a ratio of rounding errors


def recovered_share(loss: float, constant: float, optimum: float) -> float:
    """Share of the optimum's gain over the best constant; NaN where there is nothing to gain.

    Args:
        loss: mean robust loss of what is judged.
        constant: that of the best constant temperature.
        optimum: that of the optimum of every row.
    """
    to_gain = constant - optimum
    worth = to_gain > _SMALLEST_GAIN * max(abs(constant), 1e-30)
    return (constant - loss) / to_gain if worth else math.nan


def share_cell(share: float, to_gain: float) -> str:
    """The share in percent, for a table; a dash where what there is to gain is too small to be shown beside it.

    Args:
        share: as `recovered_share` says it.
        to_gain: the best constant's loss above that of the optimum.
    """
    shown = math.isfinite(share) and round(to_gain, 4) > 0  # the digits of the tables' gaps
    return f"{100 * share:.1f}" if shown else "–"
