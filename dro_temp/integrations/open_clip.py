"""open_clip's training loop: a loss with its signature, and sample numbers that travel through it.

A text of L tokens, [L], becomes [1, L + 1] with the sample's number at its end. A batch of such texts has three
dimensions, so it cannot be mistaken for one without.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from dro_temp._checks import check_count, first_wrong
from dro_temp._tensors import at_least_float32
from dro_temp.datasets import Indexed, SampleTable
from dro_temp.datasets.indexed import SampleKey
from dro_temp.estimators.moving_average import Schedule
from dro_temp.hosts._modules import add_hook
from dro_temp.hosts.pairs import pair_rows
from dro_temp.integrations._replicas import Replicas
from dro_temp.interfaces import HostAdapter, RobustLoss, Rows, TemperaturePredictor
from dro_temp.objective import Objective
from dro_temp.objective.views import PerView
from dro_temp.optim import CompositionalOptimizer

__all__ = ["ModelGroups", "NumberedStream", "NumberedTexts", "OpenClipLoss", "read_numbers"]

_GROUP = "temperature"  # name of the optimizer's group
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
        self.accum_freq = check_count("accum_freq", accum_freq)
        self.objective = Objective(FeaturesHost(), predictor, loss, **options)
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
        output = self.objective(image_features, text_features, index)
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
            base.add_param_group({"params": ours, "weight_decay": 0.0, "name": _GROUP, **rate})
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
        predictors: Any = self.objective.predictors.values()
        required = any("index" in p.reads for p in predictors) or self.objective.memory_modules()
        if index is None and training and required:
            raise ValueError(
                "expected sample numbers for a loss or predictor that remembers samples, received index=None. Wrap "
                "the data set in NumberedTexts (a stream: .map(NumberedStream(table))) and the model in "
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
        return [group for group in self.optimizer.param_groups if group.get("name") != _GROUP]


Model = TypeVar("Model", bound=nn.Module)


class NumberedTexts(Dataset[Any]):
    """A map-style data set of (image, tokens) whose texts carry the sample's place in the data set.

    Args:
        dataset: pairs of an image and its tokens [L], for example open_clip's `CsvDataset`.

    Raises:
        TypeError: an iterable-style data set, which `NumberedStream` is for; tokens that are not integers.
        ValueError: items that are not pairs; tokens of several dimensions.

    Example:
        >>> pairs = [("image 0", torch.tensor([5, 6])), ("image 1", torch.tensor([7, 8]))]
        >>> NumberedTexts(pairs)[1]
        ('image 1', tensor([[7, 8, 1]]))
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = Indexed(dataset)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """The image, and the tokens with the sample's number."""
        *pair, number = self.dataset[index]
        if len(pair) != 2:
            raise ValueError(
                f"expected items (image, tokens), received one of {len(pair)} parts. Wrap the data set so that "
                "it returns tuples of two, as open_clip's loop unpacks them."
            )
        return pair[0], with_number(pair[1], number)


class NumberedStream:
    """For `.map` of a webdataset pipeline: appends the number of each sample's key to its text.

    Args:
        table: maps keys to numbers.
        text: name of the tokens in a sample.
        key: maps a sample to its key. Keys that are unique within a shard only need the shard's name as well: write a
            function of your own.

    Raises:
        KeyError: a sample without tokens or key.

    Example:
        >>> from dro_temp.datasets import SampleTable
        >>> NumberedStream(SampleTable(100))({"__key__": "000001", "text": torch.tensor([5, 6])})
        {'__key__': '000001', 'text': tensor([[ 5,  6, 36]])}
    """

    def __init__(
        self,
        table: SampleTable,
        *,
        text: str = "text",
        key: Callable[[Mapping[str, Any]], SampleKey] = itemgetter("__key__"),
    ) -> None:
        self.table, self.text, self.key = table, text, key

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample, its tokens with the number at their end."""
        try:
            tokens, key = sample[self.text], self.key(sample)
        except KeyError as error:
            raise KeyError(
                f"expected samples with a key and with tokens under {self.text!r}, received one with "
                f"{', '.join(map(repr, sample))}. Put this stage after tokenising and before to_tuple, and pass "
                "text=... or key=... for other names."
            ) from error
        return {**sample, self.text: with_number(tokens, self.table(key))}


def read_numbers(model: Model) -> Model:
    """Make an open_clip model accept numbered texts: its output then has their numbers as `index`, for the loop's loss.

    It adds hooks to the model's forward and changes nothing else: parameters, state-dict keys and methods stay, so its
    checkpoints are open_clip's. Texts without numbers pass as before. Call it before the model is wrapped in
    DistributedDataParallel or compiled.

    Args:
        model: made with `output_dict=True`.

    Returns:
        The same model.

    Raises:
        TypeError: in its forward, if the model returns a tuple.

    Example:
        >>> import open_clip
        >>> vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
        >>> text = {"context_length": 2, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
        >>> model = read_numbers(open_clip.CLIP(24, vision, text, output_dict=True))
        >>> _, texts = NumberedTexts([("image", torch.tensor([5, 6]))])[0]
        >>> model(torch.randn(1, 3, 16, 16), texts[None])["index"]
        tensor([0])
    """
    add_hook(model.register_forward_pre_hook, _take_numbers)
    add_hook(model.register_forward_hook, _hand_numbers_on)
    return model


# The numbers pass from one hook to the other as an attribute of the texts: several threads may run the model at once.
_NUMBERS = "_dro_temp_index"


def _take_numbers(model: nn.Module, args: Any, kwargs: Any = None) -> Any:
    """Take the numbers off the texts before a model's forward."""
    texts = args[1] if len(args) > 1 else (kwargs or {}).get("text")
    if kwargs is None or not isinstance(texts, Tensor) or texts.dim() != 3:
        return None
    index, texts = texts[:, 0, -1], texts[:, 0, :-1]
    setattr(texts, _NUMBERS, index)
    if len(args) > 1:
        return (args[0], texts, *args[2:]), kwargs
    return args, {**kwargs, "text": texts}


def _hand_numbers_on(model: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
    """Add them to what the model returns."""
    if output is None:
        return None
    texts = args[1] if len(args) > 1 else kwargs.get("text")
    index = getattr(texts, _NUMBERS, None)
    if index is None:
        return output
    if not isinstance(output, dict):
        raise TypeError(
            f"expected a model that returns a dict, received {type(output).__name__} from "
            f"{type(model).__name__}. Make it with output_dict=True, or set model.output_dict = True."
        )
    return {**output, "index": index}


def with_number(tokens: Tensor, number: int) -> Tensor:
    """Tokens [L] with the sample's number at their end, int64 [1, L + 1]."""
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        what = str(tokens.dtype) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"expected tokens as integers, received {what}. Tokenise first: tokenizer(text)[0].")
    if tokens.dim() != 1:
        raise ValueError(
            f"expected the tokens of one text, [L], received {list(tokens.shape)}. Write tokenizer(text)[0], and "
            "number samples once, before they are batched."
        )
    return torch.cat([tokens.long(), tokens.new_tensor([number], dtype=torch.int64)])[None]
