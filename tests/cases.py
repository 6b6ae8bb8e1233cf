"""One case per public class: what the contract suite runs over. A newcomer adds one line."""

from typing import Any

import pytest
import tiny_clips
import tiny_sentence_encoder
import torch
from torch import Tensor, nn

import dro_temp as dt
from dro_temp import testing

torch.manual_seed(0)  # cases build modules at import of the test session; the numbers are the same each time


def _several(*encoders: dt.predictors.TempNetEncoder) -> dt.TempNet:
    return dt.TempNet(dt.predictors.SumEncoder(encoders), tau_min=0.1, tau_max=4.0)


PREDICTORS = (
    testing.PredictorCase("constant", lambda: dt.ConstantTemperature(0.07)),
    testing.PredictorCase("learnable", lambda: dt.LearnableTemperature(0.07)),
    testing.PredictorCase("individual", lambda: dt.IndividualTemperature(50, tau_min=0.01, tau_max=1.0)),
    testing.PredictorCase(
        "individual-on-host",
        lambda: dt.IndividualTemperature(50, tau_min=0.01, tau_max=1.0, on_host=True),
    ),
    testing.PredictorCase(
        "individual-parameter",
        lambda: dt.IndividualTemperature(50, tau_min=0.01, tau_max=1.0, update=None),
    ),
    testing.PredictorCase("tempnet-embeddings", lambda: dt.TempNet(8, tau_min=0.005, tau_max=0.05)),
    testing.PredictorCase("tempnet-logits", lambda: dt.TempNet.for_logits(12, tau_min=0.1, tau_max=4.0)),
    testing.PredictorCase(
        "tempnet-logits-centred",
        lambda: dt.TempNet(
            dt.predictors.LogitEncoder(12, centred=True), tau_min=0.1, tau_max=4.0, tau_init=1.0
        ),
    ),
    testing.PredictorCase(
        "tempnet-prototypes",
        lambda: dt.TempNet(
            dt.predictors.PrototypeEncoder(8, prototypes=4, dropout=0.0), tau_min=0.1, tau_max=4.0
        ),
    ),
    testing.PredictorCase(
        "tempnet-hidden",
        lambda: dt.TempNet(dt.predictors.HiddenEncoder(8, width=16), tau_min=0.1, tau_max=4.0),
    ),
    testing.PredictorCase(
        "tempnet-statistics",
        lambda: dt.TempNet(dt.predictors.StatisticsEncoder(width=16, dropout=0.1), tau_min=0.1, tau_max=4.0),
    ),
    testing.PredictorCase(
        "tempnet-residual",
        lambda: dt.TempNet(
            dt.predictors.HiddenEncoder(8), tau_min=0.1, tau_max=4.0, readout=dt.predictors.ResidualReadout
        ),
    ),
    testing.PredictorCase(
        "tempnet-several", lambda: _several(dt.predictors.HiddenEncoder(8), dt.predictors.StatisticsEncoder())
    ),
    testing.PredictorCase(
        "tempnet-all",
        lambda: _several(
            dt.predictors.StatisticsEncoder(),
            dt.predictors.LogitEncoder(12, centred=True),
            dt.predictors.PrototypeEncoder(8),
            dt.predictors.HiddenEncoder(8),
        ),
    ),
    testing.PredictorCase("optimal", lambda: dt.OptimalTemperature(1.0, tau_min=0.01, tau_max=10.0)),
    testing.PredictorCase(
        "optimal-of-entropy",
        lambda: dt.OptimalTemperature.for_entropy(1.5, outcomes=12, tau_min=0.01, tau_max=10.0),
    ),
    testing.PredictorCase("edt", lambda: dt.EntropyTemperature(dt.predictors.EdtRule(tau0=1.5, theta=0.3))),
    testing.PredictorCase(
        "dynatemp", lambda: dt.EntropyTemperature(dt.predictors.DynatempRule(0.2, 1.8, exponent=1.5))
    ),
)

