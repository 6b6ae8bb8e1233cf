"""The command line, run as people run it: a tiny model, a text file, and every command after another."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from processes import run_code

transformers = pytest.importorskip("transformers")
pytest.importorskip("jsonargparse")

import dro_temp  # noqa: E402
from dro_temp.cli.checkpoints import COMPLETE, newest_complete  # noqa: E402
from dro_temp.cli.lm import LM, text  # noqa: E402
from dro_temp.cli.lm.options import check_room  # noqa: E402
from dro_temp.cli.main import main  # noqa: E402
from dro_temp.cli.messages import sentence  # noqa: E402

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


@pytest.fixture(scope="module")
def six_steps(files, tmp_path_factory):
    """The weights of a run of six steps that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert _fit(files, run, "--steps", "6") == 0
    return _weights(run)


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
def test_an_interrupted_run_goes_on(files, six_steps, tmp_path, how):
    parts = tmp_path / "parts"
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
    stopped = run_code(code, *_command(files, parts, "--steps", "6"))
    assert stopped.returncode == (130 if how == "ctrl-c" else -signal.SIGKILL), stopped.stderr
    assert ("resumes from it" in stopped.stderr) == (how == "ctrl-c")
    assert not (parts / "tempnet").exists()
    assert _fit(files, parts, "--steps", "6") == 0
    for name, x in six_steps.items():
        assert torch.equal(x, _weights(parts)[name]), name


@pytest.mark.slow
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


def test_likelihood(files, tmp_path, capsys):
    run = tmp_path / "run"
    assert _fit(files, run, "--steps", "2", "--objective", "likelihood") == 0
    command = capsys.readouterr().out.strip().rpartition("next: dro-temp ")[2].split()
    assert main([*command, "--limit", "16"]) == 0
    said = capsys.readouterr().out
    assert "perplexity" in said
    assert "robust" not in said
    found = json.loads((run / "eval.json").read_text())
    assert [scheme["name"] for scheme in found["schemes"]][-1] == "TempNet"
    assert main([*command, "--limit", "16", "--rho", "1.0"]) == 0
    assert "robust loss" in capsys.readouterr().out


@pytest.mark.parametrize("objective", ["selective_smoothing", "self_weighted"])
def test_losses_of_a_frozen_model(files, tmp_path, capsys, objective):
    run = tmp_path / "run"
    assert _fit(files, run, "--steps", "1", "--objective", objective) == 0
    assert (run / "tempnet" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tau_min", "2", "--tau_max", "1"), "expected temperature bounds"),
        (("--objective", "self_weighted", "--frozen", "false"), "expected a frozen model with --objective"),
        (("--rho", "9"), "expected rho between 0 and log"),
        (("--block", "100000"), "at least one block"),
        (("--block", "33"), "Pass --block 32 or less"),
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


# A run that resumes: from which checkpoint.


@pytest.fixture(scope="module")
def checkpoints(files, tmp_path_factory):
    """The checkpoints of a run of four steps."""
    run = tmp_path_factory.mktemp("run") / "run"
    assert _fit(files, run, "--steps", "4") == 0
    return run / "checkpoints"


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "two bytes less": lambda file: file.write_bytes(file.read_bytes()[:-2]),  # one is a line end
}
FILES = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    COMPLETE,  # written last: without it, or with half of it, the others are not known to be whole
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_complete_checkpoint_is_taken(checkpoints, tmp_path, name, damage):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "checkpoint-4"
    assert newest_complete(newest.parent).step == 4
    DAMAGES[damage](newest / name)
    taken = newest_complete(newest.parent)
    assert (taken.step, list(taken.skipped)) == (2, ["checkpoint-4"])
    assert "resumes from checkpoint-2, skipping what is incomplete (checkpoint-4: " in str(taken)


def test_no_whole_checkpoint_is_said(checkpoints, tmp_path):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    for place in (tmp_path / "checkpoints").iterdir():
        (place / "optimizer.pt").unlink()
    taken = newest_complete(tmp_path / "checkpoints")
    assert (taken.folder, taken.step) == (None, 0)
    assert str(taken).startswith("starts from the beginning, skipping")
    assert str(newest_complete(tmp_path / "nothing")) == "starts from the beginning"


