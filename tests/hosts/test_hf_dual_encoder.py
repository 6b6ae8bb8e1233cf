"""The host on every class of transformers with two towers: served rightly, or refused clearly."""

import re

import pytest
import torch
from torch import nn

import dro_temp as dt

pytest.importorskip("transformers")
import tiny_clips
import transformers

NAMES = tuple(tiny_clips.CONFIGS)
# Why a class is refused, with an error of our own.
REFUSED = {"Blip2Model": "without it"}  # its text side does not pool: it feeds a language model

# What no score depends on, by the beginning of the parameters' names; all else gets a gradient.
UNUSED = {
    "AlignModel": ("text_model.pooler",),
    "BlipModel": ("text_model.encoder.layer.0.crossattention",),
    "FlavaModel": (
        *("text_model.pooler", "image_model.pooler", "image_model.embeddings.mask_token"),
        *("multimodal_model", "image_to_mm_projection", "text_to_mm_projection"),
    ),
    "Tipsv2Model": ("vision_model.embeddings.mask_token",),
    "XCLIPModel": ("prompts_",),
}


def host_of(name, **options):
    """A host of a model whose own scale and bias are none that a missing one could be mistaken for."""
    model = tiny_clips.hf(name)
    for value in (p for p in model.parameters(recurse=False) if p.numel() == 1):
        value.data.fill_(0.7)
    return dt.hosts.HFDualEncoder(model, **options).eval()


def raises(kind, *words):
    pattern = ".*".join([*map(re.escape, words)])
    return pytest.raises(kind, match=f"(?s)expected.*{pattern}")


def test_every_class_of_transformers_is_served_or_refused():
    found = set(tiny_clips.dual_encoders())
    assert found == {*NAMES, *REFUSED}, (
        "add new classes to CONFIGS in tests/support/tiny_clips.py, or to REFUSED"
    )
    assert len(NAMES) >= 19


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("FlavaModel", "VideoPrismClipModel")])
def test_logits_are_scores_times_scale_plus_bias(name):
    host, batch = host_of(name), tiny_clips.hf_batch(name, 5)
    model = host.model
    if name == "XCLIPModel":
        model.prompts_generator.alpha.data.zero_()  # its videos change its texts; this host leaves that out
    output = model(**batch)
    (per_image,) = {"logits_per_image", "logits_per_audio", "logits_per_video"} & set(output)
    scale = 1 / model.temperature if hasattr(model, "temperature") else torch.tensor(0.7).exp()
    bias = 0.7 if hasattr(model, "logit_bias") else 0.0
    rows = host(**batch)
    torch.testing.assert_close(scale * rows["image"].dense_scores + bias, output[per_image])
    torch.testing.assert_close(scale * rows["text"].dense_scores + bias, output.logits_per_text)


def test_flava_scores_are_those_of_its_own_contrastive_loss():
    config = transformers.FlavaConfig(**tiny_clips.CONFIGS["FlavaModel"])
    model = tiny_clips.seeded(lambda: transformers.FlavaForPreTraining(config))
    batch = tiny_clips.hf_batch("FlavaModel", 5)
    output = model(**batch, input_ids_masked=batch["input_ids"], return_loss=False)
    rows = dt.hosts.HFDualEncoder(model.flava).eval()(**batch)
    scale = model.flava.logit_scale.exp()
    torch.testing.assert_close(scale * rows["image"].dense_scores, output.contrastive_logits_per_image)
    torch.testing.assert_close(scale * rows["text"].dense_scores, output.contrastive_logits_per_text)


def test_videoprism_scores_are_its_logits_before_their_softmax():
    host, batch = host_of("VideoPrismClipModel"), tiny_clips.hf_batch("VideoPrismClipModel", 5)
    output, scores = host.model(**batch), host(**batch)["image"].dense_scores
    torch.testing.assert_close(scores.softmax(dim=0), output.logits_per_video)
    torch.testing.assert_close(scores, output.video_embeds @ output.text_embeds.T)


def test_xclip_without_prompts_is_not_xclip():
    host, batch = host_of("XCLIPModel"), tiny_clips.hf_batch("XCLIPModel", 5)
    scores = torch.tensor(0.7).exp() * host(**batch)["image"].dense_scores
    assert (scores - host.model(**batch).logits_per_video).abs().max() > 1e-3


