"""The host on every model type that transformers calls a causal language model: served rightly, or refused clearly.

The normal suite takes a few types; `make test-lms` takes all of them and prints what was found.
"""

import functools
import random
from collections import Counter

import pytest
import torch
from torch import nn

import dro_temp as dt

pytest.importorskip("transformers")
import tiny_lms

# Why a type is refused, with an error of our own.
REFUSED = {
    "gemma4_assistant": (TypeError, "runs on input_ids alone"),  # reads another model's keys and values
    "gemma4_unified_assistant": (TypeError, "runs on input_ids alone"),
    "musicgen": (TypeError, "with one head"),  # one head per codebook
    "musicgen_melody": (TypeError, "with one head"),
}
SERVED = tuple(kind for kind in tiny_lms.TYPES if kind not in REFUSED)
SAMPLE = random.Random(0).sample(SERVED, 6)

# Served, if told what cannot be found out: ProphetNet's own loss is a mean over streams, so that it is neither.
OPTIONS = {"prophetnet": {"shifted": False}}
# Types that transformers generates with only if told so.
GENERATION = {"blt": {"use_cache": False}, "prophetnet": {"use_cache": False}}
# Types whose every token looks like a new prompt, so that the processor keeps the last temperature alone.
FORGETFUL = ("xlnet",)

# What a configuration calls the number that the model's logits are capped at, or multiplied or divided by.
CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
CAPPED = (
    *("beam", "gemma2", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
    *("gemma4_unified", "gemma4_unified_text", "inkling2_loop_text", "inkling2_text", "nanochat"),
    *("recurrent_gemma", "vaultgemma", "xlstm"),
)
SCALED = (
    *("cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "falcon_h1", "granite", "granite_swa"),
    *("granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hyperclovax"),
)
UNREAD = ("gemma3", "mpt")  # the number is in the configuration, but the model does nothing with it

# At least this many of all types; what is missing is refused, or listed here.
TARGETS = {
    "trains": 180,
    "multiplies_by_the_head": 180,
    "scores_are_the_logits": 180,
    "targets_are_the_labels": 180,
    "probing_leaves_no_trace": 180,
    "generates": 178,
}
FOUND: Counter[str] = Counter()


@functools.lru_cache(maxsize=1)
def built(kind):
    model = tiny_lms.model(kind).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    host = dt.hosts.CausalLM(model, **OPTIONS.get(kind, {}))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    traces = {
        "random numbers": not torch.equal(drawn, torch.rand(1)),
        "training modes": modes != [module.training for module in model.modules()],
        "gradients": any(p.grad is not None for p in model.parameters()),
        "hooks": any(m._forward_hooks or m._forward_pre_hooks for m in [host.head.module]),
    }
    traces |= {name: not same(value, before[name]) for name, value in model.state_dict().items()}
    return host.eval(), [trace for trace, left in traces.items() if left]


def same(first, second):
    return torch.equal(first.nan_to_num(), second.nan_to_num())


def tokens(batch=2):
    return torch.randint(50, tiny_lms.VOCABULARY, (batch, 16), generator=torch.Generator().manual_seed(1))


def logits_of(host, **inputs):
    with torch.no_grad():
        return host.model(**host.options, **inputs).logits


def tempnet(host):
    torch.manual_seed(2)
    outcomes = host(input_ids=tokens(1))["token"].scores.shape[1]
    return dt.TempNet.for_logits(outcomes, tau_min=0.1, tau_max=2.0, width=8, dropout=0.0)


def trains(kind, host):
    objective = dt.Objective(host, tempnet(host), dt.KLRobustLoss(rho=1.0)).train()
    loss = objective(input_ids=tokens()).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in objective.predictors.parameters())
    gradients = [p.grad for p in host.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    host.zero_grad()
    host.eval()


def multiplies_by_the_head(kind, host):
    seen = []
    handle = host.head.module.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    logits_of(host, input_ids=tokens())
    handle.remove()
    hidden, output = seen[0]
    product = nn.functional.linear(hidden, host.head.weight, host.head.bias)
    torch.testing.assert_close(product, output, rtol=1e-5, atol=1e-5)
    assert hidden.shape[-1] == host.head.weight.shape[1]


def scores_are_the_logits(kind, host):
    expected = logits_of(host, input_ids=tokens())[:, :-1].flatten(0, 1)
    torch.testing.assert_close(host(input_ids=tokens())["token"].dense_scores, expected, rtol=1e-5, atol=1e-5)


def targets_are_the_labels(kind, host):
    if kind == "git":
        return labels_behind_an_image(host)
    if kind == "prophetnet":  # of several streams generation reads the first
        host = dt.hosts.CausalLM(tiny_lms.model(kind, ngram=1))
    labels = tokens().roll(3, dims=1)
    labels[0, 4:7] = -100
    with torch.no_grad():
        expected = host.model(input_ids=tokens(), labels=labels, **host.options).loss
        rows = host(input_ids=tokens(), labels=labels)["token"]
    torch.testing.assert_close(cross_entropy(rows), expected, rtol=1e-5, atol=1e-5)
    return None


def labels_behind_an_image(host):
    config = host.model.config.vision_config
    image = torch.randn(
        2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0)
    )
    batch = {"input_ids": tokens(), "pixel_values": image}
    with torch.no_grad():
        output = host.model(labels=tokens(), **batch, **host.options)
    before = output.logits.shape[1] - 16
    labels = nn.functional.pad(tokens(), (before, 0), value=-100)
    rows = host(labels=labels, **batch)["token"]
    # GIT compares the first word with the last position of the image too; its own loss leaves that row out.
    labels[:, before] = -100
    torch.testing.assert_close(cross_entropy(host(labels=labels, **batch)["token"]), output.loss)
    assert before > 0
    assert int(rows.valid.sum()) == 32


def cross_entropy(rows):
    return nn.functional.cross_entropy(rows.dense_scores[rows.valid], rows.target[rows.valid])


def probing_leaves_no_trace(kind, host):
    assert not built(kind)[1]


def generates(kind, host):
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    options |= GENERATION.get(kind, {})
    processor = dt.TemperatureLogitsProcessor(host.model, tempnet(host).eval())
    with processor:
        text = host.model.generate(tokens(), logits_processor=[processor], **options)
    assert text.shape == (2, 19)
    assert processor.temperatures.shape == (2, 1 if kind in FORGETFUL else 3)
    assert processor.temperatures.isfinite().all()


CRITERIA = (
    trains,
    multiplies_by_the_head,
    scores_are_the_logits,
    targets_are_the_labels,
    probing_leaves_no_trace,
    generates,
)


def few_and_all(kinds, few):
    """The few in the normal suite, the others where they are asked for."""
    return [kind if kind in few else pytest.param(kind, marks=pytest.mark.lms) for kind in kinds]


@pytest.mark.parametrize("kind", few_and_all(SERVED, SAMPLE))
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: criterion.__name__)
def test_served(kind, criterion):
    criterion(kind, built(kind)[0])
    FOUND[criterion.__name__] += 1


