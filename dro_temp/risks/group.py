"""The worst group of samples."""

import math

import torch
from torch import Tensor

from dro_temp import _faults, distributed
from dro_temp import functional as F
from dro_temp._checks import check_count, check_number, check_positive
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.risks.standalone import StandaloneRisk
from dro_temp.state import Staged


class GroupWeights(Staged):
    """Log weights of groups: exponentiated gradient ascent, one step per optimizer step."""

    memory = ("log_q",)
    log_q: Tensor

    def __init__(self, num_groups: int, step_size: float) -> None:
        super().__init__()
        self.step_size = step_size
        self.remember("log_q", num_groups, -math.log(num_groups))

    def propose(self, sums: PerRow, mass: PerRow) -> PerRow:
        """Log weights as they would be after a batch with these weighted sums of losses, and sums of weights, by group.

        Staged in training with gradients enabled.
        """
        sums, mass = sums.detach(), mass.detach()
        if not (self.training and torch.is_grad_enabled()):
            return self.log_q.to(sums.dtype)
        sums, mass = (distributed.sum_over_processes(part) for part in (sums, mass))
        self.stage(sums[None], mass[None])
        return self._ascended(sums, mass)

    def _ascended(self, sums: PerRow, mass: PerRow) -> PerRow:
        mean = sums / mass.masked_fill(mass == 0, 1.0)
        # NaN and infinity would stay in the memory for good.
        usable = (mass > 0) & mean.isfinite()
        return (self.log_q.to(mean.dtype) + self.step_size * mean.masked_fill(~usable, 0.0)).log_softmax(0)

    def write(self, *parts: Tensor) -> None:
        """One ascent step on the means over all proposals, so that parts of a batch add up to the whole."""
        if parts:
            sums, mass = (part.sum(0) for part in parts)
            self.put("log_q", torch.arange(len(self.log_q)), self._ascended(sums, mass))


class GroupRisk(StandaloneRisk):
    r"""$\max_g L_g$, the worst group's mean, by ascent on weights of groups: $q_g \propto q_g e^{\eta L_g}$.

    In training the loss is $\sum_g q_g L_g$ with the weights after this batch; an optimizer step writes them
    (`CompositionalOptimizer`, or `commit()`). In evaluation it is the mean of the batch's worst group.

    A group that is missing from a batch keeps its weight, up to normalisation; the others share the loss in
    proportion to their weights. Sample batches that contain every group.

    Args:
        num_groups: groups are numbered from 0 to num_groups - 1.
        step_size: eta, > 0, in the inverse unit of the losses; 0.01 in the paper.

    Raises:
        TypeError: `num_groups` is not an int, or `step_size` not a number.
        ValueError: num_groups < 1, step_size <= 0, or samples without a group.
        IndexError: a group number outside the range.

    Example:
        >>> import torch, dro_temp as dt
        >>> risk = dt.GroupRisk(2, step_size=0.5)
        >>> losses = torch.tensor([1.0, 1.0, 1.0, 5.0], requires_grad=True)
        >>> group = torch.tensor([0, 0, 0, 1])
        >>> risk(losses, group=group).backward()
        >>> risk.commit()  # a step was taken
        >>> risk.q
        tensor([0.1192, 0.8808])
        >>> risk.eval()(losses.detach(), group=group)
        tensor(5.)

    Source: arXiv 1911.08731 (Sagawa and others), algorithm 1, with the weights kept as logarithms.
    """

    needs_groups = True

    def __init__(self, num_groups: int, *, step_size: float = 0.01) -> None:
        super().__init__()
        self.num_groups = check_count("num_groups", num_groups)
        check_number("step_size", step_size, 0.01)
        check_positive("step_size", step_size)
        self.adversary = GroupWeights(self.num_groups, float(step_size))

    @property
    def q(self) -> PerRow:
        """The committed weights of the groups."""
        return self.adversary.log_q.exp()

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The groups' means under their weights, or the worst of them."""
        assert group is not None
        group = self._check(group)
        sums, mass = (
            losses.new_zeros(self.num_groups).index_add(0, group, part) for part in (weight * losses, weight)
        )
        log_q = self.adversary.propose(sums, mass) if self.training else None
        present = mass > 0
        present = present | ~present.any()  # if no sample counts, the base drops the value
        means = sums / mass.masked_fill(mass == 0, 1.0)
        if log_q is None:
            return means.masked_fill(~present, -torch.inf).amax()
        return F.mean_under(log_q.masked_fill(~present, -torch.inf).softmax(0), means)

    def _check(self, group: Tensor) -> Tensor:
        """The group numbers, or raise where one is out of range; on a device later, and such a row joins group 0."""
        if torch.compiler.is_compiling():  # reading values would stop the graph
            return group
        wrong = (group < 0) | (group >= self.num_groups)
        if group.is_cuda or _faults.everywhere:
            _faults.check(torch.stack(group.aminmax()), lambda extremes: self._outside(*extremes))
            return group.masked_fill(wrong, 0)
        error = self._outside(*torch.stack(group.aminmax()).tolist())
        if error is not None:
            raise error
        return group

    def _outside(self, low: int, high: int) -> IndexError | None:
        if low >= 0 and high < self.num_groups:
            return None
        return IndexError(
            f"expected group numbers from 0 to {self.num_groups - 1}, received numbers from {low} to {high}. "
            f"Write GroupRisk({high + 1}), or number the groups from 0."
        )

    def extra_repr(self) -> str:
        """Number of groups, and the step size."""
        return f"{self.num_groups}, step_size={self.adversary.step_size}"
