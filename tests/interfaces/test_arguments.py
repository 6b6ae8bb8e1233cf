"""Each argument of each public class and recipe, one at a time set to what it cannot be; all others are right."""

import inspect
import math

import matplotlib
import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp import evaluation as E
from dro_temp import functional as F

matplotlib.use("Agg")

BOUNDS = {"tau_min": 0.1, "tau_max": 1.0}
ITEMS, LABEL, TAU = torch.randn(30, 8), torch.arange(30) % 10, torch.linspace(0.1, 0.9, 30)
BATCHES = [(torch.randn(8, 6), torch.arange(8))] * 3
MATRIX, VECTOR, ROWS = torch.randn(3, 4), torch.randn(5), torch.ones(3)


def host(**options):
    return dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), **options)


def objective():
    classifier = dt.hosts.Classifier(nn.Linear(6, 4), nn.Linear(4, 10))
    return dt.Objective(classifier, dt.LearnableTemperature(), dt.KLRobustLoss(1.0))


FASTCLIP = {"num_samples": 20, "epochs": 2, "steps_per_epoch": 3, "gamma": 0.5}
LEARNABLE = {"tau_init": 0.2, **BOUNDS}

# What is called, and arguments that are right, made anew for each test.
CALLS = {
    dt.ChiSquareRisk: lambda: {"rho": 1.0},
    dt.CVaRRisk: lambda: {"alpha": 0.5},
    dt.CompositionalOptimizer: lambda: {
        "objective": (made := objective()),
        "base": torch.optim.SGD(made.param_groups(lr=0.1)),
    },
    dt.ConstantTemperature: lambda: {"tau": 0.5},
    dt.estimators.CosineGamma: lambda: {"gamma": 0.5, "epochs": 2, "steps_per_epoch": 2},
    dt.CyclicPenalty: lambda: {"in_modal": 0.1, "cross_modal": 0.1, "views": ("image", "text")},
    dt.predictors.DynatempRule: lambda: {"tau_min": 0.1, "tau_max": 1.0, "exponent": 1.0},
    dt.predictors.EdtRule: lambda: {"tau0": 1.0, "theta": 0.1, "base": 0.8, "tau_min": 0.01},
    dt.EntropicRiskLoss: lambda: {"estimator": dt.estimators.Exact(), "backend": "auto"},
    dt.EntropyTemperature: lambda: {"rule": dt.predictors.EdtRule()},
    dt.predictors.GradientUpdate: lambda: {"lr": 0.1, "beta": 0.5, "clip": 1.0},
    dt.GroupRisk: lambda: {"num_groups": 2, "step_size": 0.1},
    dt.predictors.HiddenEncoder: lambda: {"features": 4, "width": 3, "dropout": 0.1},
    dt.IndividualTemperature: lambda: {
        "num_samples": 4,
        **LEARNABLE,
        "update": dt.predictors.GradientUpdate(),
        "on_host": False,
    },
    dt.InfoNCELoss: lambda: {"backend": "auto"},
    dt.SupervisedContrastiveLoss: lambda: {"backend": "auto"},
    dt.losses.KeyQueue: lambda: {"size": 3, "features": 2, "queries": False},
    dt.KLRisk: lambda: {
        "rho": 0.5,
        "tau": dt.LearnableTemperature(),
        "estimator": dt.LogMovingAverage(1),
    },
    dt.KLRobustLoss: lambda: {"rho": 0.5, "estimator": dt.estimators.Exact(), "backend": "auto"},
    dt.LearnableTemperature: lambda: LEARNABLE,
    dt.LikelihoodLoss: lambda: {"backend": "auto"},
    dt.SelectiveSmoothingLoss: lambda: {"alpha": 0.5, "backend": "auto"},
    dt.SelfWeightedLoss: lambda: {"easy_weight": 0.4, "backend": "auto"},
    dt.LinearScores: lambda: {
        "queries": torch.randn(3, 4),
        "keys": torch.randn(5, 4),
        "bias": VECTOR,
        "transform": F.SoftCap(1.0),
    },
    dt.LogMovingAverage: lambda: {"num_samples": 3, "gamma": 0.5, "on_host": False},
    dt.predictors.LogitEncoder: lambda: {"outcomes": 4, "width": 3, "dropout": 0.1, "centred": True},
    dt.Objective: lambda: {
        "host": host(),
        "predictor": dt.ConstantTemperature(1.0),
        "loss": dt.KLRobustLoss(1.0),
        "penalties": (),
        "tau_loss": dt.InfoNCELoss(),
        "risk": dt.CVaRRisk(0.5),
        "check_finite": True,
        "monitor": True,
    },
    dt.OptimalTemperature: lambda: {"rho": 0.5, **BOUNDS, "iterations": 4, "outcomes": 5},
    dt.OptimalTemperature.for_entropy: lambda: {"entropy": 0.5, "outcomes": 5, **BOUNDS, "iterations": 4},
    dt.OptimisticRisk: lambda: {"risk": dt.CVaRRisk(0.5)},
    dt.predictors.PrototypeEncoder: lambda: {"features": 4, "prototypes": 3, "dropout": 0.1},
    dt.QueuedLoss: lambda: {"loss": dt.KLRobustLoss(1.0), "size": 4, "features": 3, "replay": 2},
    dt.risks.RecordedRisk: lambda: {"risk": dt.KLRisk(0.0), "num_samples": 9, "gamma": 0.5, "on_host": False},
    dt.risks.RisingRadius: lambda: {"risk": dt.KLRisk(0.0), "rho": 0.5, "steps": 4, "start": 0.1},
    dt.Rows: lambda: {
        "scores": MATRIX,
        "target": torch.arange(3),
        "features": MATRIX,
        "index": torch.arange(3),
        "target_in_support": True,
        "weight": ROWS,
        "target_distribution": MATRIX.softmax(1),
    },
    dt.functional.Scale: lambda: {"factor": 1.0},
    dt.Scent: lambda: {"num_samples": 3, "alpha": 1.0, "on_host": False},
    dt.predictors.SumEncoder: lambda: {
        "encoders": [dt.predictors.HiddenEncoder(3), dt.predictors.HiddenEncoder(3)]
    },
    dt.SigmoidLoss: lambda: {"bias_init": -10.0, "backend": "auto"},
    dt.functional.SoftCap: lambda: {"cap": 1.0},
    dt.predictors.StatisticsEncoder: lambda: {"width": 3, "dropout": 0.1},
    dt.Support: lambda: {"scores": MATRIX, "mask": MATRIX > -9, "outcomes": 4},
    dt.TempNet: lambda: {
        "encoder": 4,
        **LEARNABLE,
        "prototypes": 3,
        "dropout": 0.1,
        "readout": dt.predictors.ResidualReadout,
    },
    dt.TempNet.for_logits: lambda: {
        "outcomes": 4,
        **LEARNABLE,
        "width": 3,
        "dropout": 0.1,
        "centred": False,
    },
    dt.losses.ScaledLikelihoodLoss: lambda: {
        "scale": dt.LearnableTemperature(0.1),
        "tau": 0.2,
        "power": 0.5,
    },
    dt.predictors.LevelTemperature: lambda: {
        "predictor": dt.TempNet(4, **BOUNDS),
        "tau": 0.2,
        **BOUNDS,
        "power": 0.5,
        "gamma": 0.5,
    },
    dt.TiltedRisk: lambda: {"tilt": 1.0, "estimator": dt.LogMovingAverage(1)},
    dt.hold_temperatures: lambda: {
        "optimizer": torch.optim.SGD(objective().param_groups(lr=0.1)),
        "steps": 3,
        "ramp": 2,
        "schedule": math.exp,
        "tau_schedule": math.exp,
    },
    dt.hosts.Classifier: lambda: {
        "model": nn.Linear(2, 2),
        "head": nn.Linear(2, 2),
        "label_smoothing": 0.1,
        "frozen": False,
    },
    dt.hosts.InChunks: lambda: {"host": host(), "size": 3},
    dt.hosts.TwoTower: lambda: {
        "image_encoder": nn.Linear(2, 2),
        "text_encoder": nn.Linear(2, 2),
        "frozen": False,
    },
    dt.hosts.TwoViews: lambda: {"encoder": nn.Linear(2, 2), "frozen": False},
    dt.hosts.WithReference: lambda: {"host": host(), "reference": host(frozen=True)},
    dt.recipes.cyclip: lambda: {"host": host(), "in_modal": 0.1, "cross_modal": 0.1, "tau_init": 0.2},
    dt.recipes.drrho: lambda: {
        "host": host(),
        "reference": host(frozen=True),
        "num_samples": 20,
        "tau": 0.1,
        "gamma": 0.5,
    },
    dt.recipes.fastclip_v0: lambda: {"host": host(), **FASTCLIP, **LEARNABLE},
    dt.recipes.fastclip_v1: lambda: {"host": host(), **FASTCLIP, "tau": 0.1},
    dt.recipes.fastclip_v2: lambda: {"host": host(), **FASTCLIP, **LEARNABLE, "rho": 1.0, "tau_step": 0.1},
    dt.recipes.fastclip_v3: lambda: {"host": host(), **FASTCLIP, **LEARNABLE, "rho": 1.0},
    dt.recipes.supcon: lambda: {"host": host(), "tau": 0.1},
    dt.recipes.infonce: lambda: {"host": host(), "tau_init": 0.2},
    dt.recipes.isogclr: lambda: {
        "host": host(),
        "num_samples": 20,
        "rho": 1.0,
        **LEARNABLE,
        "tau_step": 0.1,
        "tau_clip": 5.0,
        "gamma": 0.5,
    },
    dt.recipes.noisy_pairs: lambda: {
        "host": host(),
        "num_samples": 20,
        "steps": 3,
        "tau": 0.1,
        "rho": 0.5,
        "gamma": 0.5,
    },
    dt.recipes.scent: lambda: {"host": host(), "num_samples": 20, "tau": 0.1, "alpha": 1.0},
    dt.recipes.siglip: lambda: {"host": host(), "tau_init": 0.2, "bias_init": -10.0},
    dt.recipes.simclr: lambda: {"host": dt.hosts.TwoViews(nn.Linear(2, 2)), "tau": 0.1},
    dt.recipes.sogclr: lambda: {"host": host(), "num_samples": 20, "tau": 0.1, "gamma": 0.5},
    dt.recipes.tempnet: lambda: {
        "host": host(),
        "num_samples": 20,
        "width": 4,
        "rho": 1.0,
        **LEARNABLE,
        "gamma": 0.5,
    },
    dt.recipes.tempnet_queued: lambda: {
        "host": host(),
        "num_samples": 20,
        "width": 4,
        "rho": 1.0,
        **LEARNABLE,
        "gamma": 0.5,
        "queue": 10,
        "replay": 5,
    },
    E.amortisation_gap: lambda: {
        "objective": objective(),
        "batches": BATCHES,
        "rows": 10,
        "seed": 0,
        "resamples": 20,
        "confidence": 0.9,
    },
    E.GapLog: lambda: {
        "objective": objective(),
        "batches": BATCHES,
        "every": 5,
        "rows": 10,
        "resamples": 10,
        "seed": 0,
        "confidence": 0.9,
    },
    E.caption_recall: lambda: {"images": ITEMS, "texts": ITEMS, "image_of": torch.arange(30), "ks": (1, 5)},
    E.evaluate_classifier: lambda: {"host": objective(), "test": BATCHES, "validation": BATCHES, "bins": 5},
    E.expected_calibration_error: lambda: {"confidence": TAU, "correct": TAU > 0.5, "bins": 5},
    E.reliability: lambda: {"confidence": TAU, "correct": TAU > 0.5, "bins": 5},
    E.knn_accuracy: lambda: {
        "train": ITEMS,
        "train_label": LABEL,
        "test": ITEMS,
        "test_label": LABEL,
        "k": 3,
        "tau": 0.1,
    },
    E.linear_probe: lambda: {
        "train": (ITEMS, LABEL),
        "validation": (ITEMS, LABEL),
        "test": (ITEMS, LABEL),
        "strengths": (1.0,),
        "steps": 2,
    },
    E.near_duplicate_groups: lambda: {"features": ITEMS, "threshold": 0.9},
    E.near_duplicates: lambda: {"features": ITEMS, "threshold": 0.9},
    E.neighbour_consistency: lambda: {
        "tau": TAU,
        "features": ITEMS,
        "concept": LABEL,
        "k": 3,
        "resamples": 10,
        "seed": 0,
        "confidence": 0.9,
    },
    E.retrieval_recall: lambda: {
        "queries": ITEMS,
        "gallery": ITEMS,
        "query_label": LABEL,
        "gallery_label": LABEL,
        "ks": (1, 2),
    },
    E.same_concept: lambda: {"concept": LABEL},
    E.semantic_consistency: lambda: {
        "tau": TAU,
        "concept": LABEL,
        "resamples": 10,
        "seed": 0,
        "confidence": 0.9,
    },
    E.zero_shot_accuracy: lambda: {"images": ITEMS, "classes": ITEMS[:10], "label": LABEL, "ks": (1, 2)},
    dt.datasets.SampleTable: lambda: {"size": 3},
    dt.datasets.group_numbers: lambda: {"keys": ["a", "b", None]},
    dt.datasets.token_blocks: lambda: {"tokens": torch.arange(9), "length": 3},
    dt.plotting.training_curves: lambda: {"runs": {"a": {"loss": [1.0, 2.0]}}},
    dt.plotting.image_extremes: lambda: {
        "images": torch.rand(30, 4, 4),
        "captions": ["a"] * 30,
        "tau": TAU,
        "k": 2,
    },
    dt.plotting.temperature_by_concept: lambda: {
        "tau": TAU,
        "concept": LABEL,
        "names": list("abcdefghij"),
        "k": 2,
        "min_rows": 2,
    },
    dt.plotting.temperature_by_duplicates: lambda: {"tau": TAU, "concept": LABEL},
    dt.plotting.temperature_histogram: lambda: {"tau": {"a": TAU}, "bins": 5},
    dt.plotting.temperature_history: lambda: {"history": [(0, {"a": TAU}), (1, {"a": TAU})], "bins": 5},
    F.chi_square_weights: lambda: {"losses": VECTOR, "rho": 0.5},
    F.clip_between: lambda: {"lower": 0.1, "upper": 1.0, "raw": VECTOR},
    F.cvar_weights: lambda: {"losses": VECTOR, "alpha": 0.5},
    F.exp_between: lambda: {"lower": 0.1, "upper": 1.0, "log_x": VECTOR},
    F.kl_ball_weights: lambda: {"losses": VECTOR, "rho": 0.5, "iterations": 5},
    F.kl_divergence: lambda: {"margins": MATRIX, "tau": ROWS},
    F.kl_dual: lambda: {"margins": MATRIX, "tau": ROWS, "rho": 0.5},
    F.kl_weights: lambda: {"margins": MATRIX, "tau": ROWS},
    F.log_average: lambda: {"log_g": VECTOR, "gamma": 0.5, "log_u": VECTOR},
    F.log_mirror_average: lambda: {"log_g": VECTOR, "alpha": 0.5, "log_u": VECTOR},
    F.logit_between: lambda: {"tau": 0.5, "lower": 0.1, "upper": 1.0},
    F.optimal_tau: lambda: {"margins": MATRIX, "rho": 0.5, **BOUNDS, "iterations": 5},
    F.sigmoid_between: lambda: {"lower": 0.1, "upper": 1.0, "raw": VECTOR},
    F.smoothed_distribution: lambda: {"target": torch.arange(3), "outcomes": 4, "smoothing": 0.1},
    F.tilted_mean: lambda: {"losses": VECTOR, "tilt": 1.0},
}

