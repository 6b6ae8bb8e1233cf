"""Arrows point down only: what may import what (docs/design.md)."""

import ast
from pathlib import Path

from layers import LAYERS

import dro_temp

ROOT = Path(dro_temp.__file__).parent

OPTIONAL = {"matplotlib", "numpy", "PIL", "fontTools", "rich", "timm", "transformers", "torchvision", "scipy",
            "hypothesis", "pytest", "accelerate", "tyro", "triton", "torchmetrics", "lm_eval",
            "datasets", "tokenizers", "peft", "trl", "safetensors", "huggingface_hub", "jsonargparse"}  # fmt: skip


def _level(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


def _imports(path: Path) -> list[tuple[str, bool]]:
    """Imported modules, and whether at module level."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            names = [node.module or ""]
            if node.module == "dro_temp":
                names = [f"dro_temp.{alias.name}" for alias in node.names]
        found += [(name, node in tree.body) for name in names]
    return found


def _modules() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(ROOT).parts[0].removesuffix(".py"), path)
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "__init__.py"
    ]


def test_imports_point_down():
    for part, path in _modules():
        for name, _ in _imports(path):
            if not name.startswith("dro_temp."):
                continue
            other = name.split(".")[1]
            assert other == part or _level(other) < _level(part), f"{path.name} ({part}) imports {name}"


def test_functional_knows_no_modules_buffers_or_devices():
    for path in (ROOT / "functional").glob("*.py"):
        text = path.read_text()
        for word in ("torch.nn", "nn.Module", "register_buffer", "cuda", "cpu("):
            assert word not in text, f"{path.name} mentions {word}"


def test_optional_packages_are_imported_late():
    for part, path in _modules():
        if part == "testing" or path.parent.name == "triton":  # what they are for
            continue
        for name, top_level in _imports(path):
            assert not (top_level and name.split(".")[0] in OPTIONAL), f"{path.name} imports {name} at import"


def test_core_imports_with_torch_einops_and_jaxtyping_only():
    import subprocess
    import sys

    code = (
        "import sys\n"
        f"for name in {sorted(OPTIONAL)!r}: sys.modules[name] = None\n"
        "import dro_temp; print(dro_temp.__version__)"
    )
    # torch itself likes numpy, and says so in a warning; that is not ours to judge
    code = code.replace("'numpy', ", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