# How a save ends in the middle: killed in the middle of a file, between two files, or the disk is full.
BROKEN_SAVE = """
import os, resource, signal, sys, torch, transformers
from dro_temp.cli.main import main
how, name, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
save = torch.save
class Step(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        torch.save = broken if state.global_step == at else save
        if how == "full" and state.global_step == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
def broken(what, file, *args, **kwargs):
    save(what, file, *args, **kwargs)
    if how == "killed" and os.path.basename(str(file)) == name:
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
init = transformers.Trainer.__init__
transformers.Trainer.__init__ = lambda self, *a, **k: init(self, *a, callbacks=[Step()], **k)
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.parametrize(
    ("how", "name"), [("killed", "optimizer.pt"), ("killed", "training_args.bin"), ("full", "")]
)
def test_a_save_that_ends_in_the_middle_wedges_nothing(files, six_steps, tmp_path, capsys, how, name):
    pytest.importorskip("resource")
    parts = tmp_path / "parts"
    stopped = run_code(BROKEN_SAVE, how, name, "4", *_command(files, parts, "--steps", "6"))
    if how == "killed":
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert stopped.returncode == 2
        assert "Traceback" not in stopped.stderr
        assert stopped.stderr.splitlines()[-1].startswith("dro-temp lm fit: expected room on the disk for")
    assert (parts / "checkpoints" / "checkpoint-4").is_dir()
    capsys.readouterr()
    assert _fit(files, parts, "--steps", "6") == 0
    said = capsys.readouterr().out
    assert "resumes from checkpoint-2, skipping what is incomplete (checkpoint-4: " in said
    for key, x in six_steps.items():
        assert torch.equal(x, _weights(parts)[key]), key
    assert sorted(place.name for place in (parts / "checkpoints").iterdir()) == [
        "checkpoint-4",
        "checkpoint-6",
    ]


def test_a_finished_run_does_nothing_and_more_steps_go_on(files, tmp_path, capsys):
    run = tmp_path / "run"
    assert _fit(files, run, "--steps", "4") == 0
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    for command in (_command(files, run, "--steps", "4"), ["lm", "fit", str(run)]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "is finished: 4 steps" in said
        assert "dro-temp lm eval" in said
        assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    weights = _weights(run)
    assert main(["lm", "fit", str(run), "--steps", "6"]) == 0  # the other options are the run's own
    assert "resumes from checkpoint-4" in capsys.readouterr().out
    assert any(not torch.equal(x, _weights(run)[name]) for name, x in weights.items())
    assert main(["lm", "fit", str(run)]) == 0
    assert "is finished: 6 steps" in capsys.readouterr().out
    shutil.rmtree(run / "checkpoints")
    assert main(["lm", "fit", str(run), "--steps", "8"]) == 2
    assert "expected a complete checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_killed_after_the_last_step_a_run_is_finished_without_training(files, tmp_path, capsys, frozen):
    run = tmp_path / "run"
    assert _fit(files, run, "--steps", "4", "--frozen", frozen) == 0
    weights = _weights(run)
    (run / "finished.json").unlink()
    shutil.rmtree(run / "tempnet")
    shutil.rmtree(run / "model", ignore_errors=True)
    assert main(["lm", "eval", str(run)]) == 2
    assert "expected a finished run" in capsys.readouterr().err
    assert _fit(files, run, "--steps", "4", "--frozen", frozen) == 0
    assert "'loss'" not in capsys.readouterr().out
    for name, x in _weights(run).items():
        assert torch.equal(x, weights[name]), name
    assert (run / "model" / "config.json").exists() == (frozen == "false")


# What is refused, and how.


def _one_sentence(capsys, *parts):
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("dro-temp")
    for part in ("expected ", "received", *parts):
        assert part in said, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    "options",
    [
        ("--steps", "-3"),
        ("--steps", "0"),
        ("--batch", "0"),
        ("--block", "1"),
        ("--accumulate", "0"),
        ("--lr", "-1"),
        ("--lr", ".nan"),
        ("--host-lr", "0"),
        ("--save-every", "0"),
        ("--seed", "-1"),
        ("--rho", ".nan"),
        ("--rho", "-1"),
        ("--inputs", "[]"),
        ("--inputs", "[hidden, hidden]"),
        ("--centred", "true"),
        ("--tau-min", ".nan"),
        ("--tau-max", ".inf"),
        ("--tau_min", "0"),
    ],
)
def test_fit_refuses_values_out_of_range(files, tmp_path, capsys, options):
    assert _fit(files, tmp_path / "run", *options) == 2
    _one_sentence(capsys, options[0].replace("-", "_").replace("__", "--"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "--limit", "1"),
        ("eval", "--batch", "0"),
        ("eval", "--rho", "0"),
        ("eval", "--rho", "99"),
        ("eval", "--task-folder", "nowhere"),
        ("generate", "x", "--tokens", "0"),
        ("generate", "x", "--temperature", "0"),
        ("generate", "x", "--temperature", ".nan"),
        ("generate", "x", "--top-p", "0"),
        ("generate", "x", "--top_p", "1.5"),
        ("generate", "x", "--seed", "-1"),
        ("view", "--characters", "0"),
        ("view", "--k", "0"),
    ],
)
def test_the_others_refuse_values_out_of_range(checkpoints, capsys, command):
    name, *options = command
    assert main(["lm", name, str(checkpoints.parent), *options]) == 2
    _one_sentence(capsys, "--" + options[-2].removeprefix("--").replace("-", "_"))


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["lm", "fit", "x", "--steps", "abc"], ["int for --steps, received abc"]),
        (["lm", "fit", "x", "--stepss", "3"], ["Type --steps?"]),
        (["lm", "fit", "x", "--rho", "a"], ["float or null for --rho"]),
        (["lm", "fit", "x", "--objective", "foo"], ["--objective, received foo"]),
        (["lm", "fit"], ["a value for output"]),
        (["lm", "fit", "--config", "/no/such.yaml"], ["--config"]),
        (["lm", "bla"], ["'fit', 'eval'", "'bla'"]),
        (["lm"], ["fit, eval, generate, view"]),
        ([], ["lm", "fit, eval, generate, view"]),
        (["lm", "fit"], ["dro-temp lm fit: ", "Type dro-temp lm fit OUTPUT"]),
        (["lm", "generate", "x"], ["dro-temp lm generate: ", "a value for prompt", "RUN 'some text'"]),
        (["lm", "generate", "x", "hello", "world"], ["received more words after it: world", "in quotes"]),
        (["lm", "generate", "x", "hi", "--greedy"], ["true or false for --greedy", "Type --greedy true."]),
        (["lm", "generate", "x", "hi", "--greedy", "hi"], ["true or false for --greedy, received hi"]),
        (["lm", "generate", "x", "hi", "--top_p"], ["a value for --top_p", "Type --top_p 1.0, say."]),
        (["lm", "fit", "x", "--frozen", "--steps", "3"], ["Type --frozen true."]),
        (
            ["lm", "fit", "x", "--inputs", "[logit]"],
            ["hidden, logits or statistics", "Type --inputs '[logits]'."],
        ),
        (
            ["lm", "fit", "x", "--inputs", "logit"],
            ["hidden, logits or statistics", "Type --inputs '[logits]'."],
        ),
        (["lm", "fit", "x", "--inputs", "hidden", "logits"], ["received logits", "--inputs '[one, two]'"]),
        (["lm", "fit", "x", "--objective", "robus"], ["self_weighted", "Type --objective robust."]),
        (["lm", "eval", "x", "--tasks"], ["a value for --tasks", "Type --tasks '[one, two]'."]),
        (["--nope"], ["received --nope. Type dro-temp --help"]),
    ],
)
def test_options_that_cannot_be_read_are_one_sentence(capsys, command, parts):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in ("expected ", "received", *parts):
        assert part in said


@pytest.mark.parametrize("text", ["steps: [", "steps: abc\n", "stepss: 3\n", "- 1\n"])
def test_a_config_that_cannot_be_read(tmp_path, capsys, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["lm", "fit", str(tmp_path / "run"), "--config", str(tmp_path / "config.yaml")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("form", "content"), [("flat", "output: x\nsteps: 3\n"), ("nested", "lm: {fit: {steps: 3}}\n")]
)
@pytest.mark.parametrize("command", ["eval", "generate", "view"])
def test_a_config_of_another_command_is_named(tmp_path, capsys, command, form, content):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    for given in (["--config", str(file)], [f"--config={file}"]):
        with pytest.raises(SystemExit) as stop:
            main(["lm", command, "run", *(["x"] if command == "generate" else []), *given])
        assert stop.value.code == 2
        said = _one_sentence(capsys, f"dro-temp lm {command}", "Remove what is not one of run")
        assert ("received output, steps." if form == "flat" else "received lm.") in said


def test_a_key_of_a_config_that_is_misspelled(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("stepss: 3\n")
    with pytest.raises(SystemExit):
        main(["lm", "fit", "run", "--config", str(tmp_path / "config.yaml")])
    _one_sentence(capsys, "received stepss. Write steps?")


@pytest.mark.parametrize("command", ["fit", "eval", "generate", "view"])
def test_help_says_what_config_takes(command, capsys):
    with pytest.raises(SystemExit):
        main(["lm", command, "--help"])
    assert ("every run leaves one" in " ".join(capsys.readouterr().out.split())) == (command == "fit")


def test_options_may_be_read_from_a_file(checkpoints, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("tokens: 3\ngreedy: true\n")
    command = [
        "lm",
        "generate",
        str(checkpoints.parent),
        "the sky",
        "--config",
        str(tmp_path / "options.yaml"),
    ]
    assert main(command) == 0
    assert len(capsys.readouterr().out.split()) <= 5


@pytest.mark.parametrize("inputs", ["logits", "hidden,logits", "[logits]"])
def test_a_list_may_be_a_bare_word(files, tmp_path, inputs):
    for name, given in (("a", ["--inputs", inputs]), ("b", [f"--inputs={inputs}"])):
        assert _fit(files, tmp_path / name, "--steps", "1", *given) == 0
        config = (tmp_path / name / "config.yaml").read_text()
        assert ("- logits\n" in config, "- hidden\n" in config) == (True, "hidden" in inputs)


# Generation, as far as the model's positions go.


@pytest.mark.parametrize(
    ("words", "tokens", "said"), [(4, 29, "Pass --tokens 28 or less."), (32, 1, "a shorter prompt")]
)
def test_generation_beyond_the_positions_is_refused_before_it(checkpoints, capsys, words, tokens, said):
    prompt = " ".join(TEXT.split()[:words])
    assert main(["lm", "generate", str(checkpoints.parent), prompt, "--tokens", str(tokens)]) == 2
    _one_sentence(capsys, "at most 32 tokens together", f"a prompt of {words} and --tokens {tokens}", said)


def test_generation_up_to_the_last_position(checkpoints, capsys):
    prompt = " ".join(TEXT.split()[:4])
    assert main(["lm", "generate", str(checkpoints.parent), prompt, "--tokens", "28"]) == 0
    assert prompt in capsys.readouterr().out


def test_a_model_that_rotates_by_position_goes_on():
    config = transformers.LlamaConfig(max_position_embeddings=32)
    check_room(config, prompt=30, tokens=30)
    with pytest.raises(ValueError, match="--tokens 2 or less"):
        check_room(transformers.GPT2Config(n_positions=32), prompt=30, tokens=30)


# Interruptions, and runs and models that are not there.


def _interrupted(files, output, monkeypatch, step):
    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(transformers.TrainerCallback, "on_step_end", stop)
    return _fit(files, output, "--steps", "6")


@pytest.mark.parametrize(("step", "said"), [(1, "before anything was saved"), (3, "checkpoint-2 is safe")])
def test_an_interruption_says_what_was_saved(files, tmp_path, capfd, monkeypatch, step, said):
    assert _interrupted(files, tmp_path / "run", monkeypatch, step) == 130
    last = capfd.readouterr().err.splitlines()[-1]  # a line of its own, not the end of the progress bar's
    assert last.startswith("stopped")
    assert said in last
    monkeypatch.undo()
    assert main(["lm", "eval", str(tmp_path / "run")]) == 2
    told = capfd.readouterr().err
    assert (
        f"({'no checkpoint yet' if step == 1 else 'newest checkpoint 2'} of 6 steps). Run fit again" in told
    )


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX knows them")
@pytest.mark.parametrize("name", ["./tyni", "~/no/such/tyni", "/no/such/tyni", "models/of/mine"])
def test_a_folder_of_a_model_that_is_not_there(files, tmp_path, capsys, name):
    assert _fit(files, tmp_path / "run", "--model", name) == 2
    assert "hub" not in _one_sentence(capsys, f"--model {name}", "no such folder")
    assert _fit(files, tmp_path / "run", "--tokenizer", name) == 2
    _one_sentence(capsys, f"--tokenizer {name}", "no such folder")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"dro-temp {dro_temp.__version__}\n"


@pytest.mark.parametrize("command", ["fit", "eval", "generate", "view"])
def test_help_keeps_the_lines_of_its_examples(command, capsys):
    with pytest.raises(SystemExit):
        main(["lm", command, "--help"])
    said = capsys.readouterr().out
    assert LM.examples[command].strip() in said
    for option in re.findall(r"--[a-z][\w-]*", LM.examples[command]):
        assert f"{option} " in said.partition("examples")[0], option


def test_an_option_is_spelled_either_way(files, tmp_path):
    assert _fit(files, tmp_path / "a", "--steps", "2", "--host-lr", "1e-4", "--save-every=1") == 0
    config = (tmp_path / "a" / "config.yaml").read_text()
    assert "host_lr: 0.0001" in config
    assert "save_every: 1\n" in config


@pytest.mark.parametrize("command", ["eval", "generate", "view"])
@pytest.mark.parametrize("damage", ["config.yaml", "options", "tempnet", "weights", "finished.json"])
def test_a_damaged_run_is_one_sentence(checkpoints, tmp_path, capsys, command, damage):
    run = tmp_path / "run"
    shutil.copytree(checkpoints.parent, run)
    (weights,) = (run / "tempnet").glob("*.safetensors")
    places = {"tempnet": run / "tempnet" / "config.json", "weights": weights}
    place = places.get(damage, run / ("config.yaml" if damage == "options" else damage))
    place.write_text("steps: 4\n" if damage == "options" else "{")
    assert main(["lm", command, str(run), *(["the sky"] if command == "generate" else [])]) == 2
    _one_sentence(capsys)


@pytest.mark.skipif(os.name != "posix", reason="paths as POSIX knows them")
def test_a_place_that_cannot_be_written_to(files, checkpoints, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert _fit(files, tmp_path / "file" / "run", "--steps", "2") == 2
    _one_sentence(capsys, "is no folder")
    assert _fit(files, tmp_path / "file", "--steps", "2") == 2
    _one_sentence(capsys, "is no folder")
    assert main(["lm", "view", str(checkpoints.parent), "--out", str(tmp_path / "file" / "page.html")]) == 2
    _one_sentence(capsys, "is no folder")
    assert main(["lm", "view", str(checkpoints.parent), "--out", str(tmp_path)]) == 2
    _one_sentence(capsys, "--out")
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write anywhere
    assert _fit(files, tmp_path / "run", "--steps", "2") == 2
    _one_sentence(capsys, "closed to this user")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            ["room on the disk for 'runs/a'", "Free some"],
        ),
        (OSError(errno.EROFS, "Read-only file system", "runs/a"), ["open to this user", "Pass another path"]),
        (OSError(errno.EIO, "Input/output error", "runs/a"), ["read or write 'runs/a'"]),
        (
            RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 256 vs 150"),
            ["room on the disk"],
        ),
        (KeyError("weights"), ["not foreseen: KeyError: weights", "DRO_TEMP_TRACEBACK=1"]),
        (RuntimeError("one\n  two"), ["RuntimeError: one two"]),
        (torch.OutOfMemoryError("CUDA out of memory."), ["--batch"]),
        (ValueError("expected a, received b. Type c."), ["expected a, received b. Type c."]),
    ],
)
def test_every_error_is_one_sentence(error, parts):
    said = sentence(error)
    assert "\n" not in said
    for part in ("expected ", "received", *parts):
        assert part in said
    error.__context__ = OSError(
        errno.ENOSPC, "No space left on device"
    )  # as where torch raises another thing
    assert "room on the disk" in sentence(error)


def test_where_an_error_was_raised_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("DRO_TEMP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="expected the folder of a run"):
        main(["lm", "eval", str(tmp_path)])


# Text.


def test_records_without_text_are_counted(tmp_path, capsys):
    records = ['{"text": "one"}', '{"other": "two"}', "", '{"text": null}', '{"text": "three"}']
    (tmp_path / "a.jsonl").write_text("\n".join(records))
    assert text.documents(str(tmp_path / "a.jsonl")) == ["one", "three"]
    assert "2 of 4 records" in capsys.readouterr().out
    (tmp_path / "a.jsonl").write_text("\n".join([*records, '{"other": "four"}']))
    with pytest.raises(ValueError, match=r"expected text.*received 3 of 5 without any.*--column"):
        text.documents(str(tmp_path / "a.jsonl"))


def test_records_of_an_empty_text_are_counted(tmp_path, capsys):
    records = ['{"text": "one"}', '{"other": "two"}', '{"text": ""}', '{"text": " "}', '{"text": "three"}']
    (tmp_path / "a.jsonl").write_text("\n".join(records))
    assert text.documents(str(tmp_path / "a.jsonl")) == ["one", "three"]
    assert "3 of 5 records" in (said := capsys.readouterr().out)
    assert "1 without 'text', 2 with an empty 'text'" in said


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_tables_are_refused_with_what_converts_them(tmp_path, monkeypatch, suffix):
    pytest.importorskip("datasets")
    separator = "\t" if suffix == ".tsv" else ","
    table = tmp_path / f"a{suffix}"
    table.write_text(f"text{separator}number\none{separator}1\n")
    for place in (table, tmp_path):
        with pytest.raises(
            ValueError, match=r"expected text.*received the table.*Convert it: python -c"
        ) as error:
            text.documents(str(place))
    code = re.search(r'python -c "(.*?)"', str(error.value))[1]
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert text.documents(str(tmp_path / "a.jsonl")) == ["one"]


@pytest.mark.parametrize("suffix", [".jsonl", ".JSONL", ".JSON"])
def test_a_suffix_in_capitals_is_the_same(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text('{"text": "one"}')
    assert text.documents(str(tmp_path / f"a{suffix}")) == ["one"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "one"}\n{"text": \n', r"received another thing in line 2 \(.*Mend or remove that line"),
        ('"one"\n', "received str as record 1"),
        ('{"text": 3}\n', "received int in record 1"),
        ('{"text": ["a"]}\n', "received list in record 1"),
    ],
)
def test_broken_records_are_refused(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=said):
        text.documents(str(tmp_path / "a.jsonl"))


def test_json_and_parquet(tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"}]')
    assert text.documents(str(tmp_path / "a.json")) == ["one", "two"]
    (tmp_path / "a.json").write_text('{"text": "one"}\n{"text": "two"}')
    assert text.documents(str(tmp_path / "a.json")) == ["one", "two"]
    parquet = str(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": ["one", None, "two"]}).to_parquet(parquet)
    assert text.documents(parquet) == ["one", "two"]
    assert "1 of 3 records" in capsys.readouterr().out
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match="expected a parquet file"):
        text.documents(parquet)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="expected the package datasets"):
        text.documents(parquet)


def test_a_typo_in_data(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def none(*args, **kwargs):
        raise FileNotFoundError("Dataset 'texst' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", none)
    with pytest.raises(ValueError, match=r"expected a file.*received --data texst.*Check the name"):
        text.documents("texst")


def test_a_folder_typed_before_a_file_of_options_counts(tmp_path):
    from dro_temp.cli.main import _parsed

    file = tmp_path / "config.yaml"
    file.write_text("output: elsewhere\nsteps: 7\n")
    for words in (["here", "--config", str(file)], ["--config", str(file), "here"]):
        options = _parsed(["lm", "fit", *words]).lm.fit
        assert (str(options.output), options.steps) == ("here", 7)
