"""296 bad inputs, each of which must meet an error of three parts before anything has changed, or is none after all."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import dro_temp as dt
from dro_temp import functional as F
from dro_temp.interfaces import LinearScores

NAN, INF = math.nan, math.inf
SCORES, TARGET, FEATURES = (
    torch.randn(4, 10, generator=torch.Generator().manual_seed(0)),
    torch.arange(4),
    torch.ones(4, 4),
)
QUERIES, KEYS = torch.randn(4, 3), torch.randn(10, 3)
ONES = torch.ones(2)
IMAGES, TEXTS, INDEX = torch.randn(6, 6), torch.randn(6, 5), torch.arange(6)
kl, chunked, native = (dt.KLRobustLoss(1.0, backend=backend) for backend in ("auto", "torch", "cpu"))


def rows(**changes: Any) -> dt.Rows:
    return dt.Rows(**({"scores": SCORES, "target": TARGET} | changes))


def products(queries: Any = None, keys: Any = None, **options: Any) -> LinearScores:
    queries = QUERIES if queries is None else queries
    return LinearScores(queries, KEYS if keys is None else keys, **options)


def tower(**options: Any) -> dt.Objective:
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
    return dt.Objective(
        host,
        {view: dt.TempNet(4, tau_min=0.01, tau_max=0.1) for view in host.views},
        {view: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(20)) for view in host.views},
        **options,
    )


def classifier(**options: Any) -> dt.Objective:
    torch.manual_seed(0)
    host = dt.hosts.Classifier(nn.Linear(6, 4), nn.Linear(4, 10))
    return dt.Objective(host, dt.TempNet(4, tau_min=0.1, tau_max=2.0), kl, **options)


class World:
    """Objectives and an optimizer that has taken a step: the state that a bad input must leave alone."""

    def __init__(self) -> None:
        self.objective, self.classifier = tower(), classifier()
        self.base = torch.optim.SGD(self.objective.param_groups(lr=0.1))
        self.optimizer = dt.CompositionalOptimizer(self.base, self.objective)
        self.objective(IMAGES, TEXTS, index=INDEX).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """Parameters and memory of both objectives, and the number of proposals of each memory."""
        both = {"pairs": self.objective, "classes": self.classifier}
        state = {f"{name}.{key}": x.clone() for name, o in both.items() for key, x in o.state_dict().items()}
        staged = {name: [len(m.staged) for m in o.memory_modules()] for name, o in both.items()}
        return state | staged | {"lr": [group["lr"] for group in self.base.param_groups]}


class Raw(dt.TemperaturePredictor):
    """Temperatures of a function of the inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__(tau_min=0.1, tau_max=1.0)
        self.function = function
        self.reads = frozenset({"statistics" if function is of_statistics else "features"})

    def raw(self, inputs: dt.interfaces.PredictorInputs) -> Any:
        return self.function(inputs)


def of_statistics(inputs: dt.interfaces.PredictorInputs) -> Any:
    return inputs.statistics.std[:, None]


def with_reads(reads: Any) -> dt.TemperaturePredictor:
    predictor = Raw(lambda inputs: torch.zeros(inputs.n))
    predictor.reads = reads
    return predictor


class Columns(dt.losses.LogMeanExpLoss):
    """Values as a column."""

    def from_log_mean_exp(self, rows: Any, log_g: Any, tau: Any) -> Any:
        return log_g[:, None]


class Mean(dt.RobustLoss):
    """A mean in place of values."""

    def values(self, rows: Any, tau: Any) -> Any:
        return rows.margins.mean()


class Plain(dt.interfaces.SampleRisk):
    """A mean."""

    def value(self, losses: Any, weight: Any, group: Any) -> Any:
        return losses.mean()


class Remembers(Plain):
    """A risk with memory that does not derive from StandaloneRisk."""

    def __init__(self) -> None:
        super().__init__()
        self.estimator = dt.LogMovingAverage(1)


class Hosted(dt.HostAdapter):
    """Returns what it is called with."""

    views = ("class",)

    def rows(self, result: Any) -> Any:
        return result


def objective_of(host: type[Hosted]) -> dt.Objective:
    return dt.Objective(host(), dt.ConstantTemperature(1.0), kl)


def hosted(result: Any) -> Any:
    return objective_of(Hosted)(result)


def averaged(**options: Any) -> Any:
    return dt.LogMovingAverage(5, **options).propose(INDEX[:2], ONES, ONES > 0)


Case = Callable[[World], Any]

