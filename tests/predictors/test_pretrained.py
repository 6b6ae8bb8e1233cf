"""Saving, loading, the Hub, and the paper's own checkpoints."""

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import PREDICTORS
from torch import nn

import dro_temp as dt
from dro_temp.predictors import HeadShape
from dro_temp.predictors.checkpoint import PATTERNS

pytest.importorskip("safetensors")

BOUNDS = {"tau_min": 0.1, "tau_max": 2.0}
NETWORKS = [case for case in PREDICTORS if isinstance(case.build(), dt.TempNet)]


def _network(seed=0, **options):
    torch.manual_seed(seed)
    return dt.TempNet.for_logits(12, width=4, **BOUNDS | options)


def _weights(folder):
    return sorted(p.name for p in folder.glob("*.safetensors"))


def _same(ours, theirs):
    state = theirs.state_dict()
    return all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


# Round trips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_saved_is_what_is_loaded(case, dtype, tmp_path):
    saved = case.build().to(dtype)
    saved.save_pretrained(tmp_path / "net")
    before = torch.random.get_rng_state()
    loaded = dt.TempNet.from_pretrained(tmp_path / "net")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.config == saved.config
    assert _same(saved, loaded)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    assert [m.p for m in loaded.modules() if isinstance(m, nn.Dropout)] == [
        m.p for m in saved.modules() if isinstance(m, nn.Dropout)
    ]
    inputs = case.inputs(5)
    assert torch.equal(loaded(**inputs), saved.eval()(**inputs))


def test_loaded_networks_can_be_trained_and_saved_again(tmp_path):
    _network().save_pretrained(tmp_path)
    loaded = dt.TempNet.from_pretrained(tmp_path).train()
    loaded(support=dt.Support(torch.randn(3, 12))).sum().backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    loaded.save_pretrained(tmp_path)
    assert _same(loaded, dt.TempNet.from_pretrained(str(tmp_path)))


def test_the_model_that_it_was_made_for_travels_with_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
    )
    model.config._name_or_path = "some/model"
    saved = dt.TempNet.for_lm(model, inputs=("hidden", "statistics"), rho=3.5, **BOUNDS)
    saved.save_pretrained(tmp_path)
    loaded = dt.TempNet.from_pretrained(tmp_path)
    assert loaded.made_for == HeadShape(99, 16, "some/model")
    assert loaded.rho == 3.5
    loaded.check_fits(model)
    model.resize_token_embeddings(98)
    with pytest.raises(ValueError, match=r"99 outcomes.*\(some/model\).*received.*98 outcomes"):
        loaded.check_fits(model)


class Shifted(dt.predictors.TempNetEncoder):
    reads = frozenset({"features"})

    def __init__(self, shift):
        super().__init__()
        self.width, self.shift = 4, shift

    @property
    def config(self):
        return {"shift": self.shift}

    def forward(self, inputs):
        return inputs.features[:, :4] + self.shift


@pytest.mark.parametrize("several", [False, True])
def test_an_encoder_of_ones_own(several, tmp_path):
    encoder = dt.predictors.SumEncoder([Shifted(0.5), Shifted(2.0)]) if several else Shifted(0.5)
    saved = dt.TempNet(encoder, **BOUNDS).eval()
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"one of 'Shifted'\. Pass .*encoders=\(Shifted,\)"):
        dt.TempNet.from_pretrained(tmp_path)
    loaded = dt.TempNet.from_pretrained(tmp_path, encoders=(Shifted,))
    x = torch.randn(3, 6)
    assert torch.equal(loaded(x), saved(x))


def test_a_readout_that_nobody_knows(tmp_path):
    _network().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("PooledReadout", "Oracle"))
    with pytest.raises(
        ValueError, match=r"expected a readout of one of the classes PooledReadout, .*'Oracle'"
    ):
        dt.TempNet.from_pretrained(tmp_path)


class Halved(dt.predictors.TempNetReadout):
    def forward(self, encoder, similarities):
        return self.last(similarities / 2).squeeze(1)


