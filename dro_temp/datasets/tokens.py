"""From texts to token ids: words of captions, and blocks of a long text."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from dro_temp._checks import check_count, check_several, holds_integers

PAD, UNKNOWN = 0, 1
_SPECIAL = ["<pad>", "<unknown>"]


class WordTokenizer:
    """Token ids for the words of a caption, lower-cased and split at spaces and hyphens: 0 pads, 1 is unknown.

    A name that did not occur in fitting still consists mostly of known words.

    Args:
        vocabulary: word of each id; starts with `<pad>` and `<unknown>`. `len(vocabulary)` is the number of
            rows of an embedding.
        length: number of words in a row; longer captions are truncated.

    Raises:
        ValueError: a vocabulary that starts otherwise, or with a word twice; a length below 1.

    Example:
        >>> tokenizer = WordTokenizer.fit(["greek small letter tau", "hyphen-minus"])
        >>> tokenizer.vocabulary
        ['<pad>', '<unknown>', 'greek', 'hyphen', 'letter', 'minus', 'small', 'tau']
        >>> tokenizer(["greek capital letter tau", "minus"])
        tensor([[2, 1, 4, 7],
                [5, 0, 0, 0]])
    """

    def __init__(self, vocabulary: Sequence[str], length: int) -> None:
        check_count("length", length)
        self.vocabulary = list(vocabulary)
        self.length = length
        if self.vocabulary[:2] != _SPECIAL or len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError(
                f"expected a vocabulary that starts with {_SPECIAL} and has each word once, received "
                f"{self.vocabulary[:4]} (the first of {len(self.vocabulary)}). "
                "Build it with WordTokenizer.fit(captions)."
            )
        self._number = {word: i for i, word in enumerate(self.vocabulary) if i > UNKNOWN}

    @staticmethod
    def words(caption: str) -> list[str]:
        """The words of one caption.

        Example:
            >>> WordTokenizer.words("HYPHEN-MINUS sign")
            ['hyphen', 'minus', 'sign']
        """
        return caption.lower().replace("-", " ").split()

    @classmethod
    def fit(cls, captions: Iterable[str], max_words: int | None = None) -> "WordTokenizer":
        """Vocabulary and length from captions, the most frequent words first, ties in alphabetical order.

        Args:
            captions: the *training* captions, once per sample.
            max_words: number of words besides `<pad>` and `<unknown>`, the most frequent; None for all.

        Raises:
            TypeError: one string in place of several, or a `max_words` that is not an int.
            ValueError: no words at all, or `max_words` below 1.

        Example:
            >>> WordTokenizer.fit(["small a", "small b"], max_words=1).vocabulary
            ['<pad>', '<unknown>', 'small']
        """
        if max_words is not None:
            check_count("max_words", max_words)
        check_several("captions", captions, "Pass [caption] for a single one.")
        split = [cls.words(caption) for caption in captions]
        count = Counter(word for words in split for word in words if word not in _SPECIAL)
        if not count:
            raise ValueError(
                f"expected captions with at least one word, received {len(split)} captions without any. "
                "Pass the captions of the training split, for example GlyphCaptions('train').captions."
            )
        order = sorted(count, key=lambda word: (-count[word], word))[:max_words]
        return cls(_SPECIAL + order, max(map(len, split)))

    def __call__(self, captions: Iterable[str]) -> Int[Tensor, "n length"]:
        """Token ids, int64 [n length], padded with 0.

        Raises:
            TypeError: one string in place of several.
        """
        check_several("captions", captions, "Pass [caption] for a single one.")
        rows = [[self._number.get(word, UNKNOWN) for word in self.words(c)[: self.length]] for c in captions]
        padded = [row + [PAD] * (self.length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(rows), self.length)

    def to_dict(self) -> dict[str, Any]:
        """State for JSON or `torch.save`.

        Example:
            >>> WordTokenizer.fit(["a b"]).to_dict()
            {'vocabulary': ['<pad>', '<unknown>', 'a', 'b'], 'length': 2}
        """
        return {"vocabulary": list(self.vocabulary), "length": self.length}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "WordTokenizer":
        """The tokenizer of a `to_dict`.

        Raises:
            ValueError: keys other than `vocabulary` and `length`.

        Example:
            >>> WordTokenizer.from_dict(WordTokenizer.fit(["a b"]).to_dict()).length
            2
        """
        if set(state) != {"vocabulary", "length"}:
            raise ValueError(
                f"expected the keys vocabulary and length, received {', '.join(map(str, state)) or 'none'}. "
                "Pass what WordTokenizer.to_dict() returned."
            )
        return cls(state["vocabulary"], state["length"])

    def __repr__(self) -> str:
        return f"WordTokenizer({len(self.vocabulary)} words, length={self.length})"


def token_blocks(tokens: Int[Tensor, "n"] | Sequence[int], length: int) -> Int[Tensor, "blocks length"]:
    """Cut a text into blocks to train a language model on; the remainder is dropped.

    Args:
        tokens: the text.
        length: tokens of a block, at least 2: one to read and one to predict. At most as many as the model has
            positions.

    Returns:
        [len(tokens) // length, length], int64.

    Raises:
        ValueError: no tokens, fewer than one block of them, or more than one row.
        TypeError: tokens or a length that are not whole numbers.

    Example:
        >>> token_blocks(torch.arange(7), 3)
        tensor([[0, 1, 2],
                [3, 4, 5]])
    """
    length = check_count("length", length, minimum=2)
    if not isinstance(tokens, Tensor):
        check_several("tokens", tokens, "Pass a list of token numbers, or a tensor of them.")
    row = torch.as_tensor(tokens)
    if row.dim() != 1 or len(row) == 0:
        raise ValueError(
            f"expected one row of tokens, at least {length}, received the shape {list(row.shape)}. Tokenise a text "
            "that is not empty; join several with torch.cat."
        )
    if not holds_integers(row):
        raise TypeError(f"expected whole numbers, received {row.dtype}. Pass tokens.long().")
    if len(row) < length:
        raise ValueError(
            f"expected at least one block of {length} tokens, received {len(row)} tokens. Pass a longer text."
        )
    return rearrange(row[: len(row) // length * length].long(), "(block token) -> block token", token=length)
