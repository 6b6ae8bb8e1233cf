"""One graph each: functional, losses, and a whole objective's forward and backward."""

import pytest
import torch
from cases import LOSSES

import dro_temp as dt
from dro_temp import functional as F

pytestmark = pytest.mark.usefixtures("no_shape_checks")

H = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TAU = torch.tensor([0.5, 1.0, 2.0, 0.1])
MASK = torch.ones(4, 6, dtype=torch.bool).scatter(1, torch.arange(4)[:, None], False)
INDEX = torch.tensor([3, 1, 3, 0])
SOFT_CAP, SCALE = F.SoftCap(2.0), F.Scale(2.0)

FUNCTIONS = {
    "margins": lambda: F.margins(H, torch.arange(4)),
    "log_mean_exp": lambda: F.log_mean_exp(H, MASK),
    "kl_dual": lambda: F.kl_dual(H, TAU, rho=0.5, mask=MASK),
    "kl_dual_held": lambda: F.kl_dual(H, TAU, rho=0.5, mask=MASK, log_u=TAU.log()),
    "kl_weights": lambda: F.kl_weights(H, TAU, MASK),
    "kl_divergence": lambda: F.kl_divergence(H, TAU, MASK),
    "optimal_tau": lambda: F.optimal_tau(H, rho=0.5, tau_min=0.01, tau_max=10.0, mask=MASK),
    "log_average": lambda: F.log_average(TAU.log(), TAU, 0.3),
    "log_mirror_average": lambda: F.log_mirror_average(TAU.log(), TAU, 0.5),
    "compositional_log_mean": lambda: F.compositional_log_mean(TAU),
    "compositional_log_mean_held": lambda: F.compositional_log_mean(TAU, TAU.log()),
    "combine_duplicates": lambda: F.combine_duplicates(INDEX, TAU),
    "mean_duplicates": lambda: F.mean_duplicates(INDEX, TAU),
    "sigmoid_between": lambda: F.sigmoid_between(H, 0.1, 1.0),
    "clip_between": lambda: F.clip_between(H, 0.1, 1.0),
    "dual_value": lambda: F.dual_value(TAU, TAU, rho=0.1),
    "expected_margins": lambda: F.expected_margins(H, H.softmax(1)),
    "smoothed_distribution": lambda: F.smoothed_distribution(INDEX, 6, 0.1),
    "shares": lambda: F.shares(TAU, TAU),
    "weighted_log_mean_exp": lambda: F.weighted_log_mean_exp(TAU, TAU),
    "mean_under": lambda: F.mean_under(TAU, TAU),
    "tilted_mean": lambda: F.tilted_mean(TAU, TAU, tilt=-0.5),
    "cvar_weights": lambda: F.cvar_weights(TAU, TAU, alpha=0.4),
    "chi_square_weights": lambda: F.chi_square_weights(TAU, TAU, rho=0.4),
    "kl_ball_weights": lambda: F.kl_ball_weights(TAU, TAU, rho=0.4),
    "SoftCap": lambda: SOFT_CAP(H),
    "Scale": lambda: SCALE(H),
}


def _whole(function):
    # "aot_eager" traces forward and backward but generates no code: no C++ compiler is needed.
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_every_function_is_here():
    assert {name.removesuffix("_held") for name in FUNCTIONS} | {"logit_between", "ScoreTransform"} == set(
        F.__all__
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compile_whole(name):
    torch.testing.assert_close(_whole(FUNCTIONS[name])(), FUNCTIONS[name]())
    torch.compiler.reset()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_losses_compile_whole_with_gradients(case, pairs):
    grads = []
    for wrap in (lambda f: f, _whole):
        loss = case.build()
        rows, tau = case.rows(4, pairs=pairs), case.tau(4).requires_grad_()
        scores = rows.dense_scores.clone().requires_grad_()

        def value(scores, tau, loss=loss, rows=rows):
            return loss(
                dt.Rows(scores, rows.target, index=rows.index, target_in_support=rows.target_in_support), tau
            ).sum()

        result = wrap(value)(scores, tau)
        result.backward()
        grads.append((result.detach(), scores.grad, tau.grad))
    torch.testing.assert_close(grads[0], grads[1])
    torch.compiler.reset()
