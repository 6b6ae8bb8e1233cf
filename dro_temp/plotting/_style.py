"""What the plots share: a figure of its own, colours, and checks of what is drawn."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dro_temp._checks import check_several

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, in an order in which neighbours differ in brightness too: readable by colour-blind
# people, and in a grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def new_figure(
    width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> "Figure":
    """A figure that no global state knows of."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "expected matplotlib, which dro_temp.plotting draws with, received no such package. "
            "Run: pip install 'dro-temp[recipes]'"
        ) from error
    return Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")


def tidy(axes: "Axes") -> None:
    """Take away what is not data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def refuse_empty(what: str, given: Any) -> None:
    """Raise where there is nothing to draw."""
    if not isinstance(given, Mapping | list | tuple):
        raise TypeError(
            f"expected at least one {what}, received {type(given).__name__} ({given!r}). Pass {{label: values}}."
        )
    if len(given) == 0:
        raise ValueError(f"expected at least one {what}, received none. Pass {{label: values}}.")


def finite(what: str, x: Tensor) -> Tensor:
    """The numbers as float64 on the CPU; raise where there are none, or one is not finite."""
    if not isinstance(x, Tensor):
        check_several(what, x, "Pass a tensor of them, or a list of numbers.")
    x = torch.as_tensor(x).detach().cpu().double().reshape(-1)
    if x.numel() == 0 or not bool(x.isfinite().all()):
        raise ValueError(
            f"expected finite {what}, at least one, received {x.numel()} of which "
            f"{int((~x.isfinite()).sum())} are not finite. Drop those rows first."
        )
    return x
