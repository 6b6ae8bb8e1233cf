"""hosts.Timm on real models of timm: logits are the model's own, whatever the head, and timm's tools work with it."""

import copy
import pickle

import pytest
import torch
from torch import nn

import dro_temp as dt

timm = pytest.importorskip("timm")

from timm.optim import create_optimizer_v2, param_groups_layer_decay  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

CLASSES, SIDE = 7, 64
IMAGES = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 6, 3])

LINEAR = {
    "test_resnet": {},
    "test_vit": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "lcnet_035": {},  # timm's own linear layer; the head is wider than the features
    "hgnetv2_b0": {},  # num_features is 1024, the head's input 2048
}
OTHER = {
    "deit_tiny_distilled_patch16_224": {"img_size": SIDE},  # two heads
    "levit_128s": {"img_size": SIDE},  # two heads, each normalising
    "shvit_s1": {},  # a linear layer behind a normalisation that is the identity at first
    "resnetv2_18": {},  # a convolution
    "crossvit_tiny_240": {},  # several heads
    "volo_d1_224": {"img_size": SIDE},  # an auxiliary head
}


def model_of(name="test_resnet", **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES, **options)


def objective_of(model, **options):
    torch.manual_seed(1)
    host = dt.hosts.Timm(model, **options)
    return dt.Objective(host, dt.TempNet(host.width, tau_min=0.1, tau_max=4.0), dt.KLRobustLoss(1.0))


def own(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize(("name", "options"), [*LINEAR.items(), *OTHER.items()])
def test_scores_are_the_models_own_logits(name, options):
    model = model_of(name, **options)
    host = dt.hosts.Timm(model).eval()
    with torch.no_grad():
        rows = host(IMAGES, LABELS)["class"]
        torch.testing.assert_close(rows.dense_scores, own(model(IMAGES)), rtol=1e-5, atol=1e-6)
    assert rows.features.shape == (4, host.width)
    assert isinstance(rows.scores, dt.LinearScores) == (name in LINEAR)


@pytest.mark.parametrize("name", [*LINEAR, *OTHER])
def test_training_reaches_every_weight(name):
    options = (LINEAR | OTHER)[name]
    model = model_of(name, **options)
    objective_of(model)(IMAGES, LABELS).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    if name == "volo_d1_224":  # its head for every patch is for token labelling
        without = [n for n in without if not n.startswith("aux_head")]
    assert without == []


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "lcnet_035", "resnetv2_18", "test_convnext"])
def test_dropout_of_the_head_is_the_models(name):
    """Some models drop before what is called pre-logits and some after; none may lose it."""
    model = model_of(name, drop_rate=0.5).train()
    for part in model.modules():  # statistics of a batch are no matter here
        if any(buffer.startswith("running_") for buffer in part._buffers):
            part.eval()
    host = dt.hosts.Timm(model)
    with torch.no_grad():
        host(IMAGES, LABELS)  # finds out about the head
        torch.manual_seed(5)
        expected = model(IMAGES)
        torch.manual_seed(5)
        rows = host(IMAGES, LABELS)["class"]
    torch.testing.assert_close(rows.dense_scores, expected, rtol=1e-5, atol=1e-6)


def test_finding_out_about_the_head_leaves_no_trace():
    model = model_of("test_resnet", drop_rate=0.3)
    host = dt.hosts.Timm(model)
    names, state = list(host.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        maps = model.forward_features(IMAGES)
        before = copy.deepcopy(model.state_dict())
        host._head_is_linear(maps)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert list(host.state_dict()) == names
    assert all(part.training for part in model.modules())
    assert not model.fc._forward_hooks


def test_a_classifier_that_starts_at_zero_is_still_found_out():
    model = model_of("shvit_s1")
    nn.init.zeros_(model.get_classifier().weight)
    host = dt.hosts.Timm(model).eval()
    assert not isinstance(host(IMAGES, LABELS)["class"].scores, dt.LinearScores)


def test_a_head_put_in_later_is_looked_at_again():
    model = model_of("test_resnet")
    host = dt.hosts.Timm(model).eval()
    assert isinstance(host(IMAGES, LABELS)["class"].scores, dt.LinearScores)
    model.fc = nn.utils.parametrizations.weight_norm(nn.Linear(host.width, CLASSES))
    rows = host(IMAGES, LABELS)["class"]
    assert not isinstance(rows.scores, dt.LinearScores)
    torch.testing.assert_close(rows.dense_scores, model(IMAGES))
    model.reset_classifier(5)
    torch.testing.assert_close(host(IMAGES, LABELS % 5)["class"].dense_scores, model(IMAGES))


def test_two_outputs_in_training_are_averaged():
    model = model_of("deit_tiny_distilled_patch16_224", img_size=SIDE)
    model.set_distilled_training(True)
    host = dt.hosts.Timm(model.train())
    rows = host(IMAGES, LABELS)["class"]
    torch.testing.assert_close(rows.dense_scores, torch.stack(model(IMAGES)).mean(0))


def test_copies_and_pickles_go_on():
    host = dt.hosts.Timm(model_of()).eval()
    rows = host(IMAGES, LABELS)["class"]
    for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        torch.testing.assert_close(other(IMAGES, LABELS)["class"].dense_scores, rows.dense_scores)


def test_channels_last_and_autocast():
    expected = objective_of(model_of().eval()).eval()(IMAGES, LABELS).loss
    model = model_of().eval().to(memory_format=torch.channels_last)
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(objective_of(model).eval()(images, LABELS).loss, expected)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective_of(model)(images, LABELS)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_the_processor(dtype):
    expected = objective_of(model_of("test_vit")).eval()(IMAGES, LABELS).loss
    objective = objective_of(model_of("test_vit").to(dtype))
    output = objective.eval()(IMAGES.to(dtype), LABELS)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected, rtol=0.02, atol=0.02)
    output.loss.backward()


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("soft", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["test_vit", "resnetv2_18"])
def test_compiled_in_one_graph(name, soft):
    model, labels = model_of(name).eval(), torch.eye(CLASSES)[LABELS] if soft else LABELS
    expected, objective = objective_of(model).eval(), objective_of(model).eval()
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES, labels).loss, expected(IMAGES, labels).loss)
    torch.compiler.reset()


