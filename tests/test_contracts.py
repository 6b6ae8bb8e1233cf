"""Every case against every contract of its kind, and no public class without a case."""

import inspect

import pytest
from cases import CASES, ESTIMATORS, GAMMAS, HOSTS, LOSSES, PENALTIES, PREDICTORS, RISKS
from torch import nn

import dro_temp as dt
from dro_temp import testing

# A solver takes seconds to compile: it is compiled bare, and what stands around it around something else.
COMPILED_OTHERWISE = ("optimistic-kl", "optimal-of-entropy")


def _is_compiled_otherwise(param):
    case, contract = param.values
    return "compiles" in contract.__name__ and case.name in COMPILED_OTHERWISE


@pytest.mark.parametrize(
    ("case", "contract"), [p for p in testing.pair(CASES) if not _is_compiled_otherwise(p)]
)
def test_contract(case, contract, request):
    if "compiles" in contract.__name__:
        request.getfixturevalue("no_shape_checks")
    contract(case)


def _covered() -> set[type]:
    built = [case.build() for case in PREDICTORS + LOSSES + PENALTIES + RISKS + ESTIMATORS + GAMMAS + HOSTS]
    modules = [m for b in built for m in (b.modules() if isinstance(b, nn.Module) else [b])]
    return {type(m) for m in modules}


def test_every_public_concrete_class_has_a_case():
    contracts = (
        dt.TemperaturePredictor,
        dt.predictors.TempNetEncoder,
        dt.predictors.TempNetReadout,
        dt.RobustLoss,
        dt.interfaces.Penalty,
        dt.interfaces.SampleRisk,
        dt.HostAdapter,
        dt.interfaces.Estimator,
        dt.GammaSchedule,
    )
    public = {
        getattr(module, name)
        for module in (dt, dt.predictors, dt.losses, dt.risks, dt.hosts, dt.estimators)
        for name in module.__all__
    }
    concrete = {
        c for c in public if inspect.isclass(c) and issubclass(c, contracts) and not inspect.isabstract(c)
    }
    missing = sorted(c.__name__ for c in concrete - _covered())
    assert not missing, f"add a case to tests/cases.py for {missing}"
    assert len(concrete) >= 12