def test_a_readout_of_ones_own(tmp_path):
    saved = dt.TempNet(Shifted(0.5), readout=Halved, **BOUNDS).eval()
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"one of 'Halved'\. Pass .*readouts=\(Halved,\)"):
        dt.TempNet.from_pretrained(tmp_path, encoders=(Shifted,))
    loaded = dt.TempNet.from_pretrained(tmp_path, encoders=(Shifted,), readouts=(Halved,))
    x = torch.randn(3, 6)
    assert isinstance(loaded.readout, Halved)
    assert torch.equal(loaded(x), saved(x))


def test_a_network_of_another_class(tmp_path):
    class Clipped(dt.TempNet):
        def bound(self, raw):
            return raw.clamp(self.tau_min, self.tau_max)

    Clipped(4, **BOUNDS).save_pretrained(tmp_path)
    assert isinstance(Clipped.from_pretrained(tmp_path), Clipped)
    with pytest.raises(ValueError, match="expected a checkpoint of TempNet, received one of 'Clipped'"):
        dt.TempNet.from_pretrained(tmp_path)


# The model card ------------------------------------------------------------------------------------------


def test_a_card_says_what_it_is(tmp_path):
    network = dt.TempNet(dt.predictors.HiddenEncoder(8, width=4), **BOUNDS)
    network.made_for, network.rho = HeadShape(99, 8, "some/model"), 3.50000999
    network.save_pretrained(tmp_path)
    said = (tmp_path / "README.md").read_text()
    yaml = pytest.importorskip("yaml")
    header = yaml.safe_load(said.split("---")[1])
    assert header["base_model"] == "some/model"
    assert header["library_name"] == "dro-temp"
    parameters = sum(p.numel() for p in network.parameters())
    for part in (
        *(
            "0.1 to 2.0",
            "| 3.5 |",
            "scores are divided by its temperatures",
            "[some/model](",
            "HiddenEncoder",
            "99 outcomes and width 8",
            "2404.04575",
            dt.__version__,
        ),
        *("dt.TempNet.from_pretrained(", f"{parameters:,}"),
    ):
        assert part in said
    network.made_for = HeadShape(99, 8, "/home/me/secret/model")
    network.save_pretrained(tmp_path)
    said = (tmp_path / "README.md").read_text()  # ours, and not edited: written again
    assert "secret" not in said
    assert "base_model" not in said


def test_a_card_that_was_edited_stays(tmp_path):
    network = _network()
    network.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    network.rho = 1.5
    network.save_pretrained(tmp_path)
    assert "1.5" in card.read_text()
    edited = card.read_text().replace("# TempNet", "# Mine")
    card.write_text(edited)
    network.rho = 2.5
    network.save_pretrained(tmp_path)
    assert card.read_text() == edited
    card.write_bytes(b"\xff\xfe")  # no text at all
    network.save_pretrained(tmp_path)
    assert card.read_bytes() == b"\xff\xfe"


# Saving harms nothing ------------------------------------------------------------------------------------


def test_saving_over_an_earlier_checkpoint(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    first, second = _network(0), _network(1)
    for network in (first, second, second):
        network.save_pretrained(tmp_path)
        assert _same(network, dt.TempNet.from_pretrained(tmp_path))
        assert len(_weights(tmp_path)) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["README.md", "config.json", *_weights(tmp_path)]
    )
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("text", ['{"model_type": "gpt2"}', "[]", "{"])
def test_the_config_of_something_else_is_not_overwritten(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileExistsError, match=r"expected a folder without config.json.*received.*tempnet"):
        _network().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == text
    assert _weights(tmp_path) == []


@pytest.mark.parametrize("step", range(18))
@pytest.mark.parametrize("earlier", [False, True])
def test_a_save_that_stops_anywhere(step, earlier, tmp_path, monkeypatch):
    """After any of its steps: the earlier checkpoint, or the new one, or none where there was none."""
    first, second = _network(0), _network(1)
    if earlier:
        first.save_pretrained(tmp_path)
    done = []

    def stops_before(name, call):
        def run(*args, **kwargs):
            if len(done) == step:
                raise KeyboardInterrupt
            done.append(name)
            return call(*args, **kwargs)

        return run

    monkeypatch.setattr(os, "fsync", stops_before("fsync", os.fsync))
    for name in ("open", "replace", "unlink"):
        monkeypatch.setattr(Path, name, stops_before(name, getattr(Path, name)))
    with contextlib.suppress(KeyboardInterrupt):
        second.save_pretrained(tmp_path)
    monkeypatch.undo()
    expected = second if done.count("replace") >= 2 else first if earlier else None
    if expected is None:
        with pytest.raises(FileNotFoundError):
            dt.TempNet.from_pretrained(tmp_path)
    else:
        assert _same(expected, dt.TempNet.from_pretrained(tmp_path))
    second.save_pretrained(tmp_path)
    assert _same(second, dt.TempNet.from_pretrained(tmp_path))


