"""The contract of a penalty: a term over all views of a batch together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import nn

from dro_temp._typing import Scalar
from dro_temp.interfaces.host import HostAdapter
from dro_temp.interfaces.rows import Rows


class Penalty(nn.Module, ABC):
    """Maps the rows of all views to one number that `Objective` adds to its loss.

    The number is a mean over the batch's rows, and counts as if it were the value of each of them: with a `count`,
    or in several processes, it is reduced as the losses of rows are. It includes the penalty's weights.
    """

    #: Its name in the metrics, `"penalty/{name}"`.
    name: ClassVar[str]

    def check_host(self, host: HostAdapter) -> None:
        """Raise ValueError if the penalty does not support this host's rows; `Objective` calls it once."""

    @abstractmethod
    def value(self, rows: Mapping[str, Rows]) -> Scalar:
        """The term, for the rows of every view."""

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, rows: Mapping[str, Rows]) -> Scalar:
        """The term, in float32 or better also under autocast."""
        device = next(iter(rows.values())).target.device
        with torch.autocast(device.type, enabled=False):
            return self.value(rows)
