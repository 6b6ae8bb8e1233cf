"""The pages run, the docstring examples run, and nothing public is undocumented."""

import contextlib
import doctest
import html
import importlib
import importlib.util
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from layers import LAYERS

import dro_temp

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]+)\n(?P<body>.*?)^(?P=indent)```\s*$", re.M | re.S)
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.M)


# --- Pages ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    line: int
    code: str
    runs: bool
    before: str


def _blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in FENCE.finditer(text):
        if re.match(r"(python|py)\b", match["info"]) is None:
            continue
        body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.M)
        line = text.count("\n", 0, match.start("body")) + 1
        runs = ".no-run" not in match["info"]
        before = text[: match.start()].rstrip().rpartition("\n")[2]
        blocks.append(Block(line, body, runs, before))
    return blocks


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def as_if_alone(tmp_path, monkeypatch) -> Iterator[None]:
    """An empty folder, fixed seeds, nothing written to the user's own cache, nothing left in accelerate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(ROOT / ".cache"))  # data sets are drawn once per checkout
    torch.manual_seed(0)
    yield
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=_name)
def test_page_runs(page, as_if_alone):
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in _blocks(page):
        # Blank lines above keep the page's own line numbers in tracebacks.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if block.runs:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=_name)
def test_a_block_that_does_not_run_says_why(page):
    for block in _blocks(page):
        assert block.runs or "not run" in block.before.lower(), (
            f"{_name(page)}:{block.line}: expected a line 'Not run here: why.' above a {{.no-run}} block, "
            f"received {block.before!r}"
        )


# --- Docstring examples --------------------------------------------------------------------------------------


def _without_engine() -> set[str]:
    """Modules that a serving engine imports, where that engine is not installed."""
    engines = {"dro_temp.integrations.sglang": "sglang", "dro_temp.integrations.vllm.processor": "vllm"}
    return {module for module, engine in engines.items() if importlib.util.find_spec(engine) is None}


def _modules() -> list[types.ModuleType]:
    found = [info.name for info in pkgutil.walk_packages(dro_temp.__path__, "dro_temp.")]
    if importlib.util.find_spec("triton") is None:
        found = [name for name in found if "triton_passes" not in name]
    found = [name for name in found if name not in _without_engine()]
    return [dro_temp, *(importlib.import_module(name) for name in found)]


def _documented(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """The module, and the functions, classes and members that it defines, by qualified name."""
    yield module.__name__, module
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isroutine(value):
            yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            for member, attribute in vars(value).items():
                if isinstance(attribute, (classmethod, staticmethod, property)) or inspect.isroutine(
                    attribute
                ):
                    yield f"{module.__name__}.{name}.{member}", attribute


def _doc(value: Any) -> str:
    """The value's own docstring: not one that it inherits, nor the signature that a dataclass writes for itself."""
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return "" if not doc or doc.startswith(f"{getattr(value, '__name__', '')}(") else inspect.cleandoc(doc)


# Not doctest's own finder: it overlooks functions that are wrapped, as the shape checks of conftest.py wrap them.
def _examples() -> Iterator[doctest.DocTest]:
    parser = doctest.DocTestParser()
    for module in _modules():
        for name, value in _documented(module):
            doc = _doc(value)
            if ">>>" in doc:
                yield parser.get_doctest(doc, {"torch": torch, **vars(module)}, name, module.__file__, None)


@pytest.mark.parametrize("example", [pytest.param(e, id=e.name) for e in _examples()])
def test_docstring_example(example, as_if_alone):
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(example, out=report.write, clear_globs=False).failed
    assert not failed, report.getvalue()


# --- Nothing public is undocumented --------------------------------------------------------------------------


def _public(module: types.ModuleType) -> dict[str, Any]:
    """What `__all__` exports, or, without it, what the module defines and does not hide."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not (name.startswith("_") or _is_data(value)) and value.__module__ == module.__name__
    }


def _is_data(value: Any) -> bool:
    return inspect.ismodule(value) or not (inspect.isclass(value) or inspect.isroutine(value))


def _public_modules() -> list[types.ModuleType]:
    found = (info.name for info in pkgutil.iter_modules(dro_temp.__path__, "dro_temp."))
    modules = [importlib.import_module(name) for name in found if not name.startswith("dro_temp._")]
    return [dro_temp, *modules]


def _resolve(path: str) -> Any:
    value: Any = dro_temp
    for part in path.split(".")[1:]:
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)
    return value


def _names_in_api_pages() -> Counter[int]:
    """How often each object is documented: by its own directive, or as a member of a module's."""
    seen: Counter[int] = Counter()
    for page in (ROOT / "docs" / "api").rglob("*.md"):
        for path in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if path in _without_engine():
                continue
            target = _resolve(path)
            members = _public(target).values() if inspect.ismodule(target) else ()
            for value in [target, *(m for m in members if not inspect.ismodule(m))]:
                seen[id(value)] += 1
    return seen


PUBLIC = {
    id(value): (f"{module.__name__}.{name}", value)
    for module in _public_modules()
    for name, value in _public(module).items()
}
EVERYTHING = [
    pytest.param(value, id=name) for name, value in sorted(PUBLIC.values(), key=lambda pair: pair[0])
]


@pytest.mark.parametrize("value", EVERYTHING)
def test_public_name_is_documented_once(value):
    if inspect.ismodule(value) or not _is_data(value):
        assert _doc(value), "expected a docstring"
    times = _names_in_api_pages()[id(value)]
    assert times == 1, f"expected one `:::` block in docs/api that shows it, received {times}"


def _wants_example(value: Any) -> bool:
    """Not contracts, which nobody can build, nor dataclasses: the values that the library hands over."""
    if inspect.isclass(value):
        return not (inspect.isabstract(value) or is_dataclass(value))
    return inspect.isroutine(value)


@pytest.mark.parametrize("value", [p for p in EVERYTHING if _wants_example(p.values[0])])
def test_public_name_has_an_example(value):
    assert ">>>" in _doc(value), "expected an example in the docstring"


# --- The site ------------------------------------------------------------------------------------------------


def test_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    # The theme prints a notice about its own future unless it is told not to.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not loads.findall(text), page.name
        assert 'class="arithmatex"' not in text, page.name  # a formula that the hook overlooked
        assert "<!-- layers -->" not in text, page.name
        assert not re.search(r"--8 ?(&lt;|<)", text), f"{page.name}: a part of a file that was not put in"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in DOCS}
    assert pages == listed


def _hook(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_hook", ROOT / "docs" / "_hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mathml() -> types.ModuleType:
    return _hook("mathml")


@pytest.mark.parametrize(
    "latex", [r"\nosuchcommand x", r"\frac{1", "x}", r"\begin{aligned}a &= b\end{aligned}"]
)
def test_a_formula_that_cannot_be_converted_fails_the_build(mathml, latex, caplog):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_path="some/page.md"))
    content = rf'<p><span class="arithmatex">\({html.escape(latex)}\)</span></p>'
    assert mathml.on_page_content(content, page=page) == content
    (record,) = caplog.records  # mkdocs counts warnings of loggers below its own, and --strict fails on one
    assert record.levelname == "WARNING"
    assert record.name.startswith("mkdocs.")
    assert latex in record.getMessage()
    assert "some/page.md" in record.getMessage()


def test_a_formula_becomes_mathml(mathml):
    content = r'<div class="arithmatex">\[\min_{\tau \ge 1} \mathrm{KL}(p) &lt; 2\]</div>'
    result = mathml.on_page_content(content, page=None)
    root = ElementTree.fromstring(re.sub(r' xmlns="[^"]+"', "", result))
    assert root.find("math").get("display") == "block"
    assert [e.text for e in root.iter("mo")] == ["min", "≥", "KL", "(", ")", "<"]
    assert root.find(".//munder") is not None


def test_the_picture_of_the_layers_shows_every_package_inside_of_its_frame():
    hook = _hook("layers")
    content = hook.on_page_content(f"<p>before</p>{hook.MARK}<p>after</p>")
    assert content.startswith("<p>before</p><figure")
    assert content.endswith("</figure><p>after</p>")
    figure = content.removeprefix("<p>before</p>").removesuffix("<p>after</p>")
    svg = ElementTree.fromstring(figure).find("svg")
    shown = [text.text for text in svg.iter("text") if text.get("class") is None]
    assert Counter(shown) == Counter(name for layer in LAYERS for name in layer)
    boxes = [rect for rect in svg.iter("rect") if rect.get("class") == "box"]
    assert all(float(box.get("x")) >= hook.LEFT for box in boxes)
    assert all(float(box.get("x")) + float(box.get("width")) <= hook.WIDTH - hook.RIGHT for box in boxes)


def test_a_layer_of_many_packages_is_drawn_in_several_lines():
    hook = _hook("layers")
    names = tuple(f"package_number_{i}" for i in range(9))
    lines = hook._lines(names)
    assert len(lines) > 1
    assert [name for line in lines for name in line] == list(names)
    assert all(sum(map(hook._width, line)) + hook.GAP * (len(line) - 1) <= hook.INNER for line in lines)
