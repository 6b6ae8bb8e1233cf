"""Losses that are compared; each has four trials: two learning rates, two values of its one knob."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sentence_transformers as st
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

import dro_temp as dt
from benchmarks.studies.common.runs import grid
from dro_temp.integrations.sentence_transformers import RobustRankingLoss

RATES = (5e-5, 2e-4)
GAMMA = 0.8

Options = Mapping[str, float]


@dataclass(frozen=True)
class Method:
    """A loss.

    Args:
        name: in files and tables.
        build: the loss, from the encoder, the number of training pairs and a trial's options.
        knob: the option that is tuned beside the learning rate, and its values.
        batch: pairs per step.
        chunk: texts that are encoded at a time.
    """

    name: str
    build: Callable[[st.SentenceTransformer, int, Options], nn.Module]
    knob: tuple[str, tuple[float, float]]
    batch: int = 64
    chunk: int | None = None

    def trials(self) -> list[dict[str, float]]:
        """Options of each trial."""
        option, values = self.knob
        return grid(lr=RATES, **{option: values})


def _ranking(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    return MultipleNegativesRankingLoss(model, scale=o["scale"])


def _both_ways(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    return MultipleNegativesRankingLoss(
        model,
        scale=o["scale"],
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )


def _hardness(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    return MultipleNegativesRankingLoss(
        model, hardness_mode="in_batch_negatives", hardness_strength=o["strength"]
    )


def _cached(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    return CachedMultipleNegativesRankingLoss(model, scale=o["scale"], mini_batch_size=64)


def _losses(n: int, rho: float) -> dict[str, dt.KLRobustLoss]:
    return {
        view: dt.KLRobustLoss(rho, estimator=dt.LogMovingAverage(n, gamma=GAMMA))
        for view in RobustRankingLoss.views
    }


def _constant(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    return RobustRankingLoss(model, dt.ConstantTemperature(o["tau"]), _losses(n, 0.0))


def _constant_cached(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    return RobustRankingLoss(model, dt.ConstantTemperature(o["tau"]), _losses(n, 0.0), mini_batch_size=64)


def _radius(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    tau = dt.LearnableTemperature(0.05, tau_min=0.01, tau_max=0.3)
    return RobustRankingLoss(model, tau, _losses(n, o["rho"]))


def _tempnet(model: st.SentenceTransformer, n: int, o: Options) -> nn.Module:
    tempnets = {
        view: dt.TempNet(
            dt.predictors.HiddenEncoder(model.get_embedding_dimension()),
            tau_min=0.01,
            tau_max=0.3,
            tau_init=0.05,
            readout=dt.predictors.ResidualReadout,
        )
        for view in RobustRankingLoss.views
    }
    return RobustRankingLoss(model, tempnets, _losses(n, o["rho"]))


_SCALES, _TAUS, _RADII = ("scale", (20.0, 50.0)), ("tau", (0.02, 0.05)), ("rho", (1.0, 2.0))

METHODS = {
    method.name: method
    for method in (
        Method("ranking", _ranking, _SCALES),
        Method("ranking, both ways", _both_ways, _SCALES),
        Method("ranking, hardness", _hardness, ("strength", (5.0, 9.0))),
        Method("ranking, cached", _cached, _SCALES, batch=256, chunk=64),
        Method("robust, tau", _constant, _TAUS),
        Method("robust, cached", _constant_cached, _TAUS, batch=256, chunk=64),
        Method("robust, rho", _radius, _RADII),
        Method("robust, TempNet", _tempnet, _RADII),
    )
}
