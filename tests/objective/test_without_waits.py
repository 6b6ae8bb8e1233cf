"""A training step does not read what is on a device: here, where there is none, reading is refused.

`_faults.everywhere` lets the library treat tensors of the CPU as if they were elsewhere; inside `Refused` every
operation that would wait for a device fails.
"""

import contextlib
import copy
import threading
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dro_temp as dt
from dro_temp import _faults
from dro_temp.kernels import dispatch
from dro_temp.objective import reduction

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of Triton's interpreter

WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
}


class Refused(TorchDispatchMode):
    """Refuses operations whose result the host has to wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert name not in WAITS, f"{name} waits for the device"
        if name.startswith(("aten::index.", "aten::index_put", "aten::index")) and len(args) > 1:
            numbers = args[1] if isinstance(args[1], list | tuple) else ()
            assert not any(x is not None and x.dtype == torch.bool for x in numbers), f"{name} counts a mask"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())


def two_towers(recipe, **options):
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(torch.nn.Linear(6, 8), torch.nn.Linear(5, 8))
    return getattr(dt.recipes, recipe)(host, **options)


def fastclip():
    return two_towers("fastclip_v3", num_samples=20, steps_per_epoch=4, epochs=2, rho=1.0)


def classifier(**options):
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(8, width=8), tau_min=0.1, tau_max=4.0)
    return dt.Objective(host, tempnet, dt.KLRobustLoss(1.0), **copy.deepcopy(options))


def recorded():
    """As the recipe for noisy pairs, whose radius rises with steps that are counted on the host."""
    objective = two_towers("noisy_pairs", num_samples=20, steps=1)
    risk = dt.risks.RecordedRisk(dt.OptimisticRisk(dt.KLRisk(0.3)), 20)
    return dt.Objective(
        objective.host, dt.ConstantTemperature(0.1), dict(objective.losses.items()), risk=risk
    )


def siglip():
    objective = two_towers("siglip")
    for loss in objective.losses.values():
        loss.backend = "torch"  # streams, however few the pairs
    return objective


def streaming_classifier():
    """Rows that are left out by their labels, streamed, as tokens are."""
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
    encoder = [dt.predictors.HiddenEncoder(8, width=8), dt.predictors.StatisticsEncoder(width=8)]
    tempnet = dt.TempNet(dt.predictors.SumEncoder(encoder), tau_min=0.1, tau_max=4.0)
    return dt.Objective(host, tempnet, dt.KLRobustLoss(1.0, backend="torch"))


def streaming_pairs(backend):
    objective = two_towers("tempnet", num_samples=20, width=8, rho=1.0)
    for loss in objective.losses.values():
        loss.backend = backend
    return objective


def two_views():
    torch.manual_seed(0)
    return dt.recipes.sogclr(dt.hosts.TwoViews(torch.nn.Linear(6, 8)), num_samples=20)


#: One pair has no outcomes; the others have two or three.
FALSE_NEGATIVES = torch.tensor([3, 3, -1, 4, -2, 4])
BATCH = torch.randn(6, 6), torch.randn(6, 5)
INDEX = torch.tensor([3, 1, 4, 1, 5, 9])
CASES = {
    "tempnet": (lambda: two_towers("tempnet", num_samples=20, width=8, rho=1.0), BATCH, {"index": INDEX}),
    "sogclr": (lambda: two_towers("sogclr", num_samples=20), BATCH, {"index": INDEX}),
    "isogclr": (lambda: two_towers("isogclr", num_samples=20, rho=1.0), BATCH, {"index": INDEX}),
    "infonce": (lambda: two_towers("infonce"), BATCH, {}),
    "siglip": (siglip, BATCH, {}),
    "fastclip v3": (fastclip, BATCH, {"index": INDEX}),
    "queue": (
        lambda: two_towers("tempnet_queued", num_samples=20, width=8, queue=12, replay=4, rho=1.0),
        BATCH,
        {"index": INDEX},
    ),
    "queue with false negatives": (
        lambda: two_towers("tempnet_queued", num_samples=20, width=8, queue=12, replay=4, rho=1.0),
        BATCH,
        {"index": INDEX, "group": torch.tensor([3, 3, -1, 4, 5, 4])},
    ),
    "classifier": (classifier, (BATCH[0], INDEX), {}),
    "streamed labels": (streaming_classifier, (BATCH[0], torch.tensor([3, -100, 4, 1, -100, 9])), {}),
    "recorded risk": (recorded, BATCH, {"index": INDEX}),
    "false negatives": (
        partial(streaming_pairs, "reference"),
        BATCH,
        {"index": INDEX, "group": FALSE_NEGATIVES},
    ),
    "streamed false negatives": (
        partial(streaming_pairs, "torch"),
        BATCH,
        {"index": INDEX, "group": FALSE_NEGATIVES},
    ),
    "two views with false negatives": (
        two_views,
        (BATCH[0], BATCH[0] + 0.1),
        {"index": INDEX, "group": FALSE_NEGATIVES},
    ),
    "groups": (partial(classifier, risk=dt.GroupRisk(3)), (BATCH[0], INDEX), {"group": INDEX % 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_reads_nothing(case, elsewhere):
    make, args, batch = CASES[case]
    objective = make()
    optimizer = dt.CompositionalOptimizer(
        torch.optim.SGD(objective.param_groups(lr=0.01), foreach=False), objective
    )
    for _ in range(4):  # a queue is full in the third
        with Refused():
            loss = objective(*args, **batch).loss
        loss.backward()  # not inside: the engine itself reads nothing, and a mode sees the optimizer's own steps
        with Refused():
            optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_reads_nothing_is_the_same_step(case, monkeypatch):
    make, args, batch = CASES[case]
    results = []
    for everywhere in (False, True):
        monkeypatch.setattr(_faults, "everywhere", everywhere)
        objective = make().double()
        optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.1)), objective)
        inputs = [x.double() if x.is_floating_point() else x for x in args]
        for _ in range(4):
            optimizer.zero_grad()
            objective(*inputs, **batch).loss.backward()
            optimizer.step()
        results.append(objective.state_dict())
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-12, atol=1e-14, msg=name)


def test_a_step_raises_a_fault_with_its_numbers_and_writes_the_rest(elsewhere):
    objective = two_towers("sogclr", num_samples=6)
    before = {name: x.clone() for name, x in objective.state_dict().items()}
    objective(*BATCH, index=INDEX).loss.backward()
    with pytest.raises(IndexError, match="from 0 to 5, received numbers from 1 to 9"):
        objective.commit()
    tables = [name for name in before if name.endswith("log_u")]
    assert tables
    for name in tables:
        table = objective.state_dict()[name]
        assert table[[1, 3, 4, 5]].isfinite().all(), "samples of the table were written"
        assert torch.equal(table[[0, 2]], before[name][[0, 2]]), "no others were"


def test_checks_now_raises_where_the_fault_is(elsewhere):
    objective = two_towers("sogclr", num_samples=6)
    with dt.state.checks_now(), pytest.raises(IndexError, match="received numbers from 1 to 9"):
        objective(*BATCH, index=INDEX)


def test_what_is_not_finite_is_named(elsewhere):
    objective = two_towers("infonce")
    images = BATCH[0].clone()
    images[2, 0] = torch.nan
    objective(images, BATCH[1])
    with pytest.raises(FloatingPointError, match=r"features in view .image..*rows \[2\]"):
        objective(*BATCH)
    objective(*BATCH)  # told once


def test_a_label_that_is_no_class_is_named(elsewhere):
    objective = classifier()
    objective(BATCH[0], torch.tensor([0, 1, 2, 3, 4, 12]))
    with pytest.raises(ValueError, match=r"expected labels from 0 to 9.*received 12 in row 5"):
        objective(BATCH[0], INDEX)


@pytest.mark.parametrize("late", ["forward", "state_dict"])
def test_a_fault_is_raised_at_the_next_forward_or_when_a_state_is_saved(late, elsewhere):
    objective = two_towers("sogclr", num_samples=6)
    objective(*BATCH, index=INDEX)
    with pytest.raises(IndexError, match="received numbers from 1 to 9"):
        objective(*BATCH, index=INDEX % 6) if late == "forward" else objective.state_dict()


def test_a_wrong_group_is_named_at_the_next_call_of_a_risk_by_itself(elsewhere):
    risk = dt.GroupRisk(3)
    losses = torch.rand(4, requires_grad=True)
    risk(losses, group=torch.tensor([0, 1, 2, 3]))
    with pytest.raises(IndexError, match="group numbers from 0 to 2, received numbers from 0 to 3"):
        risk(losses, group=torch.tensor([0, 1, 2, 0]))


def test_faults_do_not_pile_up(elsewhere):
    def error(number):
        return ValueError("told") if number else None

    for _ in range(2 * _faults._MOST_PENDING):
        _faults.check(torch.tensor(0), error)
    assert len(_faults.pending.checks) <= _faults._MOST_PENDING
    _faults.check(torch.tensor(1), error)
    with pytest.raises(ValueError, match="told"):
        _faults.raise_faults(wait=True)
    assert not _faults.pending.checks


def test_each_thread_is_told_of_its_own_faults(elsewhere, monkeypatch):
    # The interpreter runs kernels of one thread at a time.
    monkeypatch.setattr(dispatch, "triton_interprets", lambda device: False)

    def run(images, told):
        objective = two_towers("infonce")
        try:
            for _ in range(3):
                objective(images, BATCH[1]).loss.backward()
        except FloatingPointError as error:
            told.append(error)

    broken, sound = [], []
    threads = [
        threading.Thread(target=run, args=(images, told))
        for images, told in ((BATCH[0] * torch.nan, broken), (BATCH[0], sound), (BATCH[0], sound))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(broken) == 1
    assert not sound


def streamed_classifier(reads_scores=False):
    objective = classifier(check_finite=False)
    if reads_scores:
        tempnet = dt.TempNet(dt.predictors.StatisticsEncoder(width=8), tau_min=0.1, tau_max=4.0)
        objective = dt.Objective(objective.host, tempnet, dt.KLRobustLoss(1.0), check_finite=False)
    objective.losses["class"].backend = "torch"
    return objective


@pytest.mark.parametrize("reads_scores", [False, True])
def test_streamed_rows_that_do_not_count_are_inert_and_not_counted(reads_scores, monkeypatch):
    labels = torch.tensor([3, -100, 4, 1, -100, 9])
    images = BATCH[0].clone()
    results = []
    for everywhere in (False, True):
        monkeypatch.setattr(_faults, "everywhere", everywhere)
        monkeypatch.setattr(_faults, "pending", _faults._Pending())
        objective = streamed_classifier(reads_scores)
        features = objective.host.model(images).detach()
        features[1] = torch.nan
        features.requires_grad_()
        head = objective.host.head
        rows = dt.hosts.labelled_rows(dt.LinearScores(features, head.weight, head.bias), labels, features)
        loss, tempnet = objective.losses["class"], objective.predictors["class"]
        with Refused() if everywhere else contextlib.nullcontext():
            output = loss.evaluate(rows, tempnet, statistics=("kl",), check=False)
        assert output.backend.name == "torch"
        output.values.sum().backward()
        gradients = [p.grad for p in (features, *head.parameters(), *tempnet.parameters())]
        results.append([output.values, output.tau, output.statistics["kl"], *gradients])
    for device, host in zip(results[1], results[0], strict=True):
        assert host is None if device is None else device.isfinite().all()
        if device is not None:
            torch.testing.assert_close(device, host, rtol=1e-5, atol=1e-6)


def test_a_fault_is_told_as_it_was_when_the_batch_changes_afterwards(elsewhere):
    objective, index = two_towers("sogclr", num_samples=6), INDEX.clone()
    objective(*BATCH, index=index)
    index.zero_()
    with pytest.raises(IndexError, match="received numbers from 1 to 9"):
        objective(*BATCH, index=index)


@pytest.mark.parametrize("update", [dt.predictors.GradientUpdate(lr=0.1), None])
def test_a_wrong_number_trains_no_entry_of_a_table(update, elsewhere):
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
    predictor = dt.IndividualTemperature(20, tau_min=0.1, tau_max=4.0, update=update)
    objective = dt.Objective(host, predictor, dt.KLRobustLoss(1.0))
    optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.1)), objective)
    objective(BATCH[0], INDEX, index=torch.tensor([0, 1, 500, 2, -3, 3])).loss.backward()
    with pytest.raises(IndexError, match="received numbers from -3 to 500"):
        optimizer.step()
    tau = objective.predictors["class"].tau.detach()
    assert (tau[:4] != tau[10]).all()
    assert (tau[4:] == tau[10]).all()


def test_a_lone_pair_that_is_not_finite_does_not_count(elsewhere):
    robust = two_towers("tempnet", num_samples=20, width=8, rho=1.0)
    robust(BATCH[0][:1] * torch.nan, BATCH[1][:1], index=INDEX[:1])
    robust(*BATCH, index=INDEX)


def test_float64_beyond_float32_is_finite(elsewhere):
    host = dt.hosts.Classifier(torch.nn.Identity(), torch.nn.Linear(6, 10))
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), dt.KLRobustLoss(1.0)).double()
    for scale in (1e100, 1.0):
        assert objective(BATCH[0].double() * scale, INDEX).loss.isfinite()


def test_a_loss_by_itself_tells_at_its_next_call(elsewhere):
    loss = dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(4))
    rows = dt.Rows(torch.randn(3, 5), torch.arange(3), index=torch.tensor([0, 1, 99]))
    loss(rows, 1.0)
    with pytest.raises(IndexError, match="received numbers from 0 to 99"):
        loss(rows, 1.0)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("reads_scores", [False, True])
@pytest.mark.parametrize("left_out", ["some", "all"])
def test_what_is_in_a_row_that_does_not_count_spreads_nowhere(left_out, reads_scores, backend, elsewhere):
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    torch.manual_seed(0)
    x, keys = torch.randn(6, 8), torch.randn(10, 8, requires_grad=True)
    weight = torch.zeros(6) if left_out == "all" else torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    target = torch.tensor([3, -100, 4, 1, 99, 9])
    encoder = (
        dt.predictors.StatisticsEncoder(width=8) if reads_scores else dt.predictors.HiddenEncoder(8, width=8)
    )
    tempnet = dt.TempNet(encoder, tau_min=0.1, tau_max=4.0)
    loss, parameters = dt.KLRobustLoss(1.0, backend=backend), [keys, *tempnet.parameters()]
    gradients = []
    for broken in (torch.nan, torch.inf, 0.0):
        queries = x.masked_fill(torch.isin(torch.arange(6), torch.tensor([1, 4]))[:, None], broken)
        queries.requires_grad_()
        rows = dt.Rows(dt.LinearScores(queries, keys), target.clamp(0, 9), queries, weight=weight)
        output = loss.evaluate(rows, tempnet, statistics=["entropy"])
        assert output.values.isfinite().all()
        assert (output.values[weight == 0] == 0).all()
        assert output.statistics["entropy"].isfinite().all()
        ours = torch.autograd.grad((output.values * weight).sum(), [queries, *parameters], allow_unused=True)
        assert (ours[0][weight == 0] == 0).all()
        gradients.append([x for x in ours if x is not None])
    counted = weight > 0
    rows = dt.Rows(dt.LinearScores(x[counted], keys), target[counted], x[counted])
    values = dt.KLRobustLoss(1.0, backend="reference").evaluate(rows, tempnet).values
    if left_out == "some":
        exact = torch.autograd.grad((values * weight[counted]).sum(), parameters, allow_unused=True)
        for ours in gradients:
            for a, b in zip(ours[1:], [x for x in exact if x is not None], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    else:
        assert all((x == 0).all() for ours in gradients for x in ours)


@pytest.mark.parametrize("large", [2, 2**21])
def test_large_tensors_are_reduced_before_they_are_looked_at(large, elsewhere, monkeypatch):
    monkeypatch.setattr(reduction, "_LARGE", large)
    objective = two_towers("infonce")
    images = BATCH[0].clone()
    images[4, 1] = torch.inf
    objective(images, BATCH[1])
    with pytest.raises(FloatingPointError, match=r"features in view 'image'.*rows \[4\]"):
        objective(*BATCH)


def test_a_ball_that_holds_every_distribution_is_told_later(elsewhere):
    with Refused():
        dt.KLRisk(3.0)(torch.randn(4))
    with pytest.raises(ValueError, match=r"rho < log n, received rho=3\.0 with batches of n=4"):
        _faults.raise_faults(wait=True)
