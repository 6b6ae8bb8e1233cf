"""What every host adapter must do."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dro_temp.interfaces import Rows
from dro_temp.losses import InfoNCELoss
from dro_temp.objective import Objective
from dro_temp.predictors import LearnableTemperature
from dro_temp.testing._asserts import assert_same, assert_unchanged, state_of
from dro_temp.testing._cases import HostCase


def makes_rows_of_every_view(case: HostCase) -> None:
    """The declared views, in order, as rows whose targets, weights and distributions are valid."""
    host = case.build()
    for n in (1, 2, 5):
        for r in host(**case.batch(n)).values():
            r.check_values()
            assert r.dense_scores.shape == r.scores.shape


def makes_the_expected_rows(case: HostCase) -> None:
    """Targets, weights, sample numbers and supports are the case's; scores and features too, in evaluation mode."""
    for training in (True, False):
        host, batch = case.build().train(training), case.batch(5)
        made, expected = host(**batch), case.rows(host, batch)
        views = f"expected the views of the case's rows, {sorted(expected)}, received {sorted(made)}"
        assert set(made) == set(expected), views
        for view, rows in made.items():
            _assert_same_rows(f"view {view!r}, training={training}", rows, expected[view], training)


def _assert_same_rows(name: str, rows: Rows, expected: Rows, training: bool) -> None:
    weight, wanted = (torch.ones(len(r)) if r.weight is None else r.weight.float() for r in (rows, expected))
    assert_same(weight, wanted, f"weights of {name}", rtol=1e-6)
    counts = expected.has_weight

    def compare(what: str, actual: Tensor | None, wanted: Tensor | None) -> None:
        assert (actual is None) == (wanted is None), f"{what}: expected {wanted}, received {actual}"
        if actual is not None and wanted is not None:
            actual, wanted = actual.detach()[counts].to(wanted.dtype), wanted.detach()[counts]
            rounding = 1e-5 if wanted.is_floating_point() else 0.0
            assert_same(actual, wanted, what, rtol=rounding, atol=rounding)

    compare(f"targets of {name}", rows.target, expected.target)
    assert rows.target_in_support == expected.target_in_support, f"target_in_support of {name}"
    compare(f"sample numbers of {name}", rows.index, expected.index)
    compare(f"target distributions of {name}", rows.target_distribution, expected.target_distribution)
    if not training:
        compare(f"scores of {name}, and the model's own", rows.dense_scores, expected.dense_scores)
        compare(f"features of {name}", rows.features, expected.features)


def mirrors_as_declared(case: HostCase) -> None:
    """Two views that are `mirrored` are one square matrix read by rows and by columns, targets on its diagonal."""
    host = case.build().eval()
    if host.mirrored is None:
        return
    rows = host(**case.batch(5))
    first, second = (rows[view] for view in host.mirrored)
    if first.scores.shape[1] != len(first):
        return  # further columns, such as hard negatives
    what = f"scores of view {host.mirrored[1]!r}, and those of {host.mirrored[0]!r} transposed"
    assert_same(second.dense_scores, first.dense_scores.T, what, rtol=1e-5, atol=1e-6)
    for r in (first, second):
        assert_same(r.target, torch.arange(len(r)), "targets of mirrored views, and the diagonal")


def trains_the_model(case: HostCase) -> None:
    """Every weight that is to be trained gets the gradient that the bare model's scores give it, and there are some."""
    host, batch = case.build().eval(), case.batch(4)
    gradients = _gradients(host, host(**batch))
    assert gradients, "expected weights to train, received none"
    for name, gradient in gradients.items():
        assert gradient is not None, f"expected a gradient of {name}, received none"
    what = "gradients from the host's scores, and from the model's own"
    assert_same(gradients, _gradients(host, case.rows(host, batch)), what, rtol=1e-4, atol=1e-5)


def _gradients(host: nn.Module, rows: Mapping[str, Rows]) -> dict[str, Tensor | None]:
    """Gradients of a sum of all scores, each with a random factor of its own."""
    host.zero_grad()
    generator, total = torch.Generator().manual_seed(0), torch.zeros(())
    for r in rows.values():
        scores = r.dense_scores[r.has_weight]
        total = total + (scores * torch.randn(scores.shape, generator=generator)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in host.named_parameters() if p.requires_grad}


def leaves_frozen_weights_alone(case: HostCase) -> None:
    """A frozen host stays in eval mode, and a step of its objective neither writes to it nor gives it a gradient."""
    host = case.build(frozen=True)
    before = state_of(host)
    predictor = LearnableTemperature(0.5, tau_min=0.01, tau_max=1.0)
    objective = Objective(host, predictor, InfoNCELoss()).train()
    training = [type(module).__name__ for module in host.modules() if module.training]
    assert not training, f"expected a frozen host in eval mode, received {training} in training mode"
    for view, rows in host(**case.batch(4)).items():
        assert not rows.dense_scores.requires_grad, f"expected scores of view {view!r} without gradient"
        assert rows.features is None or not rows.features.requires_grad
    objective(**case.batch(4)).loss.backward()
    trained = [name for name, parameter in host.named_parameters() if parameter.grad is not None]
    assert not trained, f"expected no gradient of frozen weights, received one of {trained}"
    assert_unchanged(host, before, "expected a frozen host to stay as it was")


def leaves_a_frozen_part_alone(case: HostCase) -> None:
    """In training mode, a weight that its owner froze stays frozen, and all others get a gradient."""
    host = case.build()
    trained = {name: p for name, p in host.named_parameters() if p.requires_grad}
    frozen = next(iter(trained))
    trained.pop(frozen).requires_grad_(False)
    gradients = _gradients(host, host(**case.batch(4))) if trained else {}
    assert gradients.keys() == trained.keys(), f"expected {frozen} to stay frozen, and no other weight"
    for name, gradient in gradients.items():
        assert gradient is not None, f"expected a gradient of {name} while {frozen} is frozen, received none"
