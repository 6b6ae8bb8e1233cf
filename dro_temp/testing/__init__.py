"""The contract suite: properties that every part of a kind must have, in this library and in yours.

Add one case for a class of your own, and the properties are tested for it:

```python
import pytest
from dro_temp import testing

CASES = (testing.PredictorCase("mine", lambda: MyTemperature(8)),)

@pytest.mark.parametrize(("case", "contract"), testing.pair(CASES))
def test_contract(case, contract):
    contract(case)
```

Every case has a name and a function that makes a fresh part. It says what the class claims to be (`robust=`,
`excludes_target=`, the rows that a host should make of a batch), and the contracts hold it to that. Needs pytest and
Hypothesis: `pip install 'dro-temp[testing]'`.
"""

import pkgutil

from dro_temp._optional import optional_module

optional_module("hypothesis", "which draws the examples of the contracts", extra="testing")
# Assertions in the contracts then show the values that they compare, as those of a test module do.
optional_module("pytest", "which runs the contracts", extra="testing").register_assert_rewrite(
    *(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
)

from dro_temp.testing._cases import (  # noqa: E402  # after the registration
    Case,
    EncoderCase,
    EstimatorCase,
    GammaCase,
    HostCase,
    LossCase,
    PenaltyCase,
    PredictorCase,
    ReadoutCase,
    RiskCase,
    TransformCase,
)
from dro_temp.testing._contracts import CONTRACTS, pair  # noqa: E402

__all__ = [
    "CONTRACTS",
    "Case",
    "EncoderCase",
    "EstimatorCase",
    "GammaCase",
    "HostCase",
    "LossCase",
    "PenaltyCase",
    "PredictorCase",
    "ReadoutCase",
    "RiskCase",
    "TransformCase",
    "pair",
]
