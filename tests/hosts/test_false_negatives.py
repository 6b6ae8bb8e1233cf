"""Hosts of pairs with groups: which columns are outcomes, against a mask written by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp.functional import LEFT_OUT

N = 6
GROUP = torch.tensor([0, 1, 0, -1, LEFT_OUT, 1])


def _inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, 6, generator=g), torch.randn(N, 5, generator=g)


def _tower():
    torch.manual_seed(0)
    return dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))


def _by_hand(group, other):
    """Outcomes of pairs."""
    mask = torch.ones(N, N, dtype=torch.bool)
    for i in range(N):
        for j in range(N):
            same = group[i] == other[j] and group[i] >= 0
            mask[i, j] = i != j and not same and LEFT_OUT not in (int(group[i]), int(other[j]))
    return mask


@pytest.mark.parametrize("kind", [torch.tensor, list, np.array])
@pytest.mark.parametrize("wrap", [lambda h: h, lambda h: dt.hosts.InChunks(h, size=4)])
def test_pairs_of_one_group_are_no_negatives(kind, wrap):
    numbers = GROUP if kind is torch.tensor else kind(GROUP.tolist())
    rows = wrap(_tower())(*_inputs(), group=numbers)
    for view in ("image", "text"):
        assert torch.equal(rows[view].mask, _by_hand(GROUP, GROUP))
    assert rows["image"].scores.is_transpose_of(rows["text"].scores)
    assert rows["image"].has_mirrored_groups(rows["text"])


@pytest.mark.parametrize("wrap", [lambda h: h, lambda h: dt.hosts.InChunks(h, size=4)])
def test_images_and_texts_may_have_groups_of_their_own(wrap):
    texts = torch.tensor([0, 0, 1, -1, 1, 2])
    rows = wrap(_tower())(*_inputs(), group=(GROUP, texts))
    assert torch.equal(rows["image"].mask, _by_hand(GROUP, texts))
    assert torch.equal(rows["text"].mask, _by_hand(GROUP, texts).T)


def test_two_views_exclude_other_samples_of_the_class_and_the_row_itself():
    torch.manual_seed(0)
    host = dt.hosts.TwoViews(nn.Linear(6, 4))
    x = _inputs()[0]
    rows, plain = host(x, x.flip(1), group=GROUP), host(x, x.flip(1))
    for view in ("first", "second"):
        others = _by_hand(GROUP, GROUP)
        assert torch.equal(rows[view].mask, torch.cat([others, others], 1))
        assert rows[view].support_sizes.tolist() == (2 * others.sum(1)).tolist()
        alone = host(x, x.flip(1), group=torch.full((N,), -1))[view]
        assert alone.support_sizes.tolist() == [plain[view].support_size] * N
        for loss in (dt.KLRobustLoss(0.5), dt.InfoNCELoss(), dt.SigmoidLoss()):
            torch.testing.assert_close(loss(alone, 0.3), loss(plain[view], 0.3))


def test_hard_negatives_may_have_groups():
    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(n, 4, generator=g) for n in (3, 3, 2))
    rows = dt.hosts.pair_rows(x, y, group=[0, 1, -1], negatives=z, negatives_group=[1, -1])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 0, 1, 1]]).bool()
    assert torch.equal(rows["image"].mask, mask)
    assert rows["text"].mask.shape == (3, 3)
    alone = dt.hosts.pair_rows(x, y, group=[0, 1, -1], negatives=z)
    assert alone["image"].mask[:, 3:].all()


def test_a_host_less_a_reference_keeps_its_groups():
    reference = dt.hosts.TwoTower(nn.Linear(6, 3), nn.Linear(5, 3), frozen=True)
    rows = dt.hosts.WithReference(_tower(), reference)(*_inputs(), group=GROUP)
    assert torch.equal(rows["image"].mask, _by_hand(GROUP, GROUP))


def test_an_objective_passes_groups_to_the_host_or_to_the_risk_that_reads_them():
    host = _tower()
    plain = dt.Objective(host, dt.ConstantTemperature(0.5), dt.InfoNCELoss())
    rows = host(*_inputs(), group=GROUP)
    expected = [dt.InfoNCELoss()(rows[v], 0.5) for v in host.views]
    means = [v.sum() / rows["image"].valid.sum() for v in expected]
    assert rows["image"].valid.tolist() == [True] * 4 + [False, True]
    torch.testing.assert_close(plain(*_inputs(), group=GROUP).loss, torch.stack(means).mean())

    risk = {view: dt.GroupRisk(2) for view in host.views}
    risky = dt.Objective(host, dt.ConstantTemperature(0.5), dt.InfoNCELoss(), risk=risk)
    output = risky(*_inputs(), group=torch.tensor([0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(output.values["image"], dt.InfoNCELoss()(host(*_inputs())["image"], 0.5))
    both = risky(*_inputs(), None, GROUP, group=torch.tensor([0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(both.values["image"], expected[0])


@pytest.mark.parametrize("group", [[0, 1], [[0] * N], ([0] * N, [0]), "abcdef", [0.5] * N])
def test_wrong_groups_are_refused(group):
    with pytest.raises((TypeError, ValueError), match="group"):
        _tower()(*_inputs(), group=group)


def test_groups_of_negatives_need_negatives():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="expected negatives_group beside"):
        dt.hosts.pair_rows(x, x, group=[0, 1, 2], negatives_group=[1])
    with pytest.raises(ValueError, match=r"negatives_group of shape \[2\]"):
        dt.hosts.pair_rows(x, x, group=[0, 1, 2], negatives=x[:2], negatives_group=[1])
