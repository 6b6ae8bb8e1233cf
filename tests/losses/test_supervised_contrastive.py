"""SupCon: the mean over a row's positives of minus its log-softmax, against loops in float64."""

import pytest
import torch
from processes import in_processes
from torch import nn

import dro_temp as dt
from dro_temp.functional import LEFT_OUT, SoftCap
from dro_temp.kernels.dispatch import cpu_runs_on

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of Triton's interpreter

TAU = 0.4
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def _needs(backend):
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    if backend == "cpu" and not cpu_runs_on(torch.device("cpu"), torch.float32):
        pytest.skip("no C compiler")


def by_equation_2(z, labels, tau):
    """Khosla et al.: of every view of every sample, over all other views."""
    n, values = len(z), []
    for i in range(n):
        others = [a for a in range(n) if a != i]
        denominator = torch.stack([z[i] @ z[a] / tau for a in others]).logsumexp(0)
        positives = [p for p in others if labels[p] == labels[i]]
        values.append(-sum(z[i] @ z[p] / tau - denominator for p in positives) / len(positives))
    return torch.stack(values)


def test_two_views_with_classes_are_supcon():
    torch.manual_seed(0)
    host = dt.hosts.TwoViews(nn.Linear(6, 4)).double()
    first, second = (torch.randn(len(LABELS), 6, dtype=torch.float64) for _ in range(2))
    output = dt.recipes.supcon(host, tau=TAU)(first, second, group=LABELS)
    z = torch.cat([nn.functional.normalize(host.encoder(x), dim=1) for x in (first, second)])
    expected = by_equation_2(z, LABELS.repeat(2), TAU)
    torch.testing.assert_close(torch.cat([output.values["first"], output.values["second"]]), expected)
    torch.testing.assert_close(output.loss, expected.mean())
    parameters = list(host.parameters())
    found = torch.autograd.grad(output.loss, parameters)
    torch.testing.assert_close(found, torch.autograd.grad(expected.mean(), parameters))


def test_without_groups_it_is_simclr():
    torch.manual_seed(0)
    host, x = dt.hosts.TwoViews(nn.Linear(6, 4)), torch.randn(5, 6)
    for group in (None, torch.full((5,), -1), torch.arange(5)):
        found = dt.recipes.supcon(host)(x, x.flip(1), group=group).loss
        torch.testing.assert_close(found, dt.recipes.simclr(host)(x, x.flip(1)).loss)


def by_hand(x, y, groups, other, taus, counts):
    """Values of pairs whose positives are the columns of the row's group, and its partner."""
    values = []
    for i in range(len(x)):
        columns = [j for j in range(len(y)) if j == i or LEFT_OUT not in (int(groups[i]), int(other[j]))]
        log_sum = torch.stack([x[i] @ y[j] / taus[i] for j in columns]).logsumexp(0)
        positives = [j for j in columns if j == i or (groups[i] == other[j] and groups[i] >= 0)]
        value = -sum(x[i] @ y[p] / taus[i] - log_sum for p in positives) / len(positives)
        values.append(value * counts[i])
    return torch.stack(values)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu", "triton"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("left_out", [False, True])
