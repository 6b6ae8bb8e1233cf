"""A host measured against a reference."""

import copy

import pytest
import small
import torch
from torch import nn

import dro_temp as dt


def _towers(width: int, seed: int, **options) -> dt.hosts.TwoTower:
    torch.manual_seed(seed)
    return dt.hosts.TwoTower(nn.Linear(small.D, width), nn.Linear(small.D, width), **options)


def _host(**options) -> dt.hosts.WithReference:
    return dt.hosts.WithReference(_towers(4, 0, **options), _towers(3, 1, frozen=True)).double()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_streaming_over_the_product_equals_subtracting_matrices(backend):
    images, texts = small.data(8)
    host = _host()
    tau = torch.linspace(0.1, 0.5, 8, dtype=torch.float64)
    for view in host.views:
        rows = host(images, texts)[view]
        host.zero_grad()
        ours = dt.KLRobustLoss(0.5, backend=backend)(rows, tau)
        ours.sum().backward()
        gradients = [p.grad.clone() for p in host.host.parameters()]
        host.zero_grad()
        with torch.no_grad():
            reference = host.reference(images, texts)[view].dense_scores
        s = host.host(images, texts)[view].dense_scores - reference
        matrix = dt.Rows(s, rows.target, target_in_support=False)
        expected = dt.KLRobustLoss(0.5)(matrix, tau)
        expected.sum().backward()
        torch.testing.assert_close(ours, expected)
        for a, p in zip(gradients, host.host.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad)
        torch.testing.assert_close(rows.features, host.host(images, texts)[view].features)


def test_the_reference_never_moves():
    images, texts = small.data(8)
    reference = _towers(3, 1, frozen=True)
    reference.image_encoder = nn.Sequential(nn.Linear(small.D, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    objective = dt.recipes.drrho(_towers(4, 0), reference, 8, tau=0.2).double()
    before = copy.deepcopy(objective.host.reference.state_dict())
    opt = dt.CompositionalOptimizer(
        torch.optim.AdamW(objective.param_groups(lr=0.1, weight_decay=0.5)), objective
    )
    start = objective.host.host.image_encoder.weight.clone()
    for _ in range(3):
        objective.train()
        objective(images, texts, index=torch.arange(8)).loss.backward()
        opt.step()
        opt.zero_grad()
    assert not any(p.requires_grad for p in objective.host.reference.parameters())
    assert not any(m.training for m in objective.host.reference.modules())
    for name, value in objective.host.reference.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(objective.host.host.image_encoder.weight, start)


def test_the_references_weights_are_saved_and_may_be_left_out():
    state = _host().state_dict()
    assert "reference.image_encoder.weight" in state
    small_state = {k: v for k, v in state.items() if not k.startswith("reference.")}
    missing = _host().load_state_dict(small_state, strict=False).missing_keys
    assert missing
    assert all(k.startswith("reference.") for k in missing)


def test_both_learn_whether_the_objective_trains():
    """A frozen host gathers columns in training as well: the predictor trains."""
    for host in (_host(), _host(frozen=True)):
        for mode in (False, True):
            host.train(mode)
            assert (
                host.objective_trains == host.host.objective_trains == host.reference.objective_trains == mode
            )
        assert host.host.training != host.host.frozen
    assert not any(r.dense_scores.requires_grad for r in host(*small.data(4)).values())


def test_classes_with_a_bias_and_without_a_head():
    torch.manual_seed(0)
    x, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, -100, 1])
    first, second, logits = nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.Linear(5, 4)
    head = dt.hosts.Classifier(nn.Identity(), first)
    for theirs, product in (
        (dt.hosts.Classifier(nn.Identity(), second, frozen=True), True),
        (dt.hosts.Classifier(logits, frozen=True), False),
    ):
        rows = dt.hosts.WithReference(head, theirs)(x, labels)["class"]
        assert isinstance(rows.scores, dt.LinearScores) == product
        model = second if product else logits
        torch.testing.assert_close(rows.dense_scores, first(x) - model(x))
        assert rows.weight.tolist() == [1, 1, 1, 1, 0, 1]


class _Turned(dt.HostAdapter):
    """Other targets, or other columns."""

    views = ("image", "text")

    def __init__(self, columns: int) -> None:
        super().__init__(frozen=True)
        self.columns = columns

    def rows(self, images, texts, index=None):
        n = len(images)
        scores = torch.zeros(n, self.columns)
        return {v: dt.Rows(scores, (torch.arange(n) + 1) % n, target_in_support=False) for v in self.views}


def test_a_reference_that_does_not_fit_is_refused(no_shape_checks):
    host = _towers(4, 0)
    with pytest.raises(TypeError, match=r"expected reference to be a HostAdapter, received Linear"):
        dt.hosts.WithReference(host, nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"expected a frozen reference, received one that would train.*frozen=True"
    ):
        dt.hosts.WithReference(host, _towers(3, 1))
    with pytest.raises(ValueError, match=r"views \['image', 'text'\], received one with \['class'\]"):
        dt.hosts.WithReference(host, dt.hosts.Classifier(nn.Linear(5, 3), frozen=True))
    shared = dt.hosts.TwoTower(host.image_encoder, nn.Linear(small.D, 4), frozen=True)
    with pytest.raises(
        ValueError, match=r"parameters of its own, received one that shares some.*copy.deepcopy"
    ):
        dt.hosts.WithReference(host, shared)
    assert all(p.requires_grad for p in host.parameters())
    batch = small.data(4, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"scores of shape \[4, 4\] in view 'image', received \[4, 5\]"):
        dt.hosts.WithReference(host, _Turned(5))(*batch)
    with pytest.raises(ValueError, match=r"host's targets and support in view 'image', received others"):
        dt.hosts.WithReference(host, _Turned(4))(*batch)