def test_blip_retrieval_as_two_towers():
    """The recipe of docs/two-towers.md."""
    config = transformers.BlipConfig(**tiny_clips.CONFIGS["BlipModel"], image_text_hidden_size=12)
    model = tiny_clips.seeded(lambda: transformers.BlipForImageTextRetrieval(config))
    batch = tiny_clips.hf_batch("BlipModel", 5)

    class Images(nn.Module):
        def forward(self, pixel_values):
            return model.vision_proj(model.vision_model(pixel_values).last_hidden_state[:, 0])

    class Texts(nn.Module):
        def forward(self, tokens):
            return model.text_proj(model.text_encoder(**tokens).last_hidden_state[:, 0])

    tokens = {k: batch[k] for k in ("input_ids", "attention_mask")}
    rows = dt.hosts.TwoTower(Images(), Texts())(batch["pixel_values"], tokens)
    theirs = model(**batch, use_itm_head=False).itm_score
    torch.testing.assert_close(rows["image"].dense_scores, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_both_towers_train(name):
    torch.manual_seed(0)
    host, batch = host_of(name).train(), tiny_clips.hf_batch(name, 4)
    sum(r.margins.square().sum() for r in host(**batch).values()).backward()
    parameters = dict(host.model.named_parameters())
    trained = {n for n, p in parameters.items() if p.requires_grad and p.grad is not None}
    unused = {n for n in parameters if n.startswith(UNUSED.get(name, ()))}
    own = {n for n, p in host.model.named_parameters(recurse=False) if p.numel() == 1}
    assert not any(parameters[n].requires_grad for n in own)
    assert trained == parameters.keys() - unused - own
    for side in ("text", "vision|image|audio|video|visual"):
        assert sum(parameters[n].grad.abs().sum() for n in trained if re.match(rf"({side})_", n)) > 0
    assert set(dt.hosts.freeze_unused(host, **batch)) == {f"model.{n}" for n in unused}
    assert all(p.grad is not None for p in host.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_width_shapes_and_padding(name):
    host, batch = host_of(name), tiny_clips.hf_batch(name, 3)
    rows = host(index=torch.tensor([4, 2, 9]), **batch)
    assert host.width == rows["image"].features.shape[1]
    for r in rows.values():
        assert r.index.tolist() == [4, 2, 9]
        torch.testing.assert_close(r.features.norm(dim=1), torch.ones(3))
    text = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
    image = {k: v for k, v in batch.items() if k not in text}
    torch.testing.assert_close(host.encode_text(**text), rows["text"].features)
    torch.testing.assert_close(host.encode_image(**image), rows["image"].features)


@pytest.mark.parametrize("name", ["CLIPModel", "FlavaModel", "ClapModel"])
def test_the_attention_mask_is_the_texts(name):
    host, batch = host_of(name), tiny_clips.hf_batch(name, 4)
    plain = host(**{k: v for k, v in batch.items() if k != "attention_mask"})
    masked = host(**batch)
    torch.testing.assert_close(masked["image"].features, plain["image"].features)
    if name != "CLIPModel":  # a causal text tower pools at the end of the text and never sees what follows
        assert not torch.allclose(masked["text"].features, plain["text"].features)


def test_what_a_processor_leaves_out_may_be_none():
    host, batch = host_of("CLIPModel"), tiny_clips.hf_batch("CLIPModel", 4)
    scores = host(**batch, position_ids=None)["image"].dense_scores
    torch.testing.assert_close(scores, host(**batch)["image"].dense_scores)


def test_it_trains():
    torch.manual_seed(0)
    host = dt.hosts.HFDualEncoder(tiny_clips.hf("SiglipModel"))
    predictor = {view: dt.TempNet(host.width, tau_min=0.05, tau_max=0.5) for view in host.views}
    objective = dt.Objective(host, predictor, dt.KLRobustLoss(0.5))
    optimizer = torch.optim.Adam(objective.param_groups(lr=3e-3, tau_lr=1e-3))
    batch = tiny_clips.hf_batch("SiglipModel", 8)
    own = {n: p.clone() for n, p in host.model.named_parameters(recurse=False)}
    before = _right(host, batch)
    for _ in range(30):
        objective(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert _right(host, batch) == 1.0 > before
    assert own.keys() == {"logit_scale", "logit_bias"}
    assert all(torch.equal(p, own[n]) for n, p in host.model.named_parameters(recurse=False))


def _right(host, batch) -> float:
    rows = host.eval()(**batch)["image"]
    host.train()
    return (rows.dense_scores.argmax(dim=1) == rows.target).float().mean().item()


# --- Bad input -----------------------------------------------------------------------------------------------


def test_bad_batches():
    host, batch = host_of("CLIPModel"), tiny_clips.hf_batch("CLIPModel", 4)
    images, texts = {"pixel_values": batch["pixel_values"]}, {"input_ids": batch["input_ids"]}
    with raises(ValueError, "pixel_values", "get_image_features", "received nothing", "both sides"):
        host(**texts)
    with raises(ValueError, "input_ids", "get_text_features", "received attention_mask", "both sides"):
        host(**images, attention_mask=batch["attention_mask"])
    with raises(ValueError, "input_ids", "received nothing"):
        host(**images, input_ids=None)
    with raises(TypeError, "pixel_values, ", "input_ids, ", "received labels, return_loss", "Take them out"):
        host(**batch, labels=torch.zeros(4), return_loss=True)
    with raises(ValueError, "both encoders", "[4, 12]", "[3, 12]", "as many images as texts"):
        host(**images, input_ids=batch["input_ids"][:3])
    with raises(ValueError, "index of shape [4]", "[3]"):
        host(index=torch.arange(3), **batch)


def test_towers_of_two_widths():
    host = host_of("CLIPModel")
    host.model.text_projection = nn.Linear(16, 10, bias=False)
    with raises(ValueError, "same n and d", "[4, 12]", "[4, 10]", "project both to one width"):
        host(**tiny_clips.hf_batch("CLIPModel", 4))


def test_models_without_a_tower():
    model = tiny_clips.hf("CLIPModel")
    with raises(TypeError, "get_image_features or get_audio_features or get_video_features", "CLIPTextModel"):
        dt.hosts.HFDualEncoder(model.text_model)

    class Images(nn.Module):
        def get_image_features(self, pixel_values):
            return pixel_values.flatten(1)

    with raises(TypeError, "get_text_features", "received Images", "TwoTower"):
        dt.hosts.HFDualEncoder(Images())


def test_blip2_has_no_contrastive_text_side():
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "opt", "vocab_size": 99, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1}
    config = transformers.Blip2Config(
        vision_config=small | {"image_size": 32, "patch_size": 16},
        qformer_config=small | {"encoder_hidden_size": 16},
        text_config=text
        | {"num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 16},
        num_query_tokens=2,
    )
    host = dt.hosts.HFDualEncoder(transformers.Blip2Model(config))
    with raises(TypeError, "get_text_features", REFUSED["Blip2Model"], "TwoTower"):
        host(**tiny_clips.hf_batch("CLIPModel", 2))
