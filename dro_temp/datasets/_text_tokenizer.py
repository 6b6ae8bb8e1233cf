"""A byte-level BPE tokenizer of a text, kept in one file that is always whole."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dro_temp._checks import check_count
from dro_temp._files import default_root, whole_file
from dro_temp._optional import optional_module

END = "<|endoftext|>"
SMALLEST, LARGEST = 1024, 8192
_FORMAT = 1  # raise it when the same text would give other tokens


def require(module: str) -> Any:
    """Import a package of the `llm` extra, or say how to install it."""
    return optional_module(module, "which PythonText makes its tokenizer with")


def version(texts: Sequence[str], vocabulary: int) -> str:
    """Sixteen hexadecimal digits that change when the tokenizer would."""
    digest = hashlib.sha256(f"{_FORMAT} {vocabulary} {require('tokenizers').__version__}".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]


def load(texts: Sequence[str], vocabulary: int, root: str | os.PathLike[str] | None) -> Any:
    """Read the tokenizer, or train and keep it; see `PythonText.tokenizer`."""
    vocabulary = check_count("vocabulary", vocabulary)
    if not SMALLEST <= vocabulary <= LARGEST:
        raise ValueError(
            f"expected a vocabulary of {SMALLEST} to {LARGEST} tokens, received {vocabulary}. The text is too small "
            "for more, and 256 of them are single bytes. Pass vocabulary=4096."
        )
    transformers = require("transformers")
    folder = default_root() if root is None else Path(root).expanduser()
    path = folder / f"python-text-{version(texts, vocabulary)}.json"
    trained = _read(path, vocabulary)
    if trained is None:
        trained = _train(texts, vocabulary)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(trained.to_str().encode())
        except OSError as error:
            raise OSError(
                f"expected a folder for the tokenizer that can be written to, received {folder} ({error}). "
                "Pass another one, for example tokenizer(root='text-cache')."
            ) from error
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )


def _train(texts: Sequence[str], vocabulary: int) -> Any:
    tokenizers = require("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(
            f"expected a text that fills {vocabulary} tokens, received one of {sum(map(len, texts))} characters "
            f"with {tokenizer.get_vocab_size()}. Pass a larger PythonText(size=...) or a smaller vocabulary."
        )
    return tokenizer


def _read(path: Path, vocabulary: int) -> Any:
    """What the file holds, or None where it is missing or damaged."""
    try:
        kept = require("tokenizers").Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # tokenizers raises plain Exception for whatever is wrong with a file
        return None
    return kept if kept.get_vocab_size() == vocabulary else None
