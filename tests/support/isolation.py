"""What several tests set up, and leave as they found it."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@contextmanager
def imported_example(name: str) -> Iterator[ModuleType]:
    """An example's module, imported as `python examples/{name}.py` imports it."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


def forget_accelerate() -> None:
    """Leave nothing in accelerate, which remembers its first device and precision for the whole process."""
    state = sys.modules["accelerate.state"]
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