# One number in a list: what these take.
LISTS = {
    (E.GapLog, "batches"),
    (E.evaluate_classifier, "test"),
    (E.evaluate_classifier, "validation"),
    (E.linear_probe, "strengths"),
    (dt.datasets.token_blocks, "tokens"),
}
# Of these functions the first arguments are tensors that arithmetic alone touches: torch says what they are not.
TENSORS_OF_ARITHMETIC = {
    (F.clip_between, "raw"),
    (F.exp_between, "log_x"),
    (F.sigmoid_between, "raw"),
    (F.log_average, "log_u"),
    (F.log_mirror_average, "log_u"),
}
# None means something: "as the base says", "nothing". Annotations of dataclasses and functions say where.
NEVER = {"nan": math.nan, "str": "a", "object": object(), "list": [1.5], "dict": {}, "None": None}


def allows_none(call, name):
    parameter = inspect.signature(call).parameters[name]
    return parameter.default is None or "None" in str(parameter.annotation)


def bad_arguments():
    for call, right in CALLS.items():
        for name in right():
            for what, bad in NEVER.items():
                if what == "list" and (call, name) in LISTS:
                    continue
                if (call, name) in TENSORS_OF_ARITHMETIC or (bad is None and allows_none(call, name)):
                    continue
                yield pytest.param(call, name, bad, id=f"{call.__qualname__}-{name}-{what}")