def test_layer_decay_and_timms_optimizers_and_schedulers():
    model = model_of("test_vit")
    objective = objective_of(model)
    layers = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    groups = objective.param_groups(lr=1e-2, tau_lr=1e-3, host=layers)
    assert {group["name"] for group in groups} == {"host", "temperature"}
    base = create_optimizer_v2(groups, opt="adamw", lr=1e-2)
    optimizer = dt.CompositionalOptimizer(base, objective)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=4, warmup_epochs=0)
    scheduler.step(0)
    rates = {group["lr"] for group in optimizer.param_groups if group["name"] == "host"}
    assert max(rates) == 1e-2
    assert min(rates) < 1e-2 / 2
    assert optimizer.param_groups[-1]["lr"] == 1e-3  # the temperature's own, without layers
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    objective(IMAGES, LABELS).loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in objective.named_parameters() if p.grad.any())
    scheduler.step(4)
    assert optimizer.param_groups[-1]["lr"] < 1e-3


@pytest.mark.parametrize("opt", ["sgd", "lamb", "adamw", "muon"])
def test_optimizers_of_timm(opt):
    objective = objective_of(model_of("test_vit"))
    base = create_optimizer_v2(objective.param_groups(lr=1e-2), opt=opt, lr=1e-2)
    optimizer = dt.CompositionalOptimizer(base, objective)
    first = None
    for _ in range(5):
        loss = objective(IMAGES, LABELS).loss
        first = first or loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < first


@pytest.mark.parametrize("part", ["model", "objective"])
def test_exponential_moving_average(part):
    objective = objective_of(model_of())
    module = objective if part == "objective" else objective.host.model
    ema = ModelEmaV3(module, decay=0.5)
    optimizer = torch.optim.SGD(objective.param_groups(lr=0.1))
    start = [p.detach().clone() for p in module.parameters()]
    objective(IMAGES, LABELS).loss.backward()
    optimizer.step()
    ema.update(module)
    for averaged, p, old in zip(ema.module.parameters(), module.parameters(), start, strict=True):
        torch.testing.assert_close(averaged, (p + old) / 2)
    if part == "objective":
        assert ema.module(IMAGES, LABELS).loss.isfinite()


def test_groups_of_the_host_must_be_its_parameters():
    model = model_of("test_vit")
    objective = objective_of(model)
    groups = param_groups_layer_decay(model, weight_decay=0.05)
    with pytest.raises(
        ValueError, match=r"expected groups of all of the host's .* received none with model\."
    ):
        objective.param_groups(lr=1.0, host=groups[1:])
    with pytest.raises(ValueError, match=r"each once, received some twice"):
        objective.param_groups(lr=1.0, host=[*groups, groups[0]])
    with pytest.raises(ValueError, match=r"each once, received .* others"):
        objective.param_groups(lr=1.0, host=[*groups, {"params": [nn.Parameter(torch.zeros(1))]}])


# Bad input -----------------------------------------------------------------------------------------------


def test_a_model_without_classes():
    with pytest.raises(
        ValueError, match=r"expected a model that scores classes, received ResNet.*num_classes=0"
    ):
        dt.hosts.Timm(timm.create_model("test_resnet", num_classes=0))


def test_a_model_of_features_only():
    with pytest.raises(TypeError, match=r"expected a classifier of timm.*features_only"):
        dt.hosts.Timm(timm.create_model("test_resnet", features_only=True))


def test_a_module_of_somebody_else():
    with pytest.raises(TypeError, match=r"expected a classifier of timm, received Linear.*Classifier"):
        dt.hosts.Timm(nn.Linear(3, 4))


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_out_of_range(label):
    with pytest.raises(ValueError, match=rf"expected labels from 0 to 6.*received {label}"):
        dt.hosts.Timm(model_of())(IMAGES, torch.tensor([0, 1, 2, label]))


def test_an_empty_batch_counts_nothing():
    for name in ("test_vit", "test_resnet"):
        objective = objective_of(model_of(name)).eval()
        output = objective(IMAGES[:0], LABELS[:0])
        assert output.loss.item() == 0.0
        assert output.tau["class"].shape == (0,)
        objective(IMAGES, LABELS)  # nothing was found out from nothing


def test_ignored_images_are_inert():
    objective = objective_of(model_of()).eval()
    some = objective(IMAGES[:3], LABELS[:3]).loss
    torch.testing.assert_close(objective(IMAGES, torch.tensor([0, 3, 6, -100])).loss, some)


def test_one_image():
    assert objective_of(model_of("test_vit"))(IMAGES[:1], LABELS[:1]).loss.isfinite()
