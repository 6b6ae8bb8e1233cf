"""A predictor gets exactly what it declares in `reads`, from the score matrix as from the sweep over it."""

import pytest
import torch
from torch import nn

import dro_temp as dt

SHAPES = {"score matrix": (8, 16), "streamed": (600, 2000)}
READABLE = ("features", "index", "support", "statistics")


def rows(n: int, m: int) -> dt.Rows:
    g = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(k, 4, generator=g) for k in (n, m))
    target = torch.randint(m, (n,), generator=g)
    return dt.Rows(dt.LinearScores(queries, keys), target, features=queries, index=torch.arange(n))


class Reads(dt.TemperaturePredictor):
    """Declares some of what can be read, and reads one thing."""

    def __init__(self, declared: set[str], read: str) -> None:
        super().__init__(tau_min=0.1, tau_max=2.0)
        self.reads, self.read = frozenset(declared), read
        self.slope = nn.Parameter(torch.zeros(()))

    def raw(self, inputs: dt.interfaces.PredictorInputs) -> torch.Tensor:
        getattr(inputs, self.read)
        return self.slope.expand(inputs.n)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("read", READABLE)
def test_what_was_declared_is_there(shape, read):
    values = dt.KLRobustLoss(1.0)(rows(*shape), Reads({read}, read))
    assert values.shape == shape[:1]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    ("declared", "read"), [(d, r) for d in READABLE for r in READABLE if d != r], ids=lambda x: x
)
def test_what_was_not_declared_is_refused_in_every_path(shape, declared, read):
    predictor = Reads({declared}, read)
    with pytest.raises(
        AttributeError, match=rf"expected '{read}' among the reads of Reads.*received.*Write reads"
    ):
        dt.KLRobustLoss(1.0)(rows(*shape), predictor)


@pytest.mark.parametrize("reads", ['"feature"', '{"sumary"}', '"features"', "7"])
def test_a_misspelt_declaration_is_refused_when_the_class_is_made(reads):
    with pytest.raises(ValueError, match=r"expected Misspelt.reads.*received.*Write reads"):
        type("Misspelt", (dt.TemperaturePredictor,), {"reads": eval(reads), "raw": lambda self, inputs: None})
    with pytest.raises(ValueError, match=r"expected Misspelt.reads.*received.*Write reads"):
        type("Misspelt", (dt.predictors.TempNetEncoder,), {"reads": eval(reads)})


def test_a_predictor_is_not_asked_for_what_it_does_not_read():
    """The sweep hands over features only where they are declared: a host may have none."""
    without = dt.Rows(rows(600, 2000).scores, rows(600, 2000).target)
    assert dt.KLRobustLoss(1.0)(without, Reads({"statistics"}, "statistics")).shape == (600,)
    with pytest.raises(ValueError, match=r"expected features for Reads, received no features"):
        dt.KLRobustLoss(1.0)(without, Reads({"features"}, "features"))


@pytest.mark.parametrize("network", ["logits", "statistics", "hidden and statistics"])
def test_with_a_tau_loss_the_scores_are_not_materialised(network, monkeypatch):
    torch.manual_seed(0)
    bounds = {"tau_min": 0.1, "tau_max": 2.0}
    encoders = [dt.predictors.HiddenEncoder(16, width=8), dt.predictors.StatisticsEncoder(width=8)]
    predictor = {
        "logits": lambda: dt.TempNet.for_logits(2048, width=8, **bounds),
        "statistics": lambda: dt.TempNet(encoders[1], **bounds),
        "hidden and statistics": lambda: dt.TempNet(dt.predictors.SumEncoder(encoders), **bounds),
    }[network]()
    host = dt.hosts.Classifier(nn.Linear(6, 16), nn.Linear(16, 2048))
    batch = torch.randn(1024, 6), torch.randint(2048, (1024,))

    def gradients(backend: str) -> list[torch.Tensor]:
        losses = (dt.KLRobustLoss(1.0, backend=backend), dt.LikelihoodLoss(backend=backend))
        objective = dt.Objective(host, predictor.eval(), losses[0], tau_loss=losses[1]).double()
        objective.zero_grad()
        objective(batch[0].double(), batch[1]).loss.backward()
        return [p.grad.clone() for p in objective.parameters()]

    expected = gradients("reference")
    monkeypatch.setattr(dt.LinearScores, "dense", lambda self: pytest.fail("the score matrix was made"))
    for found, other in zip(gradients("auto"), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-12)
