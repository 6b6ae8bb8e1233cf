"""Who is compared, and what is tuned for each: three trials for everyone."""

import itertools
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """A way to choose temperatures.

    Args:
        name: in files and tables.
        study: "frozen" or "joint".
        inputs: what a TempNet reads; empty: a constant temperature.
        robust: the robust loss, or the likelihood.
        grid: what is tuned.
        fixed: what is not.
    """

    name: str
    study: str
    inputs: tuple[str, ...]
    robust: bool
    grid: dict[str, tuple[float, ...]]
    fixed: dict[str, float] = field(default_factory=dict)

    def trials(self) -> list[dict[str, float]]:
        """Options of each trial."""
        values = itertools.product(*self.grid.values())
        return [self.fixed | dict(zip(self.grid, chosen, strict=True)) for chosen in values]


_NETWORK: dict[str, tuple[float, ...]] = {"lr": (1e-3, 3e-3, 1e-2)}
_HOST: dict[str, tuple[float, ...]] = {"lr": (1e-3, 2e-3, 4e-3)}
_BOTH = ("hidden", "statistics")

METHODS = {
    m.name: m
    for m in (
        Method("logits", "frozen", ("logits",), True, _NETWORK),
        Method("statistics", "frozen", ("statistics",), True, _NETWORK),
        Method("hidden", "frozen", ("hidden",), True, _NETWORK),
        Method("hidden+statistics", "frozen", _BOTH, True, _NETWORK),
        Method("likelihood-logits", "frozen", ("logits",), False, _NETWORK),
        Method("likelihood-hidden+statistics", "frozen", _BOTH, False, _NETWORK),
        Method("cross-entropy", "joint", (), False, _HOST),
        # The control: temperatures that do not differ from token to token, as high as TempNet's are on average.
        Method("constant", "joint", (), True, _HOST, {"tau": 0.47, "rho": 3.2}),
        Method("tempnet-logits", "joint", ("logits",), True, _HOST, {"rho": 3.2}),
    )
}
