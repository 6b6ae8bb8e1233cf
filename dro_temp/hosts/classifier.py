"""Classifiers: any module that scores classes, and timm's."""

from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._autograd import RandomState
from dro_temp._checks import check_kind, check_within
from dro_temp._optional import optional_module
from dro_temp.hosts._modules import is_unmodified, shadow_copy
from dro_temp.hosts.labels import labelled_rows
from dro_temp.interfaces import HostAdapter, LinearScores, Rows


class Classifier(HostAdapter):
    r"""A module that returns logits, or a backbone and a head.

    With a head, predictors may read the backbone's output (`features`); with a plain module only the logits
    (`TempNet.for_logits`). Labels are class numbers, with -100 ignored, or class probabilities, as from Mixup and
    CutMix. For a loop that already has logits, use `Classifier(nn.Identity())`.

    Args:
        model: module with `model(inputs) -> [n classes]`, or the backbone, with `model(inputs) -> [n d]`.
        head: module from [n d] to [n classes], or None.
        label_smoothing: share of the target that is spread evenly over all classes while the objective trains, in
            [0, 1]. Labels that are probabilities are left unchanged.
        frozen: True to leave the model alone.

    Raises:
        ValueError: logits or features that are not two-dimensional, labels out of range, or probabilities that do
            not sum to one.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
        >>> host(torch.randn(8, 6), torch.randint(3, (8,)))["class"].support_size
        3
    """

    views = ("class",)
    checks_values = True

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module | None = None,
        *,
        label_smoothing: float = 0.0,
        frozen: bool = False,
    ) -> None:
        super().__init__(frozen=frozen)
        instead = "Pass a torch.nn.Module; nn.Identity() where inputs are logits."
        check_kind("model", model, nn.Module, instead)
        if head is not None:
            check_kind("head", head, nn.Module, "Pass the last layer, nn.Linear(d, classes), or None.")
        check_within("label_smoothing", label_smoothing, 0.0, 1.0)
        self.model: Any = model
        self.head = head
        self.label_smoothing = float(label_smoothing)

    def rows(self, inputs: Any, labels: Tensor, index: Any = None) -> dict[str, Rows]:
        """One row per input.

        Args:
            inputs: whatever the model takes.
            labels: class numbers [n], of which -100 is ignored; or probabilities [n classes].
            index: the samples' numbers in the data set, also as a list or an array.
        """
        scores, features = self._scores(inputs)
        smoothing = self.label_smoothing if self.objective_trains else 0.0
        return {"class": labelled_rows(scores, labels, features, index, smoothing=smoothing)}

    def _scores(self, inputs: Any) -> tuple[Tensor | LinearScores, Tensor | None]:
        """Scores [n classes], and features [n d] if there are any."""
        output = self.model(inputs)
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise ValueError(
                "expected the model to return a tensor [n, d] or [n, classes], received "
                f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}. "
                "Pool over space first, or wrap the model so that it does."
            )
        if self.head is None:
            return output, None
        if isinstance(self.head, nn.Linear) and is_unmodified(self.head, nn.Linear):
            return LinearScores(output, self.head.weight, self.head.bias), output
        return self.head(output), output


