"""Text that is on every machine: splits that do not leak, the same on every run, and a cache that is always whole."""

import ast
import os
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dro_temp.datasets import PythonText, python_text, token_blocks

SPLITS = python_text.SPLITS
SIZE = 600_000


@pytest.fixture(scope="session")
def splits():
    return {split: PythonText(split, size=SIZE) for split in SPLITS}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session")
def tokenizer(splits, root):
    pytest.importorskip("transformers")
    return splits["train"].tokenizer(1024, root=root)


# --- Text ----------------------------------------------------------------------------------------------------


def test_sizes(splits):
    sizes = {split: sum(map(len, data.texts)) for split, data in splits.items()}
    assert sizes == {"train": 480_000, "validation": 60_000, "test": 60_000}


def test_no_file_and_no_text_is_in_two_splits(splits):
    for what in ("files", "texts"):
        every = [x for data in splits.values() for x in getattr(data, what)]
        assert len(set(every)) == len(every)


def test_files_are_sources_and_no_tests(splits):
    for data in splits.values():
        for name, text in list(zip(data.files, data.texts, strict=True))[:-1]:  # the last one is cut
            assert python_text.LEFT_OUT.isdisjoint(name.split("/"))
            ast.parse(text)
            assert (python_text.library() / name).read_text(encoding="utf-8").strip() + "\n" == text


def test_smaller_texts_lie_in_larger_ones(splits):
    for split, data in splits.items():
        small = PythonText(split, size=SIZE // 5)
        assert small.files == data.files[: len(small)]
        assert "".join(data.texts).startswith("".join(small.texts))


def test_same_on_every_run_and_leaves_the_global_random_state(splits):
    random.seed(1)
    before = random.getstate(), torch.get_rng_state()
    again = PythonText("test", size=SIZE)
    assert (again.files, again.texts) == (splits["test"].files, splits["test"].texts)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    code = f"from dro_temp.datasets import PythonText; print(PythonText('test', size={SIZE}).files)"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == repr(again.files)


def test_seed_chooses_splits(splits):
    assert PythonText("test", size=SIZE, seed=1).files != splits["test"].files


def test_more_than_there_is_gives_all(splits):
    data = [PythonText(split, size=10**9) for split in SPLITS]
    assert sum(len(text) for part in data for text in part.texts) > 4_000_000
    assert set(splits["train"].files) <= set(data[0].files)


def test_behaves_as_a_data_set(splits):
    data = splits["validation"]
    assert data[len(data) - 1] == data.texts[-1]
    assert f"'validation', size={SIZE}" in repr(data)
    for index in (len(data), -1):
        with pytest.raises(IndexError, match=f"from 0 to {len(data) - 1}, received {index}"):
            data[index]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"split": "val"}, ValueError, r"\['train', 'validation', 'test'\], received 'val'"),
        ({"size": 10}, ValueError, "size >= 100"),
        ({"size": 1e6}, TypeError, "size as an int"),
        ({"seed": None}, TypeError, "seed as an int"),
    ],
)
def test_refuses(options, error, said):
    with pytest.raises(error, match=said):
        PythonText(**options)


def test_says_that_there_are_no_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(python_text, "library", lambda: tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"expected Python's standard library.*received .*python\.org"
    ):
        PythonText()


