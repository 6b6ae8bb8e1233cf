"""One case per public class: what the contract suite runs over. A newcomer adds one line."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_clips
import tiny_sentence_encoder
import torch
from torch import Tensor, nn

import dro_temp as dt
from dro_temp import testing
from dro_temp.interfaces import Rows

torch.manual_seed(0)  # cases build modules at import of the test session; the numbers are the same each time


def _several(*encoders: dt.predictors.TempNetEncoder) -> dt.TempNet:
    return dt.TempNet(dt.predictors.SumEncoder(encoders), tau_min=0.1, tau_max=4.0)


def _level(encoder: dt.predictors.TempNetEncoder) -> dt.predictors.LevelTemperature:
    network = dt.TempNet(encoder, tau_min=0.1, tau_max=4.0)
    return dt.predictors.LevelTemperature(network, tau=0.5, power=0.7, tau_min=0.1, tau_max=2.0)


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
    testing.PredictorCase("level", lambda: _level(dt.predictors.HiddenEncoder(8))),
    testing.PredictorCase("level-statistics", lambda: _level(dt.predictors.StatisticsEncoder())),
    testing.PredictorCase("optimal", lambda: dt.OptimalTemperature(1.0, tau_min=0.01, tau_max=10.0)),
    testing.PredictorCase(
        "optimal-of-entropy",
        lambda: dt.OptimalTemperature.for_entropy(1.5, outcomes=12, tau_min=0.01, tau_max=10.0, iterations=8),
    ),
    testing.PredictorCase("edt", lambda: dt.EntropyTemperature(dt.predictors.EdtRule(tau0=1.5, theta=0.3))),
    testing.PredictorCase(
        "dynatemp", lambda: dt.EntropyTemperature(dt.predictors.DynatempRule(0.2, 1.8, exponent=1.5))
    ),
)

ENCODERS = (
    testing.EncoderCase("prototypes", lambda: dt.predictors.PrototypeEncoder(8, prototypes=6)),
    testing.EncoderCase("logits", lambda: dt.predictors.LogitEncoder(12, width=6)),
    testing.EncoderCase("logits-centred", lambda: dt.predictors.LogitEncoder(12, width=6, centred=True)),
    testing.EncoderCase("hidden", lambda: dt.predictors.HiddenEncoder(8, width=6, dropout=0.1)),
    testing.EncoderCase("statistics", lambda: dt.predictors.StatisticsEncoder(width=6)),
    testing.EncoderCase(
        "several",
        lambda: dt.predictors.SumEncoder(
            [dt.predictors.HiddenEncoder(8, width=6), dt.predictors.StatisticsEncoder(width=6)]
        ),
    ),
)

READOUTS = (
    testing.ReadoutCase("pooled", dt.predictors.PooledReadout),
    testing.ReadoutCase("residual", dt.predictors.ResidualReadout),
)

TRANSFORMS = (
    testing.TransformCase("soft-cap", lambda: dt.functional.SoftCap(2.0)),
    testing.TransformCase("scale", lambda: dt.functional.Scale(0.5)),
)

LOSSES = (
    testing.LossCase("infonce", dt.InfoNCELoss, degree=0, excludes_target=False),
    testing.LossCase("likelihood", dt.LikelihoodLoss, degree=0, excludes_target=False),
    testing.LossCase(
        "scaled-likelihood",
        lambda: dt.losses.ScaledLikelihoodLoss(dt.LearnableTemperature(0.3), tau=0.5),
        degree=0,
        robust=False,
        excludes_target=False,
    ),
    testing.LossCase(
        "scaled-likelihood-power",
        lambda: dt.losses.ScaledLikelihoodLoss(dt.ConstantTemperature(0.3), tau=0.5, power=0.5),
        degree=None,
        robust=False,
        excludes_target=False,
    ),
    testing.LossCase(
        "selective-smoothing",
        dt.SelectiveSmoothingLoss,
        degree=0,
        robust=False,
        excludes_target=False,
        trains_host=False,
    ),
    testing.LossCase(
        "self-weighted",
        dt.SelfWeightedLoss,
        degree=None,
        robust=False,
        excludes_target=False,
        trains_host=False,
    ),
    testing.LossCase("kl-exact", lambda: dt.KLRobustLoss(rho=1.0, estimator=dt.estimators.Exact())),
    testing.LossCase(
        "kl-moving-average", lambda: dt.KLRobustLoss(rho=1.0, estimator=dt.LogMovingAverage(50, gamma=0.3))
    ),
    testing.LossCase("queued", lambda: dt.QueuedLoss(dt.KLRobustLoss(rho=1.0), size=20, features=4)),
    testing.LossCase(
        "queued-replay", lambda: dt.QueuedLoss(dt.KLRobustLoss(rho=1.0), size=20, features=4, replay=10)
    ),
    testing.LossCase(
        "sigmoid", dt.SigmoidLoss, degree=0, robust=False, excludes_target=False, margins_only=False
    ),
    testing.LossCase(
        "supervised-contrastive",
        dt.SupervisedContrastiveLoss,
        degree=0,
        excludes_target=False,
        positives=True,
    ),
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
    testing.RiskCase(
        "rising-kl", lambda: dt.risks.RisingRadius(dt.KLRisk(0.0), 0.4, steps=3, start=0.2), smallest=2
    ),
    testing.RiskCase(
        "rising-optimistic",
        lambda: dt.OptimisticRisk(dt.risks.RisingRadius(dt.ChiSquareRisk(0.0), 0.4, steps=3, start=0.1)),
        side="best",
    ),
    testing.RiskCase(
        "recorded",
        lambda: dt.risks.RecordedRisk(dt.OptimisticRisk(dt.KLRisk(0.3)), 50),
        side="best",
        smallest=2,
        num_samples=50,
    ),
    testing.RiskCase(
        "recorded-group",
        lambda: dt.risks.RecordedRisk(dt.GroupRisk(3, step_size=0.5), 50, gamma=1.0, on_host=True),
        num_groups=3,
        num_samples=50,
    ),
    testing.RiskCase("optimistic-kl", lambda: dt.OptimisticRisk(dt.KLRisk(0.3)), side="best", smallest=2),
    testing.RiskCase(
        "optimistic-group",
        lambda: dt.OptimisticRisk(dt.GroupRisk(3, step_size=0.5)),
        side="best",
        num_groups=3,
    ),
)

GAMMAS = (testing.GammaCase("cosine", lambda: dt.estimators.CosineGamma(0.2, epochs=10, steps_per_epoch=20)),)


# --- Hosts: a batch, and the rows that it should make ---------------------------------------------------------


def _indexed(batch: dict[str, Any], n: int) -> dict[str, Any]:
    return batch | {"index": torch.randperm(50, generator=torch.Generator().manual_seed(n))[:n]}


def _random(n: int, *widths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, width, generator=generator) for width in widths]


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=1)


def _pairs(views: tuple[str, str], x: Tensor, y: Tensor, index: Tensor, **scores: Tensor) -> dict[str, Rows]:
    """Pairs of vectors, scored by cosine similarity unless scores of a view are passed."""
    (first, second), x, y, target = views, _unit(x), _unit(y), torch.arange(len(x))
    scores = {first: x @ y.T, second: y @ x.T} | scores
    return {
        first: Rows(scores[first], target, x, index, target_in_support=False),
        second: Rows(scores[second], target, y, index, target_in_support=False),
    }


def _two_tower_batch(n: int) -> dict[str, Any]:
    images, texts = _random(n, 6, 5)
    return _indexed({"images": images, "texts": texts}, n)


def _two_tower_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    image, text = host.image_encoder(batch["images"]), host.text_encoder(batch["texts"])
    return _pairs(("image", "text"), image, text, batch["index"])


def _with_reference(**options: Any) -> dt.hosts.WithReference:
    reference = dt.hosts.TwoTower(nn.Linear(6, 3), nn.Linear(5, 3), frozen=True)
    return dt.hosts.WithReference(dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), **options), reference)


def _less_reference_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    theirs = _two_tower_rows(host.reference, batch)
    return {
        view: replace(rows, scores=rows.dense_scores - theirs[view].dense_scores.detach())
        for view, rows in _two_tower_rows(host.host, batch).items()
    }


def _two_views_batch(n: int) -> dict[str, Any]:
    first, second = _random(n, 6, 6)
    return _indexed({"first": first, "second": second}, n)


def _two_views_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    x, y = (_unit(host.encoder(batch[view])) for view in ("first", "second"))
    n = len(x)
    others = ~torch.eye(n, dtype=torch.bool)

    def rows(own: Tensor, other: Tensor) -> Rows:
        scores = torch.cat([(own @ own.T)[others].view(n, n - 1), own @ other.T], 1)
        return Rows(scores, torch.arange(n) + n - 1, own, batch["index"], target_in_support=False)

    return {"first": rows(x, y), "second": rows(y, x)}


def _labels(n: int) -> Tensor:
    """Class numbers of four, of which the second does not count."""
    labels = torch.randint(4, (n,), generator=torch.Generator().manual_seed(n))
    return labels.index_fill(0, torch.arange(1, min(n, 2)), -100)


def _classifier_batch(n: int) -> dict[str, Any]:
    return _indexed({"inputs": _random(n, 6)[0], "labels": _labels(n)}, n)


def _soft_batch(n: int) -> dict[str, Any]:
    return _classifier_batch(n) | {"labels": _random(n, 4)[0].softmax(1)}


def _classes(scores: Tensor, batch: dict[str, Any], features: Tensor | None) -> dict[str, Rows]:
    labels = batch["labels"]
    if labels.is_floating_point():
        soft = {"target": labels.argmax(1), "target_distribution": labels}
        return {"class": Rows(scores, features=features, index=batch["index"], **soft)}
    weight = (labels != -100).float()
    return {"class": Rows(scores, labels.clamp(min=0), features, batch["index"], weight=weight)}


def _classifier_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    output = host.model(batch["inputs"])
    if host.head is None:
        return _classes(output, batch, None)
    return _classes(host.head(output), batch, output)


def _smoothed_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    rows = _classifier_rows(host, batch)["class"]
    smoothed = 0.9 * nn.functional.one_hot(rows.target, 4) + 0.1 / 4
    return {"class": replace(rows, target_distribution=smoothed) if host.objective_trains else rows}


def _timm(name: str, **options: Any) -> dt.hosts.Timm:
    timm = pytest.importorskip("timm")
    return dt.hosts.Timm(timm.create_model(name, num_classes=4), **options)


def _timm_batch(n: int) -> dict[str, Any]:
    images = torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(n))
    return _indexed({"inputs": images, "labels": _labels(n)}, n)


def _timm_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    maps = host.model.forward_features(batch["inputs"])
    hidden = host.model.forward_head(maps, pre_logits=True).flatten(1)
    return _classes(host.model.forward_head(maps), batch, hidden)


def _tiny_gpt2(**options: Any) -> dt.hosts.CausalLM:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 12, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return dt.hosts.CausalLM(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), **options)


def _text_batch(n: int) -> dict[str, Any]:
    """Texts of six tokens, of which the first is shorter and the last has a token that is not to be predicted."""
    tokens = torch.randint(12, (n, 6), generator=torch.Generator().manual_seed(n))
    mask, labels = torch.ones_like(tokens), tokens.clone()
    mask[0, 4:], labels[-1, 2] = 0, -100
    return _indexed({"input_ids": tokens, "attention_mask": mask, "labels": labels}, n)


def _token_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = host.model.transformer(**inputs)[0][:, :-1].flatten(0, 1)
    logits = host.model(**inputs).logits[:, :-1].flatten(0, 1)
    labels, mask = batch["labels"][:, 1:].flatten(), batch["attention_mask"]
    counts = (labels != -100) & (mask[:, 1:] * mask[:, :-1] == 1).flatten()
    index = batch["index"].repeat_interleave(5)
    return {"token": Rows(logits, labels.clamp(min=0), hidden, index, weight=counts.float())}


def _open_clip(**options: Any) -> dt.hosts.OpenCLIP:
    pytest.importorskip("open_clip")
    return dt.hosts.OpenCLIP(tiny_clips.open_clip("vit").train(), **options)


def _open_clip_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    model, images, texts = host.model, batch["images"], batch["texts"]
    scale = model.logit_scale.exp().detach()
    image, text = (logits / scale for logits in model.get_logits(images, texts))
    x, y = model.encode_image(images), model.encode_text(texts)
    return _pairs(("image", "text"), x, y, batch["index"], image=image, text=text)


def _hf_dual_encoder(**options: Any) -> dt.hosts.HFDualEncoder:
    pytest.importorskip("transformers")
    return dt.hosts.HFDualEncoder(tiny_clips.hf("CLIPModel").train(), **options)


def _hf_dual_encoder_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    output = host.model(**{name: value for name, value in batch.items() if name != "index"})
    scale = host.model.logit_scale.exp().detach()
    scores = {"image": output.logits_per_image / scale, "text": output.logits_per_text / scale}
    return _pairs(("image", "text"), output.image_embeds, output.text_embeds, batch["index"], **scores)


def _sentence_transformers(**options: Any) -> dt.hosts.SentenceTransformers:
    pytest.importorskip("sentence_transformers")
    return dt.hosts.SentenceTransformers(tiny_sentence_encoder.sentence_encoder().train(), **options)


def _sentences_batch(n: int, negatives: int) -> dict[str, Any]:
    anchor, positive, *others = tiny_sentence_encoder.columns(
        tiny_sentence_encoder.sentence_encoder(), n, 2 + negatives
    )
    return _indexed({"anchor": anchor, "positive": positive, "negatives": others}, n)


def _sentences_rows(host: Any, batch: dict[str, Any]) -> dict[str, Rows]:
    columns = (batch["anchor"], batch["positive"], *batch["negatives"])
    x, y, *others = (_unit(host.model(dict(column))["sentence_embedding"]) for column in columns)
    anchor = x @ torch.cat([y, *others]).T
    return _pairs(("anchor", "positive"), x, y, batch["index"], anchor=anchor)


HOSTS = (
    testing.HostCase(
        "open-clip", _open_clip, lambda n: _indexed(tiny_clips.open_clip_batch(n), n), _open_clip_rows
    ),
    testing.HostCase(
        "hf-dual-encoder",
        _hf_dual_encoder,
        lambda n: _indexed(tiny_clips.hf_batch("CLIPModel", n), n),
        _hf_dual_encoder_rows,
    ),
    testing.HostCase(
        "sentence-transformers",
        _sentence_transformers,
        lambda n: _sentences_batch(n, 0),
        _sentences_rows,
    ),
    testing.HostCase(
        "sentence-transformers-hard-negatives",
        _sentence_transformers,
        lambda n: _sentences_batch(n, 2),
        _sentences_rows,
    ),
    testing.HostCase("with-reference", _with_reference, _two_tower_batch, _less_reference_rows),
    testing.HostCase(
        "two-tower",
        lambda **options: dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), **options),
        _two_tower_batch,
        _two_tower_rows,
    ),
    testing.HostCase(
        "two-tower-in-chunks",
        lambda **options: dt.hosts.InChunks(
            dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), **options), size=3
        ),
        _two_tower_batch,
        lambda host, batch: _two_tower_rows(host.host, batch),
    ),
    testing.HostCase(
        "two-views",
        lambda **options: dt.hosts.TwoViews(nn.Linear(6, 4), **options),
        _two_views_batch,
        _two_views_rows,
    ),
    testing.HostCase(
        "classifier",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 4), **options),
        _classifier_batch,
        _classifier_rows,
    ),
    testing.HostCase(
        "classifier-linear-head",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 3), nn.Linear(3, 4), **options),
        _classifier_batch,
        _classifier_rows,
    ),
    testing.HostCase(
        "classifier-any-head",
        lambda **options: dt.hosts.Classifier(
            nn.Linear(6, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 4)), **options
        ),
        _classifier_batch,
        _classifier_rows,
    ),
    testing.HostCase(
        "classifier-soft-labels",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 3), nn.Linear(3, 4), **options),
        _soft_batch,
        _classifier_rows,
    ),
    testing.HostCase(
        "classifier-smoothed",
        lambda **options: dt.hosts.Classifier(nn.Linear(6, 4), label_smoothing=0.1, **options),
        _classifier_batch,
        _smoothed_rows,
    ),
    testing.HostCase("timm", lambda **o: _timm("test_vit", **o), _timm_batch, _timm_rows),
    testing.HostCase("timm-any-head", lambda **o: _timm("resnetv2_18", **o), _timm_batch, _timm_rows),
    testing.HostCase("causal-lm", _tiny_gpt2, _text_batch, _token_rows),
)

CASES: tuple[testing.Case, ...] = (
    PREDICTORS + ENCODERS + READOUTS + TRANSFORMS + LOSSES + PENALTIES + RISKS + ESTIMATORS + GAMMAS + HOSTS
)
