"""What the plots share: figures without global state, colours, and checks of what is drawn."""

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dro_temp._checks import check_integers, check_several
from dro_temp._optional import optional_module

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:  # matplotlib is imported where it draws
    Axes = Figure = Any

# Okabe and Ito's colours, in an order in which neighbours differ in brightness too: readable by colour-blind
# people, and in a grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def new_figure(width: float, height: float) -> Figure:
    """A figure outside of pyplot's global state; width and height in inches."""
    module = optional_module("matplotlib.figure", "which dro_temp.plotting draws with", extra="recipes")
    figure: Figure = module.Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    return figure


def tidy(axes: Axes, **properties: Any) -> None:
    """Set properties, such as labels, remove what is not data, and draw a light grid."""
    axes.set(**properties)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def check_not_empty(what: str, values: Sized) -> None:
    """Raise where there is nothing to draw."""
    if len(values) == 0:
        raise ValueError(f"expected at least one {what}, received none. Pass {{label: values}}.")


def finite(what: str, x: Tensor) -> Tensor:
    """The numbers as float64 on the CPU; raise where there are none, or one is not finite."""
    if not isinstance(x, Tensor):
        check_several(what, x, "Pass a tensor of them, or a list of numbers.")
    x = torch.as_tensor(x).detach().cpu().double().reshape(-1)
    if x.numel() == 0 or not bool(x.isfinite().all()):
        raise ValueError(
            f"expected finite {what}, received {x.numel()} with {int((~x.isfinite()).sum())} NaN or inf. Drop these."
        )
    return x


def per_row(name: str, x: Tensor, n: int) -> Tensor:
    """The numbers as int64 on the CPU; raise unless these are n whole numbers >= 0."""
    check_several(name, x, "Pass a tensor of one number per row.")
    x = torch.as_tensor(x).detach().cpu()
    check_integers(name, x)
    if x.shape != (n,) or int(x.min()) < 0:
        raise ValueError(
            f"expected {name} [{n}], one number >= 0 per temperature, received {list(x.shape)}"
            f"{'' if x.numel() == 0 else f' from {int(x.min())} on'}. Index temperatures and {name} alike."
        )
    return x.long()
