"""Each row's own gradient, for predictors that update themselves from it."""

from torch import Tensor

from dro_temp.interfaces import Evaluated, Rows, TemperaturePredictor


def let_observe(predictor: TemperaturePredictor, rows: Rows, teacher: Evaluated) -> None:
    """Hand over each row's dF/dtau when backward comes by, if this predictor wants it.

    Args:
        predictor: whose temperatures they are.
        rows: their rows.
        teacher: the values that the temperatures learn from.
    """
    values, tau = teacher.values, teacher.tau
    if not (predictor.observes_gradient and values.requires_grad and tau.requires_grad):
        return
    assert rows.index is not None
    # d(loss)/d(values): reduction, accumulation and loss scale together
    upstream: dict[str, Tensor] = {}

    def observe(gradient: Tensor) -> None:
        scale = upstream["scale"]
        counted = scale != 0
        predictor.observe(rows.index[counted], gradient[counted] / scale[counted])  # type: ignore[index]

    values.register_hook(lambda gradient: upstream.__setitem__("scale", gradient))  # type: ignore[no-untyped-call]
    tau.register_hook(observe)  # type: ignore[no-untyped-call]