@pytest.mark.parametrize("kind", few_and_all(REFUSED, ["musicgen"]))
def test_refused(kind):
    error, expected = REFUSED[kind]
    with pytest.raises(
        error, match=rf"expected a causal language model.*{expected}.*, received .*HostAdapter"
    ):
        dt.hosts.CausalLM(tiny_lms.model(kind))


def test_every_type_is_looked_at_once():
    assert sorted(SERVED + tuple(REFUSED)) == sorted(tiny_lms.TYPES)
    assert len(set(tiny_lms.TYPES)) == len(tiny_lms.TYPES)


def transform_in_config(kind):
    """What the configuration says is done to the logits, at a value of ours, and how that is spelled."""
    known = vars(tiny_lms.config(kind).get_text_config(decoder=True))
    # Far from the defaults, and a cap so low that a tiny model's logits meet it.
    return {name: 0.05 for name in CAPS if name in known} | {name: 0.37 for name in SCALES if name in known}


@pytest.mark.lms
def test_the_table_of_caps_and_scales_is_complete():
    assert {kind for kind in SERVED if transform_in_config(kind)} == {*CAPPED, *SCALED, *UNREAD}


@pytest.mark.parametrize(
    "kind", few_and_all((*CAPPED, *SCALED, *UNREAD), ["gemma2", "cohere", "granite", "mpt"])
)
def test_caps_and_scales_are_the_configurations(kind):
    changes = transform_in_config(kind)
    assert changes
    host = dt.hosts.CausalLM(tiny_lms.model(kind, **changes))
    expected = (
        (dt.functional.SoftCap(0.05),)
        if kind in CAPPED
        else (dt.functional.Scale(0.37), dt.functional.Scale(1 / 0.37))
    )
    assert host.head.linear
    assert host.head.transform in ((None,) if kind in UNREAD else expected)
    scores_are_the_logits(kind, host)
    if kind not in UNREAD:
        neutral = dict.fromkeys(changes, 1e3 if kind in CAPPED else 1.0)
        plain = dt.hosts.CausalLM(tiny_lms.model(kind, **neutral))
        change = logits_of(host, input_ids=tokens()) - logits_of(plain, input_ids=tokens())
        assert change.abs().max() > 1e-3, "a change that the comparison would notice"


@pytest.mark.lms
def test_as_many_types_as_promised(capsys):
    """Last, over what the tests above have found in this process."""
    if sum(FOUND.values()) < len(SERVED):
        pytest.skip("only some of the types were looked at in this process; run make test-lms")
    with capsys.disabled():
        print(f"\n{len(tiny_lms.TYPES)} model types of transformers")
        for name, target in TARGETS.items():
            print(f"{FOUND[name]:5} {name} (at least {target})")
        for kind, (_, why) in REFUSED.items():
            print(f"      {kind} is refused: expected a causal language model {why}")
        print(f"      {', '.join(OPTIONS)}: served with shifted=... given")
    assert all(FOUND[name] >= target for name, target in TARGETS.items()), FOUND
