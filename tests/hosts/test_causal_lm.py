"""Causal language models as hosts, on families that differ in what they do to logits, labels and states."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dro_temp as dt

pytest.importorskip("transformers")
import tiny_lms
from transformers import AutoModelForSeq2SeqLM

# What peft asks of transformers is about to be called otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

V = tiny_lms.VOCABULARY
UNSHIFTED = ("xlnet", "bart")
# Plain, rotary, capped, scaled, divided, labels in place, experts, a recurrent state.
FAMILIES = ("gpt2", "llama", "gemma2", "cohere", "granite", *UNSHIFTED, "mixtral", "mamba")
families = pytest.mark.parametrize("kind", FAMILIES)


def tokens(batch=3, length=8, seed=0):
    return torch.randint(50, V, (batch, length), generator=torch.Generator().manual_seed(seed))


def host_of(kind, *, frozen=False, **changes):
    return dt.hosts.CausalLM(tiny_lms.model(kind, **changes), frozen=frozen).eval()


def precise(host):
    """In float64, in which experts are not multiplied in groups."""
    host.model.set_experts_implementation("eager")
    return host.double()


def objective(host):
    torch.manual_seed(1)
    tempnet = dt.TempNet.for_logits(V, tau_min=0.1, tau_max=2.0, width=8, dropout=0.0)
    return dt.Objective(host, tempnet, dt.KLRobustLoss(rho=1.0))


def logits_of(host, batch):
    with torch.no_grad():
        return host.model(**batch).logits


def gradients(made, **batch):
    made.zero_grad()
    torch.manual_seed(4)  # dropout
    loss = made(**batch).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in made.named_parameters() if p.grad is not None}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name].to(value.dtype)
        torch.testing.assert_close(other, value, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# --- Rows ----------------------------------------------------------------------------------------------------


@families
def test_rows_are_what_the_models_own_loss_reads(kind):
    host, labels = precise(host_of(kind)), tokens(seed=1)
    labels[0, 2:4] = -100
    rows = host(input_ids=tokens(), labels=labels)["token"]
    with torch.no_grad():
        output = host.model(input_ids=tokens(), labels=labels)
    first = int(kind not in UNSHIFTED)
    assert host.shifted == bool(first)
    expected = output.logits[:, : 8 - first].flatten(0, 1)
    # Some models round their logits to float32, and ours then are the better ones.
    torch.testing.assert_close(rows.dense_scores.to(expected.dtype), expected, rtol=1e-6, atol=1e-6)
    loss = nn.functional.cross_entropy(rows.dense_scores[rows.valid], rows.target[rows.valid])
    torch.testing.assert_close(loss, output.loss, check_dtype=False)
    assert rows.weight.tolist() == (labels[:, first:] != -100).flatten().float().tolist()


@families
def test_without_labels_the_next_token_is_predicted(kind):
    host = host_of(kind)
    rows = host(input_ids=tokens())["token"]
    assert torch.equal(rows.target, tokens()[:, 1:].flatten())
    expected = logits_of(host, {"input_ids": tokens()})[:, :-1].flatten(0, 1)
    torch.testing.assert_close(rows.dense_scores, expected)
    assert rows.features.shape == (21, host.head.weight.shape[1])


@families
def test_products_and_matrices_give_one_loss_and_gradient(kind):
    host = precise(host_of(kind))
    assert host.head.linear
    assert host.head.skippable
    made = objective(host).double()
    linear = gradients(made, input_ids=tokens())
    host.head = replace(host.head, linear=False)
    # Mamba's own logits are rounded to float32.
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if kind != "mamba" else {"rtol": 1e-4, "atol": 1e-7}
    assert_same(linear, gradients(made, input_ids=tokens()), **tolerance)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_heads_collect_both_gradients(tied):
    host = host_of("llama", tie_word_embeddings=tied).double()
    made = objective(host).double()
    assert (host.head.weight is host.model.get_input_embeddings().weight) is tied
    linear = gradients(made, input_ids=tokens())
    host.head = replace(host.head, linear=False)
    assert_same(linear, gradients(made, input_ids=tokens()), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "granite"])
def test_the_head_is_not_run_where_nobody_reads_it(kind):
    host, seen = host_of(kind), []
    host.head.module.register_forward_hook(lambda _, args, output: seen.append(output.shape))
    host(input_ids=tokens())
    assert seen == [(3, 1, V)]


@families
def test_half_precision_loses_no_more_than_the_model_does(kind):
    host = host_of(kind).bfloat16()
    host = dt.hosts.CausalLM(host.model)
    assert host.shifted == (kind not in UNSHIFTED)
    assert host.head == replace(host_of(kind).head, module=host.head.module)
    rows = host(input_ids=tokens())["token"]
    assert rows.dense_scores.dtype == torch.float32
    expected = logits_of(host, {"input_ids": tokens()})[:, :-1].flatten(0, 1).float()
    torch.testing.assert_close(rows.dense_scores, expected, rtol=2e-2, atol=2e-2)
    found = gradients(objective(host), input_ids=tokens())
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba"])
def test_gradient_checkpointing_changes_nothing(kind):
    made = objective(host_of(kind).double()).double().train()
    plain = gradients(made, input_ids=tokens())
    model = made.host.model
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert_same(plain, gradients(made, input_ids=tokens()), rtol=1e-9, atol=1e-12)


def test_embeddings_in_place_of_tokens():
    host = host_of("llama")
    embedded = host.model.get_input_embeddings()(tokens())
    rows = host(inputs_embeds=embedded, labels=tokens())["token"]
    expected = host(input_ids=tokens())["token"]
    torch.testing.assert_close(rows.dense_scores, expected.dense_scores)
    assert torch.equal(rows.target, expected.target)


def test_numbers_of_texts_and_of_tokens():
    host, index = host_of("gpt2"), torch.tensor([7, 0, 3])
    assert (
        host(input_ids=tokens(), index=index)["token"].index.tolist() == index.repeat_interleave(7).tolist()
    )
    each = torch.arange(24).view(3, 8)
    assert torch.equal(host(input_ids=tokens(), index=each)["token"].index, each[:, 1:].flatten())


# --- Padding -------------------------------------------------------------------------------------------------


def padded(side, *lengths):
    """Texts of these lengths, as a batch and one by one."""
    whole = tokens(len(lengths), max(lengths))
    batch, texts = (
        torch.zeros_like(whole),
        [text[:length] for text, length in zip(whole, lengths, strict=True)],
    )
    mask = torch.zeros_like(whole)
    for row, text in enumerate(texts):
        here = slice(len(text)) if side == "right" else slice(whole.shape[1] - len(text), None)
        batch[row, here], mask[row, here] = text, 1
    return {"input_ids": batch, "attention_mask": mask}, texts


@families
@pytest.mark.parametrize("labelled", [True, False])
def test_padding_on_the_right_is_inert(kind, labelled):
    assert_padding_is_inert(host_of(kind), "right", labelled)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "mixtral", "cohere"])
@pytest.mark.parametrize("labelled", [True, False])
def test_padding_on_the_left_is_inert(kind, labelled):
    assert_padding_is_inert(host_of(kind), "left", labelled)


def assert_padding_is_inert(host, side, labelled):
    batch, texts = padded(side, 8, 3, 5)
    if labelled:  # as a data collator does that has no pad token to go by
        batch["labels"] = batch["input_ids"]
    # The models count positions from the left end; generate tells them better, and so can whoever pads there.
    position = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if side == "left":
        batch["position_ids"] = position
    rows = host(**batch)["token"]
    shifted = host.shifted or not labelled
    expected = [
        host(input_ids=text[None], labels=text[None] if labelled else None)["token"] for text in texts
    ]
    assert int(rows.valid.sum()) == sum(len(text) - shifted for text in texts)
    torch.testing.assert_close(
        rows.dense_scores[rows.valid], torch.cat([r.dense_scores for r in expected]), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(rows.target[rows.valid], torch.cat([r.target for r in expected]))
    values = torch.cat([objective(host)(input_ids=t[None], labels=t[None] if labelled else None)
                        .values["token"] for t in texts])  # fmt: skip
    torch.testing.assert_close(objective(host)(**batch).loss, values.mean(), rtol=1e-5, atol=1e-6)


def test_ignored_labels_are_inert():
    made, labels = objective(host_of("gpt2").double()).double(), tokens(seed=1)
    labels[:, 5:] = -100
    short = gradients(made, input_ids=tokens()[:, :5], labels=labels[:, :5])
    ignored = gradients(made, input_ids=tokens(), labels=labels)
    names = {"loss", "predictors.token.readout.last.weight", "host.model.transformer.wte.weight"}
    for name in names:
        torch.testing.assert_close(ignored[name], short[name])
    nothing = gradients(made, input_ids=tokens(), labels=torch.full_like(labels, -100))
    assert all(not value.any() for value in nothing.values())


# --- Frozen, wrapped, changed --------------------------------------------------------------------------------


@families
def test_a_frozen_model_is_left_alone(kind):
    host = host_of(kind, frozen=True)
    before = {name: value.clone() for name, value in host.state_dict().items()}
    made = objective(host).train()
    rows = host(input_ids=tokens())["token"]
    assert not rows.dense_scores.requires_grad
    assert not rows.features.requires_grad
    optimizer = torch.optim.AdamW(made.param_groups(lr=0.1))
    made(input_ids=tokens()).loss.backward()
    optimizer.step()
    assert all(p.grad is None for p in host.parameters())
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert all(p.grad.any() for n, p in made.predictors.named_parameters() if "readout" in n)


def test_making_a_host_changes_nothing():
    model = tiny_lms.model("gpt2", attn_pdrop=0.5).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    dt.hosts.CausalLM(model)
    assert torch.equal(torch.rand(1), expected)
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def lora(model, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return adapted.eval()


def scores_are_the_models(host):
    expected = logits_of(host, {"input_ids": tokens()})[:, :-1].flatten(0, 1)
    torch.testing.assert_close(host(input_ids=tokens())["token"].dense_scores, expected)
    return True


def test_adapters_below_the_head_leave_it_a_product():
    host = dt.hosts.CausalLM(lora(tiny_lms.model("llama"), target_modules=["q_proj", "v_proj"]))
    assert host.head.linear
    assert scores_are_the_models(host)
    found = gradients(objective(host), input_ids=tokens())
    assert {name.split(".")[-3] for name in found if name.startswith("host")} == {"lora_A", "lora_B"}


@pytest.mark.parametrize("options", [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_adapters_on_the_head_are_not_bypassed(options):
    bare = tiny_lms.model("llama", tie_word_embeddings=False)
    host = dt.hosts.CausalLM(lora(bare, **options))
    with torch.no_grad():
        for name, parameter in host.named_parameters():
            if parameter.requires_grad and "lm_head" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert not host.head.linear
    assert scores_are_the_models(host)
    found = gradients(objective(host), input_ids=tokens())
    assert any(value.any() for name, value in found.items() if "lm_head" in name)


def test_adapters_and_words_that_come_later_are_noticed():
    host = host_of("llama", tie_word_embeddings=False)
    host.model.resize_token_embeddings(V + 5, mean_resizing=False)
    assert scores_are_the_models(host)
    assert host.vocabulary == V + 5
    lora(host.model, target_modules=["lm_head"])
    assert scores_are_the_models(host)
    assert not host.head.linear


def test_virtual_tokens_want_labels_too():
    peft = pytest.importorskip("peft")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    host = dt.hosts.CausalLM(peft.get_peft_model(tiny_lms.model("llama"), settings)).eval()
    with pytest.raises(
        ValueError, match=r"expected labels of shape \[3, 12\].*received \[3, 8\].*virtual tokens.*-100"
    ):
        host(input_ids=tokens())
    labels = nn.functional.pad(tokens(), (4, 0), value=-100)
    rows = host(input_ids=tokens(), labels=labels)["token"]
    with torch.no_grad():
        expected = host.model(input_ids=tokens(), labels=tokens()).loss
    loss = nn.functional.cross_entropy(rows.dense_scores[rows.valid], rows.target[rows.valid])
    torch.testing.assert_close(loss, expected)


# --- Models that nobody has seen -----------------------------------------------------------------------------


class Unseen(nn.Module):
    """A model that does something of its own to its logits, and to its loss."""

    def __init__(self, transform=lambda z: z, loss=None, words=V):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(vocab_size=V, some_number=0.123)
        self.embed, self.lm_head = nn.Embedding(V, 16), nn.Linear(16, V)
        self.transform, self.loss, self.words = transform, loss, words

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, labels=None):
        logits = self.transform(self.lm_head(self.embed(input_ids)))[..., : self.words]
        loss = None if labels is None or self.loss is None else self.loss(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


@pytest.mark.parametrize(("transform", "expected"), [
    (lambda z: z * 0.123, dt.functional.Scale(0.123)),
    (lambda z: z / 0.123, dt.functional.Scale(1 / 0.123)),
    (lambda z: 0.123 * (z / 0.123).tanh(), dt.functional.SoftCap(0.123)),
    (lambda z: z.double().float(), None),
])  # fmt: skip
def test_what_is_done_to_logits_is_found_out(transform, expected):
    head = dt.hosts.CausalLM(Unseen(transform)).head
    assert (head.linear, head.transform) == (True, expected)


@pytest.mark.parametrize("transform", [
    lambda z: z + 1.0,
    lambda z: -z,
    lambda z: z.log_softmax(-1),
    lambda z: (0.5 * z).tanh(),
    lambda z: z * torch.linspace(0.5, 1.0, V),
    lambda z: z.flip(-1),
])  # fmt: skip
def test_what_is_not_understood_is_computed_as_the_model_does(transform):
    host = dt.hosts.CausalLM(Unseen(transform))
    assert not host.head.linear
    assert scores_are_the_models(host)
    found = gradients(objective(host), input_ids=tokens())
    assert found["host.model.lm_head.weight"].any()


def test_logits_of_fewer_words_than_the_head_has():
    host = dt.hosts.CausalLM(Unseen(words=90))
    assert not host.head.linear
    assert host(input_ids=tokens().clamp(max=89))["token"].scores.shape == (21, 90)


def cross_entropy(logits, labels):
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize(("loss", "shifted"), [
    (lambda z, y: cross_entropy(z, y), False),
    (lambda z, y: cross_entropy(z[:, :-1], y[:, 1:]), True),
    (lambda z, y: cross_entropy(z[:, :-1], y[:, 1:]) + 50.0, True),  # a router's loss on top
    (None, True),
])  # fmt: skip
def test_where_labels_belong_is_found_out(loss, shifted):
    assert dt.hosts.CausalLM(Unseen(loss=loss)).shifted is shifted


def test_a_loss_that_is_neither_is_refused():
    def backwards(logits, labels):
        return cross_entropy(logits[:, 2:], labels[:, :-2])

    with pytest.raises(ValueError, match=r"expected a model whose loss .* received Unseen.* Pass shifted="):
        dt.hosts.CausalLM(Unseen(loss=backwards))
    assert dt.hosts.CausalLM(Unseen(loss=backwards), shifted=True).shifted


def test_a_router_that_adds_to_the_loss_does_not_hide_the_labels():
    assert host_of("mixtral", output_router_logits=True, router_aux_loss_coef=1.0).shifted


# --- Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_are_refused(kind):
    model = AutoModelForSeq2SeqLM.from_config(tiny_lms.config(kind))
    with pytest.raises(
        TypeError, match=r"expected a decoder-only.*received \w+, an encoder-decoder.*HostAdapter"
    ):
        dt.hosts.CausalLM(model)


def test_models_without_one_head_are_refused():
    expected = (
        r"expected a causal language model with one head.*received {}, whose head is {}.*AutoModelForCausalLM"
    )
    with pytest.raises(TypeError, match=expected.format("MusicgenForCausalLM", "ModuleList")):
        dt.hosts.CausalLM(tiny_lms.model("musicgen"))
    with pytest.raises(TypeError, match=expected.format("GPT2Model", "NoneType")):
        dt.hosts.CausalLM(tiny_lms.model("gpt2").transformer)
    with pytest.raises(TypeError, match=expected.format("Linear", "NoneType")):
        dt.hosts.CausalLM(nn.Linear(2, 2))


def test_a_model_that_wants_more_than_tokens_is_refused():
    class Blind(Unseen):
        def forward(self, input_ids, image):
            raise AssertionError

    with pytest.raises(
        TypeError, match=r"runs on input_ids alone, received Blind, which raised TypeError: .*image"
    ):
        dt.hosts.CausalLM(Blind())


@pytest.mark.parametrize(("batch", "received"), [
    ({"input_ids": tokens(2, 1)}, r"\[2, 1\]"),
    ({"input_ids": tokens()[0]}, r"\[8\]"),
    ({"inputs_embeds": torch.zeros(1, 4, 32)}, "None"),
])  # fmt: skip
def test_texts_without_a_pair_of_tokens_are_refused(batch, received):
    expected = rf"expected input_ids .*\[batch, length >= 2\], received {received}.*Tokenise"
    with pytest.raises(ValueError, match=expected):
        host_of("gpt2")(**batch)


def test_tokens_and_labels_of_another_vocabulary_are_refused():
    host, strange = host_of("gpt2"), tokens()
    strange[1, 2] = V + 4
    with pytest.raises(
        ValueError, match=rf"expected tokens from 0 to {V - 1}, received {V + 4}.*resize_token_emb"
    ):
        host(input_ids=strange)
    with pytest.raises(
        ValueError, match=rf"expected labels from 0 to {V - 1}.*received {V + 4}.*resize_token_emb"
    ):
        host(input_ids=tokens(), labels=strange)


def test_labels_of_other_positions_are_refused():
    with pytest.raises(ValueError, match=r"expected labels of shape \[3, 8\].*received \[3, 5\]"):
        host_of("gpt2")(input_ids=tokens(), labels=tokens()[:, :5])
