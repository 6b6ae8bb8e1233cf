"""What reports of several ways to choose temperatures have in common."""

import dataclasses
from typing import Any, Generic, Protocol, TypeVar


class _Named(Protocol):
    @property
    def name(self) -> str: ...


S = TypeVar("S", bound=_Named)


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
