"""What every estimator of the inner mean, and every schedule of its gamma, must do."""

from itertools import pairwise

import torch
from torch import Tensor

from dro_temp.interfaces import Estimator
from dro_temp.state import Staged
from dro_temp.testing._asserts import assert_same, assert_unchanged, state_of
from dro_temp.testing._cases import EstimatorCase, GammaCase


def _propose(estimator: Estimator, index: Tensor, log_g: Tensor) -> Tensor:
    """The estimates of rows that all count."""
    proposed = estimator.propose(index, log_g, torch.ones_like(index, dtype=torch.bool))
    return log_g if proposed is None else proposed


def _commit(estimator: Estimator) -> None:
    if isinstance(estimator, Staged):
        estimator.commit()


def _after(case: EstimatorCase, *visits: tuple[list[int], list[float]]) -> Estimator:
    """A fresh estimator that was shown these (sample numbers, log_g), one after the other, before one commit."""
    estimator = case.build()
    for index, log_g in visits:
        _propose(estimator, torch.tensor(index), torch.tensor(log_g))
    _commit(estimator)
    return estimator


def _assert_same_memory(actual: Estimator, expected: Estimator, what: str, *, atol: float = 0.0) -> None:
    assert_same(dict(actual.state_dict()), dict(expected.state_dict()), f"memory of {what}", atol=atol)


def takes_the_first_visit_whole(case: EstimatorCase) -> None:
    """Before anything was seen, the estimate is the minibatch's own value, not a damped one."""
    index, log_g = torch.tensor([0, 3, 7]), torch.tensor([-5.0, 0.0, 200.0])
    assert_same(_propose(case.build(), index, log_g), log_g, "first estimates", rtol=1.3e-6, atol=1e-5)


def settles_on_a_constant(case: EstimatorCase) -> None:
    """Fed the same value again and again, the estimate is that value."""
    estimator = case.build()
    index = torch.arange(5)
    for start in (0.0, 3.0):
        log_g = torch.full((5,), start)
        for _ in range(60):
            estimate = _propose(estimator, index, log_g)
            _commit(estimator)
    assert_same(estimate, log_g, "estimates after 60 visits of one value", rtol=1e-5, atol=1e-5)


def moves_towards_what_it_sees(case: EstimatorCase) -> None:
    """A second visit's estimate lies between what was held and what is seen."""
    held, seen = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([2.0, -1.0, -2.0])
    estimate = _propose(_after(case, ([1, 4, 6], held.tolist())), torch.tensor([1, 4, 6]), seen)
    lower, upper = torch.minimum(held, seen) - 1e-5, torch.maximum(held, seen) + 1e-5
    between = ((estimate >= lower) & (estimate <= upper)).all()
    assert between, f"expected estimates between {held}, held, and {seen}, seen, received {estimate}"


def keeps_samples_apart(case: EstimatorCase) -> None:
    """A sample's estimate is what it would be if no other had been seen, whatever its place in the batch."""
    together = _after(case, ([3, 7, 0], [-1.0, 0.0, 2.0])).eval()
    index, log_g = torch.tensor([7, 0, 3]), torch.tensor([0.5, 0.5, 0.5])
    for sample, first in ((0, 2.0), (3, -1.0), (7, 0.0)):
        alone = _after(case, ([sample], [first])).eval()
        estimate = _propose(together, index, log_g)[index == sample]
        expected = _propose(alone, torch.tensor([sample]), log_g[:1])
        what = f"estimate of sample {sample} beside others, and alone"
        assert_same(estimate, expected, what, rtol=1e-6, atol=1e-6)


def declares_what_is_row_by_row(case: EstimatorCase) -> None:
    """With `row_by_row`, an estimate depends on its own row alone, also among rows of one sample."""
    estimator = case.build()
    if not estimator.row_by_row:
        return
    index, log_g = torch.tensor([4, 4, 9]), torch.tensor([1.0, -2.0, 0.0])
    together = _propose(estimator, index, log_g)
    for i in range(3):
        one = slice(i, i + 1)
        alone = _propose(case.build(), index[one], log_g[one])
        what = f"row_by_row=True: estimate of row {i}, alone and among others"
        assert_same(alone, together[one], what, rtol=1e-6)


def counts_the_population(case: EstimatorCase) -> None:
    """The mean that is estimated runs over no fewer outcomes than the batch shows."""
    for support in (1, 10, 10**6):
        population = case.build().population(support)
        assert isinstance(population, int)
        assert population >= support, f"expected at least {support} outcomes, received {population}"


