"""What every estimator of the inner mean must do."""

import copy

import torch
from torch import Tensor

from dro_temp.interfaces import Estimator
from dro_temp.state import Staged
from dro_temp.testing._cases import EstimatorCase


def _propose(estimator: Estimator, index: Tensor, log_g: Tensor) -> Tensor:
    proposed = estimator.propose(index, log_g, torch.ones_like(index, dtype=torch.bool))
    return log_g if proposed is None else proposed


def _commit(estimator: Estimator) -> None:
    if isinstance(estimator, Staged):
        estimator.commit()


def takes_the_first_visit_whole(case: EstimatorCase) -> None:
    """Before anything was seen, the estimate is the minibatch's own value, not a damped one."""
    index, log_g = torch.tensor([0, 3, 7]), torch.tensor([-5.0, 0.0, 200.0])
    torch.testing.assert_close(_propose(case.build(), index, log_g), log_g)


def settles_on_a_constant(case: EstimatorCase) -> None:
    """Fed the same value again and again, the estimate is that value."""
    estimator = case.build()
    index = torch.arange(5)
    for start in (0.0, 3.0):
        log_g = torch.full((5,), start)
        for _ in range(60):
            estimate = _propose(estimator, index, log_g)
            _commit(estimator)
    torch.testing.assert_close(estimate, log_g, rtol=1e-5, atol=1e-5)


def keeps_no_gradient(case: EstimatorCase) -> None:
    """What is held carries no gradient."""
    log_g = torch.zeros(3, requires_grad=True)
    proposed = case.build().propose(torch.arange(3), log_g, torch.ones(3, dtype=torch.bool))
    assert proposed is None or not proposed.requires_grad


def treats_duplicates_alike(case: EstimatorCase) -> None:
    """One sample several times in a batch: one result, whatever the order."""
    index, log_g = torch.tensor([4, 9, 4, 4]), torch.tensor([1.0, 2.0, 3.0, -0.5])
    results = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        estimator = case.build()
        _propose(estimator, index[order], log_g[order])
        _commit(estimator)
        results.append({name: value.clone() for name, value in estimator.state_dict().items()})
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def leaves_invalid_rows_out(case: EstimatorCase) -> None:
    """Rows that do not count leave no trace, even as duplicates of rows that do."""
    index, log_g = torch.tensor([1, 2, 2]), torch.tensor([1.0, 2.0, 50.0])
    with_junk, without = case.build(), case.build()
    with_junk.propose(index, log_g, torch.tensor([True, True, False]))
    _propose(without, index[:2], log_g[:2])
    for estimator in (with_junk, without):
        _commit(estimator)
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_junk.state_dict()[name]), name


def writes_only_on_commit(case: EstimatorCase) -> None:
    """Forward reads, step writes; a discarded proposal never happened."""
    estimator = case.build()
    index = torch.arange(4)
    _propose(estimator, index, torch.ones(4))
    _commit(estimator)
    before = copy.deepcopy(estimator.state_dict())
    _propose(estimator, index, torch.full((4,), 9.0))
    if isinstance(estimator, Staged):
        assert estimator.pending
        estimator.discard()
        assert not estimator.pending
    with torch.no_grad():
        _propose(estimator, index, torch.full((4,), 9.0))
    _propose(estimator.eval(), index, torch.full((4,), 9.0))
    assert not (isinstance(estimator, Staged) and estimator.pending)
    for name, value in estimator.state_dict().items():
        assert torch.equal(value, before[name]), name


def never_rounds_its_memory(case: EstimatorCase) -> None:
    """`model.bfloat16()` leaves the memory in float32."""
    estimator = case.build()
    _propose(estimator, torch.tensor([0]), torch.tensor([100.3]))
    _commit(estimator)
    before = copy.deepcopy(estimator.state_dict())
    estimator.bfloat16()
    for name, value in estimator.state_dict().items():
        assert torch.equal(value, before[name]), name


CONTRACTS = (
    takes_the_first_visit_whole,
    settles_on_a_constant,
    keeps_no_gradient,
    treats_duplicates_alike,
    leaves_invalid_rows_out,
    writes_only_on_commit,
    never_rounds_its_memory,
)
