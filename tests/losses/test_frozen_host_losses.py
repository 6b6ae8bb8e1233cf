"""The losses of a frozen host, against their formulas over the whole matrix in float64, in every backend."""

import pytest
import torch

import dro_temp as dt
from dro_temp.functional import Scale, SoftCap

float64 = torch.float64
LOSSES = {
    "smoothing": lambda: dt.SelectiveSmoothingLoss(0.3),
    "self-weighted": lambda: dt.SelfWeightedLoss(0.25),
}
N, M, D = 11, 40, 5


def formula(name, scores, target, tau):
    """As the papers write them: argmax, label smoothing of 1, a detached probability."""
    possible = scores[0] > -1e20  # the same in all rows; autograd of -inf would be NaN
    scores, target = scores[:, possible], possible.cumsum(0)[target] - 1
    log_p = (scores / tau[:, None]).log_softmax(1)
    own = log_p.gather(1, target[:, None]).squeeze(1)
    right = scores.argmax(1) == target
    if name == "smoothing":
        return torch.where(right, -0.7 * own, -0.3 * log_p.mean(1))
    q = scores.softmax(1).gather(1, target[:, None]).squeeze(1).detach()
    return -torch.where(right, 0.25 * q, q) * own


def problem(dtype, *, transform=None, bias=False, pairs=False, seed=0):
    """Rows of which some are right, with one outcome that cannot happen if there is a bias."""
    g = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(n, D, generator=g, dtype=float64).to(dtype) for n in (N, M))
    offset = None
    if bias:
        offset = torch.randn(M, generator=g, dtype=float64).to(dtype)
        offset[3] = -torch.inf
    scores = dt.LinearScores(queries, keys, offset, transform)
    dense = scores.dense()
    target = torch.where(torch.arange(N) % 2 == 0, dense.argmax(1), torch.arange(N) + 5)
    return dt.Rows(scores, target, queries, target_in_support=not pairs)


class Net(dt.TemperaturePredictor):
    """Temperatures from statistics of the scores and the features."""

    reads = frozenset({"features", "statistics"})

    def __init__(self, dtype):
        super().__init__(tau_min=0.2, tau_max=3.0)
        self.layer = torch.nn.Linear(D + 2, 1, dtype=dtype)

    def raw(self, inputs):
        s = inputs.statistics
        return self.layer(torch.cat([inputs.features, torch.stack([s.entropy, s.std], 1)], 1)).squeeze(1)


