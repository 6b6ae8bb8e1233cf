"""The host on every family of open_clip: its scores are the model's own logits, and both towers train."""

import re

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt

pytest.importorskip("open_clip")
import tiny_clips

KINDS = tuple(tiny_clips.OPEN_CLIPS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each kind once; its own scale and bias are none that a missing one could be mistaken for."""
    made = {kind: tiny_clips.open_clip(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}
    for model in made.values():
        model.logit_scale.data.fill_(1.3)
        if model.logit_bias is not None:
            model.logit_bias.data.fill_(-2.5)
    return made


def raises(kind, *words):
    pattern = ".*".join([*map(re.escape, words)])
    return pytest.raises(kind, match=f"(?s)expected.*{pattern}")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_scores_times_scale_plus_bias(models, kind):
    model, batch = models[kind], tiny_clips.open_clip_batch(5)
    output = model(batch["images"], batch["texts"])
    if isinstance(output, dict):
        image, text, scale = (output[k] for k in ("image_features", "text_features", "logit_scale"))
        bias = output.get("logit_bias", 0.0)
    else:
        image, text, scale, *rest = output
        bias = rest[0] if rest else 0.0
    logits = scale * image @ text.T + bias
    rows = dt.hosts.OpenCLIP(model).eval()(**batch)
    torch.testing.assert_close(scale * rows["image"].dense_scores + bias, logits)
    torch.testing.assert_close(scale * rows["text"].dense_scores + bias, logits.T)
    torch.testing.assert_close(rows["image"].features, image)
    assert rows["image"].target.tolist() == list(range(5))
    if hasattr(model, "get_logits"):
        for ours, theirs in zip(rows.values(), model.get_logits(**named(batch)), strict=True):
            torch.testing.assert_close(scale * ours.dense_scores + bias, theirs)


def named(batch):
    return {"image": batch["images"], "text": batch["texts"]}


@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_train(models, kind):
    host = dt.hosts.OpenCLIP(models[kind]).train()
    host.zero_grad()
    rows = host(**tiny_clips.open_clip_batch(4))
    sum(r.margins.square().sum() for r in rows.values()).backward()
    missing = {n for n, p in host.model.named_parameters() if p.requires_grad and p.grad is None}
    assert all(name.startswith("text_decoder.") for name in missing), missing
    assert bool(missing) == (kind == "coca")
    image = [p.grad.abs().sum() for p in host.model.visual.parameters() if p.grad is not None]
    text = [
        p.grad.abs().sum()
        for n, p in host.model.named_parameters()
        if not n.startswith("visual.") and p.grad is not None
    ]
    assert sum(image) > 0
    assert sum(text) > 0
    assert not host.model.logit_scale.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_width_is_that_of_the_common_space(models, kind):
    host = dt.hosts.OpenCLIP(models[kind]).train()
    assert host.width == 16
    assert host.model.training


def test_the_caption_decoder_does_not_run(models):
    host = dt.hosts.OpenCLIP(models["coca"])
    ran = []
    handle = host.model.text_decoder.register_forward_hook(lambda *_: ran.append(1))
    host(**tiny_clips.open_clip_batch(3))
    assert not ran
    host.model(*tiny_clips.open_clip_batch(3).values())
    assert ran
    handle.remove()


def test_unused_parts_are_found_and_frozen():
    host = dt.hosts.OpenCLIP(tiny_clips.open_clip("coca")).train()
    batch = tiny_clips.open_clip_batch(3)
    decoder = {f"model.{n}" for n, _ in host.model.named_parameters() if n.startswith("text_decoder.")}
    state = {name: value.clone() for name, value in host.state_dict().items()}
    assert set(dt.hosts.freeze_unused(host, **batch)) == decoder
    assert dt.hosts.freeze_unused(host, **batch) == []
    assert all(module.training for module in host.modules())
    assert host.objective_trains
    assert all(p.grad is None for p in host.parameters())
    assert all(torch.equal(value, state[name]) for name, value in host.state_dict().items())
    frozen = dt.hosts.OpenCLIP(tiny_clips.open_clip("coca"), frozen=True)
    assert dt.hosts.freeze_unused(frozen, **batch) == []


def _steps(host) -> None:
    """Two steps: it is the second that DistributedDataParallel refuses where parameters are not used."""
    batch = tiny_clips.open_clip_batch(4)
    objective = dt.Objective(host, dt.ConstantTemperature(0.1), dt.KLRobustLoss(0.2))
    model = DistributedDataParallel(objective)
    for _ in range(2):
        model(**batch).loss.backward()


def test_distributed_data_parallel(tmp_path):
    file = tmp_path / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    try:
        _steps(dt.hosts.OpenCLIP(tiny_clips.open_clip("vit")))  # its own scale would be in the way
        coca = dt.hosts.OpenCLIP(tiny_clips.open_clip("coca"))
        with pytest.raises(RuntimeError, match="find_unused_parameters"):
            _steps(coca)
        dt.hosts.freeze_unused(coca, **tiny_clips.open_clip_batch(2))
        _steps(coca)
    finally:
        torch.distributed.destroy_process_group()


def test_half_precision_features_become_unit_vectors_in_float32():
    host = dt.hosts.OpenCLIP(tiny_clips.open_clip("vit").bfloat16())
    batch = tiny_clips.open_clip_batch(3)
    x = host.encode_image(batch["images"].bfloat16())
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.norm(dim=1), torch.ones(3))


def test_it_trains():
    torch.manual_seed(0)
    host = dt.hosts.OpenCLIP(tiny_clips.open_clip("vit"))
    predictor = {view: dt.TempNet(host.width, tau_min=0.05, tau_max=0.5) for view in host.views}
    loss = {view: dt.KLRobustLoss(0.5, estimator=dt.LogMovingAverage(8, gamma=0.8)) for view in host.views}
    objective = dt.Objective(host, predictor, loss)
    optimizer = dt.CompositionalOptimizer(
        torch.optim.Adam(objective.param_groups(lr=3e-3, tau_lr=1e-3)), objective
    )
    batch = tiny_clips.open_clip_batch(8) | {"index": torch.arange(8)}
    scale = host.model.logit_scale.clone()
    before = _right(host, batch)
    for _ in range(30):
        objective(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert _right(host, batch) == 1.0 > before
    assert torch.equal(host.model.logit_scale, scale)


def _right(host, batch) -> float:
    rows = host.eval()(**batch)["image"]
    host.train()
    return (rows.dense_scores.argmax(dim=1) == rows.target).float().mean().item()


# --- Bad input -----------------------------------------------------------------------------------------------


def test_bad_input(models):
    host, batch = dt.hosts.OpenCLIP(models["vit"]), tiny_clips.open_clip_batch(4)
    with raises(ValueError, "both encoders", "[4, 16]", "[3, 16]", "as many images as texts"):
        host(batch["images"], batch["texts"][:3])
    with raises(ValueError, "received no images"):
        host(texts=batch["texts"])
    with raises(ValueError, "received no texts", "encode_image"):
        host(batch["images"])
    with raises(ValueError, "index of shape [4]", "[3]"):
        host(**batch, index=torch.arange(3))


def test_towers_of_two_widths(models):
    model = tiny_clips.open_clip("vit")
    model.text_projection = nn.Parameter(model.text_projection[:, :12].detach().clone())
    with raises(ValueError, "same n and d", "[4, 16]", "[4, 12]"):
        dt.hosts.OpenCLIP(model)(**tiny_clips.open_clip_batch(4))


def test_a_tower_that_returns_its_tokens_too():
    model = tiny_clips.open_clip("timm-vit")
    model.text.output_tokens = True
    with raises(TypeError, "text tower", "tuple", "pooled"):
        dt.hosts.OpenCLIP(model)(**tiny_clips.open_clip_batch(4))


def test_models_without_a_tower(models):
    with raises(TypeError, "encode_image and encode_text", "without encode_image and encode_text"):
        dt.hosts.OpenCLIP(models["vit"].visual)
    towerless = nn.Module()
    towerless.encode_image = nn.Linear(3, 2)
    with raises(TypeError, "Module without encode_text", "TwoTower"):
        dt.hosts.OpenCLIP(towerless)
