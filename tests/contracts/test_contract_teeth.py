"""The suite fails for faulty parts, each by one mistake and with a readable message, and passes for the right ones."""

import faulty_estimators
import faulty_hosts
import faulty_losses
import faulty_predictors
import faulty_risks
import pytest
from torch.autograd.gradcheck import GradcheckError

from dro_temp import testing

MODULES = (faulty_losses, faulty_predictors, faulty_risks, faulty_estimators, faulty_hosts)
FAULTS = [fault for module in MODULES for fault in module.FAULTS]
RIGHT = [case for module in MODULES for case in module.RIGHT]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{type(fault.case).__name__}: {fault.name}")
def test_a_fault_fails_its_contract(fault):
    with pytest.raises(
        (AssertionError, AttributeError, GradcheckError, RuntimeError, ValueError),
        match=f"(?s){fault.message}",
    ):
        fault.check()


@pytest.mark.parametrize(
    ("case", "contract"),
    [p for p in testing.pair(RIGHT) if "compiles" not in p.id],  # slow, and no matter here
)
def test_the_right_one_passes(case, contract):
    contract(case)


def test_every_kind_has_a_right_case_and_faults():
    kinds = set(testing.CONTRACTS)
    assert {type(case) for case in RIGHT} == kinds
    assert {type(fault.case) for fault in FAULTS} == kinds
