"""Documents of five kinds, from installed packages; split by where they come from.

Nothing of them is stored with the results. Which documents there are depends on what is installed; the studies record
their number and a checksum.
"""

import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import random
import re
import sys
import sysconfig
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: Characters of a document that are kept before it is tokenised; 256 tokens are less, in any of these kinds.
CHARACTERS = 4000
#: Documents of each split and kind.
SIZES = {"train": 80, "validation": 32, "test": 72}
#: At most so many documents of one package, so that no single author is a kind.
PER_GROUP = 6


@dataclass(frozen=True)
class Document:
    """A text.

    Args:
        kind: which of `KINDS`.
        group: where it comes from (a package, a subject, a data set): never in two splits.
        text: its first `CHARACTERS` or so.
    """

    kind: str
    group: str
    text: str


# --- prose: descriptions of installed packages and manual pages, without tables, code and badges ---


def prose() -> Iterator[Document]:
    """Sentences of the packages' metadata, of text files beside their modules, and of English manual pages."""
    for package in importlib.metadata.distributions():
        metadata: Any = package.metadata
        text = _paragraphs(metadata.get_payload() or metadata.get("Description") or "")
        yield Document("prose", metadata["Name"].lower(), text)
    for file in _files(_site_packages(), "*.md") + _files(_site_packages(), "*.rst"):
        if "license" not in file.name.lower() and "licence" not in file.name.lower():
            text = _paragraphs(file.read_text(encoding="utf-8", errors="ignore"))
            yield Document("prose", _package(file, _site_packages()), text)
    for file in _files(Path("/usr/share/man"), "*.gz"):
        if re.fullmatch(r"man[1578]", file.parent.name) and file.parent.parent.name == "man":
            text = _paragraphs(_without_roff(_unpacked(file)))
            yield Document("prose", re.split(r"[-_.]", file.name)[0], text)


