"""A loss with the signature of open_clip's, for its own training loop, and the optimizer and schedules beside it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dro_temp._checks import check_count, first_wrong
from dro_temp._tensors import at_least_float32
from dro_temp.estimators.moving_average import Schedule
from dro_temp.hosts.pairs import pair_rows
from dro_temp.integrations._replicas import Replicas
from dro_temp.interfaces import HostAdapter, RobustLoss, Rows, TemperaturePredictor
from dro_temp.objective import Objective
from dro_temp.objective.views import PerView
from dro_temp.optim import CompositionalOptimizer

GROUP = "temperature"  # name of the optimizer's group
_ROUNDING = 0.02  # a unit vector in bfloat16 is not that far from length one
_OTHER_LOSSES = {"logits": "CoCa's caption loss", "dist_image_features": "distillation"}


class FeaturesHost(HostAdapter):
    """Image rows and text rows of vectors that another loop's model made."""

    views = mirrored = ("image", "text")

    def __init__(self) -> None:
        super().__init__()
        # An objective sees by its parameters whether a step was taken, and those of the model are not here.
        # This one belongs to the loop's optimizer, has a gradient of zero, and stays zero.
        self.step_marker = nn.Parameter(torch.zeros(1))

    def rows(self, image: Tensor, text: Tensor, index: Any = None) -> dict[str, Rows]:
        """Rows of both sides, of unit vectors [n d]."""
        image, text = at_least_float32(image), at_least_float32(text)
        return pair_rows(image, text, index, gathers=self.objective_trains)