LOSSES = (
    testing.LossCase("infonce", dt.InfoNCELoss, degree=0),
    testing.LossCase("likelihood", dt.LikelihoodLoss, degree=0),
    testing.LossCase("kl-exact", lambda: dt.KLRobustLoss(rho=1.0, estimator=dt.estimators.Exact())),
    testing.LossCase(
        "kl-moving-average", lambda: dt.KLRobustLoss(rho=1.0, estimator=dt.LogMovingAverage(50, gamma=0.3))
    ),
    testing.LossCase("queued", lambda: dt.QueuedLoss(dt.KLRobustLoss(rho=1.0), size=20, features=4)),
    testing.LossCase(
        "queued-replay", lambda: dt.QueuedLoss(dt.KLRobustLoss(rho=1.0), size=20, features=4, replay=10)
    ),
    testing.LossCase("sigmoid", dt.SigmoidLoss, degree=0, margins_only=False),
    testing.LossCase("entropic-risk-exact", dt.EntropicRiskLoss, degree=0),
    testing.LossCase(
        "entropic-risk-moving-average",
        lambda: dt.EntropicRiskLoss(estimator=dt.LogMovingAverage(50, gamma=0.3)),
        degree=0,
    ),
    testing.LossCase("kl-scent", lambda: dt.KLRobustLoss(rho=1.0, estimator=dt.Scent(50, alpha=1.0))),
)

PENALTIES = (
    testing.PenaltyCase("cyclic", dt.CyclicPenalty),
    testing.PenaltyCase("cyclic-in-modal", lambda: dt.CyclicPenalty(0.5, 0.0)),
    testing.PenaltyCase("cyclic-cross-modal", lambda: dt.CyclicPenalty(0.0, 0.5)),
)

ESTIMATORS = (
    testing.EstimatorCase("scent", lambda: dt.Scent(50)),
    testing.EstimatorCase("scent-slow", lambda: dt.Scent(50, alpha=0.0)),
    testing.EstimatorCase("scent-on-host", lambda: dt.Scent(50, on_host=True)),
    testing.EstimatorCase("exact", dt.estimators.Exact),
    testing.EstimatorCase("log-moving-average", lambda: dt.LogMovingAverage(50, gamma=0.3)),
    testing.EstimatorCase("log-moving-average-plain", lambda: dt.LogMovingAverage(50, gamma=1.0)),
    testing.EstimatorCase(
        "log-moving-average-on-host", lambda: dt.LogMovingAverage(50, gamma=0.3, on_host=True)
    ),
)

RISKS = (
    testing.RiskCase("mean", dt.risks.MeanRisk),
    testing.RiskCase("tilted", lambda: dt.TiltedRisk(2.0)),
    testing.RiskCase("tilted-down", lambda: dt.TiltedRisk(-0.5), side="best"),
    testing.RiskCase(
        "tilted-moving-average", lambda: dt.TiltedRisk(0.7, estimator=dt.LogMovingAverage(1, gamma=0.3))
    ),
    testing.RiskCase("kl", lambda: dt.KLRisk(0.5), smallest=2),
    testing.RiskCase("kl-zero", lambda: dt.KLRisk(0.0)),
    testing.RiskCase(
        "kl-constant", lambda: dt.KLRisk(0.5, tau=dt.ConstantTemperature(0.8)), exact=False, smallest=2
    ),
    testing.RiskCase(
        "kl-learnable-moving-average",
        lambda: dt.KLRisk(
            0.5,
            tau=dt.LearnableTemperature(0.8, tau_max=10.0),
            estimator=dt.LogMovingAverage(1, gamma=0.3),
        ),
        exact=False,
    ),
    testing.RiskCase("cvar", lambda: dt.CVaRRisk(0.3)),
    testing.RiskCase("chi-square", lambda: dt.ChiSquareRisk(0.8)),
    testing.RiskCase("chi-square-small", lambda: dt.ChiSquareRisk(0.02)),
    testing.RiskCase("group", lambda: dt.GroupRisk(3, step_size=0.5), num_groups=3),
    testing.RiskCase("optimistic-cvar", lambda: dt.OptimisticRisk(dt.CVaRRisk(0.7)), side="best"),
    testing.RiskCase("optimistic-kl", lambda: dt.OptimisticRisk(dt.KLRisk(0.3)), side="best", smallest=2),
    testing.RiskCase(
        "optimistic-group",
        lambda: dt.OptimisticRisk(dt.GroupRisk(3, step_size=0.5)),
        side="best",
        num_groups=3,
    ),
)

