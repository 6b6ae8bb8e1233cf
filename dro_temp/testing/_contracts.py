"""The contracts of each kind of case."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from dro_temp.testing import (
    _estimators,
    _hosts,
    _losses,
    _networks,
    _penalties,
    _predictors,
    _risks,
    _transforms,
)
from dro_temp.testing._cases import Case

_MODULES = (_predictors, _networks, _transforms, _losses, _penalties, _risks, _hosts, _estimators)

#: The contracts of each kind of case, in the order in which they are run: the public functions of these modules, each
#: by the kind of case that it takes.
CONTRACTS: dict[type[Case[Any]], tuple[Callable[[Any], None], ...]] = {}
for _module in _MODULES:
    for _name, _contract in vars(_module).items():
        if inspect.isfunction(_contract) and _contract.__module__ == _module.__name__ and _name[0] != "_":
            _kind = inspect.signature(_contract).parameters["case"].annotation
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
        pytest.param(case, contract, id=f"{case.name}-{contract.__name__}")
        for case in cases
        for contract in CONTRACTS[type(case)]
    ]
