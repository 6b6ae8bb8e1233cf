"""A predictor gets exactly what it declares in `reads`, from the score matrix as while it is streamed."""

from functools import cached_property

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
    """A streaming loss hands over features only where they are declared: a host may have none."""
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


def test_a_wrapper_may_declare_what_its_part_reads():
    class Wrapper(dt.predictors.TempNetEncoder):
        width = 4

        def __init__(self) -> None:
            super().__init__()
            self.inner = dt.predictors.HiddenEncoder(4, width=4)

        @property
        def reads(self):
            return self.inner.reads

        @property
        def config(self):
            return {}

        def forward(self, inputs):
            return self.inner(inputs)

    assert dt.TempNet(Wrapper(), tau_min=0.1, tau_max=1.0)(torch.ones(3, 4)).shape == (3,)


def test_a_subclass_of_rows_may_cache():
    class Hardness(dt.Rows):
        @cached_property
        def hardness(self):
            return self.dense_scores.std(1)

    whole = Hardness(torch.randn(6, 9), torch.zeros(6, dtype=torch.long))
    assert len(whole.hardness) == 6
    assert len(whole.select(slice(0, 2)).hardness) == 2
    assert isinstance(whole.detached(), Hardness)


def test_a_pair_alone_in_its_batch_gives_a_gradient_of_zero():
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
    network = dt.TempNet(dt.predictors.StatisticsEncoder(width=8), tau_min=0.05, tau_max=2.0)
    losses = {view: dt.EntropicRiskLoss() for view in host.views}
    objective = dt.Objective(host, network, losses)
    output = objective(torch.randn(1, 6), torch.randn(1, 5))
    output.loss.backward()
    assert output.loss == 0
    assert all(tau.isfinite().all() for tau in output.tau.values())
    assert all(p.grad is None or (p.grad == 0).all() for p in objective.parameters())
