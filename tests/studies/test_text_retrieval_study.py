"""The study of docstrings and functions: its pairs, its measure, and its methods, with a tiny encoder."""

import ast

import pytest
import torch

for package in ("scipy", "rich", "sentence_transformers", "datasets"):
    pytest.importorskip(package)

import sentence_transformers as st  # noqa: E402
from sentence_transformers.sentence_transformer.modules import StaticEmbedding  # noqa: E402

from benchmarks.studies.text_retrieval import data, training  # noqa: E402
from benchmarks.studies.text_retrieval.methods import METHODS  # noqa: E402
from dro_temp.datasets import PythonText  # noqa: E402


def _tiny() -> st.SentenceTransformer:
    torch.manual_seed(0)
    words = PythonText("train", size=100_000).tokenizer(1024).backend_tokenizer
    return st.SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=16)], device="cpu")


def test_a_function_does_not_hold_its_docstring():
    code = 'def f(x):\n    """Add\n    one.\n\n    More."""\n    return x + 1  # why\n'
    code += 'def g():\n    """Only words."""\n'
    assert list(data._pairs(code)) == [("Add one.", "def f(x):\n    return x + 1")]


@pytest.mark.slow
def test_divisions_share_no_pair():
    parts = [set(data.load(split, 1)) for split in ("train", "validation", "test")]
    assert [len(part) > 100 for part in parts] == [True] * 3
    for docstring, function in list(parts[1])[:50]:
        assert docstring
        assert ast.get_docstring(ast.parse(function).body[0]) != docstring
    # Files are divided, and some functions occur in two of them.
    assert len(parts[0] & parts[2]) < 0.01 * len(parts[2])
    assert set(data.load("test", 2)) != parts[2]


def test_ndcg_is_whole_where_every_text_is_its_own_answer():
    model = _tiny()
    texts = ["open a file", "close it", "read all lines", "raise an error"]
    assert training.ndcg(model, [(x, x) for x in texts]) == pytest.approx({"ndcg10": 100.0, "r1": 100.0})
    # Two functions of one docstring: either is an answer.
    assert training.ndcg(model, [("open a file", "open a file"), ("open a file", "close it")])["r1"] == 100.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the packages' own
def test_every_method_trains(one_thread, monkeypatch):
    from tiny_sentence_encoder import sentence_encoder, texts

    pairs = list(zip(texts(600), texts(600, seed=1), strict=True))
    monkeypatch.setattr(training, "encoder", sentence_encoder)
    monkeypatch.setattr(
        training, "load", lambda split, seed: pairs[:512] if split == "train" else pairs[512:]
    )
    for name, method in METHODS.items():
        assert len(method.trials()) == 4
        found = training.trained(
            method, 0, {**method.trials()[0], "lr": 0.01}, tuning=False, epochs=1, size=512, bf16=False
        )
        assert found["losses"], name
        assert 0 < found["metrics"]["ndcg10"] < 100
        assert found["chosen_by"] == -found["validation"]["ndcg10"]
