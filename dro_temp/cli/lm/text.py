"""Text from files, the hub or Python's own source, as blocks of tokens."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from dro_temp.cli.messages import in_one_line, require, say
from dro_temp.datasets import PythonText, token_blocks

#: The source that needs no network.
PYTHON = "python"


def documents(source: str, *, split: str = "train", column: str = "text") -> list[str]:
    """All documents of a source, see `fit`; the split is that of Python's source, or of a data set on the hub."""
    path = Path(source).expanduser()
    if source == PYTHON:
        return list(PythonText(split).texts)
    if path.is_file() or path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        texts = [text for file in ([path] if path.is_file() else inside) for text in _of_file(file, column)]
    elif path.suffix or source.startswith((".", "/", "~")):
        raise ValueError(
            f"expected a file or folder of text, received {source!r}, which is not there. Check --data: the path is "
            f"relative to {Path.cwd()}; a data set on the hub is named without a suffix."
        )
    else:
        texts = _of_hub(source, split, column)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(
            f"expected text in {source!r}, received none but white space. Pass a file or folder with text in it."
        )
    return texts


def _of_file(path: Path, column: str) -> list[str]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):  # as plain text, commas and all other columns would be trained on
        separator = ", sep='\\t'" if suffix == ".tsv" else ""
        raise ValueError(
            f"expected text, .json, .jsonl or .parquet, received the table {str(path)!r}. Convert it: python -c "
            f"\"import datasets; datasets.load_dataset('csv', data_files='{path}', split='train'{separator}).to_json("
            f"'{path.with_suffix('.jsonl')}')\", or name a data set on the hub."
        )
    if suffix == ".parquet":
        datasets = require("datasets")
        try:
            table = datasets.load_dataset("parquet", data_files=str(path), split="train")
        except Exception as error:  # of datasets, of pyarrow, of the disk: one answer
            raise ValueError(
                f"expected a parquet file in {str(path)!r}, received one that cannot be read "
                f"({in_one_line(error.__cause__ or error)}). Pass another file: --data."
            ) from error
        return _of_table(table, column, str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8 text in {str(path)!r}, received bytes that are not ({error.reason} at byte "
            f"{error.start}). Convert the file, or pass .jsonl or .parquet."
        ) from None
    return _of_records(_records(text, path), column, str(path)) if suffix in (".jsonl", ".json") else [text]


def _records(text: str, path: Path) -> list[Any]:
    """The records of a .json file that is one array, or of one that has a record in each line."""
    if path.suffix.lower() == ".json":
        with suppress(ValueError):
            whole = json.loads(text)
            return whole if isinstance(whole, list) else [whole]
    records = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold other line ends
        try:
            records += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(
                f"expected a JSON object in each line of {str(path)!r}, received another thing in line {number} "
                f"({error}). Mend or remove that line."
            ) from None
    return records


def _of_hub(source: str, split: str, column: str) -> list[str]:
    name, _, configuration = source.partition(":")
    datasets = require("datasets")
    try:
        table = datasets.load_dataset(name, configuration or None, split=split)
    except ImportError:
        raise
    except Exception as error:  # no such data set, configuration or split, no connection: one answer
        raise ValueError(
            f"expected a file, a folder or a data set on the hub, received --data {source}: there is no such path in "
            f"{Path.cwd()}, and the hub gave none ({in_one_line(error, 300)}). Check the name; without a "
            "network pass a file, or --data python."
        ) from error
    return _of_table(table, column, source)


def _of_table(table: Any, column: str, source: str) -> list[str]:
    if column not in table.column_names:
        raise _no_column(column, source, table.column_names)
    return _of_records([{column: text} for text in table[column]], column, source)


def _of_records(records: list[Any], column: str, source: str) -> list[str]:
    """The texts of the records; those without are counted, and raise if they are more than half."""
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(
                f"expected records with a column {column!r} in {source!r}, received {type(record).__name__} as record "
                f"{number}. Write each as {{{json.dumps(column)}: ...}}."
            )
        if not isinstance(record.get(column), str | None):
            raise ValueError(
                f"expected text in the column {column!r} of {source!r}, received {type(record[column]).__name__} in "
                f"record {number}. Pass --column with the name of one that holds text."
            )
    names = {name for record in records for name in record}
    if records and column not in names:
        raise _no_column(column, source, names)
    texts = [text for record in records if (text := record.get(column)) is not None]
    written = [text for text in texts if text.strip()]
    missing, empty = len(records) - len(texts), len(texts) - len(written)
    if 2 * missing > len(records):
        raise ValueError(
            f"expected text in the column {column!r} of most records of {source!r}, received {missing} of "
            f"{len(records)} without any. Pass --column, or remove those records."
        )
    if missing or empty:
        counts = ((missing, f"without {column!r}"), (empty, f"with an empty {column!r}"))
        reasons = ", ".join(f"{count} {reason}" for count, reason in counts if count)
        say(f"note: {missing + empty} of {len(records)} records of {source} are left out: {reasons}")
    return written


def _no_column(column: str, source: str, names: Iterable[str]) -> ValueError:
    return ValueError(f"expected a column {column!r} in {source!r}, received {sorted(names)}. Pass --column.")


def blocks(texts: list[str], tokenizer: Any, length: int) -> Tensor:
    """The texts, one after the other with an end-of-text token between, as rows of `length` tokens."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [token for document in encoded for token in (*document, *end)]
    if len(tokens) < length:
        raise ValueError(
            f"expected a text of at least one block of {length} tokens, received {len(tokens)} tokens. Pass a longer "
            f"text: --data, or --block {max(len(tokens), 2)} or less."
        )
    return token_blocks(tokens, length)


def check_vocabulary(tokenizer: Any, outcomes: int) -> None:
    """Raise where the tokenizer has tokens outside the model's vocabulary."""
    if len(tokenizer) > outcomes:
        raise ValueError(
            f"expected a tokenizer of at most {outcomes} tokens, as the model has, received one of {len(tokenizer)}. "
            "Use the tokenizer that the model was trained with (--tokenizer), or resize the model's embeddings."
        )