CASES: dict[str, Case] = {
    # Construction
    "KL rho neg": lambda w: dt.KLRobustLoss(-1),
    "KL rho nan": lambda w: dt.KLRobustLoss(NAN),
    "KL rho inf": lambda w: dt.KLRobustLoss(INF),
    "KL rho None": lambda w: dt.KLRobustLoss(None),
    "KL rho str": lambda w: dt.KLRobustLoss("1"),
    "KL rho tensor": lambda w: dt.KLRobustLoss(torch.tensor(1.0)),
    "KL rho True": lambda w: dt.KLRobustLoss(True),
    "KL estimator": lambda w: dt.KLRobustLoss(1.0, estimator=5),
    "KL backend": lambda w: dt.KLRobustLoss(1.0, backend="fast"),
    "KL backend list": lambda w: dt.KLRobustLoss(1.0, backend=["auto"]),
    "Ent estimator": lambda w: dt.EntropicRiskLoss(estimator="lma"),
    "NCE backend None": lambda w: dt.InfoNCELoss(backend=None),
    "Sig nan": lambda w: dt.SigmoidLoss(NAN),
    "Sig str": lambda w: dt.SigmoidLoss("x"),
    "Sig backend": lambda w: dt.SigmoidLoss(backend="C"),
    "Queued loss": lambda w: dt.QueuedLoss(1.0, size=3, features=2),
    "Queued size 0": lambda w: dt.QueuedLoss(kl, size=0, features=2),
    "Queued size float": lambda w: dt.QueuedLoss(kl, size=3.5, features=2),
    "Queued replay>size": lambda w: dt.QueuedLoss(kl, size=3, features=2, replay=9),
    "Queued replay neg": lambda w: dt.QueuedLoss(kl, size=3, features=2, replay=-1),
    "Queued features str": lambda w: dt.QueuedLoss(kl, size=3, features="a"),
    "Queued nested": lambda w: dt.QueuedLoss(dt.QueuedLoss(kl, size=3, features=2), size=3, features=2),
    "LMA 0": lambda w: dt.LogMovingAverage(0),
    "LMA str": lambda w: dt.LogMovingAverage("10"),
    "LMA gamma 0": lambda w: dt.LogMovingAverage(5, gamma=0.0),
    "LMA gamma 2": lambda w: dt.LogMovingAverage(5, gamma=2),
    "LMA gamma nan": lambda w: dt.LogMovingAverage(5, gamma=NAN),
    "LMA gamma str": lambda w: dt.LogMovingAverage(5, gamma="a"),
    "LMA on_host str": lambda w: dt.LogMovingAverage(5, on_host="yes"),
    "Scent alpha inf": lambda w: dt.Scent(5, alpha=INF),
    "Scent alpha None": lambda w: dt.Scent(5, alpha=None),
    "CosineGamma epochs 0": lambda w: dt.estimators.CosineGamma(0.5, epochs=0),
    "CosineGamma epochs float": lambda w: dt.estimators.CosineGamma(0.5, epochs=1.5),
    "TempNet reversed": lambda w: dt.TempNet(4, tau_min=1.0, tau_max=0.1),
    "TempNet tau 0": lambda w: dt.TempNet(4, tau_min=0.0, tau_max=0.1),
    "TempNet nan": lambda w: dt.TempNet(4, tau_min=NAN, tau_max=0.1),
    "TempNet str": lambda w: dt.TempNet(4, tau_min="a", tau_max=0.1),
    "TempNet None": lambda w: dt.TempNet(4, tau_min=None, tau_max=0.1),
    "TempNet width 0": lambda w: dt.TempNet(0, tau_min=0.1, tau_max=1.0),
    "TempNet width -3": lambda w: dt.TempNet(-3, tau_min=0.1, tau_max=1.0),
    "TempNet width float": lambda w: dt.TempNet(4.0, tau_min=0.1, tau_max=1.0),
    "TempNet width str": lambda w: dt.TempNet("a", tau_min=0.1, tau_max=1.0),
    "TempNet module": lambda w: dt.TempNet(torch.nn.Linear(3, 3), tau_min=0.1, tau_max=1.0),
    "TempNet init out": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, tau_init=3.0),
    "TempNet init bound": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, tau_init=0.1),
    "TempNet init nan": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, tau_init=NAN),
    "TempNet dropout 2": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, dropout=2.0),
    "TempNet dropout 1": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, dropout=1.0),
    "TempNet prototypes 0": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, prototypes=0),
    "TempNet readout": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, readout="x"),
    "TempNet readout instance": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0, readout=torch.nn.Linear),
    "for_logits 0": lambda w: dt.TempNet.for_logits(0, tau_min=0.1, tau_max=1.0),
    "Hidden 0": lambda w: dt.predictors.HiddenEncoder(0),
    "Hidden width -1": lambda w: dt.predictors.HiddenEncoder(4, width=-1),
    "Several empty": lambda w: dt.predictors.SumEncoder([]),
    "Several ints": lambda w: dt.predictors.SumEncoder([1]),
    "Const 0": lambda w: dt.ConstantTemperature(0.0),
    "Const nan": lambda w: dt.ConstantTemperature(NAN),
    "Const str": lambda w: dt.ConstantTemperature("a"),
    "Const None": lambda w: dt.ConstantTemperature(None),
    "Learn init out": lambda w: dt.LearnableTemperature(5.0),
    "Learn reversed": lambda w: dt.LearnableTemperature(0.5, tau_min=1.0, tau_max=0.1),
    "Ind 0": lambda w: dt.IndividualTemperature(0, tau_min=0.1, tau_max=1.0),
    "Ind init": lambda w: dt.IndividualTemperature(5, tau_min=0.1, tau_max=1.0, tau_init=9.0),
    "Ind update": lambda w: dt.IndividualTemperature(5, tau_min=0.1, tau_max=1.0, update="sgd"),
    "GradientUpdate lr": lambda w: dt.predictors.GradientUpdate(lr=-1),
    "GradientUpdate beta": lambda w: dt.predictors.GradientUpdate(beta=1.5),
    "GradientUpdate clip": lambda w: dt.predictors.GradientUpdate(clip=0),
    "GradientUpdate nan": lambda w: dt.predictors.GradientUpdate(lr=NAN),
    "Optimal rho": lambda w: dt.OptimalTemperature(-1, tau_min=0.1, tau_max=1.0),
    "Optimal it": lambda w: dt.OptimalTemperature(1, tau_min=0.1, tau_max=1.0, iterations=0),
    "Optimal outcomes": lambda w: dt.OptimalTemperature(1, tau_min=0.1, tau_max=1.0, outcomes=-4),
    "CVaR 0": lambda w: dt.CVaRRisk(0.0),
    "CVaR 2": lambda w: dt.CVaRRisk(2.0),
    "CVaR nan": lambda w: dt.CVaRRisk(NAN),
    "CVaR str": lambda w: dt.CVaRRisk("a"),
    "Chi neg": lambda w: dt.ChiSquareRisk(-1),
    "KLRisk neg": lambda w: dt.KLRisk(-1.0),
    "KLRisk tau float": lambda w: dt.KLRisk(1.0, tau=0.1),
    "KLRisk tau TempNet": lambda w: dt.KLRisk(1.0, tau=dt.TempNet(4, tau_min=0.1, tau_max=1.0)),
    "Tilt 0": lambda w: dt.TiltedRisk(0.0),
    "Tilt nan": lambda w: dt.TiltedRisk(NAN),
    "Tilt est size": lambda w: dt.TiltedRisk(1.0, estimator=dt.LogMovingAverage(7)),
    "Group 0": lambda w: dt.GroupRisk(0),
    "Group step": lambda w: dt.GroupRisk(3, step_size=-1),
    "Group step nan": lambda w: dt.GroupRisk(3, step_size=NAN),
    "Optimistic": lambda w: dt.OptimisticRisk(3),
    "Optimistic x2": lambda w: dt.OptimisticRisk(dt.OptimisticRisk(dt.CVaRRisk(0.5))),
    "SoftCap 0": lambda w: dt.functional.SoftCap(0),
    "SoftCap str": lambda w: dt.functional.SoftCap("a"),
    "SoftCap None": lambda w: dt.functional.SoftCap(None),
    "Scale neg": lambda w: dt.functional.Scale(-1.0),
    "Cyclic neg": lambda w: dt.CyclicPenalty(-1.0),
    "Cyclic nan": lambda w: dt.CyclicPenalty(NAN),
    "Cyclic views": lambda w: dt.CyclicPenalty(views=("a", "b", "c")),
    "Edt theta": lambda w: dt.predictors.EdtRule(theta=-1),
    "Edt base": lambda w: dt.predictors.EdtRule(base=2.0),
    "Dynatemp reversed": lambda w: dt.predictors.DynatempRule(2.0, 1.0),
    "EntropyTemperature": lambda w: dt.EntropyTemperature("x"),
    # Rows and scores
    "Rows 1d": lambda w: dt.Rows(torch.randn(4), torch.arange(4)),
    "Rows 3d": lambda w: dt.Rows(torch.randn(2, 2, 4), torch.arange(2)),
    "Rows target len": lambda w: rows(target=torch.arange(3)),
    "Rows target float": lambda w: rows(target=torch.zeros(4)),
    "Rows target bool": lambda w: rows(target=torch.zeros(4, dtype=torch.bool)),
    "Rows int scores": lambda w: kl(rows(scores=torch.ones(4, 10, dtype=torch.long)), 1.0),
    "Rows target list": lambda w: rows(target=[0, 1, 2, 3]),
    "Rows numpy scores": lambda w: rows(scores=np.zeros((4, 10))),
    "Rows None": lambda w: rows(scores=None),
    "Rows target oob eager": lambda w: kl(rows(target=torch.tensor([0, 1, 2, 10])), 1.0),
    "Rows target oob chunked": lambda w: chunked(
        rows(scores=products(), target=torch.tensor([0, 1, 2, 10])), 1.0
    ),
    "Rows target oob native": lambda w: native(
        rows(scores=products(), target=torch.tensor([0, 1, 2, 10])), 1.0
    ),
    "Rows target -100 no weight eager": lambda w: kl(rows(target=torch.tensor([0, 1, 2, -100])), 1.0),
    "Rows target -1 eager": lambda w: kl(rows(target=torch.tensor([0, 1, 2, -1])), 1.0),
    "Rows target -1 chunked": lambda w: chunked(
        rows(scores=products(), target=torch.tensor([0, 1, 2, -1])), 1.0
    ),
    "Rows target -1 native pairs": lambda w: native(
        rows(scores=products(), target=torch.tensor([0, 1, 2, -1]), target_in_support=False), 1.0
    ),
    "Rows weight neg": lambda w: kl(rows(weight=torch.tensor([1.0, -1, 1, 1])), 1.0),
    "Rows weight nan": lambda w: kl(rows(weight=torch.tensor([1.0, NAN, 1, 1])), 1.0),
    "Rows weight 2d": lambda w: rows(weight=torch.ones(4, 1)),
    "Rows weight bool": lambda w: kl(rows(weight=torch.ones(4, dtype=torch.bool)), 1.0),
    "Rows weight bool ch": lambda w: chunked(
        rows(scores=products(), weight=torch.ones(4, dtype=torch.bool)), 1.0
    ),
    "Rows weight list": lambda w: rows(weight=[1, 1, 1, 1]),
    "Rows features 1d": lambda w: rows(features=torch.randn(4)),
    "Rows index float": lambda w: rows(index=torch.zeros(4)),
    "Rows distribution shape": lambda w: rows(target_distribution=torch.ones(4, 3)),
    "Rows distribution not sum": lambda w: kl(rows(target_distribution=torch.ones(4, 10)), 1.0),
    "Rows distribution neg": lambda w: kl(rows(target_distribution=-torch.ones(4, 10) / 10), 1.0),
    "Rows distribution pairs": lambda w: rows(
        target_distribution=torch.ones(4, 10) / 10, target_in_support=False
    ),
    "Rows target_in_support None": lambda w: kl(rows(target_in_support=None), 1.0),
    "target 255 weight 0": lambda w: kl(
        rows(target=torch.tensor([0, 1, 2, 255]), weight=torch.tensor([1.0, 1, 1, 0])), 1.0
    ),
    "Lin widths": lambda w: LinearScores(torch.randn(4, 3), torch.randn(5, 2)),
    "Lin bias": lambda w: LinearScores(torch.randn(4, 3), torch.randn(5, 3), torch.randn(4)),
    "Lin 1d": lambda w: LinearScores(torch.randn(3), torch.randn(5, 3)),
    "Lin transform": lambda w: chunked(rows(scores=products(transform="x")), 1.0),
    "Lin lambda chunked": lambda w: chunked(rows(scores=products(transform=lambda x: x)), 1.0),
    "Lin int queries": lambda w: chunked(
        rows(scores=products(queries=torch.ones(4, 3, dtype=torch.long))), 1.0
    ),
    "Lin complex": lambda w: chunked(
        rows(
            scores=products(
                queries=torch.ones(4, 3, dtype=torch.cfloat), keys=torch.ones(10, 3, dtype=torch.cfloat)
            )
        ),
        1.0,
    ),
    "Lin nan": lambda w: chunked(rows(scores=products(queries=torch.full((4, 3), NAN))), 1.0),
    "Lin meta": lambda w: chunked(rows(scores=products(queries=torch.randn(4, 3, device="meta"))), 1.0),
    # Calls of losses, predictors and risks
    "tau 0": lambda w: kl(rows(), 0.0),
    "tau neg": lambda w: kl(rows(), -1.0),
    "tau nan": lambda w: kl(rows(), NAN),
    "tau inf": lambda w: kl(rows(), INF),
    "tau tensor neg eager": lambda w: kl(rows(), torch.tensor([-1.0, 1, 1, 1])),
    "tau tensor 0 eager": lambda w: kl(rows(), torch.zeros(4)),
    "tau tensor neg chunked": lambda w: chunked(rows(scores=products()), torch.tensor([-1.0, 1, 1, 1])),
    "tau tensor 0 chunked": lambda w: chunked(rows(scores=products()), torch.zeros(4)),
    "tau tensor neg native": lambda w: native(rows(scores=products()), torch.tensor([-1.0, 1, 1, 1])),
    "tau tensor nan": lambda w: kl(rows(), torch.tensor([NAN, 1, 1, 1])),
    "tau scalar tensor neg": lambda w: kl(rows(), torch.tensor(-1.0)),
    "tau 2d": lambda w: kl(rows(), torch.ones(4, 1)),
    "tau len": lambda w: kl(rows(), torch.ones(3)),
    "tau str": lambda w: kl(rows(), "a"),
    "tau None": lambda w: kl(rows(), None),
    "tau int tensor": lambda w: kl(rows(), torch.ones(4, dtype=torch.long)),
    "tau bool": lambda w: kl(rows(), True),
    "tau numpy": lambda w: kl(rows(), np.float32(-1.0)),
    "tau list": lambda w: kl(rows(), [1.0, 1.0, 1.0, 1.0]),
    "rows tensor": lambda w: kl(torch.randn(4, 10), 1.0),
    "rho infeasible": lambda w: dt.KLRobustLoss(5.0)(rows(), 1.0),
    "statistics name": lambda w: kl.evaluate(rows(), 1.0, statistics=("foo",)),
    "statistics name ch": lambda w: chunked.evaluate(rows(scores=products()), 1.0, statistics=("foo",)),
    "statistics str": lambda w: kl.evaluate(rows(), 1.0, statistics="entropy"),
    "LMA no index": lambda w: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(20))(rows(), 1.0),
    "LMA index oob": lambda w: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(20))(
        rows(index=torch.tensor([0, 1, 2, 20])), 1.0
    ),
    "LMA index neg": lambda w: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(20))(
        rows(index=torch.tensor([0, 1, 2, -1])), 1.0
    ),
    "predictor features missing": lambda w: kl(rows(), dt.TempNet(4, tau_min=0.1, tau_max=1.0)),
    "predictor width": lambda w: kl(
        rows(features=torch.randn(4, 7)), dt.TempNet(4, tau_min=0.1, tau_max=1.0)
    ),
    "predictor outcomes": lambda w: kl(rows(), dt.TempNet.for_logits(7, tau_min=0.1, tau_max=1.0)),
    "predictor outcomes ch": lambda w: chunked(
        rows(scores=products()), dt.TempNet.for_logits(7, tau_min=0.1, tau_max=1.0)
    ),
    "predictor int features": lambda w: kl(
        rows(features=torch.ones(4, 4, dtype=torch.long)), dt.TempNet(4, tau_min=0.1, tau_max=1.0)
    ),
    "predictor none": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0)(),
    "predictor features str": lambda w: dt.TempNet(4, tau_min=0.1, tau_max=1.0)("a"),
    "Individual index oob": lambda w: kl(
        rows(index=torch.tensor([0, 1, 2, 9])), dt.IndividualTemperature(5, tau_min=0.1, tau_max=1.0)
    ),
    "Queued width": lambda w: dt.QueuedLoss(dt.KLRobustLoss(0.5), size=4, features=9)(
        rows(scores=products(), target_in_support=False), 1.0
    ),
    "risk 2d": lambda w: dt.CVaRRisk(0.5)(torch.randn(3, 3)),
    "risk int": lambda w: dt.CVaRRisk(0.5)(torch.arange(3)),
    "risk weight neg": lambda w: dt.CVaRRisk(0.5)(torch.randn(3), weight=torch.tensor([1.0, -1, 1])),
    "risk weight nan": lambda w: dt.CVaRRisk(0.5)(torch.randn(3), weight=torch.tensor([1.0, NAN, 1])),
    "risk weight len": lambda w: dt.CVaRRisk(0.5)(torch.randn(3), weight=torch.ones(2)),
    "risk nan loss": lambda w: dt.CVaRRisk(0.5)(torch.tensor([NAN, 1.0])),
    "risk group missing": lambda w: dt.GroupRisk(2)(torch.randn(3)),
    "risk group oob": lambda w: dt.GroupRisk(2)(torch.randn(3), group=torch.tensor([0, 1, 2])),
    "risk group neg": lambda w: dt.GroupRisk(2)(torch.randn(3), group=torch.tensor([0, 1, -1])),
    "risk group float": lambda w: dt.GroupRisk(2)(torch.randn(3), group=torch.zeros(3)),
    "risk list": lambda w: dt.CVaRRisk(0.5)([1.0, 2.0]),
    "risk group given to CVaR": lambda w: dt.CVaRRisk(0.5)(torch.randn(3), group=torch.tensor([0, 1, 1])),
    "KLRisk infeasible": lambda w: dt.KLRisk(9.0)(torch.randn(3)),
    # Objectives
    "Obj host": lambda w: dt.Objective(torch.nn.Linear(2, 2), dt.ConstantTemperature(1.0), kl),
    "Obj swapped": lambda w: dt.Objective(w.objective.host, kl, dt.ConstantTemperature(1.0)),
    "Obj missing view": lambda w: dt.Objective(w.objective.host, {"image": dt.ConstantTemperature(1.0)}, kl),
    "Obj other view": lambda w: dt.Objective(
        w.objective.host, {"image": dt.ConstantTemperature(1.0), "audio": dt.ConstantTemperature(1.0)}, kl
    ),
    "Obj shared memory": lambda w: dt.Objective(
        w.objective.host, dt.ConstantTemperature(1.0), dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(9))
    ),
    "Obj shared individual": lambda w: dt.Objective(
        w.objective.host, dt.IndividualTemperature(9, tau_min=0.1, tau_max=1.0), kl
    ),
    "Obj estimator shared across loss and tau_loss": lambda w: (
        lambda e: dt.Objective(
            w.classifier.host,
            dt.TempNet(4, tau_min=0.1, tau_max=1.0),
            dt.KLRobustLoss(1.0, estimator=e),
            tau_loss=dt.KLRobustLoss(1.0, estimator=e),
        )
    )(dt.LogMovingAverage(9)),
    "Obj penalties one": lambda w: dt.Objective(
        w.objective.host, dt.ConstantTemperature(1.0), kl, penalties=dt.CyclicPenalty()
    ),
    "Obj penalties twice": lambda w: dt.Objective(
        w.objective.host, dt.ConstantTemperature(1.0), kl, penalties=(dt.CyclicPenalty(), dt.CyclicPenalty())
    ),
    "Obj penalty cls": lambda w: dt.Objective(
        w.classifier.host, dt.ConstantTemperature(1.0), kl, penalties=(dt.CyclicPenalty(),)
    ),
    "Obj risk": lambda w: dt.Objective(w.objective.host, dt.ConstantTemperature(1.0), kl, risk="cvar"),
    "Obj tau_loss": lambda w: dt.Objective(w.objective.host, dt.ConstantTemperature(1.0), kl, tau_loss=3),
    "Obj None": lambda w: dt.Objective(None, None, None),
    "Obj empty mapping": lambda w: dt.Objective(w.objective.host, {}, kl),
    "Obj tuple": lambda w: dt.Objective(w.objective.host, (dt.ConstantTemperature(1.0),), kl),
    "Obj predictor width": lambda w: dt.Objective(
        w.objective.host, dt.TempNet(9, tau_min=0.1, tau_max=1.0), kl
    )(IMAGES, TEXTS),
    # Calls of objectives
    "call count 0": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, count=0),
    "call count neg": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, count=-3.0),
    "call count nan": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, count=NAN),
    "call count tensor neg": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, count=torch.tensor(-3.0)),
    "call count tensor 0": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, count=torch.tensor(0.0)),
    "call count str": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, count="a"),
    "call count vector": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, count=torch.ones(6)),
    "call group len": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, group=INDEX[:3]),
    "call group float": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, group=INDEX.float()),
    "call group str": lambda w: w.objective(IMAGES, TEXTS, index=INDEX, group="abcdef"),
    "call fewer texts": lambda w: w.objective(IMAGES, TEXTS[:3], index=INDEX),
    "call index len": lambda w: w.objective(IMAGES, TEXTS, index=INDEX[:3]),
    "call index 2d": lambda w: w.objective(IMAGES, TEXTS, index=INDEX[:, None]),
    "call index oob": lambda w: w.objective(IMAGES, TEXTS, index=INDEX + 100),
    "call index float": lambda w: w.objective(IMAGES, TEXTS, index=INDEX.float()),
    "call index list": lambda w: w.objective(IMAGES, TEXTS, index=list(range(6))),
    "call index none": lambda w: w.objective(IMAGES, TEXTS),
    "call nan": lambda w: w.objective(IMAGES * NAN, TEXTS, index=INDEX),
    "call inf": lambda w: w.objective(IMAGES.masked_fill(IMAGES > 0, INF), TEXTS, index=INDEX),
    "call one row": lambda w: w.objective(IMAGES[:1], TEXTS[:1], index=INDEX[:1]),
    "call no rows": lambda w: w.objective(IMAGES[:0], TEXTS[:0], index=INDEX[:0]),
    "call cls label oob": lambda w: w.classifier(IMAGES, INDEX + 8),
    "call cls label float": lambda w: w.classifier(IMAGES, INDEX.float()),
    "call cls label 2d": lambda w: w.classifier(IMAGES, INDEX[:, None]),
    "call cls label len": lambda w: w.classifier(IMAGES, INDEX[:3]),
    "call cls label neg": lambda w: w.classifier(IMAGES, INDEX - 3),
    "call cls index": lambda w: w.classifier(IMAGES, INDEX, index=INDEX[:2]),
    "call cls list": lambda w: w.classifier(IMAGES, [0, 1, 2, 3, 4, 5]),
    "call cls none": lambda w: w.classifier(IMAGES, None),
    "call cls all ignored": lambda w: w.classifier(IMAGES, torch.full((6,), -100)),
    "call cls wrong kw": lambda w: w.classifier(IMAGES, INDEX, foo=3),
    # Optimizers, groups, functions, hosts, loading
    "opt base": lambda w: dt.CompositionalOptimizer("adam", w.objective),
    "opt obj": lambda w: dt.CompositionalOptimizer(w.base, torch.nn.Linear(2, 2)),
    "opt swapped": lambda w: dt.CompositionalOptimizer(w.objective, w.base),
    "opt nested": lambda w: dt.CompositionalOptimizer(w.optimizer, w.objective),
    "opt others": lambda w: dt.CompositionalOptimizer(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1), w.objective
    ),
    "opt gamma": lambda w: dt.CompositionalOptimizer(w.base, w.objective, gamma=0.0),
    "opt gamma str": lambda w: dt.CompositionalOptimizer(w.base, w.objective, gamma="x"),
    "opt gamma none there": lambda w: dt.CompositionalOptimizer(
        torch.optim.SGD(w.classifier.param_groups(lr=0.1)), w.classifier, gamma=0.5
    ),
    "opt step idle": lambda w: w.optimizer.step(),
    "groups lr": lambda w: w.objective.param_groups(lr="a"),
    "groups lr neg": lambda w: w.objective.param_groups(lr=-1.0),
    "groups host missing": lambda w: w.objective.param_groups(
        lr=0.1, host=[{"params": [next(w.objective.host.parameters())]}]
    ),
    "groups host none": lambda w: w.objective.param_groups(lr=0.1, host=5),
    "hold steps": lambda w: dt.hold_temperatures(w.base, steps=-1),
    "hold no temp group": lambda w: dt.hold_temperatures(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1), steps=3
    ),
    "start_prototypes cls": lambda w: w.classifier.start_prototypes(IMAGES, INDEX),
    "F.optimal_tau reversed": lambda w: F.optimal_tau(torch.randn(3, 4), rho=0.5, tau_min=1.0, tau_max=0.1),
    "F.optimal_tau rho neg": lambda w: F.optimal_tau(torch.randn(3, 4), rho=-1, tau_min=0.1, tau_max=1.0),
    "F.kl_dual tau neg": lambda w: F.kl_dual(torch.randn(3, 4), -torch.ones(3), rho=1.0),
    "select number": lambda w: rows().select(2),
    "select None": lambda w: rows(scores=products()).select(None),
    "select 2-d": lambda w: rows(scores=products()).select(torch.zeros(2, 2, dtype=torch.long)),
    "select 0-d": lambda w: rows().select(torch.tensor(1)),
    "rows to dtype": lambda w: rows().to(torch.float64),
    "predict features": lambda w: w.classifier.predictors["class"].predict(FEATURES),
    "predictor statistics": lambda w: w.classifier.predictors["class"](statistics=SCORES),
    "decoder None": lambda w: w.classifier.predictors["class"].eval().decoder(None),
    "reads on instance": lambda w: kl(rows(features=FEATURES), with_reads("features")),
    "reads misspelt on instance": lambda w: kl(rows(features=FEATURES), with_reads({"indx"})),
    "inputs unknown": lambda w: dt.interfaces.PredictorInputs(2, foo=1),
    "statistics ints": lambda w: dt.interfaces.ScoreStatistics(TARGET[None]),
    "statistics list": lambda w: dt.interfaces.ScoreStatistics([[1.0, 2.0]]),
    "statistics 1-d": lambda w: dt.interfaces.ScoreStatistics(torch.ones(3)),
    "evaluate unknown statistic": lambda w: kl.evaluate(rows(), 1.0, statistics=("entropie",)),
    "opt risk without memory": lambda w: dt.CompositionalOptimizer(w.base, Plain()),
    "risk remembers, not standalone": lambda w: classifier(risk=Remembers()),
    "gamma of a schedule": lambda w: averaged(gamma=lambda step: torch.tensor(2.0)),
    "gamma of a schedule nan": lambda w: averaged(gamma=lambda step: torch.tensor(NAN)),
    "gamma of a schedule str": lambda w: averaged(gamma=lambda step: "a"),
    "raw [n 1]": lambda w: kl(rows(features=FEATURES), Raw(lambda x: x.features[:, :1])),
    "raw [n 1] streamed": lambda w: chunked(rows(scores=products(), features=FEATURES), Raw(of_statistics)),
    "raw None": lambda w: kl(rows(features=FEATURES), Raw(lambda x: None)),
    "raw one number": lambda w: kl(rows(features=FEATURES), Raw(lambda x: x.features.mean())),
    "values [n 1]": lambda w: Columns()(rows(), 1.0),
    "values [n 1] streamed": lambda w: Columns(backend="torch")(rows(scores=products()), 1.0),
    "values mean": lambda w: Mean()(rows(), 1.0),
    "host rows None": lambda w: hosted(None),
    "host rows wrong views": lambda w: hosted({"image": rows()}),
    "host rows of tensors": lambda w: hosted({"class": SCORES}),
    "host without views": lambda w: objective_of(type("Viewless", (Hosted,), {"views": None})),
    "host of one name": lambda w: objective_of(type("Named", (Hosted,), {"views": "class"})),
    "host mirrors unknown": lambda w: objective_of(type("Mirrors", (Hosted,), {"mirrored": ("a", "b")})),
    "Indexed": lambda w: dt.datasets.Indexed(5),
    "byte_budget neg": lambda w: dt.kernels.byte_budget(-1).__enter__(),
    "host Classifier head": lambda w: dt.hosts.Classifier(torch.nn.Linear(3, 3), "head"),
    "host TwoTower None": lambda w: dt.hosts.TwoTower(None, None),
    "host InChunks 0": lambda w: dt.hosts.InChunks(w.objective.host, 0),
    "GroupRisk risk without groups": lambda w: classifier(risk=dt.GroupRisk(2))(IMAGES, INDEX),
    "risk with count": lambda w: classifier(risk=dt.CVaRRisk(0.5))(IMAGES, INDEX, count=3),
    "load wrong": lambda w: w.objective.load_state_dict({}),
    "load size": lambda w: tower().load_state_dict(
        {k: torch.zeros(9) if k.endswith("log_u") else v for k, v in w.objective.state_dict().items()}
    ),
    "load size opt": lambda w: w.optimizer.load_state_dict({"state": {}, "param_groups": []}),
    "from_pretrained none": lambda w: dt.TempNet.from_pretrained("/nonexistent"),
    "from_pretrained int": lambda w: dt.TempNet.from_pretrained(5),
}


