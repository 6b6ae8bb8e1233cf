"""What the estimators that hold one log-number per sample share."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp import functional as F
from dro_temp._checks import check_count, check_flag, check_index
from dro_temp._typing import PerRow, RowIndex, RowMask
from dro_temp.estimators._base import Estimator
from dro_temp.interfaces import Staged


class LogTable(Estimator, Staged):
    r"""$\log u_i$ for every sample i of the data set, proposed by forward and written by an optimizer step.

    A leaf writes `averaged`: the rule by which what was held and what was seen become what is held.

    Args:
        num_samples: size of the data set; sample numbers run from 0 to num_samples - 1.
        on_host: True to keep the table in host memory wherever the module goes.
    """

    memory = ("log_u",)
    log_u: Tensor

    def __init__(self, num_samples: int, *, on_host: bool = False) -> None:
        super().__init__()
        check_flag("on_host", on_host)
        self.on_host = on_host
        self.num_samples = check_count("num_samples", num_samples)
        # -inf, not 0, says "never seen": 0 is the legal estimate of a row whose margins are all zero.
        self.remember("log_u", self.num_samples, -math.inf)

    @abstractmethod
    def averaged(self, log_u: PerRow, log_g: PerRow) -> PerRow:
        """Log of the new estimate, from the one that was held (-inf: never seen) and the minibatch's."""

    def propose(self, index: RowIndex | None, log_g: PerRow, valid: RowMask) -> Tensor | None:
        """The estimate as it would be after this minibatch; staged in training with gradients enabled."""
        learning = self.training and torch.is_grad_enabled()
        if index is None and not learning:
            return None
        if index is None:
            raise ValueError(
                f"expected the sample numbers of the rows for {type(self).__name__}, received index=None. Call "
                "objective(..., index=index) with each sample's place in the data set "
                "(dro_temp.datasets.Indexed adds it), or use KLRobustLoss(rho) without an estimator. For held-out "
                "data, which has no such numbers, call objective.eval() first."
            )
        index = check_index(index, self.num_samples)
        # Rows that do not count keep out of everyone's way: they get a number that no sample has.
        index, log_g = index.masked_fill(~valid, -1), log_g.detach()
        start = 0
        if learning:
            n = len(index)
            index, start = distributed.gather_rows(index)
            log_g, _ = distributed.gather_rows(log_g)
            self.stage(index, log_g)
            return self._updated(index, log_g)[start : start + n]
        return self._updated(index, log_g)

    def _updated(self, index: RowIndex, log_g: PerRow) -> PerRow:
        held = self.read("log_u", index.clamp(min=0)).to(log_g.dtype)
        return self.averaged(held, F.combine_duplicates(index, log_g))

    def write(self, *parts: Tensor) -> None:
        """Write the staged estimates."""
        if not parts:
            return
        index, log_g = parts
        # What is not a number would stay in the memory for good.
        keep = (index >= 0) & log_g.isfinite()
        index, log_g = index[keep], log_g[keep]
        self.put("log_u", index, self._updated(index, log_g))

    def resize(
        self, num_samples: int, *, shrink: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Go on with a data set of another size: estimates stay, samples that came new were never seen.

        Args:
            num_samples: size of the data set as it is now; the samples that there were keep their numbers.
            shrink: True to let it be smaller, which forgets the last samples.
            optimizer: not used: no optimizer trains this table. `IndividualTemperature.resize` takes one.

        Raises:
            RuntimeError: proposals are pending: resize after `optimizer.step()`.
            ValueError: a smaller size without `shrink`, or one below 1.
        """
        num_samples = self.check_resize(num_samples, shrink=shrink, optimizer=optimizer)
        self.resize_tables(num_samples)
        self.num_samples = num_samples

    def population(self, batch_support: int) -> int:
        """All other samples of the data set, or the whole support if that is larger."""
        return max(batch_support, self.num_samples - 1)

    def extra_repr(self) -> str:
        """Size of the table."""
        return f"{self.num_samples}"