def network(dtype):
    torch.manual_seed(1)
    return Net(dtype)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu", "triton"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "given",
    [{}, {"bias": True}, {"transform": SoftCap(2.0)}, {"transform": Scale(0.5)}, {"pairs": True}],
    ids=str,
)
def test_values_and_slopes_are_those_of_the_formula(backend, name, given):
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    dtype = torch.float32 if backend == "cpu" else float64
    tolerance = {"rtol": 2e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    rows, loss = problem(dtype, **given), LOSSES[name]()
    loss.backend = backend
    dense = problem(float64, **given).dense_scores
    upstream = torch.linspace(0.5, 2.0, N, dtype=float64)
    # Temperatures that are an input.
    tau = torch.linspace(0.3, 2.0, N, dtype=float64)
    ours, theirs = (tau.clone().to(t).requires_grad_() for t in (dtype, float64))
    values, expected = loss(rows, ours), formula(name, dense, rows.target, theirs)
    torch.testing.assert_close(values.double(), expected, **tolerance)
    ours, theirs = (
        torch.autograd.grad(upstream.to(x.dtype) @ x, t)[0].double()
        for x, t in ((values, ours), (expected, theirs))
    )
    torch.testing.assert_close(ours, theirs, **tolerance)
    # Temperatures that a network predicts inside the pass: the mean, whose gradient is formed with it, and a sum.
    for weight in (torch.full((N,), 1.0 / N, dtype=float64), upstream):
        net, exact = network(dtype), network(float64)
        exact.load_state_dict(net.state_dict())
        output = loss.evaluate(rows, net)
        plain = dt.Rows(dense, rows.target, rows.features.double(), target_in_support=rows.target_in_support)
        expected = formula(name, dense, rows.target, exact.predict(plain))
        torch.testing.assert_close(output.values.double(), expected, **tolerance)
        (weight.to(dtype) @ output.values).backward()
        (weight @ expected).backward()
        for a, b in zip(net.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(a.grad.double(), b.grad, **tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_a_pass_is_enough(name):
    """The network's gradient is formed while the scores are in memory: no second pass, no matrix."""
    from streams import recorded_passes

    rows, loss = problem(float64), LOSSES[name]()
    loss.backend = "torch"
    with recorded_passes() as passes:
        loss(rows, network(float64)).mean().backward()
    assert len(passes) == 1


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_do_not_count_are_left_out(name):
    rows = problem(float64)
    weight = torch.ones(N, dtype=float64)
    weight[[2, 5]] = 0.0
    weighted = dt.Rows(rows.scores, rows.target, rows.features, weight=weight)
    values = {}
    for backend in ("reference", "torch"):
        loss = LOSSES[name]()
        loss.backend = backend
        values[backend] = loss(weighted, 0.8)
    torch.testing.assert_close(values["torch"], values["reference"], rtol=1e-10, atol=0.0)
    assert (values["torch"][[2, 5]] == 0).all()


@pytest.mark.parametrize("loss", [dt.SelectiveSmoothingLoss(), dt.SelfWeightedLoss()], ids=repr)
def test_a_host_that_learns_is_refused_in_words(loss):
    scores = torch.randn(3, 4, requires_grad=True)
    rows = dt.Rows(scores, torch.arange(3))
    with pytest.raises(ValueError, match=r"frozen host, received scores that require gradient.*tau_loss"):
        loss(rows, 1.0)
    keys = torch.randn(4, 2, requires_grad=True)
    with pytest.raises(ValueError, match="scores that require gradient"):
        loss(dt.Rows(dt.LinearScores(torch.randn(3, 2), keys), torch.arange(3)), 1.0)
    with torch.no_grad():  # an evaluation teaches nothing
        assert loss(rows, 1.0).isfinite().all()
    assert loss(rows.detached(), 1.0).isfinite().all()
    one_hot = torch.nn.functional.one_hot(torch.arange(3), 4).float()
    with pytest.raises(ValueError, match="target distributions"):
        loss(dt.Rows(scores.detach(), torch.arange(3), target_distribution=one_hot), 1.0)


@pytest.mark.parametrize("build", [dt.SelectiveSmoothingLoss, dt.SelfWeightedLoss])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_are_from_nought_to_one(build, share):
    with pytest.raises(ValueError, match="between 0"):
        build(share)


def test_beside_a_host_that_learns_it_teaches_the_network_alone():
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 4), torch.nn.Linear(4, 10))
    net = dt.TempNet(4, tau_min=0.1, tau_max=4.0)
    batch = torch.randn(8, 6), torch.randint(10, (8,))
    dt.Objective(host, net, dt.LikelihoodLoss(), tau_loss=dt.SelectiveSmoothingLoss())(*batch).loss.backward()
    assert all(p.grad is not None for p in (*host.parameters(), *net.parameters()))
    with pytest.raises(ValueError, match="tau_loss"):
        dt.Objective(host, net, dt.SelfWeightedLoss())(*batch)


def test_a_network_tells_right_from_wrong_rows():
    """Where a feature says whether the label is on top, smoothing sends temperatures to both bounds."""
    g = torch.Generator().manual_seed(0)
    scores, right = 3 * torch.randn(200, 12, generator=g), torch.rand(200, generator=g) < 0.5
    target = torch.where(right, scores.argmax(1), scores.argmin(1))
    rows = dt.Rows(scores, target, right.float()[:, None].expand(-1, 4).contiguous())
    torch.manual_seed(0)
    net = dt.TempNet(4, tau_min=0.1, tau_max=4.0, tau_init=1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    loss = dt.SelectiveSmoothingLoss()
    for _ in range(60):
        optimizer.zero_grad()
        loss(rows, net).mean().backward()
        optimizer.step()
    tau = net.eval().predict(rows)
    assert tau[right].mean() < 0.7 < 2.0 < tau[~right].mean()


@pytest.mark.parametrize("low", [-1e4, -1e30, -float("inf")])
@pytest.mark.parametrize("make", [dt.SelectiveSmoothingLoss, dt.SelfWeightedLoss])
def test_a_label_that_cannot_happen_counts_nothing(make, low):
    tau = torch.tensor([0.5, 0.5], requires_grad=True)
    scores = torch.tensor([[2.0, 0.0, low], [2.0, 0.0, 1.0]])
    values = make()(dt.Rows(scores, torch.tensor([2, 1])), tau)
    (slope,) = torch.autograd.grad(values.sum(), tau)
    assert values[0] == 0.0
    assert slope[0] == 0.0
    assert values[1] > 0.0
    assert slope[1] != 0.0
