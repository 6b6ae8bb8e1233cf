"""An objective with the signature of open_clip's losses."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dro_temp._checks import check_count
from dro_temp.estimators.moving_average import Schedule
from dro_temp.integrations._replicas import Replicas, zero_gradient
from dro_temp.integrations.open_clip.features import (
    FeaturesHost,
    refuse_other_lengths,
    refuse_other_models,
    refuse_other_shapes,
)
from dro_temp.integrations.open_clip.groups import TEMPERATURE
from dro_temp.interfaces import RobustLoss, TemperaturePredictor
from dro_temp.objective import Objective
from dro_temp.objective.views import PerView
from dro_temp.optim import CompositionalOptimizer


class OpenClipLoss(nn.Module):
    r"""A predictor and a robust loss as the loss of open_clip's own training loop.

    It is called with what the model returns, `loss(**model(images, texts), output_dict=True)`, and returns what an
    `Objective` of the same parts would. The model's own `logit_scale` and `logit_bias` do not matter; their gradient
    is zero. In several processes the columns of all of them are gathered with gradient, and the mean of the
    processes' losses is what is minimised, as with open_clip's `local_loss` and `gather_with_grad`.

    The loop wraps the model in DistributedDataParallel, not its loss. So the loss sees to its own parameters: they
    start as those of the first process, and their gradients are averaged over processes.

    Args:
        predictor: one for both views, "image" and "text", or one per view.
        loss: one for both views, or, if it remembers samples, one per view.
        accum_freq: the loop's. It calls the loss so many times before a step, each time with all rows of the
            window, of which one part has a gradient.
        **options: of `Objective`, for example check_finite=False under a float16 gradient scaler.

    Attributes:
        metrics: what the objective would log of the last batch, such as "image/tau_mean"; the loop adds up what a
            loss returns, so that they cannot be returned.

    Raises:
        TypeError: parts of another kind; the output of a model that needs a loss of its own.
        ValueError: features that are not [n, d] or not of length one; no sample numbers where they are needed.
        RuntimeError: an optimizer that commits nothing.

    Example:
        >>> import dro_temp as dt
        >>> from dro_temp.integrations.open_clip import OpenClipLoss
        >>> model = torch.nn.Linear(6, 4)  # stands for open_clip's
        >>> views = ("image", "text")
        >>> tempnets = {view: dt.TempNet(4, tau_min=0.01, tau_max=0.2) for view in views}
        >>> robust = {view: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(100)) for view in views}
        >>> loss = OpenClipLoss(tempnets, robust)
        >>> optimizer = loss.optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3))
        >>> image, text = (torch.nn.functional.normalize(model(torch.randn(8, 6))) for view in views)
        >>> losses = loss(image, text, torch.tensor(14.3), output_dict=True, index=torch.arange(8))
        >>> losses["contrastive_loss"].backward()
        >>> optimizer.step()
        >>> int(robust["image"].estimator.log_u.isfinite().sum())
        8

    Source: the signature is that of open_clip 3's `ClipLoss`; arXiv 2404.04575.
    """

    def __init__(
        self,
        predictor: PerView[TemperaturePredictor],
        loss: PerView[RobustLoss],
        *,
        accum_freq: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.accum_freq = check_count("accum_freq", accum_freq)
        self.objective = Objective(FeaturesHost(), predictor, loss, **options)
        self.metrics: dict[str, Tensor] = {}
        self._replicas = Replicas(self.accum_freq)
        self._backwards = 0  # since the memory was last written
        self._lengths_checked = False

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | None = None,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        index: Any = None,
        **ignored: Any,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch, or `{"contrastive_loss": loss}`.

        Args:
            image_features: unit vectors [n d].
            text_features: unit vectors [n d].
            logit_scale: the model's own; not used.
            logit_bias: the model's own; not used.
            output_dict: True for a dict.
            index: [n] the samples' numbers, also as a list or an array.
            **ignored: whatever else the model returns, except what needs a loss of its own.
        """
        self._refuse(ignored, index, image_features=image_features, text_features=text_features)
        if self._learning:
            self._replicas.watch(self.objective)
            self._refuse_uncommitted()
        output = self.objective(image_features, text_features, index)
        self.metrics = output.metrics
        assert isinstance(self.objective.host, FeaturesHost)
        loss = output.loss + zero_gradient(logit_scale, logit_bias, self.objective.host.watched)
        if self._learning and loss.requires_grad:
            loss.register_hook(self._note_backward)  # type: ignore[no-untyped-call]
        return {"contrastive_loss": loss} if output_dict else loss

    def optimizer(
        self, base: Optimizer, *, tau_lr: float | None = None, gamma: float | Schedule | None = None
    ) -> CompositionalOptimizer:
        """The loop's optimizer: it trains this loss's parameters too, and writes the memory when it steps.

        Args:
            base: over the model's parameters; gets a further group "temperature", without weight decay.
            tau_lr: learning rate of that group; the base's default if None. open_clip's schedules set one
                learning rate for all groups: give them `ModelGroups(optimizer)`.
            gamma: as of `CompositionalOptimizer`.
        """
        known = {id(p) for group in base.param_groups for p in group["params"]}
        ours = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        if ours:
            rate = {} if tau_lr is None else {"lr": tau_lr}
            base.add_param_group({"params": ours, "weight_decay": 0.0, "name": TEMPERATURE, **rate})
        return CompositionalOptimizer(base, self.objective, gamma=gamma)

    @property
    def _learning(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _note_backward(self, gradient: Tensor) -> None:
        self._backwards += 1

    def _refuse_uncommitted(self) -> None:
        self._backwards = self._backwards if self.objective.pending else 0
        if self._backwards >= self.accum_freq:
            self.objective.discard()
            raise RuntimeError(
                f"expected a step that writes the memory after accum_freq={self.accum_freq} backwards, received "
                "another batch without one. Hand the loop loss.optimizer(optimizer) in place of optimizer; with "
                "--accum-freq, write OpenClipLoss(..., accum_freq=args.accum_freq)."
            )

    def _refuse(self, others: dict[str, Any], index: Any, **features: Tensor) -> None:
        refuse_other_models(others)
        if index is None and self._learning and self._needs_index:
            raise ValueError(
                "expected sample numbers for a loss or predictor that remembers samples, received index=None. Wrap "
                "the data set in NumberedTexts (a stream: .map(NumberedStream(table))) and the model in "
                "read_numbers(model), or use parts without memory."
            )
        for name, x in features.items():
            refuse_other_shapes(name, x)
        if not self._lengths_checked:  # a property of the model: one wait for the device is enough
            for name, x in features.items():
                refuse_other_lengths(name, x)
            self._lengths_checked = True

    @property
    def _needs_index(self) -> bool:
        predictors = [p for p in self.objective.predictors.values() if isinstance(p, TemperaturePredictor)]
        return any("index" in p.reads for p in predictors) or bool(self.objective.memory_modules())