def test_a_process_that_is_killed_while_it_saves(tmp_path):
    code = (
        "import sys, torch, dro_temp as dt\n"
        "nets = []\n"
        "for seed in (0, 1):\n"
        "    torch.manual_seed(seed)\n"
        "    nets.append(dt.TempNet.for_logits(2000, width=64, tau_min=0.1, tau_max=2.0))\n"
        "nets[0].save_pretrained(sys.argv[1]); print('ready', flush=True)\n"
        "while True:\n"
        "    for net in nets: net.save_pretrained(sys.argv[1])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        child.kill()
    loaded = dt.TempNet.from_pretrained(tmp_path)
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(dt.TempNet.for_logits(2000, width=64, **BOUNDS))
    assert any(_same(network, loaded) for network in networks)


# Checkpoints that are no longer whole --------------------------------------------------------------------


def _truncate(folder):
    path = folder / _weights(folder)[0]
    path.write_bytes(path.read_bytes()[:-8])


def _edit(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if v is not ...}, default=str)
        )

    return edit


def _flip(folder):
    path = folder / _weights(folder)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "one without config.json"),
        (lambda f: (f / _weights(f)[0]).unlink(), FileNotFoundError, "without them"),
        (_truncate, ValueError, "whose .* bytes are not those"),
        (_flip, ValueError, "whose .* bytes are not those"),
        (lambda f: (f / _weights(f)[0]).write_bytes(b""), ValueError, "whose 0 bytes"),
        (lambda f: (f / "config.json").write_text('{"library": "dro-'), ValueError, "which is no JSON"),
        (lambda f: (f / "config.json").write_text(""), ValueError, "which is no JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'), ValueError, "something else"),
        (_edit(format=99), ValueError, "format 99.*pip install --upgrade"),
        (_edit(weights=...), ValueError, "names no weights"),
        (_edit(weights={"file": "../elsewhere/tempnet-1.safetensors"}), ValueError, "names no weights"),
        (_edit(weights={"file": "model.pt"}), ValueError, "names no weights"),
        (_edit(encoder=...), ValueError, "cannot be built.*KeyError"),
        (_edit(encoder={"class": "LogitEncoder", "colour": 3}), ValueError, "cannot be built.*colour"),
        (_edit(encoder={"class": "Oracle"}), ValueError, "one of 'Oracle'"),
        (_edit(encoder={"class": "LogitEncoder", "outcomes": 13, "width": 4}), ValueError, r"\[4, 13\].*\[4, 12\]"),
        (_edit(encoder={"class": "StatisticsEncoder", "width": 4}), ValueError, "encoder.first.weight"),
        (_edit(encoder={"class": "HiddenEncoder", "features": 12, "width": 4}), ValueError, "encoder.norm.weight"),
        (_edit(tau_min=3.0), ValueError, "tau_min < tau_max"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_shape_checks")
def test_damage_is_told(damage, kind, words, tmp_path):
    _network().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(kind, match=f"(?s)expected(?=.*received).*{words}"):
        dt.TempNet.from_pretrained(tmp_path)


def _nested(depth):
    inner = {"class": "StatisticsEncoder", "width": 4, "dropout": 0.0}
    for _ in range(depth):
        inner = {"class": "SumEncoder", "encoders": [inner, inner]} if depth < 9 else {"encoders": [inner]}
    return inner


HUGE = 2**40


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": {"class": "LogitEncoder", "outcomes": HUGE, "width": HUGE}},
        {"encoder": {"class": "LogitEncoder", "outcomes": 10**30, "width": 4}},
        {"encoder": {"class": "PrototypeEncoder", "features": 2**20, "prototypes": 2**20}},
        {"encoder": {"class": "LogitEncoder", "outcomes": -12, "width": 4}},
        {"encoder": {"class": "LogitEncoder", "outcomes": 12.5, "width": 4}},
        {"encoder": {"class": "LogitEncoder", "outcomes": "12", "width": 4}},
        {"encoder": {"class": "LogitEncoder", "outcomes": True, "width": 4}},
        {"encoder": {"class": "LogitEncoder", "outcomes": [12], "width": 4}},
        {"encoder": {"class": "LogitEncoder", "outcomes": 12, "width": 4, "dropout": "x"}},
        {"encoder": {"class": ["LogitEncoder"]}},
        {"encoder": ["LogitEncoder"]},
        {"encoder": "LogitEncoder"},
        {"encoder": None},
        {"encoder": _nested(8)},
        {"encoder": _nested(300)},
        {"encoder": {"class": "SumEncoder", "encoders": [_nested(0)] * 5000}},
        {"encoder": {"class": "SumEncoder", "encoders": 3}},
        {"readout": 3},
        {"tau_min": "0.1"},
        {"tau_max": 10**400},
        {"rho": "8"},
        {"rho": -1.0},
        {"made_for": 3},
        {"made_for": {"outcomes": "x", "width": 4}},
        {"made_for": {"outcomes": -1, "width": 4}},
        {"made_for": {"outcomes": 12, "width": 4, "name": 3}},
        {"made_for": {"colour": 3}},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_an_untrusted_config_is_refused_before_anything_is_made(changes, tmp_path):
    resource = pytest.importorskip("resource")
    _network().save_pretrained(tmp_path)
    _edit(**changes)(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"(?s)expected(?=.*received)"):
        dt.TempNet.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"library": "dro-temp", "x": ' + "[" * 50_000, " " * 2**20 + "{}"],
    ids=["deep", "deep inside", "large"],
)
def test_a_config_that_would_exhaust_the_parser(text, tmp_path):
    _network().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="expected an intact checkpoint"):
        dt.TempNet.from_pretrained(tmp_path)


