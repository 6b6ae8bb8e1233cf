"""The contract suite: properties that every predictor, loss, risk, host, estimator and schedule must have.

Add one case for a class of your own, and the properties are tested for it:

```python
import pytest
from dro_temp import testing

CASES = (testing.PredictorCase("mine", lambda: MyTemperature(8)),)

@pytest.mark.parametrize(("case", "contract"), testing.pair(CASES))
def test_contract(case, contract):
    contract(case)
```

Needs `hypothesis` and `pytest`: `pip install 'dro-temp[dev]'`.
"""

from dro_temp.testing._cases import (
    Case,
    EstimatorCase,
    GammaCase,
    HostCase,
    LossCase,
    PenaltyCase,
    PredictorCase,
    RiskCase,
)
from dro_temp.testing._pairing import CONTRACTS, pair

__all__ = [
    "CONTRACTS",
    "Case",
    "EstimatorCase",
    "GammaCase",
    "HostCase",
    "LossCase",
    "PenaltyCase",
    "PredictorCase",
    "RiskCase",
    "pair",
]
