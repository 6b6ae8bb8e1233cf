"""`dro-temp clip`: every source of data, every scheme, interruptions, and what a run leaves."""

import csv
import inspect
import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import picture_files as files
import pytest
import torch
from cli_runs import KILLED, assert_equal, interrupted, weights
from processes import run_code

pytest.importorskip("open_clip")
pytest.importorskip("jsonargparse")
pytest.importorskip("accelerate")

from dro_temp import recipes
from dro_temp.cli.clip import CLIP
from dro_temp.cli.clip.data import Columns, pairs, same_meaning
from dro_temp.cli.clip.models import load
from dro_temp.cli.clip.schemes import SCHEMES
from dro_temp.cli.clip.shards import ShardEpochs, urls_of
from dro_temp.cli.main import main
from dro_temp.cli.messages import sentence
from dro_temp.datasets import GlyphCaptions
from dro_temp.predictors import TempNet

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PAIRS = 60


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The same pairs in every form, and an architecture."""
    folder = tmp_path_factory.mktemp("clip")
    return {
        "model": files.write_architecture(folder),
        "csv": files.write_csv(folder / "csv", PAIRS),
        "folder": files.write_captions(folder / "captions", PAIRS),
        "shards": files.write_shards(folder / "shards", PAIRS, 2),
        "classes": files.write_classes(folder / "classes", 16),
    }


def command(given, output, *options, data="csv", scheme="tempnet", rho="1.0"):
    radius = ["--rho", rho] if "rho" in inspect.signature(SCHEMES[scheme]).parameters else []
    source = [
        "--model",
        str(given["model"]),
        "--data",
        str(given.get(data, data)),
        "--scheme",
        scheme,
        *radius,
    ]
    sizes = ["--epochs", "2", "--batch", "16", "--save_every", "2", "--val_pairs", "12", "--warmup", "1"]
    return ["clip", "fit", str(output), *source, *sizes, *options]


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    """A run of six steps that nothing interrupts."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(command(given, run, "--zero_shot", str(given["classes"]))) == 0
    return run


def test_a_run_leaves_what_the_docs_say(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml",
        "checkpoints",
        "log.csv",
        "best.pt",
        "model",
        "objective.pt",
        "tempnet",
        "history.pt",
        "finished.json",
    }
    written = json.loads((finished / "finished.json").read_text())
    assert (written["epochs"], len(written["validations"])) == (2, 2)
    assert written["best_epoch"] in (1, 2)
    assert {"mean_r1", "i2t_r5", "zero_shot_top1", "tau_image"} <= written["validations"][0].keys()
    with (finished / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)
    assert {row["step"] for row in rows if row["val/mean_r1"]} == {"3", "6"}
    assert all(float(row["loss"]) > 0 for row in rows if row["loss"])
    assert isinstance(TempNet.from_pretrained(finished / "tempnet" / "image"), TempNet)


def test_the_model_is_open_clips_own(finished, given):
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{finished / 'model'}")
    other = open_clip.create_model(
        given["model"].stem, pretrained=str(finished / "model" / "open_clip_model.safetensors")
    )
    images = transform(files.picture(1)[0])[None]
    texts = open_clip.get_tokenizer(f"local-dir:{finished / 'model'}")(["a red bar"])
    with torch.no_grad():
        assert torch.equal(model.eval().encode_image(images), other.eval().encode_image(images))
        assert torch.equal(model.encode_text(texts), other.encode_text(texts))


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_goes_on_bit_for_bit(given, finished, tmp_path, monkeypatch, capsys, step):
    arguments = command(given, tmp_path / "run", "--zero_shot", str(given["classes"]))
    assert interrupted(arguments, step, monkeypatch) == 130
    said = capsys.readouterr().err
    assert ("before anything was saved" if step == 1 else "is safe") in said
    assert main(["clip", "eval", str(tmp_path / "run")]) == 2
    assert ("config.yaml" if step == 0 else "has not finished") in capsys.readouterr().err
    assert main(arguments) == 0
    assert_equal(finished, tmp_path / "run")
    logs = [(run / "log.csv").read_text() for run in (finished, tmp_path / "run")]
    assert logs[0] == logs[1]  # the steps that were taken twice are there once


