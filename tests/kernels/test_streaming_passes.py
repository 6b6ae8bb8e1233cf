"""How many passes the streaming losses take, what a pass forms, and that what it formed is exact."""

import pytest
import torch
from streams import blocks_of, float64, linear_rows, recorded_passes

import dro_temp as dt
from dro_temp.kernels import byte_budget

TAU = torch.linspace(0.4, 1.5, 9, dtype=float64)


@pytest.fixture(autouse=True)
def _tiny_blocks():
    with blocks_of(2):
        yield


def _loss(backend):
    return dt.KLRobustLoss(0.5, backend=backend)


def _gradients(total, *, backend, repeat=1, **options):
    """Gradients of `total(values, tau)`, each time backward is called."""
    rows, leaves = linear_rows(**options)
    tau = TAU.clone().requires_grad_()
    loss = total(_loss(backend)(rows, tau), tau)
    return [torch.autograd.grad(loss, [*leaves, tau], retain_graph=True) for _ in range(repeat)]


PROPORTIONAL = {
    "mean": lambda values, tau: values.mean(),
    "sum": lambda values, tau: values.sum(),
    "scaled": lambda values, tau: 65536.0 * values.mean(),
    "accumulated": lambda values, tau: values.mean() / 7,
    "negative": lambda values, tau: -values.mean(),
}
OTHER = {
    "second loss": lambda values, tau: values.mean() + (values**2).sum(),
    "one row": lambda values, tau: values[3],
    "twice": lambda values, tau: values.mean() * values.sum(),
    "nothing": lambda values, tau: 0.0 * values.sum(),
    "infinite": lambda values, tau: torch.tensor([1.0] * 8 + [1e300], dtype=float64) @ values,
}


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_one_factor_for_all_rows_costs_one_pass(name):
    with recorded_passes() as seen:
        ours = _gradients(PROPORTIONAL[name], backend="torch")
    assert len(seen) == 1
    torch.testing.assert_close(ours, _gradients(PROPORTIONAL[name], backend="reference"))


@pytest.mark.parametrize("name", OTHER)
def test_anything_else_costs_a_second_pass_and_is_exact(name):
    with recorded_passes() as seen:
        ours = _gradients(OTHER[name], backend="torch")
    assert len(seen) <= 2 + (name == "nothing")
    torch.testing.assert_close(ours, _gradients(OTHER[name], backend="reference"), equal_nan=True)


def test_weights_of_rows_are_expected():
    weight = torch.linspace(0.1, 2.0, 9, dtype=float64)

    def weighted(values, tau):
        return (weight * values).sum() / weight.sum()

    with recorded_passes() as seen:
        ours = _gradients(weighted, backend="torch", weight=weight)
    assert len(seen) == 1
    torch.testing.assert_close(ours, _gradients(weighted, backend="reference", weight=weight))


@pytest.mark.parametrize("budget", [0, 2**30])
@pytest.mark.parametrize("total", [PROPORTIONAL["mean"], OTHER["second loss"]])
def test_backward_twice_is_exact_both_times(total, budget):
    (expected,) = _gradients(total, backend="reference")
    with byte_budget(budget):
        for ours in _gradients(total, backend="torch", repeat=3):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("penalised", [False, True])
def test_a_penalty_on_temperatures_that_are_predicted_in_the_pass(penalised):
    found = {}
    for backend in ("reference", "torch"):
        torch.manual_seed(0)
        tempnet = dt.TempNet.for_logits(11, tau_min=0.3, tau_max=2.0, width=4, dropout=0.0).double()
        rows, leaves = linear_rows()
        with recorded_passes() as seen:
            output = _loss(backend).evaluate(rows, tempnet)
            penalty = output.tau.square().sum() if penalised else 0.0
            grads = torch.autograd.grad(output.values.mean() + penalty, [*leaves, *tempnet.parameters()])
        found[backend] = (output.values, output.tau, grads)
    assert len(seen) == 1 + penalised
    torch.testing.assert_close(found["torch"], found["reference"])


@pytest.mark.parametrize("trained", ["", "queries", "keys", "bias", "queries keys", "tau", "keys tau"])
def test_only_gradients_that_are_wanted_are_formed(trained):
    found = {}
    for backend in ("reference", "torch"):
        rows, leaves = linear_rows()
        leaves = dict(zip(("queries", "keys", "bias"), leaves, strict=True)) | {"tau": TAU.clone()}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in trained.split())
        with recorded_passes() as seen:
            values = _loss(backend)(rows, leaves["tau"])
            wanted = [leaves[name] for name in trained.split()]
            grads = torch.autograd.grad(values.mean(), wanted) if wanted else ()
        found[backend] = (values, grads)
    torch.testing.assert_close(found["torch"], found["reference"])
    (only,) = seen
    for name in ("queries", "keys", "bias"):
        assert (getattr(only.found, name) is not None) == (name in trained.split()), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_forms_no_gradients(mode):
    tempnet = dt.TempNet.for_logits(11, tau_min=0.3, tau_max=2.0, width=4).double()
    rows, _ = linear_rows()
    with recorded_passes() as seen, mode():
        values = _loss("torch")(rows, tempnet)
    assert not values.requires_grad
    found = seen[0].found
    assert found.queries is found.keys is found.bias is None
    assert not found.parameters


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("reads", [False, True])
def test_rows_that_do_not_count_are_inert_and_cost_nothing(rubbish, reads):
    out = torch.tensor([1, 4, 8])
    kept = torch.tensor([0, 2, 3, 5, 6, 7])
    torch.manual_seed(0)
    tempnet = dt.TempNet.for_logits(11, tau_min=0.3, tau_max=2.0, width=4, dropout=0.0).double()
    rows, leaves = linear_rows()
    clean = _loss("reference")(rows, tempnet if reads else TAU)[kept]
    expected = torch.autograd.grad(clean.mean(), leaves)

    rows, leaves = linear_rows()
    with torch.no_grad():
        leaves[0][out] = rubbish
        rows.target[out] = -100
    weight = torch.ones(9).index_fill(0, out, 0.0)
    rows = dt.Rows(rows.scores, rows.target, rows.features, rows.index, weight=weight)
    tau = tempnet if reads else TAU.index_fill(0, out, rubbish)
    with recorded_passes() as seen:
        found = _loss("torch").evaluate(rows, tau, statistics=("entropy", "norm"))
        grads = torch.autograd.grad(found.values.sum() / 6, leaves)
    assert [one.rows for one in seen] == [6]
    assert bool((found.values[out] == 0).all())
    assert all(bool((x[out] == 0).all()) for x in found.statistics.values())
    torch.testing.assert_close(found.values[kept], clean)
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("reads", [False, True])
def test_no_row_counts(reads):
    rows, leaves = linear_rows(weight=torch.zeros(9))
    tempnet = dt.TempNet.for_logits(11, tau_min=0.3, tau_max=2.0, width=4).double()
    values = _loss("torch")(rows, tempnet if reads else TAU)
    assert bool((values == 0).all())
    for grad in torch.autograd.grad(values.sum(), leaves):
        assert bool((grad == 0).all())
