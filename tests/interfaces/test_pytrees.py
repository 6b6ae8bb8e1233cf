"""What wrappers must see through: outputs, rows and scores are trees of tensors."""

import pytest
import small
import torch
from torch.utils import _pytree as tree
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import dro_temp as dt


def rows() -> dt.Rows:
    head = torch.nn.Linear(4, 9)
    scores = dt.LinearScores(torch.randn(3, 4), head.weight, head.bias, dt.functional.SoftCap(5.0))
    return dt.Rows(scores, torch.tensor([0, 8, 2]), torch.randn(3, 4), weight=torch.ones(3))


def output() -> dt.objective.ObjectiveOutput:
    objective = small.objective()
    images, texts = small.data()
    index = torch.arange(6)
    return objective(images[index], texts[index], index=index)


TREES = {
    "rows": (rows, 6),
    "scores": (lambda: rows().scores, 3),
    "support": (lambda: dt.Support(torch.randn(2, 3)), 1),
    "output": (output, 16),
    "evaluated": (lambda: dt.KLRobustLoss(0.5).evaluate(rows(), 1.0, statistics=("kl",)), 3),
}


@pytest.mark.parametrize(("build", "tensors"), TREES.values(), ids=TREES)
def test_all_tensors_are_leaves_and_all_else_stays(build, tensors):
    x = build()
    leaves, spec = tree.tree_flatten(x)
    assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) >= tensors
    again = tree.tree_unflatten(leaves, spec)
    assert type(again) is type(x)
    for name, value in vars(x).items():
        if not isinstance(value, torch.Tensor | dict | dt.LinearScores):
            assert getattr(again, name) is value or getattr(again, name) == value
    detached = tree.tree_map_only(torch.Tensor, torch.Tensor.detach, x)
    assert not any(
        leaf.requires_grad for leaf in tree.tree_leaves(detached) if isinstance(leaf, torch.Tensor)
    )
    assert tree.tree_map(lambda leaf: None, x) is not None  # no shape is checked of what is no tensor


def test_a_batch_of_rows_moves_as_one():
    moved = rows().to("meta")
    assert {leaf.device.type for leaf in tree.tree_leaves(moved) if leaf is not None} == {"meta"}
    assert moved.target_in_support
    assert isinstance(moved.scores.transform, dt.functional.SoftCap)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_data_loader_pins_rows():
    loader = DataLoader(
        [dt.Rows(torch.randn(2, 3), torch.zeros(2, dtype=torch.long))], batch_size=None, pin_memory=True
    )
    (batch,) = loader
    assert batch.scores.is_pinned()
    assert batch.target.is_pinned()


def test_vmap_over_rows():
    parts = [dt.Rows(torch.randn(4, 6), torch.randint(6, (4,))) for _ in range(5)]
    stacked = tree.tree_map(lambda *x: torch.stack(x), *parts)
    loss = dt.KLRobustLoss(0.5)
    found = torch.vmap(lambda r: loss(r, torch.ones(4)))(stacked)
    torch.testing.assert_close(found, torch.stack([loss(r, 1.0) for r in parts]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_an_objective(reentrant):
    """Its recomputation proposes nothing a second time."""
    results = []
    for checkpointed in (True, False):
        objective = small.objective()
        opt = small.optimizer(objective)
        images, texts = small.data()
        for index in small.batches(3):
            x = images[index].requires_grad_()

            def loss(x, index=index):
                return objective(x, texts[index], index=index).loss  # noqa: B023

            (checkpoint(loss, x, use_reentrant=reentrant) if checkpointed else loss(x)).backward()
            opt.step()
            opt.zero_grad()
        results.append(objective)
    small.assert_same_state(*results)


def test_nothing_is_left_for_accelerate_to_widen():
    """Its mixed precision makes float32 of what a model returns, and looks into no dataclass: nothing is narrower."""
    operations = pytest.importorskip("accelerate.utils.operations")
    objective = small.objective().float().bfloat16()
    images, texts = (x.bfloat16() for x in small.data())
    index = torch.arange(6)
    forward = operations.convert_outputs_to_fp32(objective.forward)
    with torch.autocast("cpu", torch.bfloat16):
        found = forward(images[index], texts[index], index=index)
    floats = [x for x in tree.tree_leaves(found) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    assert {x.dtype for x in floats} == {torch.float32}
    found.loss.backward()
    assert all(p.grad is not None for p in objective.host.parameters())
