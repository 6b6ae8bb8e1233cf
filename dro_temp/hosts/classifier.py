"""Any module that scores classes."""

from typing import Any

from torch import Tensor, nn

from dro_temp._checks import check_kind, check_within
from dro_temp.hosts._modules import is_unmodified
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