GAMMAS = (
    testing.GammaCase("constant", lambda: dt.ConstantGamma(0.8)),
    testing.GammaCase("cosine", lambda: dt.estimators.CosineGamma(0.2, epochs=10, steps_per_epoch=20)),
)


def _two_tower_batch(n: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(n)
    return {
        "images": torch.randn(n, 6, generator=g),
        "texts": torch.randn(n, 5, generator=g),
        "index": torch.randperm(50, generator=g)[:n],
    }


def _two_tower_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    cosine = nn.functional.cosine_similarity(
        host.image_encoder(batch["images"])[:, None], host.text_encoder(batch["texts"])[None], dim=2
    )
    return {"image": cosine, "text": cosine.T}


def _two_views_batch(n: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(n)
    return {
        "first": torch.randn(n, 6, generator=g),
        "second": torch.randn(n, 6, generator=g),
        "index": torch.randperm(50, generator=g)[:n],
    }


def _two_views_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    x, y = (nn.functional.normalize(host.encoder(batch[view]), dim=1) for view in host.views)
    keep = ~torch.eye(len(x), dtype=torch.bool)

    def scores(own: Tensor, other: Tensor) -> Tensor:
        return torch.cat([(own @ own.T)[keep].view(len(x), len(x) - 1), own @ other.T], 1)

    return {"first": scores(x, y), "second": scores(y, x)}


def _classifier_batch(n: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(n)
    return {
        "inputs": torch.randn(n, 6, generator=g),
        "labels": torch.randint(4, (n,), generator=g),
        "index": torch.randperm(50, generator=g)[:n],
    }


def _classifier_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    output = host.model(batch["inputs"])
    return {"class": output if host.head is None else host.head(output)}


def _timm(name: str, **options: Any) -> dt.hosts.Timm:
    timm = pytest.importorskip("timm")
    return dt.hosts.Timm(timm.create_model(name, num_classes=4), **options)


def _timm_batch(n: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(n)
    return {
        "inputs": torch.randn(n, 3, 64, 64, generator=g),
        "labels": torch.randint(4, (n,), generator=g),
        "index": torch.randperm(50, generator=g)[:n],
    }


def _soft_batch(n: int) -> dict[str, Any]:
    soft = torch.randn(n, 4, generator=torch.Generator().manual_seed(n)).softmax(1)
    return _classifier_batch(n) | {"labels": soft}


def _timm_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    return {"class": host.model(batch["inputs"])}


def _tiny_gpt2(**options: Any) -> dt.hosts.CausalLM:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 12, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return dt.hosts.CausalLM(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), **options)


def _text_batch(n: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(n)
    return {
        "input_ids": torch.randint(12, (n, 6), generator=g),
        "index": torch.randperm(50, generator=g)[:n],
    }


def _token_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    return {"token": host.model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)}


def _with_reference(**options: Any) -> dt.hosts.WithReference:
    reference = dt.hosts.TwoTower(nn.Linear(6, 3), nn.Linear(5, 3), frozen=True)
    return dt.hosts.WithReference(dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), **options), reference)


def _less_reference_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    theirs = _two_tower_scores(host.reference, batch)
    return {view: s - theirs[view] for view, s in _two_tower_scores(host.host, batch).items()}


def _open_clip(**options: Any) -> dt.hosts.OpenCLIP:
    pytest.importorskip("open_clip")
    return dt.hosts.OpenCLIP(tiny_clips.open_clip("vit").train(), **options)


def _open_clip_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    image, text = host.model.get_logits(batch["images"], batch["texts"])
    return {"image": image / host.model.logit_scale.exp(), "text": text / host.model.logit_scale.exp()}


def _hf_dual_encoder(**options: Any) -> dt.hosts.HFDualEncoder:
    pytest.importorskip("transformers")
    return dt.hosts.HFDualEncoder(tiny_clips.hf("CLIPModel").train(), **options)


def _hf_dual_encoder_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    output = host.model(**{name: value for name, value in batch.items() if name != "index"})
    scale = host.model.logit_scale.exp()
    return {"image": output.logits_per_image / scale, "text": output.logits_per_text / scale}


def _sentence_transformers(**options: Any) -> dt.hosts.SentenceTransformers:
    pytest.importorskip("sentence_transformers")
    return dt.hosts.SentenceTransformers(tiny_sentence_encoder.sentence_encoder().train(), **options)


def _sentences_batch(n: int, negatives: int) -> dict[str, Any]:
    anchor, positive, *others = tiny_sentence_encoder.columns(
        tiny_sentence_encoder.sentence_encoder(), n, 2 + negatives
    )
    return _indexed({"anchor": anchor, "positive": positive, "negatives": others}, n)


def _sentences_scores(host: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    def vectors(column: dict[str, Any]) -> Tensor:
        return host.model(dict(column))["sentence_embedding"]

    x, *others = (vectors(c) for c in (batch["anchor"], batch["positive"], *batch["negatives"]))
    anchor = nn.functional.cosine_similarity(x[:, None], torch.cat(others)[None], dim=2)
    return {"anchor": anchor, "positive": anchor[:, : len(x)].T}


def _indexed(batch: dict[str, Any], n: int | None = None) -> dict[str, Any]:
    n = len(next(iter(batch.values()))) if n is None else n
    return batch | {"index": torch.randperm(50, generator=torch.Generator().manual_seed(n))[:n]}


HOSTS = (
    testing.HostCase(
        "open-clip", _open_clip, lambda n: _indexed(tiny_clips.open_clip_batch(n)), _open_clip_scores
    ),
    testing.HostCase(
        "hf-dual-encoder",
        _hf_dual_encoder,
        lambda n: _indexed(tiny_clips.hf_batch("CLIPModel", n)),
        _hf_dual_encoder_scores,
    ),
    testing.HostCase(
        "sentence-transformers",
        _sentence_transformers,
        lambda n: _sentences_batch(n, 0),
        _sentences_scores,
    ),
    testing.HostCase(
        "sentence-transformers-hard-negatives",
        _sentence_transformers,
        lambda n: _sentences_batch(n, 2),
        _sentences_scores,
    ),
    testing.HostCase("with-reference", _with_reference, _two_tower_batch, _less_reference_scores),
    testing.HostCase(
        "two-tower",
        lambda **options: dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), **options),
        _two_tower_batch,
        _two_tower_scores,
    ),
    testing.HostCase(
        "two-tower-in-chunks",
        lambda **options: dt.hosts.InChunks(
            dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), **options), size=3
        ),
        _two_tower_batch,
        lambda host, batch: _two_tower_scores(host.host, batch),
    ),
    testing.HostCase(
        "two-views",
        lambda **options: dt.hosts.TwoViews(nn.Linear(6, 4), **options),
        _two_views_batch,
        _two_views_scores,
    ),
    testing.HostCase(
        "classifier",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 4), **options),
        _classifier_batch,
        _classifier_scores,
    ),
    testing.HostCase(
        "classifier-linear-head",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 3), nn.Linear(3, 4), **options),
        _classifier_batch,
        _classifier_scores,
    ),
    testing.HostCase(
        "classifier-any-head",
        lambda **options: dt.hosts.Classifier(
            nn.Linear(6, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 4)), **options
        ),
        _classifier_batch,
        _classifier_scores,
    ),
    testing.HostCase(
        "classifier-soft-labels",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 3), nn.Linear(3, 4), **options),
        _soft_batch,
        _classifier_scores,
    ),
    testing.HostCase(
        "classifier-smoothed",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 4), label_smoothing=0.1, **options),
        _classifier_batch,
        _classifier_scores,
    ),
    testing.HostCase("timm", lambda **o: _timm("test_vit", **o), _timm_batch, _timm_scores),
    testing.HostCase("timm-any-head", lambda **o: _timm("resnetv2_18", **o), _timm_batch, _timm_scores),
    testing.HostCase("causal-lm", _tiny_gpt2, _text_batch, _token_scores),
)

CASES: tuple[testing.Case, ...] = PREDICTORS + LOSSES + PENALTIES + RISKS + ESTIMATORS + GAMMAS + HOSTS
