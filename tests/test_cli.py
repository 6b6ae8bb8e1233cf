"""The command line, run as people run it: a tiny model, a text file, and every command after another."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("jsonargparse")

from dro_temp.cli import text  # noqa: E402
from dro_temp.cli.main import main  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TEXT = "the sky is blue and the grass is green and the snow is white . " * 40


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model with its tokenizer, and a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("cli")
    words = {word: k for k, word in enumerate(["<end>", "<unknown>", *dict.fromkeys(TEXT.split())])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", unk_token="<unknown>"
    )
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(vocab_size=len(words), bos_token_id=0, eos_token_id=0, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder


def _command(files, output, *options):
    given = [
        "--model",
        str(files / "model"),
        "--data",
        str(files / "text.txt"),
        "--block",
        "8",
        "--batch",
        "4",
    ]
    return ["lm", "fit", str(output), *given, "--save_every", "2", *options]


def _fit(files, output, *options):
    return main(_command(files, output, *options))


def _weights(run):
    from safetensors.torch import load_file

    (file,) = (run / "tempnet").glob("*.safetensors")
    return load_file(file)


def test_fit_eval_generate_view(files, tmp_path, capsys):
    run = tmp_path / "run"
    assert _fit(files, run, "--steps", "4") == 0
    assert (run / "config.yaml").read_text().count("\n") > 10
    assert main(["lm", "eval", str(run), "--data", str(files / "text.txt"), "--limit", "16"]) == 0
    found = json.loads((run / "eval.json").read_text())
    assert {"tau = 1", "TempNet", "optimum"} <= {scheme["name"] for scheme in found["schemes"]}
    assert main(["lm", "generate", str(run), "the sky", "--tokens", "5"]) == 0
    assert "the sky" in capsys.readouterr().out
    assert main(["lm", "view", str(run), "--text", str(files / "text.txt"), "--characters", "200"]) == 0
    assert "<html" in (run / "page.html").read_text()


@pytest.mark.parametrize("how", ["ctrl-c", "killed"])
def test_an_interrupted_run_goes_on(files, tmp_path, how):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _fit(files, whole, "--steps", "6") == 0
    stop = "raise KeyboardInterrupt" if how == "ctrl-c" else "os.kill(os.getpid(), signal.SIGKILL)"
    # The learning rate's schedule knows the number of steps, so the end has to come from outside.
    code = (
        "import os, signal, sys, transformers\n"
        "class Stop(transformers.TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        f"        if state.global_step == 5: {stop}\n"
        "init = transformers.Trainer.__init__\n"
        "transformers.Trainer.__init__ = lambda self, *a, **k: init(self, *a, callbacks=[Stop()], **k)\n"
        "from dro_temp.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = _command(files, parts, "--steps", "6")
    stopped = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert stopped.returncode == (130 if how == "ctrl-c" else -signal.SIGKILL), stopped.stderr
    assert ("goes on from there" in stopped.stderr) == (how == "ctrl-c")
    assert not (parts / "tempnet").exists()
    assert _fit(files, parts, "--steps", "6") == 0
    for name, x in _weights(whole).items():
        assert torch.equal(x, _weights(parts)[name]), name


def test_several_processes(files, tmp_path):
    command = _command(files, tmp_path / "run", "--steps", "2")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "dro_temp.cli", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("wrote ") == 1
    assert _weights(tmp_path / "run")


def test_joint_training_writes_the_model(files, tmp_path):
    run = tmp_path / "run"
    assert _fit(files, run, "--steps", "2", "--frozen", "false", "--inputs", "[logits]") == 0
    assert (run / "model" / "config.json").exists()
    assert main(["lm", "generate", str(run), "the sky", "--tokens", "2", "--greedy", "true"]) == 0


def test_likelihood(files, tmp_path):
    assert _fit(files, tmp_path / "run", "--steps", "2", "--objective", "likelihood") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tau_min", "2", "--tau_max", "1"), "expected temperature bounds"),
        (("--rho", "9"), "expected rho between 0 and log"),
        (("--block", "100000"), "at least one block"),
    ],
)
def test_bad_options(files, tmp_path, capsys, options, message):
    assert _fit(files, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "tempnet").exists()


def test_a_tokenizer_that_knows_more_than_the_model(files, tmp_path, capsys):
    tokenizer = transformers.AutoTokenizer.from_pretrained(files / "model")
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save_pretrained(tmp_path / "larger")
    assert _fit(files, tmp_path / "run", "--tokenizer", str(tmp_path / "larger")) == 2
    assert "expected a tokenizer of at most" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tempnet_that_was_made_for_another_model(files, tmp_path, capsys):
    run = tmp_path / "run"
    assert _fit(files, run, "--steps", "2") == 0
    sizes = {"n_embd": 24, "n_layer": 1, "n_head": 2, "n_positions": 32}
    words = json.loads((files / "model" / "config.json").read_text())["vocab_size"]
    other = transformers.GPT2Config(vocab_size=words, bos_token_id=0, eos_token_id=0, **sizes)
    shutil.copytree(files / "model", tmp_path / "other")
    transformers.GPT2LMHeadModel(other).save_pretrained(tmp_path / "other")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(files / "model"), str(tmp_path / "other")))
    capsys.readouterr()
    for command in (["eval", str(run)], ["generate", str(run), "the sky"]):
        assert main(["lm", *command]) == 2
        assert "Load the TempNet that was trained with this model" in capsys.readouterr().err


def test_another_run_is_not_overwritten(files, tmp_path, capsys):
    assert _fit(files, tmp_path / "run", "--steps", "2") == 0
    before = (tmp_path / "run" / "config.yaml").read_text()
    assert _fit(files, tmp_path / "run", "--steps", "2", "--lr", "0.5") == 2
    assert "expected the options that" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_run_that_is_not_there(tmp_path, capsys):
    assert main(["lm", "eval", str(tmp_path)]) == 2
    assert "dro-temp lm fit" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "eval", "generate", "view"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["lm", command, "--help"])
    assert stop.value.code == 0
    assert f"dro-temp lm {command} runs/first" in capsys.readouterr().out


def test_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
    assert text.documents(str(tmp_path)) == ["one", "two", "three"]
    with pytest.raises(ValueError, match=r"expected a column 'body'.*received \['text'\].*--column"):
        text.documents(str(tmp_path / "b.jsonl"), column="body")
    with pytest.raises(ValueError, match="which is not there"):
        text.documents(str(tmp_path / "c.txt"))
    (tmp_path / "d.txt").write_text("  \n")
    with pytest.raises(ValueError, match="received none but white space"):
        text.documents(str(tmp_path / "d.txt"))
