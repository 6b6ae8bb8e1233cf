"""A model card beside a checkpoint, never written over one that was edited."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dro_temp._files import whole_file

CARD = "README.md"
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

_TEXT = """---
{header}
---

# {kind}

A small network that reads each row of scores of a model and predicts a temperature for it
([arXiv 2404.04575](https://arxiv.org/abs/2404.04575)). It needs that model, which is not part of this checkpoint.

| | |
|---|---|
{table}

```python
import dro_temp as dt  # pip install 'dro-temp[llm]'

tempnet = {loader}.from_pretrained("this folder, or owner/name on the Hub")
```

{use}
## Citation

```bibtex
{citation}
```

"""
_GENERATION = """In generation, scores are divided by its temperatures:

```python
processor = dt.TemperatureLogitsProcessor(model, tempnet)
model.generate(**prompt, do_sample=True, logits_processor=[processor])
```
"""


def write_card(folder: Path, config: Mapping[str, Any], *, parameters: int, version: str) -> None:
    """Write the card of a network, unless there is one that we did not write, or that was edited since."""
    path = folder / CARD
    if path.exists() and not is_untouched(path):
        return
    text = _card(config, parameters, version)
    with whole_file(path) as file:
        file.write(f"{text}<!-- dro-temp wrote this card: {_digest(text)} -->\n".encode())


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


def _card(config: Mapping[str, Any], parameters: int, version: str) -> str:
    kind, made_for, rho = config["class"], config.get("made_for") or {}, config.get("rho")
    base = made_for.get("name")
    if not (isinstance(base, str) and REPOSITORY.fullmatch(base) and not Path(base).exists()):
        base = None  # a path on the author's disk means nothing to others
    header = ["library_name: dro-temp", "tags:", "- dro-temp", "- temperature", "- calibration"]
    model = "a language model"
    if base is not None:
        header += [f"base_model: {base}", "base_model_relation: adapter"]
        model = f"[{base}](https://huggingface.co/{base})"
    sizes = f"{made_for.get('outcomes')} outcomes and width {made_for.get('width')}"
    facts = {
        "made for": f"{model} of {sizes}" if made_for else "no particular language model",
        "temperatures": f"{config['tau_min']} to {config['tau_max']}",
        "radius rho of the robust loss": "none" if rho is None else round(rho, 4),
        "reads": f"`{json.dumps(config['encoder'])}`",
        "readout": config.get("readout", "none"),
        "parameters": f"{parameters:,}",
        "written with": f"dro-temp {version}",
    }
    return _TEXT.format(
        header="\n".join(header),
        kind=kind,
        table="\n".join(f"| {name} | {fact} |" for name, fact in facts.items()),
        loader=f"dt.{kind}" if kind == "TempNet" else kind,  # or a user's own class
        use=_GENERATION if made_for else "",
        citation=CITATION,
    )