def test_weights_of_whole_numbers_are_refused(tmp_path):
    from safetensors.torch import save

    network = _network()
    network.save_pretrained(tmp_path)
    data = save({name: x.long() for name, x in network.state_dict().items()})
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / f"tempnet-{digest[:12]}.safetensors").write_bytes(data)
    _edit(weights={"file": f"tempnet-{digest[:12]}.safetensors", "sha256": digest})(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)expected weights that belong to config.json.*of torch.int64"):
        dt.TempNet.from_pretrained(tmp_path)
    data = b"no safetensors"
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / f"tempnet-{digest[:12]}.safetensors").write_bytes(data)
    _edit(weights={"file": f"tempnet-{digest[:12]}.safetensors", "sha256": digest})(tmp_path)
    with pytest.raises(ValueError, match="which is no safetensors file"):
        dt.TempNet.from_pretrained(tmp_path)


def test_safetensors_that_is_missing(tmp_path, monkeypatch):
    _network().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (
        lambda: _network().save_pretrained(tmp_path / "new"),
        lambda: dt.TempNet.from_pretrained(tmp_path),
        lambda: _network().push_to_hub("me/net"),
    ):
        with pytest.raises(ImportError, match=r"expected .*safetensors.*pip install 'dro-temp\[llm\]'"):
            call()
    assert not (tmp_path / "new").exists()


# The Hub -------------------------------------------------------------------------------------------------


class Api:
    """The part of huggingface_hub that is used, on this machine's disk."""

    def __init__(self, root, token=None):
        self.root, self.token = root, token

    def create_repo(self, name, *, private, exist_ok):
        assert exist_ok
        repository = name if "/" in name else f"me/{name}"
        (self.root / repository).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repository)

    def file_exists(self, repo_id, filename):
        return (self.root / repo_id / filename).exists()

    def hf_hub_download(self, repo_id, filename):
        return str(self.root / repo_id / filename)

    def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns, delete_patterns):
        assert allow_patterns == [*PATTERNS, "custom_generate/generate.py"]
        new = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        for pattern in delete_patterns:
            for old in (self.root / repo_id).glob(pattern):
                old.unlink()
        for name, data in new.items():
            (self.root / repo_id / name).write_bytes(data)


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    real = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        if not (tmp_path / name).is_dir():
            raise real.errors.LocalEntryNotFoundError("nothing there")
        return str(tmp_path / name)

    monkeypatch.setattr(real, "HfApi", lambda token: Api(tmp_path, token))
    monkeypatch.setattr(real, "snapshot_download", snapshot_download)
    return SimpleNamespace(root=tmp_path, asked=asked)


