"""Text from wherever it is, as blocks of tokens."""

from pathlib import Path
from typing import Any

from torch import Tensor

from dro_temp.cli.needs import needed
from dro_temp.datasets import PythonText, token_blocks

#: The source that needs no network.
OFFLINE = "python"

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def documents(source: str, *, split: str = "train", column: str = "text") -> list[str]:
    """All documents of a source.

    Args:
        source: "python", Python's own source code, which needs no network; a text, .jsonl or .parquet file; a folder
            of such files; or the name of a data set on the hub (`name` or `name:configuration`).
        split: for the hub, and for Python's source: "train", "validation" or "test".
        column: where records hold their text.

    Raises:
        ValueError: nothing there, or no such column.
    """
    path = Path(source)
    if source == OFFLINE:
        return list(PythonText(split).texts)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = [document for file in files for document in _of_file(file, column)]
    elif path.is_file():
        found = _of_file(path, column)
    elif path.suffix or source.startswith((".", "/", "~")):
        raise ValueError(
            f"expected a file or folder of text, received {source!r}, which is not there. Check the path from "
            f"{Path.cwd()}; a data set on the hub is named without a suffix."
        )
    else:
        name, _, configuration = source.partition(":")
        loaded = needed("datasets").load_dataset(name, configuration or None, split=split)
        found = _column(loaded, column, source)
    found = [document for document in found if document.strip()]
    if not found:
        raise ValueError(
            f"expected text in {source!r}, received none but white space. Pass a file with text in it."
        )
    return found


def _of_file(path: Path, column: str) -> list[str]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        try:
            return [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"expected UTF-8 text in {str(path)!r}, received bytes that are not ({error.reason} at byte "
                f"{error.start}). Convert the file, or pass .jsonl or .parquet."
            ) from None
    loaded = needed("datasets").load_dataset(reader, data_files=str(path), split="train")
    return _column(loaded, column, str(path))


def _column(records: Any, column: str, source: str) -> list[str]:
    if column not in records.column_names:
        raise ValueError(
            f"expected a column {column!r} in {source!r}, received {sorted(records.column_names)}. Pass --column."
        )
    return [str(text) for text in records[column] if text is not None]


def blocks(texts: list[str], tokenizer: Any, length: int) -> Tensor:
    """The texts, one after the other with an end-of-text token between, as rows of `length` tokens.

    Raises:
        ValueError: there is less than one block of text.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return token_blocks([token for document in encoded for token in (*document, *end)], length)


def check_vocabulary(tokenizer: Any, outcomes: int) -> None:
    """Raise where the tokenizer makes tokens that the model does not know."""
    if len(tokenizer) > outcomes:
        raise ValueError(
            f"expected a tokenizer of at most {outcomes} tokens, as the model has, received one of {len(tokenizer)}. "
            "Use the tokenizer that the model was trained with (--tokenizer), or resize the model's embeddings."
        )
