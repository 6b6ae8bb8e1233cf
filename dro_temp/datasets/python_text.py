"""Real text that needs no network: the standard library of the interpreter that runs."""

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from dro_temp._checks import check_count
from dro_temp._optional import optional_module
from dro_temp.datasets._samples import cached, check_number, check_split, hashed

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)

# Tests repeat what they test; the others are tables of numbers, or prose in one string.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)

END = "<|endoftext|>"
SMALLEST, LARGEST = 1024, 8192  # vocabularies
_FORMAT = 1  # raise it when the same text would give other tokens

_require = partial(optional_module, use="which PythonText makes its tokenizer with")


class PythonText(Dataset[str]):
    """The source files of Python's standard library: code, comments and docstrings, several megabytes of them.

    Tests, tables of character codes, documentation stored as code and copies of other files are left out, as are files
    that are empty or cannot be read. A file belongs to one split as a whole, by a hash of its path. Other versions of
    Python have other texts: compare numbers within one version only.

    Args:
        split: `train`, `validation` or `test`, about 8 : 1 : 1.
        size: maximum number of characters of all three splits together. Files are taken in a random order, the last
            one is cut. Smaller texts lie in larger ones.
        seed: of splits and order; the global random state is not used.

    Attributes:
        texts: one string per file.
        files: path of each file within the library, "json/decoder.py".

    Raises:
        ValueError: an unknown split, or a `size` below 100.
        TypeError: a `size` or `seed` that is not an int.
        FileNotFoundError: this Python has no source files.

    Example:
        >>> data = PythonText("test", size=100_000)
        >>> sum(map(len, data.texts)), len(data) == len(data.files)
        (10000, True)
    """

    def __init__(self, split: str = "train", *, size: int = 6_000_000, seed: int = 0) -> None:
        check_split(split, SPLITS, seed)
        self.split, self.size, self.seed = split, check_count("size", size, minimum=100), seed
        self.files: list[str] = []
        self.texts: list[str] = []
        folder, seen, left = library(), {"\n"}, round(self.size * SHARES[SPLITS.index(split)])
        paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
        names = [path.as_posix() for path in paths if LEFT_OUT.isdisjoint(path.parts)]
        if not names:
            raise FileNotFoundError(
                f"expected Python's standard library as source files, received {folder}, which has none (a zipped or "
                "embedded Python). Run a Python from python.org, conda or your system's package manager."
            )
        own = (name for name in names if split_of(name, seed) == split)
        for name in sorted(own, key=lambda name: hashed("order", seed, name)):
            try:
                text = (folder / name).read_text(encoding="utf-8").strip() + "\n"
            except (OSError, UnicodeDecodeError):  # a few old files are Latin-1
                continue
            if text not in seen:
                seen.add(text)
                self.files.append(name)
                self.texts.append(text[:left])
                left -= len(text)
            if left <= 0:
                break

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        """Text of one file.

        Raises:
            IndexError: `index` is not in [0, len).
        """
        return self.texts[check_number(index, len(self), "file")]

    def tokenizer(self, vocabulary: int = 4096, *, root: str | os.PathLike[str] | None = None) -> Any:
        """A byte-level BPE tokenizer of the training split, whichever split this is.

        It is trained at the first use, in seconds, and cached in a file below `root`, which is written as a whole and
        made again if it is damaged. Decoding inverts encoding, byte by byte.

        Args:
            vocabulary: number of tokens, from 1,024 to 8,192; the last is `<|endoftext|>`.
            root: folder of the file; `$XDG_CACHE_HOME/dro_temp` or `~/.cache/dro_temp` if None.

        Returns:
            A `transformers.PreTrainedTokenizerFast`.

        Raises:
            ImportError: transformers is not installed.
            OSError: the folder cannot be written to.
            ValueError: a vocabulary outside its range, or larger than the text fills.

        Example:
            >>> tokenizer = PythonText(size=400_000).tokenizer(1024)
            >>> len(tokenizer), tokenizer.decode(tokenizer("def f(x):  # ü").input_ids)
            (1024, 'def f(x):  # ü')
        """
        vocabulary = check_count("vocabulary", vocabulary)
        if not SMALLEST <= vocabulary <= LARGEST:
            raise ValueError(
                f"expected a vocabulary of {SMALLEST} to {LARGEST} tokens, received {vocabulary}. The text is too "
                "small for more, and 256 of them are single bytes. Pass vocabulary=4096."
            )
        transformers, tokenizers = _require("transformers"), _require("tokenizers")
        train = self if self.split == "train" else PythonText("train", size=self.size, seed=self.seed)
        digests = (hashlib.sha256(text.encode()).hexdigest() for text in train.texts)
        version = hashed(_FORMAT, vocabulary, tokenizers.__version__, *digests).hex()[:16]

        def read(path: Path) -> Any:
            try:
                tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
            except Exception:  # tokenizers raises plain Exception for whatever is wrong with a file
                return None
            return tokenizer if tokenizer.get_vocab_size() == vocabulary else None

        def make(file: BinaryIO) -> Any:
            tokenizer = _train(train.texts, vocabulary)
            file.write(tokenizer.to_str().encode())
            return tokenizer

        trained = cached(root, f"python-text-{version}.json", read, make, "tokenizer(root='text-cache')")
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=trained, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
        )

    def tokens(self, tokenizer: Any) -> Int[Tensor, "n"]:
        """All files as one sequence of tokens, int64, the tokenizer's end-of-text token after each.

        Args:
            tokenizer: that of `tokenizer()`, or another one of transformers.

        Raises:
            ValueError: a tokenizer without an end-of-text token.

        Example:
            >>> data = PythonText("test", size=400_000)
            >>> data.tokens(data.tokenizer(1024)).dtype
            torch.int64
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"expected a tokenizer with an end-of-text token, received {type(tokenizer).__name__} without one. "
                "Set it: tokenizer.eos_token = '<|endoftext|>'."
            )
        encoded = tokenizer(self.texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        end = [tokenizer.eos_token_id]
        return torch.tensor([token for row in encoded for token in row + end], dtype=torch.long)

    def __repr__(self) -> str:
        return (
            f"PythonText({self.split!r}, size={self.size}, seed={self.seed}: {len(self)} files, "
            f"{sum(map(len, self.texts))} characters)"
        )


def library() -> Path:
    """Folder of the standard library, also where a virtual environment runs."""
    return Path(sysconfig.get_path("stdlib"))


def split_of(name: str, seed: int) -> str:
    """The split of a file, which depends on its path alone."""
    place = int.from_bytes(hashed("split", seed, name)[:8], "big") / 2**64
    train, validation, _ = SHARES
    return "train" if place < train else "validation" if place < train + validation else "test"


def _train(texts: Sequence[str], vocabulary: int) -> Any:
    tokenizers = _require("tokenizers")
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
