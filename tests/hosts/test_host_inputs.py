"""What users hand to hosts and processors as it comes: numbers as lists and arrays, packed heads, bags of tokens."""

import numpy as np
import pytest
import torch
from torch import nn

import dro_temp as dt

pytest.importorskip("transformers")
import tiny_lms

V = tiny_lms.VOCABULARY
TOKENS = torch.randint(50, V, (3, 7), generator=torch.Generator().manual_seed(0))
KINDS = {
    "list": list,
    "tuple": tuple,
    "numpy": np.array,
    "int32": lambda numbers: np.array(numbers, dtype=np.int32),
    "tensor": torch.tensor,
}


# --- Sample numbers ------------------------------------------------------------------------------------------


def two_tower():
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
    return host, (torch.randn(3, 6), torch.randn(3, 5))


def in_chunks():
    host, batch = two_tower()
    return dt.hosts.InChunks(host, size=2), batch


def two_views():
    return dt.hosts.TwoViews(nn.Linear(6, 4)), (torch.randn(3, 6), torch.randn(3, 6))


def classifier():
    return dt.hosts.Classifier(nn.Linear(6, 4), nn.Linear(4, 5)), (torch.randn(3, 6), torch.arange(3))


def soft_classifier():
    host, (x, labels) = classifier()
    return host, (x, nn.functional.one_hot(labels, 5).float())


def causal_lm():
    host = dt.hosts.CausalLM(tiny_lms.model("gpt2"), frozen=True)
    return host, (TOKENS,)


def with_reference():
    host, batch = two_tower()
    return dt.hosts.WithReference(
        host, dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4), frozen=True)
    ), batch


def timm():
    model = pytest.importorskip("timm").create_model("test_resnet", num_classes=5)
    return dt.hosts.Timm(model), (torch.randn(3, 3, 64, 64), torch.arange(3))


HOSTS = [two_tower, in_chunks, two_views, classifier, soft_classifier, causal_lm, with_reference, timm]
hosts = pytest.mark.parametrize("make", HOSTS, ids=lambda f: f.__name__)


@hosts
@pytest.mark.parametrize("kind", KINDS)
def test_sample_numbers_as_they_come(make, kind):
    torch.manual_seed(0)
    host, batch = make()
    expected = host(*batch, index=torch.tensor([7, 8, 9]))
    found = host(*batch, index=KINDS[kind]([7, 8, 9]))
    for view, rows in found.items():
        assert isinstance(rows.index, torch.Tensor)
        assert torch.equal(rows.index.long(), expected[view].index)
        assert rows.index.shape == rows.target.shape


def test_numbers_of_tokens_as_nested_lists():
    host, _ = causal_lm()
    numbers = torch.arange(21).view(3, 7)
    rows = host(input_ids=TOKENS, index=numbers.tolist())["token"]
    assert torch.equal(rows.index, numbers[:, 1:].flatten())


@hosts
@pytest.mark.parametrize(
    "wrong", [[0.5, 1.0, 2.0], ["a", "b", "c"], [True, False, True], np.zeros(3)], ids=str
)
def test_what_is_no_number_is_refused(make, wrong):
    host, batch = make()
    with pytest.raises(TypeError, match=r"expected index as whole numbers, received .*SampleTable"):
        host(*batch, index=wrong)


def test_a_memory_takes_them_too():
    host, (x, labels) = classifier()
    loss = dt.KLRobustLoss(0.5, estimator=dt.LogMovingAverage(10))
    objective = dt.Objective(host, dt.ConstantTemperature(1.0), loss)
    objective(x, labels, index=[1, 4, 7]).loss.backward()
    objective.commit()
    assert loss.estimator.log_u.isfinite().nonzero().flatten().tolist() == [1, 4, 7]


# --- Heads that pack their weight ----------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """As torch's and bitsandbytes' layers: the weight is another shape, or a method."""

    def __init__(self, head: nn.Linear, kind: str) -> None:
        super().__init__()
        self.in_features, self.out_features = head.in_features, head.out_features
        self.scale = head.weight.detach().abs().max() / 127
        self.packed = (head.weight.detach() / self.scale).round().to(torch.int8)
        if kind == "flat":
            self.weight = nn.Parameter(self.packed.view(-1, 1), requires_grad=False)

    def forward(self, x):
        return x @ (self.packed * self.scale).T


class WithMethod(PackedLinear):
    def weight(self):
        return self.packed