def test_pairs(backend, apart, mirrored, left_out):
    _needs(backend)
    images = torch.tensor([0, 1, 0, -1, LEFT_OUT if left_out else 2, 1, -1])
    texts = images.roll(1) if apart else images
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if backend in ("cpu", "triton") else torch.float64
    n = len(images)
    leaves = [torch.randn(n, 3, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]
    leaves += [(0.5 + torch.rand(n, generator=generator, dtype=dtype)).requires_grad_() for _ in range(2)]
    x, y, *taus = leaves
    rows = tuple(dt.hosts.pair_rows(x, y, group=(images, texts) if apart else images).values())
    losses = [dt.SupervisedContrastiveLoss(backend=backend) for _ in range(2)]
    outputs = losses[0].evaluate_mirrored(losses[1], rows, tuple(taus)) if mirrored else None
    assert (outputs is not None) == (mirrored and backend != "reference")
    if outputs is None:
        outputs = [loss.evaluate(r, tau) for loss, r, tau in zip(losses, rows, taus, strict=True)]
    assert {output.backend.name for output in outputs} == {backend}
    found = [*(o.values for o in outputs), *torch.autograd.grad(sum(o.values.sum() for o in outputs), leaves)]

    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x, y, *taus = leaves
    counts = [r.valid.double() for r in rows]
    values = [
        by_hand(x, y, images, texts, taus[0], counts[0]),
        by_hand(y, x, texts, images, taus[1], counts[1]),
    ]
    expected = [*values, *torch.autograd.grad(sum(v.sum() for v in values), leaves)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5) if dtype == torch.float32 else (
            torch.testing.assert_close(a, b)
        )


@pytest.mark.parametrize("head", [{"bias": True}, {"transform": SoftCap(2.0)}])
def test_a_bias_streams_and_a_transform_takes_the_matrix(head):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (5, 8))
    bias = (
        torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_() if "bias" in head else None
    )
    rows = dt.Rows(
        dt.LinearScores(q, k, bias, head.get("transform")),
        torch.arange(5),
        target_in_support=False,
        weight=torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]),
        group=torch.tensor([0, 1, 0, -1, 1]),
        column_group=torch.tensor([0, 1, 0, -1, 1, 0, 2, LEFT_OUT]),
    )
    leaves, found = [leaf for leaf in (q, k, bias) if leaf is not None], {}
    for backend in ("reference", "torch"):
        output = dt.SupervisedContrastiveLoss(backend=backend).evaluate(rows, TAU)
        found[backend] = [output.values, *torch.autograd.grad(output.values.sum(), leaves)]
    assert output.backend.name == ("torch" if bias is not None else "reference")
    torch.testing.assert_close(found["torch"], found["reference"])


def test_the_mean_of_positives_needs_no_matrix():
    """It is the mean key of each group that queries are multiplied by."""
    q, k = torch.randn(1000, 2, dtype=torch.float64), torch.randn(50_000, 2, dtype=torch.float64)
    group = torch.arange(1000) % 7
    rows = dt.Rows(
        dt.LinearScores(q, k),
        torch.arange(1000),
        target_in_support=False,
        group=group,
        column_group=torch.arange(50_000) % 7,
    )
    from dro_temp.losses.supervised import _mean_margin

    margins = _mean_margin(rows)
    keys = torch.stack([k[rows.column_group == g].mean(0) for g in range(7)])
    expected = (q * (keys[group] - k[:1000])).sum(1)
    here = rows.column_group[rows.target] == group
    torch.testing.assert_close(margins[here], expected[here])


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_a_column_that_cannot_happen_is_no_positive(backend):
    _needs(backend)
    torch.manual_seed(0)
    queries, keys, bias = torch.randn(3, 4), torch.randn(6, 4), torch.zeros(6)
    bias[2] = -torch.inf
    group, columns = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0, 1, -1, 0])
    options = {"target_in_support": False, "group": group}
    loss = dt.SupervisedContrastiveLoss(backend=backend)
    products = dt.LinearScores(queries, keys, bias)
    found = loss(dt.Rows(products, torch.tensor([0, 5, 1]), column_group=columns, **options), TAU)
    kept = [0, 1, 3, 4, 5]
    scores = queries @ keys[kept].T
    expected = loss(dt.Rows(scores, torch.tensor([0, 4, 1]), column_group=columns[kept], **options), TAU)
    torch.testing.assert_close(found, expected)


def _left_out_on_one(rank: int, world: int) -> float:
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
    images, texts = torch.randn(8, 6), torch.randn(8, 5)
    of_images = torch.tensor([0, 1, 2, 3, 0, 4, 5, 6])
    of_texts = torch.tensor([0, 1, 2, 3, 0, 1, LEFT_OUT, 6])
    mine = slice(4 * rank, 4 * rank + 4)
    loss = dt.recipes.supcon(host)(images[mine], texts[mine], group=(of_images[mine], of_texts[mine])).loss
    loss.backward()
    return float(loss)


@pytest.mark.slow
def test_processes_choose_alike_where_one_leaves_rows_out():
    one, other = in_processes(2, _left_out_on_one)
    assert one == one
    assert other == other
