"""Timings in this folder, studies that train models in `studies/`, and what both measured in `results/`.

Run them from the repository's root as modules, for example `python -m benchmarks.streaming_lm --help`. Some use models
and data of the examples, so that folder goes on the path.
"""

import sys
from pathlib import Path

_EXAMPLES = str(Path(__file__).resolve().parents[1] / "examples")
if _EXAMPLES not in sys.path:
    sys.path.append(_EXAMPLES)