class Legitimate(NamedTuple):
    """An input of the list that is right after all.

    Args:
        why: the reason.
        value: what it is worth, of the case's result.
        equal: the value that it must have.
    """

    why: str
    value: Callable[[Any], torch.Tensor]
    equal: Case


def itself(result: Any) -> torch.Tensor:
    return result


def loss(output: Any) -> torch.Tensor:
    return output.loss


ZERO = torch.tensor(0.0)
LEGITIMATE: dict[str, Legitimate] = {
    "Optimistic x2": Legitimate(
        "the ally of an ally is the adversary again, exactly: generic code may wrap twice",
        lambda risk: risk(torch.arange(4.0)),
        lambda w: dt.CVaRRisk(0.5)(torch.arange(4.0)),
    ),
    "Rows weight bool": Legitimate(
        "a mask of padding is a weight of zeros and ones",
        itself,
        lambda w: kl(rows(weight=torch.ones(4)), 1.0),
    ),
    "Rows weight bool ch": Legitimate(
        "the same where scores are streamed",
        itself,
        lambda w: chunked(rows(scores=products(), weight=torch.ones(4)), 1.0),
    ),
    "target 255 weight 0": Legitimate(
        "a row that does not count may hold anything; 255 is the ignored label of segmentation",
        itself,
        lambda w: kl(rows(weight=torch.tensor([1.0, 1, 1, 0])), 1.0),
    ),
    "Lin nan": Legitimate(
        "a loss hands NaN on: a gradient scaler skips the step by it, and an Objective names the row",
        itself,
        lambda w: torch.full((4,), NAN),
    ),
    "risk nan loss": Legitimate("a risk hands NaN on, as a loss does", itself, lambda w: torch.tensor(NAN)),
    "tau int tensor": Legitimate(
        "whole numbers are temperatures, exactly", itself, lambda w: kl(rows(), torch.ones(4))
    ),
    "predictor int features": Legitimate(
        "whole numbers are features, exactly",
        itself,
        lambda w: kl(rows(features=FEATURES), dt.TempNet(4, tau_min=0.1, tau_max=1.0)),
    ),
    "call one row": Legitimate(
        "a last batch of one pair has no negatives: nothing to learn, no error", loss, lambda w: ZERO
    ),
    "call no rows": Legitimate(
        "a process may be left without samples, and must not stop the others", loss, lambda w: ZERO
    ),
    "call cls all ignored": Legitimate("a batch may be ignored altogether", loss, lambda w: ZERO),
    "call index list": Legitimate(
        "sample numbers come as lists out of data loaders",
        loss,
        lambda w: w.objective(IMAGES, TEXTS, index=INDEX).loss,
    ),
}