def test_to_the_hub_and_back(on_disk):
    first, second = _network(0), _network(1)
    for network in (first, second):
        assert network.push_to_hub("net", private=True) == "https://huggingface.co/me/net"
        assert len(_weights(on_disk.root / "me" / "net")) == 1
    loaded = dt.TempNet.from_pretrained("me/net", revision="v1", token="secret")
    assert _same(second, loaded)
    ((name, options),) = on_disk.asked
    assert name == "me/net"
    assert options == {
        "revision": "v1",
        "token": "secret",
        "cache_dir": None,
        "allow_patterns": ["config.json", "tempnet-*.safetensors", "README.md"],
    }


def test_a_card_of_the_hub_that_was_edited_stays(on_disk):
    network = _network()
    network.push_to_hub("net")
    card = on_disk.root / "me" / "net" / "README.md"
    assert "# TempNet" in card.read_text()
    network.rho = 1.5
    network.push_to_hub("net")
    assert "1.5" in card.read_text()
    card.write_text("mine")
    network.push_to_hub("net")
    assert card.read_text() == "mine"
    assert _same(network, dt.TempNet.from_pretrained("me/net"))


def test_the_real_hub_takes_what_it_is_given():
    """Names of arguments change between versions."""
    import inspect

    real = pytest.importorskip("huggingface_hub")
    wanted = {
        real.snapshot_download: ("revision", "token", "cache_dir", "allow_patterns"),
        real.HfApi.create_repo: ("private", "exist_ok"),
        real.HfApi.upload_folder: (
            *("repo_id", "folder_path", "commit_message", "allow_patterns", "delete_patterns"),
        ),
        real.HfApi.__init__: ("token",),
        real.HfApi.file_exists: ("repo_id", "filename"),
        real.HfApi.hf_hub_download: ("repo_id", "filename"),
    }
    for call, names in wanted.items():
        assert set(names) <= set(inspect.signature(call).parameters)


def test_names_of_nothing(on_disk, tmp_path):
    with pytest.raises(
        OSError, match=r"expected a folder or a repository.*received 'no/such'.*nothing there"
    ):
        dt.TempNet.from_pretrained("no/such")
    for source in (tmp_path / "none", str(tmp_path / "none"), "./none", "a/b/c", "../x"):
        with pytest.raises(FileNotFoundError, match=r"expected a folder.*received"):
            dt.TempNet.from_pretrained(source)
    assert [name for name, _ in on_disk.asked] == ["no/such"]


def test_a_hub_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    _network().save_pretrained(tmp_path)
    dt.TempNet.from_pretrained(tmp_path)  # a folder needs no Hub
    for call in (lambda: dt.TempNet.from_pretrained("me/net"), lambda: _network().push_to_hub("me/net")):
        with pytest.raises(ImportError, match=r"huggingface_hub.*pip install 'dro-temp\[llm\]'"):
            call()


def test_patterns_are_those_of_the_files(tmp_path):
    _network().save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        assert any(file.match(pattern) for pattern in PATTERNS)


# The paper's own checkpoints -----------------------------------------------------------------------------


def _published(outcomes=30, width=8, prefix="tempnet.", dtype=torch.float64, scaler=(1,)):
    g = torch.Generator().manual_seed(0)
    shapes = {
        "proj.0.weight": (width, outcomes),
        "proj.0.bias": (width,),
        "proj.3.weight": (width, width),
        "proj.3.bias": (width,),
        "scaler": scaler,
        "last.weight": (1, width),
        "last.bias": (1,),
    }
    return {prefix + k: 0.7 * torch.randn(s, generator=g).to(dtype) for k, s in shapes.items()}


