"""What every risk over samples must do with what it remembers, with large numbers, low precision and the compiler."""

import copy
import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dro_temp.interfaces import SampleRisk
from dro_temp.state import staged_modules
from dro_temp.testing._cases import RiskCase

_some = settings(max_examples=20, deadline=None)


def gives_nothing_for_nothing(case: RiskCase) -> None:
    """No samples, or none that counts: exactly 0 with a graph, no gradient, and nothing to remember."""
    for n in (0, 5):
        risk = case.build()
        before = copy.deepcopy(risk.state_dict())
        x = torch.full((n,), math.nan, dtype=torch.float64, requires_grad=True)
        found = risk(x, **case.given(n), weight=torch.zeros(n))
        assert found == 0
        found.backward()
        assert x.grad is not None
        assert bool((x.grad == 0).all())
        assert all(p.grad is None or bool((p.grad == 0).all()) for p in risk.parameters())
        assert bool((risk.weights(x, **case.given(n), weight=torch.zeros(n)) == 0).all())
        _commit(risk)
        _is_unchanged(risk, before, but_for=("steps",))


def survives_large_losses(case: RiskCase) -> None:
    """Losses of +-1e6 in float32 give finite numbers and gradients."""

    @_some
    @given(st.integers(0, 999))
    def check(seed: int) -> None:
        x = (1e6 * case.losses(9, seed=seed).sign().float()).requires_grad_()
        risk = case.build()
        found = risk(x, **case.given(9, seed=seed))
        found.backward()
        assert bool(found.isfinite())
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert all(bool(p.grad.isfinite().all()) for p in risk.parameters() if p.grad is not None)

    check()


def forward_writes_nothing(case: RiskCase) -> None:
    """Forward, repeated, with and without gradients, in training and evaluation: the state stays as it was."""
    risk = case.build()
    losses, given = case.losses(6), case.given(6)
    before = copy.deepcopy(risk.state_dict())
    first, second = (risk(losses, **given) for _ in range(2))
    assert torch.equal(first, second)
    risk.discard()
    with torch.no_grad():
        risk(losses, **given)
    risk.eval()(losses, **given)
    assert not risk.pending
    _is_unchanged(risk, before)


def survives_saving(case: RiskCase) -> None:
    """After some steps, a reloaded risk gives the same numbers bit for bit."""
    risk = case.build()
    for seed in range(3):
        risk(case.losses(8, seed=seed).requires_grad_(), **case.given(8, seed=seed)).backward()
        _commit(risk)
    loaded = case.build()
    loaded.load_state_dict(risk.state_dict())
    losses, given = case.losses(8, seed=9), case.given(8, seed=9)
    assert torch.equal(loaded(losses, **given), risk(losses, **given))


def ignores_autocast(case: RiskCase) -> None:
    """It is computed in float32 or better."""
    losses, risk = case.losses(8).float(), case.build()
    plain = risk(losses, **case.given(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(risk(losses, **case.given(8)), plain)


def compiles_whole(case: RiskCase) -> None:
    """Forward and backward in one graph, with the same numbers."""
    found = []
    for compiled in (False, True):
        risk = case.build()
        x = case.losses(8).requires_grad_()
        given = case.given(8) | {"weight": case.weight(8)}
        # "aot_eager" traces both directions but generates no code: no C++ compiler is needed.
        call: Any = torch.compile(risk, fullgraph=True, backend="aot_eager") if compiled else risk
        value = call(x, **given)
        value.backward()
        found.append((value.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1])
    torch.compiler.reset()


def _commit(risk: SampleRisk) -> None:
    risk.commit()
    assert not any(staged.pending for staged in staged_modules(risk.modules()))


def _is_unchanged(risk: SampleRisk, before: dict[str, Tensor], but_for: tuple[str, ...] = ()) -> None:
    for name, value in risk.state_dict().items():
        assert name.endswith(but_for or ("\0",)) or torch.equal(value, before[name]), name


CONTRACTS = (
    gives_nothing_for_nothing,
    survives_large_losses,
    forward_writes_nothing,
    survives_saving,
    ignores_autocast,
    compiles_whole,
)
