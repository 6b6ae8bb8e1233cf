"""What every host adapter must do."""

import torch

from dro_temp.interfaces import Rows
from dro_temp.testing._cases import HostCase


def makes_rows_of_every_view(case: HostCase) -> None:
    """The declared views, in order, with shapes that belong together and targets in range."""
    host = case.build()
    for n in (1, 2, 5):
        rows = host(**case.batch(n))
        assert tuple(rows) == host.views
        for view, r in rows.items():
            assert isinstance(r, Rows), view
            assert bool(((r.target >= 0) & (r.target < r.scores.shape[1])).all()), view
            assert r.index is not None, view
            assert r.dense_scores.shape == r.scores.shape


def scores_as_the_bare_model_does(case: HostCase) -> None:
    """The scores are the model's own."""
    host = case.build().eval()
    batch = case.batch(4)
    expected = case.scores(host, batch)
    for view, rows in host(**batch).items():
        torch.testing.assert_close(rows.dense_scores, expected[view].float(), rtol=1e-5, atol=1e-5)


def trains_the_model(case: HostCase) -> None:
    """Scores carry gradient to every weight that is to be trained, and there are some."""
    host = case.build()
    sum((rows.margins.square().sum() for rows in host(**case.batch(4)).values()), torch.zeros(())).backward()
    trained = {name: p for name, p in host.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert parameter.grad is not None, name


def leaves_frozen_weights_alone(case: HostCase) -> None:
    """A frozen host has no gradient, and stays in eval mode when the objective trains."""
    host = case.build(frozen=True).train()
    assert not any(module.training for module in host.modules())
    for rows in host(**case.batch(4)).values():
        assert not rows.dense_scores.requires_grad


def drops_nothing_of_the_index(case: HostCase) -> None:
    """Every row carries the number of its sample."""
    batch = case.batch(4)
    for rows in case.build()(**batch).values():
        assert rows.index is not None
        assert set(rows.index.tolist()) <= set(batch["index"].tolist())


CONTRACTS = (
    makes_rows_of_every_view,
    scores_as_the_bare_model_does,
    trains_the_model,
    leaves_frozen_weights_alone,
    drops_nothing_of_the_index,
)
