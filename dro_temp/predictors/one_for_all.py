"""One temperature for all rows: set by hand, or trained."""

import math

import torch
from torch import Tensor, nn

from dro_temp import functional as F
from dro_temp._checks import check_positive, check_within, values_can_be_read
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


class LearnableTemperature(TemperaturePredictor):
    r"""$\tau_i = \tau$, one trained number, stored as $\log\tau$.

    Under `InfoNCELoss` it is CLIP's `logit_scale` (the same gradient, since log tau = -logit_scale); under
    `KLRobustLoss` it follows dF/dtau and is the global scheme of FastCLIP v3 (RGCL-g).

    Args:
        tau_init: where it starts, in [tau_min, tau_max].
        tau_min: lower bound, > 0. CLIP's clamp of the scale at 100 is tau_min = 0.01.
        tau_max: upper bound.

    Raises:
        ValueError: bounds that do not form an interval, or a start outside it.

    Example:
        >>> import torch, dro_temp as dt
        >>> dt.LearnableTemperature(0.07, tau_min=0.01, tau_max=1.0)(torch.randn(2, 512))
        tensor([0.0700, 0.0700], grad_fn=<ViewBackward0>)

    Source: arXiv 2103.00020 (CLIP), section 2.5; arXiv 2407.01445 (FastCLIP).
    """

    reads = frozenset()

    def __init__(self, tau_init: float = 0.07, *, tau_min: float = 0.01, tau_max: float = 1.0) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        check_within("tau_init", tau_init, tau_min, tau_max, default=0.07)
        self.log_tau = nn.Parameter(torch.tensor([math.log(tau_init)]))  # [1]: FSDP shards no scalars

    def extra_repr(self) -> str:
        """The temperature, if reading it does not wait for a device, and the bounds."""
        readable = values_can_be_read(self.log_tau)
        value = f"tau={self(shape=torch.Size([])).item():.4f}, " if readable else ""
        return value + super().extra_repr()

    def raw(self, inputs: PredictorInputs) -> PerRow:
        """Log tau."""
        return self.log_tau.expand(inputs.n)

    def bound(self, raw: PerRow) -> PerRow:
        """Clipped in the log domain, with a gradient that leads back inside."""
        return F.exp_between(raw, self.tau_min, self.tau_max)
