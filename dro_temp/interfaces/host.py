"""The contract of a host adapter."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import nn

from dro_temp.interfaces.rows import Rows


class HostAdapter(nn.Module, ABC):
    """Turns a batch into `{view: Rows}` by running the user's own model.

    Args:
        frozen: True to leave the model's weights alone: it runs in eval mode, without gradient, and
            `Objective.param_groups` leaves it out.
    """

    #: Names of the kinds of rows that the host makes, for example ("image", "text").
    views: ClassVar[tuple[str, ...]]
    #: Two views whose rows, in one process, are one square matrix read by rows and by columns, with the targets on
    #: its diagonal; None if there are none. The scores of such views are made once for both.
    mirrored: ClassVar[tuple[str, str] | None] = None

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        self.objective_trains = True

    @abstractmethod
    def rows(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Rows of each view, in the order of `views`."""

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Run the model on a batch."""
        if not self.frozen:
            return self.rows(*args, **batch)
        with torch.no_grad():
            rows = self.rows(*args, **batch)
        # Scores that are still a product to come would meet trainable keys (a head's weight) later.
        return {view: r.detached() for view, r in rows.items()}

    def train(self, mode: bool = True) -> "HostAdapter":
        """A frozen host stays in eval mode; `objective_trains` says what was asked for."""
        self.objective_trains = mode
        super().train(mode and not self.frozen)
        return self