class OpenClipLoss(nn.Module):
    r"""A predictor and a robust loss as the loss of open_clip's own training loop.

    It is called with the model's output, `loss(**model(images, texts), output_dict=True)`, and returns the loss that
    an `Objective` of the same parts returns. The model's own `logit_scale` and `logit_bias` are ignored; their gradient
    is zero. With several processes, columns are gathered from all of them with gradient, and the mean of the
    processes' losses is minimised, as with open_clip's `local_loss` and `gather_with_grad`.

    The loop wraps the model in DistributedDataParallel, not its loss, so this module synchronises its own parameters:
    they start as those of the first process, and their gradients are averaged over processes.

    Args:
        predictor: one for both views, "image" and "text", or one per view.
        loss: one for both views, or, if it remembers samples, one per view.
        accum_freq: the loop's: it calls the loss so many times before a step, each time with all rows of the window,
            of which one part has a gradient.
        **options: of `Objective`, for example check_finite=False under a float16 gradient scaler.

    Attributes:
        metrics: those of the objective for the last batch, such as "image/tau_mean"; not returned, since the loop adds
            up whatever a loss returns.

    Raises:
        TypeError: an argument of the wrong type; the output of a model that needs a loss of its own.
        ValueError: features that are not [n, d] or not of length one; missing sample numbers.
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
        self._hold(Objective(FeaturesHost(), predictor, loss, **options), accum_freq)

    @classmethod
    def from_recipe(
        cls, recipe: Callable[..., Objective], *, accum_freq: int = 1, **options: Any
    ) -> "OpenClipLoss":
        """The loss of a recipe, with all that the recipe composes.

        Args:
            recipe: takes a host and returns an objective over it, such as `recipes.tempnet`.
            accum_freq: the loop's, as above.
            **options: the recipe's other arguments; its width is that of open_clip's embeddings.

        Raises:
            TypeError: a recipe that puts another host around the one that it receives, such as `drrho`.

        Example:
            >>> import dro_temp as dt
            >>> from dro_temp.integrations.open_clip import OpenClipLoss
            >>> loss = OpenClipLoss.from_recipe(dt.recipes.isogclr, num_samples=1000, rho=2.0)
            >>> sorted(name for name, _ in loss.objective.predictors.named_children())
            ['image', 'text']
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        objective = recipe(FeaturesHost(), **options)
        if not isinstance(getattr(objective, "host", None), FeaturesHost):
            received = type(getattr(objective, "host", objective)).__name__
            raise TypeError(
                f"expected a recipe over the features that open_clip's model returns, received one with {received}. "
                "Use another recipe, or train its objective in a loop of your own: dro_temp.hosts.OpenCLIP(model)."
            )
        made._hold(objective, accum_freq)
        return made

    def _hold(self, objective: Objective, accum_freq: int) -> None:
        self.accum_freq = check_count("accum_freq", accum_freq)
        self.objective = objective
        self.metrics: dict[str, Tensor] = {}
        self._replicas = Replicas(self.accum_freq)
        self._backwards = 0  # since the memory was last committed
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
        training = self.training and torch.is_grad_enabled()
        for name in ignored.keys() & _OTHER_LOSSES:
            raise TypeError(
                f"expected what a plain CLIP returns, received {name!r} as well, which is for {_OTHER_LOSSES[name]}. "
                "Train without it, or write a loss that adds it to OpenClipLoss."
            )
        self._check_index(index, training)
        self._check_features(image_features=image_features, text_features=text_features)
        if training:
            self._replicas.synchronise(self.objective)
            self._check_committed()
        staged = {memory: len(memory.staged) for memory in self.objective.memory_modules() if memory.appends}
        output = self.objective(image_features, text_features, index)
        if self._backwards:  # a later pass over the window's rows, which have been proposed
            for memory, count in staged.items():
                memory.discard(count)
        self.metrics = output.metrics
        assert isinstance(self.objective.host, FeaturesHost)
        # DistributedDataParallel waits for a gradient of each parameter: these get zero.
        unused = (logit_scale, logit_bias, self.objective.host.step_marker)
        loss = output.loss + sum(0.0 * p.sum() for p in unused if p is not None and p.requires_grad)
        if training and loss.requires_grad:
            loss.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return {"contrastive_loss": loss} if output_dict else loss

    def optimizer(
        self, base: Optimizer, *, tau_lr: float | None = None, gamma: float | Schedule | None = None
    ) -> CompositionalOptimizer:
        """Extend the loop's optimizer: it trains this loss's parameters too, and commits its memory at each step.

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
            base.add_param_group({"params": ours, "weight_decay": 0.0, "name": GROUP, **rate})
        return CompositionalOptimizer(base, self.objective, gamma=gamma)

    def _count_backward(self, gradient: Tensor) -> None:
        self._backwards += 1

    def _check_committed(self) -> None:
        self._backwards = self._backwards if self.objective.pending else 0
        if self._backwards >= self.accum_freq:
            self.objective.discard()
            raise RuntimeError(
                f"expected a step that writes the memory after accum_freq={self.accum_freq} backwards, received "
                "another batch without one. Hand the loop loss.optimizer(optimizer) in place of optimizer; with "
                "--accum-freq, write OpenClipLoss(..., accum_freq=args.accum_freq)."
            )

    def _check_index(self, index: Any, training: bool) -> None:
        if index is None and training and self.objective.needs_index:
            raise ValueError(
                "expected sample numbers for a loss, predictor or risk that remembers samples, received index=None. "
                "Wrap the data set in NumberedTexts (a stream: .map(NumberedStream(table))) and the model in "
                "read_numbers(model), or use parts without memory."
            )

    def _check_features(self, **features: Tensor) -> None:
        for name, x in features.items():
            if not isinstance(x, Tensor) or x.dim() != 2:
                received = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"expected {name} [n, d], received {received}. Pool to one vector per input, and pass both images "
                    "and texts to the model."
                )
            if self._lengths_checked:
                continue
            length = torch.linalg.vector_norm(x.detach().float(), dim=1)
            wrong = (length - 1).abs() > _ROUNDING  # False of NaN, which other checks report
            if bool(wrong.any()):
                row, value = first_wrong(wrong, length)
                raise ValueError(
                    f"expected {name} of length one, received {value:.3g} in row {row}. Call the model itself, whose "
                    "forward normalises, or encode_image(images, normalize=True)."
                )
        self._lengths_checked = True  # a property of the model: one wait for the device is enough


class ModelGroups:
    """An optimizer without its temperature group, for open_clip's learning-rate schedules.

    These set one learning rate for all groups of the optimizer that they are given. Given this, they keep `tau_lr`.

    Args:
        optimizer: what `OpenClipLoss.optimizer` returned.

    Example:
        >>> import dro_temp as dt
        >>> from dro_temp.integrations.open_clip import OpenClipLoss
        >>> loss = OpenClipLoss(dt.LearnableTemperature(0.07), dt.KLRobustLoss(1.0))
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = loss.optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3), tau_lr=1e-4)
        >>> from open_clip_train.scheduler import const_lr
        >>> const_lr(ModelGroups(optimizer), 5e-4, 0, 100)(step=0)
        0.0005
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.0005, 0.0001]
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The model's groups, read anew: loading an optimizer's state replaces them."""
        return [group for group in self.optimizer.param_groups if group.get("name") != GROUP]
