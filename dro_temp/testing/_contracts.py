"""The contracts of each kind of case."""

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
from dro_temp.testing._cases import (
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

#: The contracts of each kind of case, in the order in which they are run.
CONTRACTS: dict[type[Case], tuple[Callable[[Any], None], ...]] = {
    PredictorCase: _predictors.CONTRACTS,
    EncoderCase: _networks.ENCODER_CONTRACTS,
    ReadoutCase: _networks.READOUT_CONTRACTS,
    TransformCase: _transforms.CONTRACTS,
    LossCase: _losses.CONTRACTS,
    PenaltyCase: _penalties.CONTRACTS,
    RiskCase: _risks.CONTRACTS,
    HostCase: _hosts.CONTRACTS,
    EstimatorCase: _estimators.CONTRACTS,
    GammaCase: _estimators.GAMMA_CONTRACTS,
}


def pair(cases: Iterable[Case]) -> list[Any]:
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
