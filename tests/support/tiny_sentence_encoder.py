"""A tiny random sentence encoder, as sentence-transformers loads one; nothing is downloaded."""

import copy
import os
import tempfile
from functools import cache
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

WORDS, WIDTH = 40, 16


@cache
def _loaded() -> Any:
    """A DistilBERT, which has no pooler that nothing would train; its words are w0, w1, ..."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<unknown>", *(f"w{i}" for i in range(WORDS))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unknown>", model_max_length=16
    )
    sizes = {"dim": WIDTH, "hidden_dim": 24, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 16}
    config = transformers.DistilBertConfig(vocab_size=len(words), **sizes)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        bert = transformers.DistilBertModel(config)
        for parameter in bert.parameters():
            if parameter.dim() > 1:  # drawn with 0.02, all texts would be alike
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
        bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
    return SentenceTransformer(modules=[transformer, Pooling(WIDTH)], device="cpu")


def sentence_encoder(dropout: float = 0.0) -> Any:
    """The same weights at every call.

    Args:
        dropout: of all layers.
    """
    model = copy.deepcopy(_loaded())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


def texts(n: int, *, seed: int = 0) -> list[str]:
    """Texts of three to seven words."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 8, (n,), generator=g).tolist()
    return [" ".join(f"w{w}" for w in torch.randint(WORDS, (k,), generator=g).tolist()) for k in lengths]


def columns(model: Any, n: int, count: int = 2) -> list[dict[str, Any]]:
    """Tokenised columns, as the trainer hands them to a loss."""
    return [dict(model.preprocess(texts(n, seed=n + 100 * k))) for k in range(count)]
