"""One temperature, set by hand."""

import torch
from torch import Tensor, nn

from dro_temp._checks import check_positive
from dro_temp._typing import PerRow
from dro_temp.interfaces import PredictorInputs, TemperaturePredictor


class ConstantTemperature(TemperaturePredictor):
    r"""$\tau_i = \tau$, without inputs or parameters.

    Args:
        tau: temperature, > 0, in units of the scores.

    Raises:
        ValueError: tau is not a finite positive number.

    Example:
        >>> import torch, dro_temp as dt
        >>> dt.ConstantTemperature(0.07)(torch.randn(3, 512))
        tensor([0.0700, 0.0700, 0.0700])
    """

    reads = frozenset()
    anchor: Tensor

    def __init__(self, tau: float) -> None:
        # The interval is one point, which the base class refuses.
        nn.Module.__init__(self)
        check_positive("tau", tau)
        self.tau_min = self.tau_max = float(tau)
        # Follows .to(), for the device and dtype of the result. The number itself is never rounded.
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def raw(self, inputs: PredictorInputs) -> PerRow:
        """The number itself."""
        dtype = torch.promote_types(self.anchor.dtype, torch.float32)
        return torch.full((inputs.n,), self.tau_min, dtype=dtype, device=self.anchor.device)

    def bound(self, raw: PerRow) -> PerRow:
        """Unchanged: the number is the bound."""
        return raw

    def extra_repr(self) -> str:
        """The number."""
        return f"tau={self.tau_min}"
