"""Every case against every contract of its kind, and no public class without a case."""

import inspect

import pytest
from cases import CASES

import dro_temp as dt
from dro_temp import testing


def _built(case):
    if isinstance(case, testing.ReadoutCase):
        return case.build(dt.predictors.HiddenEncoder(8))
    return case.build()


# A solver of forty steps and more takes seconds to compile: test_compile.py compiles it by itself, with six.
LONG_TO_COMPILE = ("optimal", "kl", "kl-zero", "optimistic-kl")


def _compiled_once():
    """The first case of each class that compiles soon."""
    first = {}
    for case in CASES:
        compiles = any("compiles" in contract.__name__ for contract in testing.CONTRACTS[type(case)])
        if compiles and case.name not in LONG_TO_COMPILE:
            first.setdefault(type(_built(case)), case.name)
    return set(first.values())


COMPILED = _compiled_once()


@pytest.mark.parametrize(
    ("case", "contract"),
    [
        parameter
        for parameter in testing.pair(CASES)
        if "compiles" not in parameter.values[1].__name__ or parameter.values[0].name in COMPILED
    ],
)
def test_contract(case, contract, request):
    if "compiles" in contract.__name__:
        request.getfixturevalue("no_shape_checks")
    contract(case)


KINDS = {
    dt.TemperaturePredictor: testing.PredictorCase,
    dt.predictors.TempNetEncoder: testing.EncoderCase,
    dt.predictors.TempNetReadout: testing.ReadoutCase,
    dt.functional.ScoreTransform: testing.TransformCase,
    dt.RobustLoss: testing.LossCase,
    dt.interfaces.Penalty: testing.PenaltyCase,
    dt.interfaces.SampleRisk: testing.RiskCase,
    dt.HostAdapter: testing.HostCase,
    dt.interfaces.Estimator: testing.EstimatorCase,
    dt.estimators.CosineGamma: testing.GammaCase,
}


def _public_classes():
    modules = (dt, dt.predictors, dt.functional, dt.losses, dt.risks, dt.hosts, dt.estimators)
    public = {getattr(module, name) for module in modules for name in module.__all__}
    return {c for c in public if inspect.isclass(c) and not inspect.isabstract(c)}


@pytest.mark.parametrize(("base", "kind"), KINDS.items(), ids=lambda x: x.__name__)
def test_every_public_concrete_class_has_a_case(base, kind):
    concrete = {c for c in _public_classes() if issubclass(c, base)}
    covered = {type(_built(case)) for case in CASES if type(case) is kind}
    missing = sorted(c.__name__ for c in concrete - covered)
    assert not missing, f"add a testing.{kind.__name__} to tests/cases.py for {missing}"
    assert concrete


def test_every_entropy_rule_has_a_predictor_case():
    predictors = [case.build() for case in CASES if isinstance(case, testing.PredictorCase)]
    covered = {type(p.rule) for p in predictors if isinstance(p, dt.EntropyTemperature)}
    assert covered == {c for c in _public_classes() if issubclass(c, dt.predictors.EntropyRule)}


def test_every_kind_of_case_is_demanded():
    assert set(KINDS.values()) == set(testing.CONTRACTS)
