"""A head that is hooked, capped or wrapped after the host was made: rows stay the model's own logits."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import dro_temp as dt

pytest.importorskip("transformers")
import tiny_lms

V = tiny_lms.VOCABULARY
TOKENS = torch.randint(50, V, (2, 7), generator=torch.Generator().manual_seed(0))


def language_model(kind="llama", **changes):
    model = tiny_lms.model(kind, **changes)
    torch.manual_seed(0)
    nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return model


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits[:, :-1].flatten(0, 1)


def scores(host):
    return host(input_ids=TOKENS)["token"].dense_scores.detach()


# --- What is done to a language model, and undone by what is returned ------------------------------------------


def doubles_the_output(model):
    return model.lm_head.register_forward_hook(lambda module, args, output: output * 2).remove


def only_sometimes(model):
    """On the tokens of a probe it does nothing."""

    def hook(module, args, output):
        return output * 3 if output.shape[0] == len(TOKENS) else output

    return model.lm_head.register_forward_hook(hook).remove


def halves_the_input(model):
    return model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] / 2,)).remove


def changes_the_models_output(model):
    def hook(module, args, output):
        output.logits = output.logits.sinh()
        return output

    return model.register_forward_hook(hook).remove


def parametrised(model):
    class Triple(nn.Module):
        def forward(self, weight):
            return 3 * weight

    parametrize.register_parametrization(model.lm_head, "weight", Triple())
    return lambda: parametrize.remove_parametrizations(model.lm_head, "weight", leave_parametrized=False)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def weight_norm(model):
    torch.nn.utils.weight_norm(model.lm_head)
    with torch.no_grad():
        model.lm_head.weight_g.mul_(2)

    def undo():
        with torch.no_grad():
            model.lm_head.weight_g.div_(2)
        torch.nn.utils.remove_weight_norm(model.lm_head)

    return undo


def wrapped_forward(model):
    head, before = model.lm_head, model.lm_head.forward
    head.forward = lambda x: before(x) + 1
    return lambda: delattr(head, "forward")


def another_class(model):
    class Twisted(nn.Linear):
        def forward(self, x):
            return super().forward(x).sinh()

    head = model.lm_head
    head.__class__ = Twisted
    return lambda: setattr(head, "__class__", nn.Linear)


CHANGES = [
    doubles_the_output,
    only_sometimes,
    halves_the_input,
    changes_the_models_output,
    parametrised,
    weight_norm,
    wrapped_forward,
    another_class,
]
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
deprecated = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


@deprecated
@changes
def test_rows_follow_the_model(change):
    model = language_model()
    host = dt.hosts.CausalLM(model, frozen=True)
    plain = scores(host)
    undo = change(model)
    changed = logits(model)
    assert (changed - plain).abs().max() > 0.1
    torch.testing.assert_close(scores(host), changed)
    later = dt.hosts.CausalLM(model, frozen=True)
    torch.testing.assert_close(scores(later), changed)
    undo()
    torch.testing.assert_close(scores(later), plain)
    torch.testing.assert_close(scores(host), plain)
    assert host.head.linear


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("gemma2", "final_logit_softcapping"),
        ("granite", "logits_scaling"),
        ("cohere", "logit_scale"),
    ],
)
def test_numbers_that_are_changed(kind, field):
    model = language_model(kind)
    host = dt.hosts.CausalLM(model, frozen=True)
    plain = scores(host)
    for factor in (0.5, 3.0):
        for holder in (model, model.config):  # some models take their number from one, some from the other
            if hasattr(holder, field):
                setattr(holder, field, getattr(holder, field) * factor)
        changed = logits(model)
        assert (changed - plain).abs().max() > 0.01
        torch.testing.assert_close(scores(host), changed)
        assert host.head.linear


def test_a_cap_that_is_taken_off():
    model = language_model("gemma2", final_logit_softcapping=1.5)
    host = dt.hosts.CausalLM(model, frozen=True)
    scores(host)
    model.config.final_logit_softcapping = None
    torch.testing.assert_close(scores(host), logits(model))


def test_backward_hooks_on_a_head_are_called():
    model = language_model()
    host = dt.hosts.CausalLM(model)
    calls = []
    model.lm_head.register_full_backward_hook(lambda module, given, made: calls.append(1))
    host(input_ids=TOKENS)["token"].dense_scores.sum().backward()
    assert calls


def test_nothing_is_probed_twice(monkeypatch):
    model = language_model("gemma2")
    host = dt.hosts.CausalLM(model, frozen=True)
    tempnet = dt.TempNet.for_lm(model, tau_min=0.1, tau_max=2.0).eval()
    monkeypatch.setattr(dt.hosts.CausalLM, "_probe", lambda *_: pytest.fail("probed"))
    for _ in range(2):
        scores(host)
        with dt.TemperatureLogitsProcessor(model, tempnet):  # whose hooks change nothing
            scores(host)
        model.train()
        scores(host)


# --- Generation ----------------------------------------------------------------------------------------------


def tempnet(kind):
    torch.manual_seed(1)
    encoder = (
        dt.predictors.LogitEncoder(V, width=8)
        if kind == "logits"
        else dt.predictors.HiddenEncoder(32, width=8)
    )
    return tiny_lms.tempnet(encoder)


@deprecated
@pytest.mark.parametrize("kind", ["logits", "hidden"])
@changes
def test_temperatures_follow_the_model(change, kind):
    model, network = language_model(), tempnet(kind)
    processor = dt.TemperatureLogitsProcessor(model, network)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    model.generate(TOKENS, logits_processor=[processor], **options)
    change(model)
    text = model.generate(TOKENS, logits_processor=[processor], **options)
    with torch.no_grad():
        rows = dt.hosts.CausalLM(model, frozen=True)(input_ids=text)["token"]
        expected = network.predict(rows).view(2, -1)[:, -4:]
    assert expected.std() > 1e-3
    torch.testing.assert_close(processor.temperatures, expected, rtol=1e-5, atol=1e-5)


def test_a_cap_that_is_changed_between_texts():
    model, network = language_model("gemma2", final_logit_softcapping=1.5), tempnet("logits")
    processor = dt.TemperatureLogitsProcessor(model, network)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for cap in (1.5, 0.7, None):
        model.config.final_logit_softcapping = cap
        text = model.generate(TOKENS, logits_processor=[processor], **options)
        with torch.no_grad():
            rows = dt.hosts.CausalLM(model, frozen=True)(input_ids=text)["token"]
            expected = network.predict(rows).view(2, -1)[:, -4:]
        torch.testing.assert_close(processor.temperatures, expected, rtol=1e-5, atol=1e-5)


# --- Classifiers ---------------------------------------------------------------------------------------------


def hooked(head):
    return head.register_forward_hook(lambda module, args, output: output * 2)


def hooked_before(head):
    return head.register_forward_pre_hook(lambda module, args: (args[0] / 2,))


def normalised(head):
    torch.nn.utils.weight_norm(head)
    with torch.no_grad():
        head.weight_g.mul_(2)


def orthogonal(head):
    torch.nn.utils.parametrizations.orthogonal(head)


def wrapped(head):
    before = head.forward
    head.forward = lambda x: before(x) + 1


heads = pytest.mark.parametrize(
    "change", [hooked, hooked_before, normalised, orthogonal, wrapped], ids=lambda f: f.__name__
)


@deprecated
@heads
def test_a_classifiers_head(change):
    torch.manual_seed(0)
    backbone, head = nn.Linear(6, 4), nn.Linear(4, 3)
    host = dt.hosts.Classifier(backbone, head)
    x, labels = torch.randn(8, 6), torch.randint(3, (8,))
    plain = host(x, labels)["class"].dense_scores
    change(head)
    changed = head(backbone(x))
    assert (changed - plain).abs().max() > 0.01
    rows = host(x, labels)["class"]
    torch.testing.assert_close(rows.dense_scores, changed)
    rows.dense_scores.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


@deprecated
@heads
def test_a_timm_classifier(change):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    host = dt.hosts.Timm(model).eval()
    x, labels = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
    plain = host(x, labels)["class"]
    assert isinstance(plain.scores, dt.LinearScores)
    change(model.get_classifier())
    changed = model(x)
    assert (changed - plain.dense_scores).abs().max() > 0.01
    torch.testing.assert_close(host(x, labels)["class"].dense_scores, changed)