class Timm(Classifier):
    r"""A classifier of timm: one row per image, whose scores are the model's own logits.

    Predictors read the input of the classifier, `forward_head(..., pre_logits=True)`, of width `width`. Where the
    classifier is a linear layer on it (determined at the first batch), scores are `LinearScores`; any other head (two
    heads of distilled models, convolutions, normalised products, layers with hooks) gives a dense matrix. The two
    training outputs of distilled models are averaged, as timm does in evaluation.

    Compile the objective rather than the model: rows come from `forward_features` and `forward_head`, which
    `torch.compile(model)` does not compile.

    Args:
        model: from `timm.create_model(...)`, with `num_classes` above 0.
        label_smoothing: share of the target that is spread evenly over all classes while the objective trains, in
            [0, 1]. Labels that are distributions (timm's Mixup smooths its own) are left unchanged.
        frozen: True to leave the model alone.

    Raises:
        TypeError: no timm model, or one that returns features only.
        ValueError: a model without classes; a label out of range; soft labels that do not sum to one.

    Example:
        >>> import timm, torch, dro_temp as dt
        >>> host = dt.hosts.Timm(timm.create_model("test_resnet", num_classes=10))
        >>> tempnet = dt.TempNet(host.width, tau_min=0.1, tau_max=4.0)
        >>> objective = dt.Objective(host, tempnet, dt.KLRobustLoss(rho=1.0))
        >>> objective(torch.randn(4, 3, 64, 64), torch.tensor([0, 3, 9, 1])).tau["class"].shape
        torch.Size([4])
    """

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0, frozen: bool = False) -> None:
        missing = [x for x in ("forward_features", "forward_head", "get_classifier") if not hasattr(model, x)]
        if missing:
            raise TypeError(
                f"expected a classifier of timm, received {type(model).__name__}, which has no {missing[0]}. Create it "
                "without features_only=True; wrap any other module in dro_temp.hosts.Classifier."
            )
        if not getattr(model, "num_classes", 0):
            raise ValueError(
                f"expected a model that scores classes, received {type(model).__name__} with num_classes=0. Pass "
                "num_classes to create_model, call model.reset_classifier(10), or put a head on its features: "
                "dro_temp.hosts.Classifier(model, torch.nn.Linear(model.num_features, 10))."
            )
        super().__init__(model, label_smoothing=label_smoothing, frozen=frozen)
        layers = optional_module("timm.layers", "whose linear layer may be the model's head", extra="vision")
        # Another subclass, or a wrapped layer, may compute something else.
        self._plain = (nn.Linear, layers.Linear)
        # A classifier, and whether logits are its product; in a tuple, so that torch does not register it again.
        self._known: tuple[Any, bool] = (None, False)

    @property
    def width(self) -> int:
        """Number of features that predictors read."""
        return int(self.model.head_hidden_size)

    def _scores(self, inputs: Tensor) -> tuple[Tensor | LinearScores, Tensor]:
        if len(inputs) == 0:  # many models cannot reshape a batch of no images
            return inputs.new_zeros(0, self.model.num_classes), inputs.new_zeros(0, self.width)
        maps = self.model.forward_features(inputs)
        if self._head_is_linear(maps):
            hidden = _hidden(self.model, maps)
            classifier = self.model.get_classifier()
            return LinearScores(hidden, classifier.weight, classifier.bias), hidden
        output = self.model.forward_head(maps)
        scores = output if isinstance(output, Tensor) else torch.stack(tuple(output)).mean(0)
        with torch.no_grad():  # no gradient passes through what predictors read
            hidden = _hidden(self.model, maps)
        return scores, hidden

    def _head_is_linear(self, maps: Any) -> bool:
        classifier = self.model.get_classifier()
        if not is_unmodified(classifier, *self._plain):
            return False
        known, linear = self._known
        if known is not classifier and not torch.compiler.is_compiling():
            known, linear = self._known = classifier, _reads_hidden(self.model, maps)
        return known is classifier and linear


@torch.no_grad()
def _reads_hidden(model: Any, maps: Any) -> bool:
    """Whether the classifier takes exactly the features that predictors read, dropout included, and gives the logits.

    Its input is compared rather than its output: a new head that normalises first may be the identity, and a classifier
    may start with weights of zero. A copy runs, since other threads may run the model itself.
    """
    model = shadow_copy(model)
    # As in training, except for modules that keep running statistics (batch normalisation).
    for part in model.modules():
        part.training = not any(name.startswith("running_") for name in part._buffers)
    seen: list[tuple[Tensor, Tensor]] = []
    classifier = model.get_classifier()
    classifier.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    # The same dropout twice, and none of the user's random numbers taken.
    randomness = RandomState(classifier.weight.device)
    with randomness.restored():
        logits = model.forward_head(maps)
    with randomness.restored():
        hidden = _hidden(model, maps)
    return len(seen) == 1 and seen[0][1] is logits and bool(hidden.any()) and torch.equal(seen[0][0], hidden)


def _hidden(model: Any, maps: Any) -> Tensor:
    """What the classifier is given."""
    hidden: Tensor = model.forward_head(maps, pre_logits=True)
    return hidden.flatten(1)
