"""The contract of a risk: from one loss per sample to one number."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from dro_temp._checks import (
    check_floats,
    check_integers,
    check_shape,
    check_tensor,
    extremes,
    values_can_be_read,
)
from dro_temp._loading import ShapeChecked
from dro_temp._tensors import at_least_float32
from dro_temp._typing import PerRow, RowIndex, Scalar


class SampleRisk(ShapeChecked, ABC):
    r"""Reduces the losses of a batch's samples to one number: their mean, or a worse or better case than that.

    A subclass implements `value`. The base checks arguments, keeps everything in float32 or better, and makes samples
    of weight zero inert. A risk with memory derives from `risks.StandaloneRisk`.
    """

    #: True if `value` needs to know which group each sample belongs to.
    needs_groups: bool = False
    #: True if the risk knows samples by their numbers, `index`. In an `Objective` it then takes the rows of all views.
    needs_index: bool = False

    @abstractmethod
    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The risk of losses, of which there is at least one.

        Args:
            losses: zero where a sample does not count.
            weight: >= 0, of any sum; the result is dropped where all of them are zero.
            group: each sample's group; 0 where a sample does not count. None unless `needs_groups`.
        """

    def value_of_samples(
        self, losses: PerRow, weight: PerRow, group: RowIndex | None, index: RowIndex, *, gathered: bool
    ) -> Scalar:
        """As `value`, where sample numbers are known; only for `needs_index`.

        Args:
            losses: see `value`.
            weight: see `value`.
            group: see `value`.
            index: each row's sample number; undefined where a row does not count.
            gathered: whether every process has the same rows, those of all.
        """
        raise NotImplementedError(f"{type(self).__name__} declares needs_index but does not read the index")

    def check_radius(self, rho: float, weight: PerRow) -> None:
        """Raise if training batches are too small for a radius; for risks whose ball may hold every distribution.

        Args:
            rho: the radius, or the largest that it will have.
            weight: >= 0, of this batch's samples.
        """

    def check_index(self, index: Tensor | None) -> None:
        """Raise unless these are sample numbers to train with; only for `needs_index`."""

    def forward(
        self,
        losses: Tensor,
        *,
        weight: Tensor | None = None,
        group: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Scalar:
        """The risk; exactly 0 where no sample counts.

        Args:
            losses: [n] one loss per sample, of any PyTorch loss with reduction="none".
            weight: [n] weight of each sample, >= 0; equal if None. A sample of weight zero has no influence and gets no
                gradient, whatever its loss.
            group: [n] number of each sample's group, for risks that need it.
            index: [n] number of each sample in the data set, for risks that need it.

        Raises:
            TypeError: losses that are not floating-point numbers.
            ValueError: a wrong shape, a negative weight, or no groups or numbers for a risk that needs them.
        """
        _check_weight(weight)
        if index is None and self.needs_index and self.training and torch.is_grad_enabled():
            self.check_index(index)
        return self.reduced(losses, weight=weight, group=group, index=index)

    @final
    def reduced(
        self,
        losses: Tensor,
        *,
        weight: Tensor | None = None,
        group: Tensor | None = None,
        index: Tensor | None = None,
        gathered: bool = False,
    ) -> Scalar:
        """As `forward`, for a caller that checks arguments and records proposals itself, as `Objective` does.

        Args:
            losses: see `forward`.
            weight: see `forward`.
            group: see `forward`.
            index: see `forward`.
            gathered: True if every process has the same rows, those of all.
        """
        _check_losses(losses)
        losses = at_least_float32(losses)
        weight = torch.ones_like(losses) if weight is None else weight
        check_shape("weight", weight, losses.shape, "Pass one weight per sample, or leave weight out.")
        group, index = self._checked_group(group, losses), self._checked_index(index, losses)
        weight = weight.detach().to(losses.dtype)
        if len(losses) == 0:  # one sample that does not count, so that subclasses need no special case
            losses, weight = torch.cat([losses, losses.new_zeros(1)]), weight.new_zeros(1)
            group, index = (None if x is None else x.new_zeros(1) for x in (group, index))
        inert = weight == 0
        group = None if group is None else group.masked_fill(inert, 0)
        with torch.autocast(losses.device.type, enabled=False):
            losses = losses.masked_fill(inert, 0.0)
            if index is None:
                value = self.value(losses, weight, group)
            else:
                value = self.value_of_samples(losses, weight, group, index, gathered=gathered)
            return value.masked_fill(~(weight > 0).any(), 0.0)

    def weights(
        self,
        losses: Tensor,
        *,
        weight: Tensor | None = None,
        group: Tensor | None = None,
        index: Tensor | None = None,
    ) -> PerRow:
        """Weight of each sample in the risk: the distribution over the batch whose mean loss has the risk's gradient.

        It is the gradient of the risk with respect to the losses, normalised (which changes it only if there is an
        estimator). Nothing is proposed; all zero if no sample counts. In several processes all must call it together,
        if the risk has memory and is in training mode. Arguments are those of `forward`; weights are >= 0, detached.
        """
        _check_losses(losses)
        _check_weight(weight)
        with torch.inference_mode(False), torch.enable_grad():
            x = at_least_float32(losses.detach().clone()).requires_grad_()
            weight, group, index = (None if y is None else y.clone() for y in (weight, group, index))
            gradient: Tensor
            (gradient,) = torch.autograd.grad(self.reduced(x, weight=weight, group=group, index=index), x)
        total = gradient.sum()
        return gradient / total.masked_fill(total == 0, 1.0)

    def _checked_group(self, group: Tensor | None, losses: Tensor) -> Tensor | None:
        name = type(self).__name__
        if not self.needs_groups:
            if group is not None:
                raise ValueError(
                    f"expected no groups for {name}, which reads none, received group=... Use GroupRisk(num_groups), "
                    "or leave group out."
                )
            return None
        if group is None:
            raise ValueError(
                f"expected the group of each sample for {name}, received none. Call risk(losses, group=group), or "
                "objective(..., group=group), with group[i] the number of sample i's group."
            )
        check_integers("group", group)
        check_shape("group", group, losses.shape, "Pass one group number per sample.")
        return group.long()

    def _checked_index(self, index: Tensor | None, losses: Tensor) -> Tensor | None:
        if index is None:
            return None
        if not self.needs_index:
            raise ValueError(
                f"expected no sample numbers for {type(self).__name__}, which reads none, received index=... Use "
                "RecordedRisk(risk, len(dataset)), or leave index out."
            )
        check_integers("index", index)
        check_shape("index", index, losses.shape, "Pass one sample number per loss.")
        return index.long()


def _check_losses(losses: Tensor) -> None:
    check_tensor("losses", losses)
    if losses.dim() != 1:
        raise ValueError(
            f"expected losses of shape [n], one per sample, received shape {list(losses.shape)}. Pass "
            'reduction="none" to the loss, and take the mean over what belongs to one sample, or flatten().'
        )
    check_floats("losses", losses)


def _check_weight(weight: Tensor | None) -> None:
    if weight is None:
        return
    check_tensor("weight", weight)
    if not values_can_be_read(weight):
        return
    low, high = extremes(weight)
    if low >= 0 and high < math.inf:
        return
    raise ValueError(
        f"expected finite weights >= 0, received one of {high if low >= 0 else low}. Pass 0 to leave a sample "
        "out; for the best case in place of the worst wrap the risk: OptimisticRisk(risk)."
    )
