"""The contract of a host adapter."""

import inspect
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar, final

import torch
from torch import nn

from dro_temp._checks import check_flag
from dro_temp.interfaces.rows import Rows


class HostAdapter(nn.Module, ABC):
    """Turns a batch into `{view: Rows}` by running the user's model.

    Args:
        frozen: True to keep the model's weights fixed: it runs in eval mode, without gradient, and
            `Objective.param_groups` leaves it out.
    """

    #: Names of the host's views, for example ("image", "text").
    views: ClassVar[tuple[str, ...]]
    #: Two views whose rows, in one process, are one square matrix read by rows and by columns, with the targets on
    #: its diagonal; None if there are none. The scores of such views are computed once for both.
    mirrored: ClassVar[tuple[str, str] | None] = None
    #: True if `rows` itself checks the values of its targets, weights and distributions (`Rows.check_values`): an
    #: `Objective` then does not check them again. Not inherited by a class that overrides `rows`.
    checks_values: ClassVar[bool] = False

    @property
    def takes_groups(self) -> bool:
        """Whether `rows` takes `group`, numbers of groups whose members are no negatives of each other."""
        return "group" in inspect.signature(self.rows).parameters

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "rows" in vars(cls) and "checks_values" not in vars(cls):
            cls.checks_values = False

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        check_flag("frozen", frozen)
        self.frozen = frozen
        self.objective_trains = True

    @abstractmethod
    def rows(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Rows of each view, in the order of `views`."""

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Run the model on a batch."""
        with torch.no_grad() if self.frozen else nullcontext():
            if torch.compiler.is_compiling():
                rows = self.rows(*args, **batch)
            else:
                try:
                    rows = self.rows(*args, **batch)
                except TypeError as error:
                    self._explain(args, batch, error)
                    raise
        self._check_rows(rows)
        # Scores that are a product to be computed would otherwise use trainable keys (a head's weight).
        return {view: r.detached() for view, r in rows.items()} if self.frozen else rows

    def _check_rows(self, rows: dict[str, Rows]) -> None:
        """Raise unless `rows` returned Rows for each view, in order."""
        name, fix = (
            type(self).__name__,
            "Make it return {view: Rows(...)} for each of `views`, in their order.",
        )
        received = list(rows) if isinstance(rows, dict) else type(rows).__name__
        if received != list(self.views):
            raise (ValueError if isinstance(rows, dict) else TypeError)(
                f"expected the views {list(self.views)}, in this order, in a dict from {name}.rows, received "
                f"{received}. {fix}"
            )
        for view, r in rows.items():
            if not isinstance(r, Rows):
                raise TypeError(
                    f"expected Rows of view {view!r} from {name}.rows, received {type(r).__name__}. {fix}"
                )

    def _explain(self, args: tuple[Any, ...], batch: dict[str, Any], error: TypeError) -> None:
        """Raise a clearer error if the arguments do not fit the signature of `rows`."""
        signature = inspect.signature(self.rows)
        try:
            signature.bind(*args, **batch)
        except TypeError as mismatch:
            takes = ", ".join(str(parameter).split(":")[0] for parameter in signature.parameters.values())
            raise TypeError(
                f"expected a batch for {type(self).__name__}, which takes ({takes}), received one that does not fit "
                f"({mismatch}). Pass these, by place or by name; count= and group= go to the objective."
            ) from error

    def train(self, mode: bool = True) -> "HostAdapter":
        """A frozen host stays in eval mode; `objective_trains` is the requested mode."""
        self.objective_trains = mode
        super().train(mode and not self.frozen)
        return self
