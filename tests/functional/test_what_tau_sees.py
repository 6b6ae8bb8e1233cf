"""What a KL-robust temperature can and cannot see of a wrong caption (docs/theory.md)."""

import pytest
import torch

import dro_temp as dt
from dro_temp import functional as F

TAUS = (0.05, 0.3, 2.0)
ROBUST, ENTROPIC = dt.KLRobustLoss(rho=0.7), dt.losses.EntropicRiskLoss()


def _scores(n: int = 5, m: int = 9) -> torch.Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _pairs(scores: torch.Tensor) -> dt.Rows:
    return dt.Rows(scores, torch.zeros(len(scores), dtype=torch.long), target_in_support=False)


def _gradients(loss, scores, tau):
    scores, tau = scores.clone().requires_grad_(), torch.full((len(scores),), tau).double().requires_grad_()
    return torch.autograd.grad(loss(_pairs(scores), tau).sum(), (scores, tau))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize(("loss", "power"), [(ROBUST, 0), (ENTROPIC, -1)])
def test_how_hard_a_row_pulls(loss, power, tau):
    """The positive by -1 and the negatives by 1, whatever tau is; in the entropic form by 1 / tau."""
    gradient, _ = _gradients(loss, _scores(), tau)
    torch.testing.assert_close(gradient[:, 0], torch.full((5,), -(tau**power)).double())
    torch.testing.assert_close(gradient[:, 1:].sum(1), torch.full((5,), tau**power).double())


@pytest.mark.parametrize("tau", TAUS)
def test_the_caption_is_not_in_the_gradient_of_tau(tau):
    right, wrong = _scores(), _scores()
    wrong[:, 0] -= 4.0
    torch.testing.assert_close(_gradients(ROBUST, right, tau)[1], _gradients(ROBUST, wrong, tau)[1])
    bounds = {"tau_min": 0.01, "tau_max": 50.0}
    optimum = [dt.OptimalTemperature(0.7, **bounds).predict(_pairs(s)) for s in (right, wrong)]
    torch.testing.assert_close(*optimum)
    # The likelihood does contain it: it asks for a higher temperature where the caption is wrong.
    likelihood = [_gradients(dt.LikelihoodLoss(), s, tau)[1] for s in (right, wrong)]
    assert bool((likelihood[1] < likelihood[0]).all())


def test_rows_that_spread_less_have_a_lower_optimum():
    others = _scores()[:, 1:]
    bounds = {"rho": 0.7, "tau_min": 1e-4, "tau_max": 100.0}
    tau = F.optimal_tau(others, **bounds)
    torch.testing.assert_close(F.optimal_tau(0.25 * others, **bounds), 0.25 * tau)


def test_the_optimum_of_unreliable_captions_is_lower():
    """Images are fitted to captions by least squares; of one half of them most captions are shuffled."""
    generator = torch.Generator().manual_seed(1)
    images, mixing = (
        torch.randn(400, 12, generator=generator).double(),
        torch.randn(14, 12, generator=generator),
    )
    images = torch.cat(
        [images, torch.eye(2).double().repeat_interleave(200, 0) * 2], 1
    )  # which source it is from
    captions = images[:, :12] @ mixing[:12].double()
    given = captions.clone()
    shuffled = torch.randperm(140, generator=generator)
    given[200:340] = captions[200:340][shuffled]
    # One map for each source, as a network that reads the source can have.
    fitted = [
        torch.linalg.lstsq(images[part], given[part]).solution for part in (slice(0, 200), slice(200, 400))
    ]
    scores = (
        torch.cat([images[:200] @ fitted[0], images[200:] @ fitted[1]]) @ captions.T / captions.norm(dim=1)
    )
    tau = F.optimal_tau(scores, rho=0.7, tau_min=1e-4, tau_max=1e4)
    assert tau[200:].median() < 0.7 * tau[:200].median()