def _by_hand(state, z, low, high, centred):
    """As arXiv 2404.04575 writes it, one row at a time, in plain Python."""
    w = {name.removeprefix("tempnet."): value.double() for name, value in state.items()}
    if centred:
        z = z - max(z.tolist())
    z = z / math.sqrt(sum(x * x for x in z.tolist()))
    layer = lambda k, x: [float(a @ x + b) for a, b in zip(w[f"{k}.weight"], w[f"{k}.bias"], strict=True)]  # noqa: E731
    hidden = torch.tensor([1 / (1 + math.exp(-x)) for x in layer("proj.0", z)], dtype=torch.float64)
    v = layer("proj.3", hidden)
    e = [math.exp(x / math.exp(float(w["scaler"]))) for x in v]
    pooled = [(x / sum(e) - 1 / len(v)) * y for x, y in zip(e, v, strict=True)]
    (readout,) = layer("last", torch.tensor(pooled, dtype=torch.float64))
    return low + (high - low) / (1 + math.exp(-readout))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("high", [1.2, 2.0])
@pytest.mark.parametrize("prefix", ["tempnet.", ""])
@pytest.mark.parametrize("scaler", [(1,), ()], ids=str)
def test_a_published_checkpoint_gives_the_papers_formula(centred, high, prefix, scaler):
    state = _published(prefix=prefix, scaler=scaler)
    network = dt.TempNet.from_reference(state, tau_min=0.01, tau_max=high, centred=centred).double()
    assert not network.training
    logits = 5 * torch.randn(6, 30, dtype=torch.float64)
    found = network(support=dt.Support(logits))
    expected = [_by_hand(state, z, 0.01, high, centred) for z in logits]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.std() > 1e-3


@pytest.mark.parametrize("name", ["tempnet.bin", "tempnet.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_published_files(name, dtype, tmp_path):
    state, path = _published(dtype=dtype), tmp_path / name
    if name.endswith("bin"):
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    for source in (path, str(path)):
        network = dt.TempNet.from_reference(source, tau_min=0.01, tau_max=2.0, centred=False)
        assert network.readout.log_sharpness.dtype == torch.float32
        logits = torch.randn(2, 30)
        expected = [_by_hand(state, z.double(), 0.01, 2.0, False) for z in logits]
        assert network(support=dt.Support(logits)).tolist() == pytest.approx(expected, rel=1e-5)
    network.save_pretrained(tmp_path / "ours")
    assert _same(network, dt.TempNet.from_pretrained(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("tempnet.scaler"), r"missing tempnet\.scaler; unknown none"),
        (lambda s: s.update({"model.embed.weight": torch.ones(1)}), r"unknown model\.embed\.weight.*startswith"),
        (lambda s: s.update({f"layer{i}": torch.ones(1) for i in range(20)}), r"27 keys.*layer7, \.\.\."),
        (lambda s: s.update({"scaler": torch.ones(1)}), "unknown scaler"),
        (dict.clear, "missing tempnet.proj.0.weight, .*last.bias"),
        (lambda s: s.update({"tempnet.scaler": torch.ones(2)}), r"scaler \[2\]"),
        (lambda s: s.update({"tempnet.last.weight": torch.ones(1, 9)}), r"last.weight \[1, 9\]"),
        (lambda s: s.update({"tempnet.proj.0.weight": torch.ones(8)}), r"proj.0.weight \[8\]"),
        (lambda s: s.update({"tempnet.proj.0.weight": torch.tensor(1.0)}), r"proj.0.weight \[\]"),
    ],
)  # fmt: skip
def test_checkpoints_of_another_layout(change, words):
    state = _published()
    change(state)
    with pytest.raises(ValueError, match=f"(?s)expected.*received.*{words}"):
        dt.TempNet.from_reference(state, tau_min=0.01, tau_max=2.0, centred=False)


def test_files_that_hold_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the file.*received.*tempnet\.bin"):
        dt.TempNet.from_reference(tmp_path / "none.bin", tau_min=0.01, tau_max=2.0, centred=False)
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(TypeError, match="expected the checkpoint to be a dict, received list"):
        dt.TempNet.from_reference(tmp_path / "list.bin", tau_min=0.01, tau_max=2.0, centred=False)
