"""Real text that needs no network: the standard library of the interpreter that runs."""

import operator
import os
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from dro_temp._checks import check_count
from dro_temp.datasets import _python_files, _text_tokenizer
from dro_temp.datasets._python_files import SPLITS


class PythonText(Dataset[str]):
    """The source files of Python's standard library: code, comments and docstrings, several megabytes of them.

    Tests, tables of character codes and pages of documentation kept as code are left out, and of equal files all
    but one. A file belongs to one split as a whole, by a hash of its path: the same on every run, for every size
    and on every machine with the same Python. Another version of Python is another text; numbers are comparable
    within one version.

    Args:
        split: `train`, `validation` or `test`, about 8 : 1 : 1.
        size: characters of all three splits together; less where the library has less. Files are taken in a
            random order until there are enough, and the last one is cut. Smaller texts lie in larger ones.
        seed: chooses splits and order; the global random state is neither read nor changed.

    Attributes:
        texts: one string per file.
        files: path of each file within the library, "json/decoder.py".

    Raises:
        ValueError: an unknown split, or a `size` below 100.
        TypeError: a `size` or `seed` that is no int.
        FileNotFoundError: this Python keeps no source files.

    Example:
        >>> data = PythonText("test", size=100_000)
        >>> sum(map(len, data.texts)), len(data) == len(data.files)
        (10000, True)
    """

    texts: list[str]
    files: list[str]

    def __init__(self, split: str = "train", *, size: int = 6_000_000, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(
                f"expected split to be one of {', '.join(SPLITS)}, received {split!r}. "
                "Type for example PythonText('validation')."
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(
                f"expected seed as an int, received {type(seed).__name__} ({seed!r}). Pass seed=0."
            )
        self.split, self.size, self.seed = split, check_count("size", size, minimum=100), seed
        chosen = _python_files.chosen(split, self.size, seed)
        self.files, self.texts = [name for name, _ in chosen], [text for _, text in chosen]

    def __len__(self) -> int:
        """Number of files."""
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        """Text of one file.

        Raises:
            IndexError: `index` is not in [0, len).
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(
                f"expected a file number from 0 to {len(self) - 1}, received {index}. Pass a smaller one."
            )
        return self.texts[index]

    def tokenizer(self, vocabulary: int = 4096, *, root: str | os.PathLike[str] | None = None) -> Any:
        """A byte-level BPE tokenizer of the training split, whichever split this is.

        It is trained at the first use, in seconds, and kept in a file below `root`, which is replaced as a whole
        and made again where it is damaged. What it decodes is what it encoded, byte by byte.

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
        train = self if self.split == "train" else PythonText("train", size=self.size, seed=self.seed)
        return _text_tokenizer.load(train.texts, vocabulary, root)

    def tokens(self, tokenizer: Any) -> Int[Tensor, "n"]:
        """All files in one row of tokens, int64, the tokenizer's end-of-text token after each.

        Args:
            tokenizer: that of `tokenizer()`, or any other of transformers.

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
        """Split and numbers of files and characters."""
        return (
            f"PythonText({self.split!r}, size={self.size}, seed={self.seed}: {len(self)} files, "
            f"{sum(map(len, self.texts))} characters)"
        )
