"""A model card beside a checkpoint, never written over one that was edited."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dro_temp._files import whole_file
from dro_temp._version import __version__

CARD = "README.md"
CUSTOM_GENERATE = "custom_generate/generate.py"
_MARK = re.compile(r"<!-- dro-temp wrote this card: ([0-9a-f]{64}) -->\n?\Z")
#: "name" or "owner/name" on the Hub.
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

#: Of the paper, in BibTeX.
CITATION = """@inproceedings{qiu2024cool,
  title     = {To Cool or not to Cool? Temperature Network Meets Large Foundation Models via DRO},
  author    = {Qiu, Zi-Hao and Guo, Siqi and Xu, Mao and Zhao, Tuo and Zhang, Lijun and Yang, Tianbao},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  url       = {https://arxiv.org/abs/2404.04575},
}"""


def write_card(folder: Path, config: Mapping[str, Any], parameters: int) -> None:
    """Write the card of a network, unless there is one that we did not write, or that was edited since."""
    path = folder / CARD
    if path.exists() and not is_untouched(path):
        return
    text = _card(config, parameters)
    with whole_file(path) as file:
        file.write(f"{text}<!-- dro-temp wrote this card: {_digest(text)} -->\n".encode())


def write_custom_generate(folder: Path, source: str) -> None:
    """Write what transformers runs for `generate(custom_generate=folder)`, unless another program's file is there.

    Args:
        folder: of the checkpoint.
        source: where the file will find the network: an absolute path, or "owner/name" on the Hub.
    """
    from jinja2 import Template  # a dependency of torch

    template = Path(__file__).with_name("custom_generate.py.jinja").read_text(encoding="utf-8")
    path = folder / CUSTOM_GENERATE
    if path.exists() and not path.read_text(encoding="utf-8").startswith(template.partition("\n")[0]):
        return
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        file.write((Template(template).render(source=json.dumps(source)) + "\n").encode())


def is_untouched(path: str | Path) -> bool:
    """Whether a card is as we wrote it: its last line has the digest of the others."""
    try:
        text = Path(path).read_text(encoding="utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return False
    mark = _MARK.search(text)
    return mark is not None and _digest(text[: mark.start()]) == mark[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _card(config: Mapping[str, Any], parameters: int) -> str:
    from jinja2 import Environment, StrictUndefined  # a dependency of torch

    base = (config["made_for"] or {}).get("name")
    if not (isinstance(base, str) and REPOSITORY.fullmatch(base) and not Path(base).exists()):
        base = None  # a path on the author's disk means nothing to others
    text = Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    facts = {"base": base, "parameters": parameters, "version": __version__, "citation": CITATION}
    facts |= {"kind": config["class"], "encoder": json.dumps(config["encoder"])}
    return environment.from_string(text).render({**config, **facts})