@pytest.mark.filterwarnings("ignore::dro_temp.TemperatureWarning")  # of a network that is not trained
@pytest.mark.parametrize(("call", "name", "bad"), list(bad_arguments()))
def test_what_an_argument_cannot_be_meets_an_error_that_says_so(call, name, bad, no_shape_checks):
    if name == "penalties" and bad == {}:
        pytest.skip("no penalties, in an unusual container")
    with pytest.raises((TypeError, ValueError), match=r"(?s)expected.*received"):
        call(**(CALLS[call]() | {name: bad}))


@pytest.mark.filterwarnings("ignore::dro_temp.TemperatureWarning")  # of a network that is not trained
@pytest.mark.parametrize("call", list(CALLS), ids=lambda call: call.__qualname__)
def test_the_arguments_beside_it_are_right(call, no_shape_checks):
    call(**CALLS[call]())


def takes_arguments(part):
    if not inspect.isclass(part) or inspect.isabstract(part) or issubclass(part, Warning):
        return False
    return bool(inspect.signature(part).parameters)


# Made by the library itself and handed to users, or needing a model of another library, or without arguments.
NOT_BUILT_BY_USERS = {
    dt.interfaces.BackendChoice,
    dt.interfaces.FoldedProjection,
    dt.predictors.HeadShape,
    dt.state.Committable,
    dt.state.Transaction,
    dt.interfaces.LossOutput,
    dt.estimators.Exact,
    dt.interfaces.FrozenHead,
    dt.predictors.PooledReadout,
    dt.interfaces.PredictorInputs,
    dt.predictors.ResidualReadout,
    dt.interfaces.ScoreStatistics,
    dt.risks.Suspect,
    dt.TemperatureLogitsProcessor,
}


def test_no_public_class_and_no_recipe_is_forgotten():
    packages = (dt, dt.predictors, dt.losses, dt.risks, dt.estimators, dt.interfaces, dt.functional, dt.state)
    names = [(package, name) for package in packages for name in package.__all__]
    public = {part for package, name in names if takes_arguments(part := getattr(package, name))}
    recipes = {getattr(dt.recipes, name) for name in dt.recipes.__all__}
    assert (public | recipes) - CALLS.keys() == NOT_BUILT_BY_USERS