@pytest.mark.parametrize("kind", ["flat", "method", "int8"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_head(kind):
    model = tiny_lms.model("llama")
    if kind == "int8":
        if torch.backends.quantized.engine == "none":
            pytest.skip("this build of torch multiplies no quantised numbers")
        model.lm_head = torch.ao.quantization.quantize_dynamic(nn.Sequential(model.lm_head), {nn.Linear})[0]
    else:
        model.lm_head = (PackedLinear if kind == "flat" else WithMethod)(model.lm_head, kind)
    host = dt.hosts.CausalLM(model, frozen=True)
    assert not host.head.linear
    assert host.vocabulary == V
    rows = host(input_ids=TOKENS)["token"]
    with torch.no_grad():
        torch.testing.assert_close(rows.dense_scores, model(TOKENS).logits[:, :-1].flatten(0, 1))
    network = dt.TempNet.for_logits(V, tau_min=0.1, tau_max=2.0, width=8)
    objective = dt.Objective(host, network, dt.KLRobustLoss(1.0))
    objective(input_ids=TOKENS).loss.backward()
    assert network.readout.last.weight.grad is not None
    with pytest.raises(ValueError, match=f"expected tokens from 0 to {V - 1}"):
        host(input_ids=TOKENS + V)


# --- Predictors and processors -------------------------------------------------------------------------------


def generate(model, processor):
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    return model.generate(TOKENS, logits_processor=[processor], **options)


def test_training_mode_matters_where_it_changes_something():
    model = tiny_lms.model("llama")
    for predictor in (
        dt.ConstantTemperature(0.4),
        dt.LearnableTemperature(0.4, tau_min=0.1, tau_max=1.0),
        dt.TempNet.for_logits(V, tau_min=0.1, tau_max=2.0, dropout=0.0),
        dt.TempNet(dt.predictors.HiddenEncoder(32, width=8, dropout=0.0), tau_min=0.1, tau_max=2.0),
    ):
        assert predictor.training
        processor = dt.TemperatureLogitsProcessor(model, predictor)
        generate(model, processor)
        taken = processor.temperatures
        predictor.eval()
        generate(model, processor)
        assert torch.equal(processor.temperatures, taken)

    class Own(dt.TemperaturePredictor):
        reads = frozenset()

        def raw(self, inputs):
            return torch.full((inputs.n,), float(self.training))

    class Normed(Own):
        def __init__(self):
            super().__init__(tau_min=0.1, tau_max=2.0)
            self.norm = nn.BatchNorm1d(3)

    dropping = dt.TempNet.for_logits(V, tau_min=0.1, tau_max=2.0, dropout=0.1)
    for predictor, part in (
        (dropping, "Dropout"),
        (Own(tau_min=0.1, tau_max=2.0), "Own"),
        (Normed(), "Normed"),
    ):
        with pytest.raises(
            ValueError, match=rf"training mode, whose {part} would change.*predictor\.eval\(\)"
        ):
            dt.TemperatureLogitsProcessor(model, predictor)


@pytest.mark.parametrize("words", [V + 5, V - 9])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_a_processor_of_a_vocabulary_that_was_resized(kind, words):
    model = tiny_lms.model(kind)
    processor = dt.TemperatureLogitsProcessor(model, dt.ConstantTemperature(0.5))
    generate(model, processor)
    model.resize_token_embeddings(words)
    assert "weight" in dict(model.get_output_embeddings().named_parameters())
    prompt = TOKENS % 40 + 45
    with pytest.raises(
        ValueError, match=rf"with {V} outcomes, received another one, with {words}.*Make another"
    ):
        model.generate(prompt, logits_processor=[processor], max_new_tokens=2)
    other = dt.TemperatureLogitsProcessor(model, dt.ConstantTemperature(0.5))
    model.generate(prompt, logits_processor=[other], max_new_tokens=2)


def test_continuous_batching_is_refused():
    configurations = pytest.importorskip("transformers.generation.configuration_utils")
    model = tiny_lms.model("llama")
    config = configurations.GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1)
    small = configurations.ContinuousBatchingConfig(
        max_batch_tokens=64, num_blocks=8
    )  # else it fills gigabytes
    options = {"generation_config": config, "continuous_batching_config": small}
    with dt.TemperatureLogitsProcessor(model, dt.ConstantTemperature(0.5)) as processor:
        found = model.generate_batch(TOKENS.tolist()[:1], logits_processor=[processor], **options)
    (text,) = found.values()
    assert not text.generated_tokens
    assert "received a forward of continuous batching" in text.error
    assert "processor.close()" in text.error


# --- Bags of tokens ------------------------------------------------------------------------------------------


class Bags(nn.Module):
    """What sentence-transformers' `StaticEmbedding` is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(99, 16)

    def forward(self, features):
        return {"sentence_embedding": self.embedding(features["input_ids"], features["offsets"])}


def bags(lengths, seed):
    g = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    return {"input_ids": torch.randint(99, (sum(lengths),), generator=g), "offsets": starts}


@pytest.mark.parametrize("size", [1, 2, 3, 8, 50])
def test_bags_of_tokens_in_chunks(size):
    torch.manual_seed(0)
    host = dt.hosts.SentenceTransformers(Bags())
    # As many tokens in all as samples, for one; an empty text, for another.
    columns = [bags([3, 1, 0, 2, 5, 1, 4, 2], 1), bags([1] * 8, 2)]

    def run(host):
        host.zero_grad()
        rows = host(*columns, index=torch.arange(8))
        total = sum(r.dense_scores.square().sum() for r in rows.values())
        total.backward()
        return rows["anchor"].dense_scores.detach(), next(host.parameters()).grad.clone()

    torch.testing.assert_close(run(dt.hosts.InChunks(host, size=size)), run(host))


def test_a_static_embedding_in_mini_batches():
    package = pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    from dro_temp.integrations.sentence_transformers import RobustRankingLoss

    words = Tokenizer(models.WordLevel({f"w{k}": k for k in range(30)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    module = package.sentence_transformer.modules.StaticEmbedding(words, embedding_dim=8)
    model = package.SentenceTransformer(modules=[module], device="cpu")
    texts = [" ".join(f"w{(7 * k + j) % 30}" for j in range(1 + k % 4)) for k in range(10)]
    columns = [model.preprocess(texts), model.preprocess(texts[::-1])]

    def gradient(size):
        model.zero_grad()
        loss = RobustRankingLoss(
            model, dt.ConstantTemperature(0.1), dt.KLRobustLoss(1.0), mini_batch_size=size
        )
        value = loss([dict(c) for c in columns])
        value.backward()
        return value.detach(), module.embedding.weight.grad.clone()

    torch.testing.assert_close(gradient(3), gradient(None))