def _paragraphs(text: str) -> str:
    """Paragraphs that are sentences."""
    text = re.sub(r"```.*?```|<[^>]+>|!\[[^]]*\]\([^)]*\)", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        letters = sum(c.isalpha() or c.isspace() for c in line) / max(len(line), 1)
        indented = paragraph.startswith(("    ", "\t", "|", "#", ".. ", "+", "* ", "- "))
        if len(line) > 80 and letters > 0.9 and not indented and line[-1] in ".!?":
            kept.append(line)
    return "\n\n".join(kept)


# --- code: modules of the standard library and of installed packages, from a line inside them ---


def code() -> Iterator[Document]:
    """Python source, from some line that begins a definition."""
    for root in (Path(sysconfig.get_path("stdlib")), _site_packages()):
        for file in _files(root, "*.py"):
            if root != _site_packages() and "site-packages" in file.parts:
                continue
            text = file.read_text(encoding="utf-8", errors="ignore")
            starts = [m.start() for m in re.finditer(r"^(?:def|class|@)\b", text, flags=re.MULTILINE)]
            starts = [start for start in starts if len(text) - start > 1200]
            if starts and "test" not in str(file):
                start = random.Random(_hash(text)).choice(starts)
                yield Document("code", _package(file, root), text[start : start + CHARACTERS])


# --- questions: answers to questions of school subjects, and a corpus of short dialogues ---


def questions() -> Iterator[Document]:
    """Question and answer pairs: the examples of lm-eval's tasks, and chatterbot-corpus."""
    for file in _files(_package_folder("lm_eval") / "tasks", "*.yaml"):
        if "fewshot" in str(file.parent) or "gsm8k" in file.parent.name or "bbh" in str(file.parent):
            for pairs in _batched(_examples(file), 900):
                yield Document("questions", file.stem, pairs)
    for file in _files(_package_folder("chatterbot_corpus") / "data" / "english", "*.yml"):
        conversations = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
        pairs = dict.fromkeys(_pair(c[0], c[1]) for c in conversations if len(c) > 1)  # many are repeated
        for several in _batched(list(pairs), 1100):
            yield Document("questions", file.stem, several)


def _examples(file: Path) -> list[str]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError:  # tags of its own
        return []
    samples = (content.get("fewshot_config") or {}).get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        return []
    pairs = [(s.get("question") or s.get("input"), s.get("target") or s.get("answer")) for s in samples]
    pairs = [(q, a) for q, a in pairs if isinstance(q, str) and isinstance(a, str)]
    return [_pair(q, a) for q, a in pairs if (q + a).isascii()]  # the others are in another language


def _pair(question: str, answer: Any) -> str:
    return f"Question: {' '.join(str(question).split())}\nAnswer: {' '.join(str(answer).split())}\n\n"


def _batched(texts: list[str], least: int) -> Iterator[str]:
    """Joined, each of at least so many characters."""
    joined = ""
    for text in texts:
        joined += text
        if len(joined) >= least:
            yield joined
            joined = ""


# --- tables: the data sets of R, half of them as CSV and half as Markdown ---


def tables() -> Iterator[Document]:
    """Tables of the package pydataset, from their first row."""
    folder = Path(str(_package_folder("pydataset")))
    with tarfile.open(folder / "resources.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            name = Path(member.name).name
            opened = archive.extractfile(member) if name.endswith(".csv") and name[0] != "." else None
            if opened is not None and name != "datasets.csv":
                lines = io.TextIOWrapper(opened, "utf-8", errors="ignore").read(CHARACTERS).splitlines()[:-1]
                rows = [line.replace('"', "").split(",") for line in lines]
                markdown = _hash(name) % 2 == 0
                if markdown and rows:
                    rows.insert(1, ["---"] * len(rows[0]))
                text = "\n".join(f"| {' | '.join(r)} |" if markdown else ",".join(r) for r in rows)
                yield Document("tables", name, text)


# --- another language: German manual pages, without the commands of their typesetter ---


def german(folder: Path) -> Iterator[Document]:
    """German manual pages below a folder, such as that of the Debian package manpages-de."""
    for file in _files(folder, "*.gz"):
        if "/de/man" in str(file):
            text = _without_roff(_unpacked(file))
            start = max(text.find("BESCHREIBUNG"), 0)
            yield Document("german", file.name.split(".")[0], text[start:])


def _unpacked(file: Path) -> str:
    with gzip.open(file, "rt", encoding="utf-8", errors="ignore") as opened:
        return opened.read(40_000)


def _without_roff(text: str) -> str:
    lines = []
    for line in re.sub(r"\\\*\(Aq|\\\(aq|\\\(cq", "'", text).splitlines():
        if line.startswith((".SH ", ".SS ")):
            line = "\n" + line[4:]
        elif line.startswith((".B ", ".I ", ".BR ", ".IR ")):
            line = line.split(" ", 1)[1]
        elif line.startswith((".PP", ".TP", ".IP", ".P")):
            line = ""
        elif line.startswith((".", "'")):
            continue
        line = re.sub(r"\\f[A-Z(]W?|\\[,/&|^]|\\s[-+]?\d", "", line)
        lines.append(re.sub(r"\\(.)", r"\1", line).replace('"', ""))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


# --- splits ---


def splits(
    manual_pages: Path, tokens_of: Callable[[str], list[int]], length: int
) -> dict[str, dict[str, list[tuple[Document, list[int]]]]]:
    """Documents with their first `length` tokens, by split and kind.

    A group is in one split alone. Its documents come in an order of their own checksums, at most `PER_GROUP` of them.
    """
    result: dict[str, dict[str, list[tuple[Document, list[int]]]]] = {split: {} for split in SIZES}
    for kind, of in {**KINDS, "german": lambda: german(manual_pages)}.items():
        groups: dict[str, list[Document]] = defaultdict(list)
        seen: set[int] = set()
        for document in of():
            number = _hash(document.text)
            if len(document.text) > 2 * length and number not in seen:
                seen.add(number)
                groups[document.group].append(document)
        order = sorted(groups, key=lambda group: _hash(f"{kind} {group}"))
        wanted = [split for split, size in SIZES.items() for _ in range(size)]
        lists: dict[str, list[tuple[Document, list[int]]]] = {split: [] for split in SIZES}
        split = "test"  # the largest share of independent groups goes to the test
        for group in order:
            split = min(SIZES, key=lambda s: len(lists[s]) / SIZES[s])
            some = sorted(groups[group], key=lambda d: _hash(d.text))
            taken = 0
            for document in some:
                if (taken == PER_GROUP and kind != "questions") or len(lists[split]) == SIZES[split]:
                    break
                tokens = tokens_of(document.text[:CHARACTERS])
                if len(tokens) >= length:
                    lists[split].append((document, tokens[:length]))
                    taken += 1
            if sum(map(len, lists.values())) == len(wanted):
                break
        for split, found in lists.items():
            if len(found) < SIZES[split]:
                print(
                    f"note: {len(found)} of {SIZES[split]} documents of {kind} for {split}", file=sys.stderr
                )
            result[split][kind] = found
    return result


def checksum(documents: list[list[int]]) -> str:
    """Of token ids, to compare two machines' documents."""
    return hashlib.sha256(repr(documents).encode()).hexdigest()[:12]


KINDS: dict[str, Callable[[], Iterator[Document]]] = {
    "prose": prose,
    "code": code,
    "questions": questions,
    "tables": tables,
    "german": lambda: german(Path("/usr/share/man")),
}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", errors="ignore")).digest()[:6], "big")


def _files(root: Path, pattern: str) -> list[Path]:
    return sorted(file for file in root.rglob(pattern) if file.is_file())


def _site_packages() -> Path:
    return _package_folder("torch").parent


def _package(file: Path, root: Path) -> str:
    return file.relative_to(root).parts[0].removesuffix(".py")


def _package_folder(name: str) -> Path:
    """Where a package lies; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"expected the package {name}, whose text this study reads, received none. Type: pip install {name}"
        )
    return Path(spec.origin).parent