def treats_duplicates_alike(case: EstimatorCase) -> None:
    """One sample several times in a batch: one result, whatever the order."""
    index, log_g = [4, 9, 4, 4], [1.0, 2.0, 3.0, -0.5]
    expected = _after(case, (index, log_g))
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        other = _after(case, ([index[i] for i in order], [log_g[i] for i in order]))
        _assert_same_memory(other, expected, f"rows in the order {order}")


def counts_a_duplicate_once(case: EstimatorCase) -> None:
    """A sample that is seen twice before a commit is seen once, at the mean of both; in one forward or in two."""
    mean = torch.tensor([1.0, 3.0]).exp().mean().log().item()
    expected = _after(case, ([4, 9], [mean, 2.0]))
    one_batch = _after(case, ([4, 9, 4], [1.0, 2.0, 3.0]))
    _assert_same_memory(one_batch, expected, "a sample twice in a batch, and once at the mean", atol=1e-5)
    two_batches = _after(case, ([4, 9], [1.0, 2.0]), ([4], [3.0]))
    _assert_same_memory(two_batches, expected, "a sample in two forwards before one commit", atol=1e-5)


def leaves_invalid_rows_out(case: EstimatorCase) -> None:
    """Rows that do not count leave no trace, even as duplicates of rows that do."""
    with_junk, valid = case.build(), torch.tensor([True, True, False])
    with_junk.propose(torch.tensor([1, 2, 2]), torch.tensor([1.0, 2.0, 50.0]), valid)
    _commit(with_junk)
    expected = _after(case, ([1, 2], [1.0, 2.0]))
    _assert_same_memory(with_junk, expected, "a batch with a row that does not count")


def keeps_no_gradient(case: EstimatorCase) -> None:
    """What is held carries no gradient."""
    log_g = torch.zeros(3, requires_grad=True)
    proposed = case.build().propose(torch.arange(3), log_g, torch.ones(3, dtype=torch.bool))
    assert proposed is None or not proposed.requires_grad, "expected estimates without gradient"


def writes_only_on_commit(case: EstimatorCase) -> None:
    """Forward reads, step writes; a discarded proposal never happened."""
    estimator = _after(case, ([0, 1, 2, 3], [1.0] * 4))
    before, index, log_g = state_of(estimator), torch.arange(4), torch.full((4,), 9.0)
    _propose(estimator, index, log_g)
    assert_unchanged(estimator, before, "expected a proposal to write nothing before its commit")
    if isinstance(estimator, Staged):
        assert estimator.pending, "expected a proposal in training mode to be staged"
        estimator.discard()
        assert not estimator.pending, "expected nothing pending after discard()"
    with torch.no_grad():
        _propose(estimator, index, log_g)
    _propose(estimator.eval(), index, log_g)
    pending = isinstance(estimator, Staged) and estimator.pending
    assert not pending, "expected nothing to be staged without gradients, or in eval mode"
    what = "expected a proposal that was discarded, or not staged, to write nothing"
    assert_unchanged(estimator, before, what)


def survives_saving(case: EstimatorCase) -> None:
    """A state dict carries everything that estimates depend on."""
    estimator, loaded = _after(case, ([1, 2], [1.0, -2.0])), case.build()
    loaded.load_state_dict(estimator.state_dict())
    index, log_g = torch.tensor([1, 2, 3]), torch.zeros(3)
    expected = _propose(estimator.eval(), index, log_g)
    assert_same(_propose(loaded.eval(), index, log_g), expected, "estimates after load_state_dict")


def never_rounds_its_memory(case: EstimatorCase) -> None:
    """`model.bfloat16()` leaves the memory in float32."""
    estimator = _after(case, ([0], [100.3]))
    before = state_of(estimator)
    assert_unchanged(estimator.bfloat16(), before, "expected memory that bfloat16() does not round")


def stays_in_range(case: GammaCase) -> None:
    """0 < gamma <= 1 at every step."""
    schedule = case.build()
    for steps in (0, 1, 7, 1000, 10**9):
        gamma = float(schedule(torch.tensor(steps)))
        assert 0.0 < gamma <= 1.0, f"expected gamma in (0, 1] after {steps} steps, received {gamma}"


def never_rises(case: GammaCase) -> None:
    """Memory grows longer with time, never shorter."""
    schedule = case.build()
    values = [float(schedule(torch.tensor(steps))) for steps in range(0, 2000, 7)]
    rising = [(a, b) for a, b in pairwise(values) if b > a + 1e-12]
    assert not rising, f"expected gamma never to rise, received {rising[0]} seven steps apart"


def is_a_function_of_steps(case: GammaCase) -> None:
    """The same step gives the same gamma, whatever was asked before: resuming is exact."""
    schedule = case.build()
    first, _, again = (float(schedule(torch.tensor(steps))) for steps in (13, 900, 13))
    assert again == first, f"expected gamma {first} after 13 steps, as before, received {again}"
