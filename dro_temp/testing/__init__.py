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

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, get_args

from dro_temp._optional import optional_module

optional_module("hypothesis", "which draws the examples of the contracts", extra="testing")
# Assertions in the contracts then show the values that they compare, as those of a test module do.
_pytest = optional_module("pytest", "which runs the contracts", extra="testing")
_pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from dro_temp.testing import (  # noqa: E402  # after the registration
    _estimators,
    _hosts,
    _losses,
    _predictors,
    _risks,
)
from dro_temp.testing._cases import (  # noqa: E402
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

#: The contracts of each kind of case, in the order in which they are run: the public functions of these modules, each
#: by the kinds of case that it takes.
CONTRACTS: dict[type[Case[Any]], tuple[Callable[[Any], None], ...]] = {}
for _module in (_predictors, _losses, _risks, _hosts, _estimators):
    for _name, _contract in vars(_module).items():
        if inspect.isfunction(_contract) and _contract.__module__ == _module.__name__ and _name[0] != "_":
            _takes = inspect.signature(_contract).parameters["case"].annotation
            for _kind in get_args(_takes) or (_takes,):
                CONTRACTS[_kind] = (*CONTRACTS.get(_kind, ()), _contract)


def pair(cases: Iterable[Case[Any]]) -> list[Any]:
    """`(case, contract)` parameters for `pytest.mark.parametrize`, named case-contract.

    Args:
        cases: any mixture of cases.

    Example:
        >>> import dro_temp as dt
        >>> from dro_temp import testing
        >>> case = testing.GammaCase("cosine", lambda: dt.estimators.CosineGamma(0.2, epochs=10))
        >>> [parameter.id for parameter in testing.pair([case])]
        ['cosine-stays_in_range', 'cosine-never_rises', 'cosine-is_a_function_of_steps']
    """
    return [
        _pytest.param(case, contract, id=f"{case.name}-{contract.__name__}")
        for case in cases
        for contract in CONTRACTS[type(case)]
    ]