def test_passes_over_what_cannot_be_read_says_nothing_or_repeats(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    for name, content in {
        "a.py": b"x = 1\n",
        "b.py": b"x = 1\n\n",  # the same but for its end
        "c.py": b"\xe9 = 1\n",  # Latin-1
        "d.py": b" \n",
        "e.txt": b"x = 2\n",
        "test/f.py": b"x = 3\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(python_text, "library", lambda: tmp_path)
    monkeypatch.setattr(python_text, "split_of", lambda name, seed: "train")
    assert PythonText().texts == ["x = 1\n"]


# --- Tokenizer -----------------------------------------------------------------------------------------------


def test_tokenizer_is_the_same_for_all_splits_and_trained_on_one(splits, tokenizer, root):
    files = sorted(root.iterdir())
    assert len(files) == 1
    for split in ("validation", "test"):
        other = splits[split].tokenizer(1024, root=root)
        assert other.get_vocab() == tokenizer.get_vocab()
    assert sorted(root.iterdir()) == files


def test_tokenizer_is_trained_alike_every_time(splits, tokenizer, tmp_path):
    again = splits["train"].tokenizer(1024, root=tmp_path)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_tokens_decode_to_the_text(splits, tokenizer):
    data = splits["test"]
    tokens = data.tokens(tokenizer)
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) == len(tokenizer) - 1 == tokenizer.eos_token_id
    assert int((tokens == tokenizer.eos_token_id).sum()) == len(data)
    end = tokenizer.eos_token
    assert tokenizer.decode(tokens) == "".join(text + end for text in data.texts)
    assert len(tokens) < sum(map(len, data.texts)) / 2


@given(st.text())
def test_round_trip_of_any_text(tokenizer, text):
    if tokenizer.eos_token not in text:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_damaged_file_is_made_again(splits, tokenizer, tmp_path, root):
    path = tmp_path / next(root.iterdir()).name
    whole = next(root.iterdir()).read_text(encoding="utf-8")
    for damaged in ("", whole[: len(whole) // 2], "{}", "\0"):
        path.write_text(damaged, encoding="utf-8")
        assert len(splits["train"].tokenizer(1024, root=tmp_path)) == 1024
        assert path.read_text(encoding="utf-8") == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("vocabulary", "error", "said"),
    [
        (100, ValueError, "1024 to 8192 tokens, received 100"),
        (50257, ValueError, "1024 to 8192 tokens, received 50257"),
        ("8k", TypeError, "vocabulary as an int"),
    ],
)
def test_tokenizer_refuses(splits, vocabulary, error, said):
    pytest.importorskip("transformers")
    with pytest.raises(error, match=said):
        splits["train"].tokenizer(vocabulary)


def test_tokenizer_says_that_the_text_is_too_small(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="fills 8192 tokens, received one of 1600 characters"):
        PythonText(size=2000).tokenizer(8192, root=tmp_path)


def test_tokenizer_says_that_the_folder_cannot_be_written_to(splits, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="root='text-cache'"):
        splits["train"].tokenizer(1024, root=tmp_path / "file")


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_names_the_extra(splits, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'dro-temp\[llm\]'"):
        splits["train"].tokenizer(1024)


def test_tokens_wants_an_end_of_text(splits):
    class Endless:
        eos_token_id = None

    with pytest.raises(ValueError, match=r"received Endless without one.*eos_token ="):
        splits["test"].tokens(Endless())


# --- Blocks --------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 60), length=st.integers(2, 60))
def test_blocks_hold_the_beginning_in_order(n, length):
    if n < length:
        with pytest.raises(ValueError, match=rf"at least one block of {length} tokens, received {n} tokens"):
            token_blocks(range(n), length)
        return
    blocks = token_blocks(list(range(n)), length)
    assert blocks.shape == (n // length, length)
    assert blocks.flatten().tolist() == list(range(n - n % length))


@pytest.mark.parametrize(
    ("tokens", "length", "error", "said"),
    [
        ([], 4, ValueError, r"at least 4, received the shape \[0\]"),
        (torch.zeros(2, 3, dtype=torch.long), 2, ValueError, r"received the shape \[2, 3\]"),
        (torch.zeros(8), 2, TypeError, r"tokens\.long\(\)"),
        (torch.zeros(8, dtype=torch.bool), 2, TypeError, "whole numbers"),
        (torch.arange(8), 1, ValueError, "length >= 2"),
        (torch.arange(8), 2.0, TypeError, "length as an int"),
    ],
)
def test_blocks_refuse(tokens, length, error, said):
    with pytest.raises(error, match=said):
        token_blocks(tokens, length)
