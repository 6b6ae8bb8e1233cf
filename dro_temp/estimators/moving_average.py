"""Estimators with one log-number per sample, averaged over the minibatches that contain it."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dro_temp import _faults, distributed
from dro_temp import functional as F
from dro_temp._checks import check_count, check_extremes, check_flag, check_index, check_integers, check_real
from dro_temp._typing import PerRow, RowIndex, RowMask
from dro_temp.interfaces import Estimator
from dro_temp.kernels.dispatch import MOST_COMPARED, replaces_operations
from dro_temp.state import Staged

#: gamma from the number of optimizer steps (an int64 scalar on any device: nothing waits for it).
Schedule: TypeAlias = Callable[[Tensor], Tensor]


def checked_gamma(gamma: float) -> float:
    """Return gamma as a float, or raise unless it is a number in (0, 1]."""
    check_real(
        "gamma", gamma, "Pass 0.8, or a function of the number of steps such as CosineGamma(0.2, epochs=10)."
    )
    if not (0.0 < gamma <= 1.0):
        raise ValueError(
            f"expected gamma in (0, 1], received gamma={gamma}. Use 1.0 to forget the past (the plain minibatch), "
            "0.8 as the paper's contrastive runs do."
        )
    return float(gamma)


def table_kernels() -> Any:
    """The kernels, whose module imports Triton."""
    from dro_temp.kernels.backends.triton import log_table

    return log_table


class CosineGamma:
    r"""From 1 down to gamma over E epochs, then constant.

    $$\gamma_e = \gamma + \frac{1-\gamma}{2}\left(1+\cos\frac{\pi e}{E}\right)$$

    Early on the model moves fast and old estimates mislead; later they carry information. Any other function from the
    number of optimizer steps (an int64 scalar tensor) to gamma in (0, 1] serves as a schedule as well.

    Args:
        gamma: final value, in (0, 1].
        epochs: length of the descent E; FastCLIP takes half of the training.
        steps_per_epoch: optimizer steps in an epoch; gamma is constant inside an epoch.

    Raises:
        ValueError: gamma outside (0, 1], or a count below 1.

    Example:
        >>> schedule = CosineGamma(0.2, epochs=10, steps_per_epoch=100)
        >>> [round(float(schedule(torch.tensor(k))), 2) for k in (0, 500, 1000, 9000)]
        [1.0, 0.6, 0.2, 0.2]

    Source: arXiv 2407.01445 (FastCLIP), section 4.
    """

    def __init__(self, gamma: float, *, epochs: int, steps_per_epoch: int = 1) -> None:
        self.gamma = checked_gamma(gamma)
        self.epochs = check_count("epochs", epochs)
        self.steps_per_epoch = check_count("steps_per_epoch", steps_per_epoch)

    def __call__(self, steps: Tensor) -> Tensor:
        """Gamma after that many steps."""
        epoch = steps.div(self.steps_per_epoch, rounding_mode="floor").clamp(max=self.epochs)
        return self.gamma + (1.0 - self.gamma) * 0.5 * (
            1.0 + (epoch.double() * (math.pi / self.epochs)).cos()
        )


class LogTable(Estimator, Staged):
    r"""$\log u_i$ for every sample i of the data set, proposed by forward and written by an optimizer step.

    A subclass implements `averaged`, the update rule.
    """

    memory = ("log_u",)
    log_u: Tensor

    def __init__(self, num_samples: int, *, on_host: bool = False) -> None:
        super().__init__()
        check_flag("on_host", on_host)
        self.on_host = on_host
        self.num_samples = check_count("num_samples", num_samples)
        # -inf, not 0, means "never seen": 0 is the estimate of a row whose margins are all zero.
        self.remember("log_u", self.num_samples, -math.inf)
        self._proposed: tuple[Tensor, Tensor, int] | None = None

    @abstractmethod
    def averaged(self, log_u: PerRow, log_g: PerRow) -> PerRow:
        """Log of the new estimate, from the previous one (-inf: never seen) and the minibatch's."""

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
        # A check of tensors alone; an index of another kind is refused below.
        apart = self.log_u.device != log_g.device and not self.on_host
        if apart or (isinstance(index, Tensor) and index.device != log_g.device):
            self._refuse_other_devices(index, log_g.device)
        on_device = log_g.is_cuda or _faults.everywhere
        if on_device and learning and self._has_kernel(log_g) and distributed.world_size() == 1:
            # One launch in place of sixty; and what it returns of the numbers is all that the check needs.
            check_integers("index", index)
            index, updated, extremes = self._averages(index.long(), valid, log_g.detach())
            check_extremes(extremes, self.num_samples)
            self.stage(index, log_g)
            self._proposed = self.staged[-1][0], updated, self.log_u._version
            return updated
        index = check_index(index, self.num_samples)
        # Rows that do not count get a number that no sample has.
        index, log_g = index.masked_fill(~valid, -1), log_g.detach()
        if not learning:
            return self._updated(index, log_g)
        n, start = len(index), 0
        if distributed.world_size() > 1:
            index, start = distributed.gather_rows(index)
            log_g, _ = distributed.gather_rows(log_g)
        # NaN and infinity would stay in the memory for good.
        index = index.masked_fill(~log_g.isfinite(), -1)
        self.stage(index, log_g)
        updated = self._updated(index, log_g)
        # A step that commits this proposal alone writes just that.
        self._proposed = self.staged[-1][0], updated, self.log_u._version
        return updated[start : start + n]

    def _refuse_other_devices(self, index: Tensor, device: torch.device) -> None:
        if index.device != device:
            raise ValueError(
                f"expected the sample numbers on {device}, as the scores, received index on {index.device}. Pass "
                f"index=index.to({str(device)!r}); a table with on_host=True takes them there as well."
            )
        raise ValueError(
            f"expected the table of {type(self).__name__} on {device}, as the scores, received it on "
            f"{self.log_u.device}. Call objective.to({str(device)!r}), or build it with on_host=True to keep a large "
            "table in host memory."
        )

    def _updated(self, index: RowIndex, log_g: PerRow) -> PerRow:
        if (log_g.is_cuda or _faults.everywhere) and self._has_kernel(log_g):
            return self._averages(index, index >= 0, log_g)[1]
        log_u = self.read("log_u", index.clamp(min=0)).to(log_g.dtype)
        return self.averaged(log_u, F.combine_duplicates(index, log_g))

    def _has_kernel(self, log_g: PerRow) -> bool:
        """Whether one kernel computes an update on this device: never for a rule that it does not know."""
        return False

    def _averages(self, index: RowIndex, counts: RowMask, log_g: PerRow) -> tuple[Tensor, Tensor, Tensor]:
        raise AssertionError(f"{type(self).__name__} has no kernel")

    def write(self, *parts: Tensor) -> None:
        """Write the staged estimates."""
        if not parts:
            return
        index, log_g = parts
        proposed, self._proposed = self._proposed, None
        updated = None
        if proposed is not None and len(self.staged) == 1 and self.staged[0][0] is proposed[0]:
            _, proposal, version = proposed
            updated = proposal if self.log_u._version == version else None
        updated = self._updated(index, log_g) if updated is None else updated
        if (log_g.is_cuda or _faults.everywhere) and self._has_kernel(log_g):
            table_kernels().write(self.log_u, index, updated)
            torch.autograd.graph.increment_version(self.log_u)  # which a kernel of its own does not
        else:
            self.put("log_u", index, updated)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_proposed": None}

    def resize(
        self, num_samples: int, *, shrink: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Continue with a data set of another size: estimates stay, new samples count as never seen.

        Args:
            num_samples: the new size of the data set; earlier samples keep their numbers.
            shrink: True to allow a smaller size, which forgets the last samples.
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


class LogMovingAverage(LogTable):
    r"""$\log u_i \leftarrow \log\left((1-\gamma) u_i + \gamma g_i\right)$ for every sample i of the data set.

    Forward proposes and an optimizer step commits, so a second forward, validation, or a step that a gradient
    scaler skipped leaves the memory as it was. A sample seen several times before a commit (duplicates in a
    batch, accumulation, other processes) contributes its mean, whatever the order.

    Args:
        num_samples: size of the data set; sample numbers run from 0 to num_samples - 1.
        gamma: weight of the new minibatch, in (0, 1], or a function from the number of steps to it (`CosineGamma`).
        on_host: True to keep the table in host memory (pinned where CUDA is available) wherever the module goes:
            a step then moves its batch's entries only. 400 M samples are 1.6 GB; every process holds the table.

    Raises:
        ValueError: num_samples < 1 or gamma outside (0, 1].
        IndexError: a sample number outside the table.

    Example:
        >>> import torch, dro_temp as dt
        >>> estimator = dt.LogMovingAverage(100, gamma=0.5)
        >>> log_u = estimator.propose(torch.tensor([7]), torch.tensor([2.0]), torch.tensor([True]))
        >>> estimator.log_u[7].item()   # forward reads ...
        -inf
        >>> estimator.commit()          # ... step writes
        >>> estimator.log_u[7].item()
        2.0
        >>> dt.LogMovingAverage(100, on_host=True).to("meta").log_u.device   # "cuda" just the same
        device(type='cpu')

    Source: arXiv 2202.12387 (SogCLR), with the average kept in the log domain: no epsilon, clamp or running
    maximum, and 4 bytes per sample.
    """

    steps: Tensor

    def __init__(self, num_samples: int, *, gamma: float | Schedule = 0.8, on_host: bool = False) -> None:
        super().__init__(num_samples, on_host=on_host)
        self.gamma = gamma if callable(gamma) else checked_gamma(gamma)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def averaged(self, log_u: PerRow, log_g: PerRow) -> PerRow:
        """The average, with the current gamma."""
        if not callable(self.gamma):
            return F.log_average(log_u, log_g, self.steps.new_full((), self.gamma, dtype=torch.float64))
        gamma = self.gamma(self.steps)
        if not isinstance(gamma, Tensor):
            checked_gamma(gamma)
        elif gamma.is_cpu and not (
            torch.compiler.is_compiling() or _faults.everywhere
        ):  # costs no wait for a device
            checked_gamma(float(gamma))
        return F.log_average(log_u, log_g, gamma)

    def _has_kernel(self, log_g: PerRow) -> bool:
        few = 0 < len(log_g) <= MOST_COMPARED and log_g.dtype == self.log_u.dtype == torch.float32
        # A table that was loaded with assign=True may be a view.
        return few and self.log_u.is_contiguous() and replaces_operations(log_g, self.log_u)

    def _averages(self, index: RowIndex, counts: RowMask, log_g: PerRow) -> tuple[Tensor, Tensor, Tensor]:
        gamma = self.gamma(self.steps) if callable(self.gamma) else self.gamma
        if not isinstance(gamma, Tensor) or (gamma.is_cpu and not _faults.everywhere):
            gamma = checked_gamma(float(gamma))  # a number on the host: nothing waits for it
        numbers, average, extremes = table_kernels().averages(index, counts, log_g, self.log_u, gamma)
        return numbers, average, extremes

    def write(self, *parts: Tensor) -> None:
        """Write the staged averages and advance gamma."""
        super().write(*parts)
        if parts:
            self.steps += 1


class Scent(LogTable):
    r"""$u_i \leftarrow (1-\gamma_i) u_i + \gamma_i g_i$ with $\gamma_i = \sigma(\alpha + \log u_i)$.

    That is a proximal mirror-descent step on $\nu_i = \log u_i$ in the geometry of $e^{-\nu}$, in place of one gamma
    for all: with $y = e^{-\nu}$, $y' = (y + e^\alpha)/(1 + e^\alpha g)$. Forward proposes, an optimizer step commits,
    duplicates are averaged, as in `LogMovingAverage`, which it can replace anywhere.

    A row's gradient weighs $g/u' \le 1/\gamma_i$, and $\gamma_i$ may be tiny: a row with $\log u_i$ far below
    $-\alpha$ moves by at most about $\alpha + \log g$ a visit, and its gradient is huge until it has caught up. Choose
    alpha above $-\min_i \log u_i$; unit vectors at temperature tau have $\log u_i \ge -2/\tau$. The gradient clips the
    ratio to $10^9$: at tau = 0.01 a jump of the margins would make it infinite otherwise.

    Args:
        num_samples: size of the data set; sample numbers run from 0 to num_samples - 1.
        alpha: log of the step size, any finite number. Large alpha is gamma near 1.
        on_host: True to keep the table in host memory, see `LogMovingAverage`.

    Raises:
        TypeError: alpha is not a number.
        ValueError: num_samples < 1, or alpha not finite.
        IndexError: a sample number outside the table.

    Example:
        >>> import torch, dro_temp as dt
        >>> estimator, one = dt.Scent(100, alpha=0.0), torch.tensor([True])
        >>> for log_g in (0.0, 2.0):  # the first visit counts fully, the second with gamma = sigmoid(0)
        ...     _ = estimator.propose(torch.tensor([7]), torch.tensor([log_g]), one)
        ...     estimator.commit()
        >>> round(estimator.log_u[7].item(), 4), round(math.log(0.5 * 1 + 0.5 * math.exp(2)), 4)
        (1.4338, 1.4338)

    Source: arXiv 2602.02877 (SCENT), algorithm 1.
    """

    def __init__(self, num_samples: int, *, alpha: float = 10.0, on_host: bool = False) -> None:
        super().__init__(num_samples, on_host=on_host)
        check_real("alpha", alpha, "Pass alpha=10.0, say.")
        if not math.isfinite(alpha):
            raise ValueError(
                f"expected a finite alpha, received alpha={alpha}. Pass 10.0, as the paper's contrastive runs do: it "
                "is the log of a step size, of either sign. LogMovingAverage(n, gamma=1.0) forgets the past."
            )
        self.alpha = float(alpha)

    def averaged(self, log_u: PerRow, log_g: PerRow) -> PerRow:
        """The mirror-descent step."""
        return F.log_mirror_average(log_u, log_g, self.alpha)

    def extra_repr(self) -> str:
        """Size of the table, and alpha."""
        return f"{self.num_samples}, alpha={self.alpha}"
