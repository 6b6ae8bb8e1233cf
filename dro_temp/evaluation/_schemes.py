"""What reports of several ways to choose temperatures have in common."""

import dataclasses
from typing import Any, Generic, Protocol, TypeVar


class _Scheme(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def tau_mean(self) -> float: ...
    @property
    def tau_quantiles(self) -> dict[float, float]: ...


S = TypeVar("S", bound=_Scheme)

#: Titles of `tau_cells`.
TAU_TITLES = ("τ mean", "τ 5 % / 50 % / 95 %")


def tau_cells(scheme: _Scheme) -> list[str]:
    """The temperatures of a scheme, for a table."""
    quantiles = (scheme.tau_quantiles[share] for share in (0.05, 0.5, 0.95))
    return [f"{scheme.tau_mean:.3f}", " / ".join(f"{tau:.3f}" for tau in quantiles)]


class Compared(Generic[S]):
    """A dataclass of schemes, to be read by their names or stored as plain numbers."""

    schemes: tuple[S, ...]

    def __getitem__(self, name: str) -> S:
        """A scheme by its name.

        Raises:
            KeyError: there is none of that name.
        """
        by_name = {scheme.name: scheme for scheme in self.schemes}
        if name not in by_name:
            raise KeyError(f"expected one of {', '.join(by_name)}, received {name!r}. Pass one of those.")
        return by_name[name]

    def asdict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, as JSON holds them."""
        plain: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]  # leaves are dataclasses
        return plain | {"schemes": list(plain["schemes"])}
