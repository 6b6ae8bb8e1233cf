"""Who is compared, and what is tuned for each: three trials for everyone."""

import itertools
from dataclasses import dataclass, field

import dro_temp as dt


@dataclass(frozen=True)
class Method:
    """A way to choose temperatures.

    Args:
        name: in files and tables.
        study: "frozen", "joint", or "fine-tuned" (from a model trained with cross-entropy).
        inputs: what a TempNet reads; empty: a constant temperature.
        robust: the robust loss, or the likelihood.
        grid: what is tuned.
        fixed: what is not.
        readout: of the TempNet.
        width: of the TempNet.
        hold: share of the training in which temperatures are held where they start.
    """

    name: str
    study: str
    inputs: tuple[str, ...]
    robust: bool
    grid: dict[str, tuple[float, ...]]
    fixed: dict[str, float] = field(default_factory=dict)
    readout: type[dt.predictors.TempNetReadout] = dt.predictors.PooledReadout
    width: int = 256
    hold: float = 0.0

    def trials(self) -> list[dict[str, float]]:
        """Options of each trial."""
        values = itertools.product(*self.grid.values())
        return [self.fixed | dict(zip(self.grid, chosen, strict=True)) for chosen in values]


_NETWORK: dict[str, tuple[float, ...]] = {"lr": (1e-3, 3e-3, 1e-2)}
_HOST: dict[str, tuple[float, ...]] = {"lr": (1e-3, 2e-3, 4e-3)}
_BOTH = ("hidden", "statistics")

_FINE: dict[str, tuple[float, ...]] = {"lr": (1e-4, 3e-4, 1e-3)}
_RHO = {"rho": 3.2}
# The control: temperatures that do not differ from token to token, as high as TempNet's are on average.
_CONTROL = {"tau": 0.47, **_RHO}

METHODS = {
    m.name: m
    for m in (
        Method("logits", "frozen", ("logits",), True, _NETWORK),
        Method("statistics", "frozen", ("statistics",), True, _NETWORK),
        Method("hidden", "frozen", ("hidden",), True, _NETWORK),
        Method("hidden+statistics", "frozen", _BOTH, True, _NETWORK),
        Method("residual", "frozen", _BOTH, True, _NETWORK, readout=dt.predictors.ResidualReadout),
        Method(
            "residual-64", "frozen", _BOTH, True, _NETWORK, readout=dt.predictors.ResidualReadout, width=64
        ),
        Method("likelihood-logits", "frozen", ("logits",), False, _NETWORK),
        Method("likelihood-hidden+statistics", "frozen", _BOTH, False, _NETWORK),
        Method("cross-entropy", "joint", (), False, _HOST),
        Method("constant", "joint", (), True, _HOST, _CONTROL),
        Method("tempnet-logits", "joint", ("logits",), True, _HOST, _RHO),
        Method("tempnet-ours", "joint", _BOTH, True, _HOST, _RHO, dt.predictors.ResidualReadout),
        Method(
            "tempnet-ours-held", "joint", _BOTH, True, _HOST, _RHO, dt.predictors.ResidualReadout, hold=0.3
        ),
        Method("label-aware", "joint", _BOTH, False, _HOST, readout=dt.predictors.ResidualReadout),
        Method("likelihood-constant", "joint", (), False, _HOST, {"tau": 0.28}),
        Method("fine-tuned-cross-entropy", "fine-tuned", (), False, _FINE),
        Method("fine-tuned-constant", "fine-tuned", (), True, _FINE, _CONTROL),
        Method("fine-tuned-tempnet-logits", "fine-tuned", ("logits",), True, _FINE, _RHO),
        Method(
            "fine-tuned-tempnet-ours", "fine-tuned", _BOTH, True, _FINE, _RHO, dt.predictors.ResidualReadout
        ),
        Method(
            "fine-tuned-label-aware", "fine-tuned", _BOTH, False, _FINE, readout=dt.predictors.ResidualReadout
        ),
        Method(
            "fine-tuned-likelihood-constant", "fine-tuned", (), False, {"tau": (0.3, 0.5, 0.8)}, {"lr": 1e-3}
        ),
    )
}
