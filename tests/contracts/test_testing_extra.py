"""`pip install 'dro-temp[testing]'` is all that the contract suite needs: the examples of the docs pass it alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Everything that the other extras install is refused, and this library's own conftest.py is out of reach.
CONFTEST = """
import sys

OTHERS = {
    "PIL", "accelerate", "beartype", "datasets", "fontTools", "huggingface_hub", "jsonargparse", "lm_eval",
    "matplotlib", "open_clip", "pandas", "peft", "rich", "safetensors", "scipy", "sentence_transformers", "sklearn",
    "timm", "torchmetrics", "torchvision", "transformers", "trl", "tyro", "yaml",
}


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OTHERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
"""

# The loss of streaming.md and the risk of risks.md, which stand beside those of design.md.
MORE = """
CASES += (
    testing.LossCase("softplus", SoftplusRobustLoss),
    testing.RiskCase("mean-and-worst", MeanAndWorstRisk),
)
"""


def _blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python[^\n]*\n(.*?)^```", text, flags=re.M | re.S)


def _classes(page: str, name: str) -> str:
    (block,) = (block for block in _blocks(page) if f"class {name}(" in block)
    return block.partition("\n\n\n")[0]


FAULTY = """
import dro_temp as dt
import pytest
import torch
from dro_temp import testing


class Rising:
    def __call__(self, steps):
        return torch.tensor(0.5 + 0.001 * min(int(steps), 400))


class Vector(dt.interfaces.Penalty):
    name = "vector"

    def value(self, rows):
        return rows["image"].dense_scores.square().sum(1)


CASES = (testing.GammaCase("rising", Rising), testing.PenaltyCase("vector", Vector))


@pytest.mark.parametrize(("case", "contract"), [p for p in testing.pair(CASES) if p.id.endswith(("rises", "number"))])
def test_contract(case, contract):
    contract(case)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """The report of pytest on the docs' examples and on two faulty parts."""
    folder = tmp_path_factory.mktemp("elsewhere")
    examples = [
        *_blocks("design.md")[:-1],
        _classes("streaming.md", "SoftplusRobustLoss"),
        _classes("risks.md", "MeanAndWorstRisk"),
        _blocks("design.md")[-1].replace("\n\n\n@pytest", f"\n{MORE}\n\n@pytest"),
    ]
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_examples.py").write_text("\n\n".join(examples))
    (folder / "test_faulty.py").write_text(FAULTY)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rf",
        "-p",
        "no:cacheprovider",
        "-k",
        "not compiles",
        str(folder),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_the_examples_of_the_docs_pass_the_suite(report):
    failed = set(re.findall(r"^FAILED (\S+?)::", report, flags=re.M))
    assert failed == {"test_faulty.py"}, report
    passed = re.search(r"2 failed, (\d+) passed", report)
    assert passed is not None, report
    assert int(passed[1]) > 40, report


def test_a_failure_shows_the_values_that_were_compared(report):
    assert "expected gamma never to rise, received (0.5, 0.507" in report
    assert re.search(r"assert torch\.Size\(\[1\]\) == \(\)", report), report