def test_a_finished_run_does_nothing_and_more_epochs_go_on(given, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    before = weights(run)
    arguments = command(given, run, "--zero_shot", str(given["classes"]))
    assert main(arguments) == 0
    assert "is finished: 2 epochs" in capsys.readouterr().out
    assert main(["clip", "fit", str(run), "--epochs", "3"]) == 0  # the other options are the run's own
    assert "resumes from checkpoint-6" in capsys.readouterr().out
    assert len(json.loads((run / "finished.json").read_text())["validations"]) == 3
    assert before.keys() == weights(run).keys()
    assert main([*arguments, "--lr", "0.5"]) == 2
    assert "lr=0.5 (was 0.001)" in capsys.readouterr().err


QUICK = ("isogclr", "fastclip_v3")


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in SCHEMES
        if name not in ("tempnet", "drrho", "noisy_pairs")
    ],
)
def test_every_scheme(given, tmp_path, scheme):
    run = tmp_path / "run"
    assert main(command(given, run, "--epochs", "1", scheme=scheme)) == 0
    if scheme in ("isogclr", "siglip"):
        assert main(["clip", "eval", str(run)]) == 0
        assert main(["clip", "view", str(run), "--limit", "8"]) == 0


def test_doubtful_pairs_are_listed(given, tmp_path):
    run = tmp_path / "run"
    assert main(command(given, run, "--epochs", "1", scheme="noisy_pairs", rho="0.5")) == 0
    assert main(["clip", "eval", str(run)]) == 0
    with (run / "doubtful.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert [float(row["weight"]) for row in rows] == sorted(float(row["weight"]) for row in rows)
    assert rows[0]["image"].endswith(".png")
    assert rows[0]["caption"].startswith("a ")


def test_a_scheme_with_a_reference_and_chunks(given, tmp_path):
    run = tmp_path / "run"
    reference = ("--reference", str(given["model"]), "--chunk", "8")
    assert main(command(given, run, "--epochs", "1", *reference, scheme="drrho")) == 0
    assert main(["clip", "view", str(run), "--limit", "8"]) == 0


@pytest.mark.slow
def test_chunks_change_nothing(given, tmp_path):
    for name, more in (("whole", ()), ("parts", ("--chunk", "5"))):
        assert main(command(given, tmp_path / name, "--epochs", "1", *more, scheme="sogclr")) == 0
    one, two = (weights(tmp_path / name) for name in ("whole", "parts"))
    for name, x in one.items():
        if not name.startswith("losses"):
            torch.testing.assert_close(x, two[name], rtol=1e-3, atol=1e-5)


def test_every_recipe_is_a_scheme():
    assert set(SCHEMES) == set(recipes.__all__) - {"supcon"}  # which needs groups


def test_eval_and_view(finished, given, capsys):
    assert (
        main(
            [
                "clip",
                "eval",
                str(finished),
                "--data",
                str(given["csv"]),
                "--templates",
                "a {}.|one {}",
                "--limit",
                "20",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "R@10" in said
    assert "zero-shot, 16 images of 4 classes" in said
    found = json.loads((finished / "eval.json").read_text())
    assert found[str(given["csv"])]["temperatures"]["image"]["mean"] > 0
    assert main(["clip", "view", str(finished), "--data", str(given["folder"]), "--limit", "9"]) == 0
    page = (finished / "page.html").read_text()
    assert page.count('class="i ') == 9
    assert "Nearest false negatives" in page
    assert "Over training" in page
    for name in ("eval.json", "page.html"):
        (finished / name).unlink()


# --- Data ----------------------------------------------------------------------------------------------------


def test_sources_hold_the_same_pairs(given, tmp_path):
    pytest.importorskip("datasets")
    table = files.write_table(tmp_path / "table", PAIRS)
    found = [pairs(str(source), Columns()) for source in (given["csv"], given["folder"], table)]
    for samples in found:
        assert len(samples) == PAIRS
        image, caption = samples.item(7)
        assert caption == files.picture(7)[1]
        assert image.tobytes() == files.picture(7)[0].tobytes()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_of_shards_resumes_at_any_batch(given, workers):
    data = ShardEpochs(
        urls_of(given["shards"]),
        PAIRS,
        8,
        lambda image: torch.tensor(image.getpixel((10, 10))),
        len_of,
        0,
        workers,
    )
    whole = [batch[2].tolist() for batch in data.batches(1, 0)]
    assert len(whole) == data.steps == 7
    assert len({n for batch in whole for n in batch}) > 40
    for first in (1, 4):
        assert [batch[2].tolist() for batch in data.batches(1, first)] == whole[first:]
    assert [batch[2].tolist() for batch in data.batches(2, 0)] != whole


def len_of(caption):
    return torch.tensor(len(caption))


@pytest.mark.slow
def test_shards_train_and_resume(given, tmp_path, monkeypatch):
    for name in ("a", "b"):
        arguments = command(
            given, tmp_path / name, "--val", str(given["csv"]), data="shards", scheme="sogclr"
        )
        if name == "b":
            assert interrupted(arguments, 3, monkeypatch) == 130
        assert main(arguments) == 0
    assert_equal(tmp_path / "a", tmp_path / "b")


def test_equal_captions_and_images_mean_the_same(tmp_path):
    with (tmp_path / "pairs.csv").open("w") as file:
        file.write("filepath,title\na.png,one\na.png,two\nb.png,two\nc.png,three\n")
    for name in "abc":
        files.picture(1)[0].save(tmp_path / f"{name}.png")
    places, captions, of_image, of_caption = same_meaning(pairs(str(tmp_path / "pairs.csv"), Columns()))
    assert (places, captions) == ([0, 2, 3], ["one", "two", "three"])
    assert of_image.tolist() == [0, 0, 1]
    assert of_caption.tolist() == [0, 0, 1]


@pytest.mark.parametrize("damage", ["column", "file", "caption", "tar", "nothing"])
def test_data_are_checked_before_a_model_is_loaded(given, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(sys.modules["dro_temp.cli.clip.fit"], "load", None)
    text = {
        "column": ("pairs.csv", "a,title\nx.png,y\n", "--image_column"),
        "file": ("pairs.csv", "filepath,title\nx.png,y\n", "which is not there"),
        "tar": ("pairs.tar", "no tar", "expected a tar file"),
    }
    if damage == "caption":
        files.picture(1)[0].save(tmp_path / "one.png")
        source, part = tmp_path, "without one.txt"
    elif damage == "nothing":
        source, part = tmp_path / "no.csv", "--data"
    else:
        name, content, part = text[damage]
        source = tmp_path / name
        source.write_text(content)
    with pytest.raises(ValueError, match=r"(?s)expected .*received") as raised:
        CLIP.commands["fit"](tmp_path / "run", model=str(given["model"]), data=str(source))
    assert part in sentence(raised.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


# --- Options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch": 1}, "--batch"),
        ({"lr": 0.0}, "--lr"),
        ({"hold": 1.0}, "--hold"),
        ({"crop": 0.0}, "--crop"),
        ({"chunk": 0}, "--chunk"),
        ({"seed": -1}, "--seed"),
        ({"tau": 0.1}, "expected options of --scheme tempnet (--rho"),
        ({"scheme_options": {"queue": 3}}, "--scheme_options '{queue: ...}'"),
        ({"rho": 1.0, "scheme_options": {"rho": 3}}, "each option once"),
        ({"reference": "ViT-B-32"}, "no reference with --scheme tempnet"),
        ({"scheme": "drrho"}, "Pass --reference"),
        ({"model": "ViT-B-23"}, "Type --model ViT-B-"),
        ({"model": "./nothing.json"}, "is not there"),
        ({"weights": "./nothing.pt"}, "--weights"),
        ({"templates": "a photo|a {}", "zero_shot": "x"}, "received 'a photo'"),
        ({"samples": 100}, "--samples with shards alone"),
        ({"batch": 200}, "at least one batch of 200"),
    ],
)
def test_options_out_of_range(given, tmp_path, options, part):
    usual = {"model": str(given["model"]), "data": str(given["csv"]), "scheme": "tempnet"}
    with pytest.raises(ValueError, match=r"(?s)expected .*received") as raised:
        CLIP.commands["fit"](tmp_path / "run", **usual | options)
    assert part in sentence(raised.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_error_is_one_sentence(given, tmp_path, capsys):
    assert main(command(given, tmp_path / "run", "--hold", "1")) == 2
    said = capsys.readouterr().err
    assert said.startswith("dro-temp clip fit: expected --hold")
    assert said.count("\n") == 1


def test_an_unknown_scheme_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["clip", "fit", "x", "--scheme", "tempnets"])
    assert "Type --scheme tempnet." in capsys.readouterr().err


def test_an_unknown_word_names_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["clip"])
    assert "Type dro-temp clip and one of fit, eval, view." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fit", "eval", "view"])
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit):
        main(["clip", name, "--help"])
    said = capsys.readouterr().out
    assert CLIP.examples[name].strip() in said
    for option in re.findall(
        r" --([a-z]\w*)", CLIP.examples[name].replace("torchrun --nproc-per-node 8", "")
    ):
        assert f"--{option} " in said.partition("examples")[0], option


def test_models_may_have_towers_of_timm(tmp_path):
    pytest.importorskip("timm")
    tower = {"image_size": 32, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(files.ARCHITECTURE | {"vision_cfg": tower}))
    clip = load(str(path))
    assert type(clip.model.visual).__name__ == "TimmModel"
    clip.save(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    image = clip.transform(files.picture(3)[0])[None]
    with torch.no_grad():
        assert torch.equal(clip.model.encode_image(image), again.model.encode_image(image))


# --- Slow ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_models_may_have_towers_of_hugging_face(given, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    captions = [files.picture(i)[1] for i in range(PAIRS)]
    words = {
        word: k
        for k, word in enumerate(["<pad>", "<end>", *sorted({w for c in captions for w in c.split()})])
    }
    inner = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<end>"
    )
    tower = tmp_path / "tower"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertConfig(**sizes, vocab_size=len(words), max_position_embeddings=16).save_pretrained(tower)
    tokenizer.save_pretrained(tower)
    text = {
        "hf_model_name": str(tower),
        "hf_model_pretrained": False,
        "hf_tokenizer_name": str(tower),
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 8,
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(files.ARCHITECTURE | {"text_cfg": text}))
    run = tmp_path / "run"
    assert main(command(given | {"model": path}, run, "--epochs", "1")) == 0
    assert main(["clip", "eval", str(run)]) == 0
    assert (
        load(str(run / "model")).tokens(captions[3]).tolist() == load(str(path)).tokens(captions[3]).tolist()
    )


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("data", "scheme"), [("csv", "tempnet_queued"), ("csv", "isogclr"), ("shards", "fastclip_v3")]
)
def test_a_killed_run_goes_on_bit_for_bit(given, tmp_path, data, scheme, step):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--workers", "2")
    assert main(command(given, whole, *more, data=data, scheme=scheme)) == 0
    arguments = command(given, parts, *more, data=data, scheme=scheme)
    killed = run_code(KILLED, str(step), *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main([*arguments[: -len(more)], "--workers", "0"] if data == "csv" else arguments) == 0
    assert_equal(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["csv", "shards"])
def test_several_processes(given, tmp_path, data):
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(given, run, "--batch", "8", data=data, scheme="tempnet_queued")

    def launch() -> str:
        done = subprocess.run(
            [*launcher, "-m", "dro_temp.cli", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("wrote ") == 1
        return done.stdout

    launch()
    assert len(list((run / "checkpoints").glob("*/random_states_*.pkl"))) == 4
    whole = shutil.copytree(run, tmp_path / "whole")
    # As if it had been killed before its last checkpoint.
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    (run / "finished.json").unlink()
    assert "resumes from checkpoint-4" in launch()
    assert_equal(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--precision", "bf16"), ("--compile", "true")])
def test_precision_and_compile(given, tmp_path, options):
    assert main(command(given, tmp_path / "run", *options)) == 0


@pytest.mark.slow
def test_a_table_of_datasets_and_workers(given, tmp_path):
    pytest.importorskip("datasets")
    table = files.write_table(tmp_path / "table", PAIRS)
    for name, workers in (("a", "0"), ("b", "2")):
        assert main(command(given, tmp_path / name, "--workers", workers, data=str(table))) == 0
    assert_equal(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_glyphs_offline(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dro_temp.cli.clip.data.GlyphCaptions", partial(GlyphCaptions, size=2000))
    run = tmp_path / "run"
    assert main(["clip", "fit", str(run), "--epochs", "1", "--batch", "256", "--val_pairs", "200"]) == 0
    assert "zero_shot_top1" in capsys.readouterr().out
    assert main(["clip", "eval", str(run), "--limit", "200"]) == 0
    said = capsys.readouterr().out
    assert "glyphs of names not seen" in said
    assert main(["clip", "view", str(run), "--limit", "20"]) == 0
