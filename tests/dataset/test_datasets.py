"""What the data sets promise: splits that do not leak, the same on every run, from a cache that is always whole."""

import json
import os
import random
import signal
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dro_temp.datasets import GlyphCaptions, Indexed, WordTokenizer

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")
pytest.importorskip("fontTools")

from dro_temp._files import default_root
from dro_temp.datasets import _glyph_images
from dro_temp.datasets.glyphs import SPLITS

SIZES = (None, 2000)
SMALL = ("DejaVuSansDisplay", "DejaVuSerifDisplay", "STIXSizFiveSymReg", "STIXSizOneSymBol", "cmr10")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Every font, rendered once for all tests of a process."""
    folder = tmp_path_factory.mktemp("glyphs")
    _glyph_images.load(folder)
    return folder


@pytest.fixture(scope="session")
def splits(root):
    return {size: {split: GlyphCaptions(split, root=root, size=size) for split in SPLITS} for size in SIZES}


@pytest.fixture
def small(monkeypatch):
    """Five fonts of a few dozen characters, and how often they were rendered."""
    files = [path for path in _glyph_images.font_files() if path.stem in SMALL]
    render, calls = _glyph_images.render, []

    def counted(paths):
        calls.append(len(paths))
        return render(paths)

    monkeypatch.setattr(_glyph_images, "font_files", lambda: files)
    monkeypatch.setattr(_glyph_images, "render", counted)
    return calls


def same(a, b):
    return torch.equal(a.images, b.images) and (a.captions, a.fonts) == (b.captions, b.fonts)


# --- Glyphs: what is in a split ------------------------------------------------------------------------------


def test_sizes(splits):
    sizes = {split: len(data) for split, data in splits[None].items()}
    assert sizes["train"] >= 30_000
    assert sizes["test_seen"] >= 5_000
    assert sizes["test_unseen"] >= 5_000
    assert min(sizes.values()) >= 1_500


@pytest.mark.parametrize("size", SIZES)
def test_parts_share_what_they_may(splits, size):
    part = splits[size]
    names = {split: set(data.names) for split, data in part.items()}
    fonts = {split: set(data.fonts) for split, data in part.items()}
    for side in ("val", "test"):
        assert names[f"{side}_seen"] <= names["train"]
        assert not names[f"{side}_unseen"] & set(splits[None]["train"].names)
        assert not fonts[f"{side}_seen"] & fonts["train"]
    assert not names["val_unseen"] & names["test_unseen"]
    assert not fonts["val_seen"] & fonts["test_seen"]
    samples = Counter(
        (f, c) for data in part.values() for f, c in zip(data.fonts, data.captions, strict=True)
    )
    assert max(samples.values()) == 1


def test_no_seen_image_was_trained_on(splits):
    train = splits[None]["train"]
    known = {(c, x.numpy().tobytes()) for c, x in zip(train.captions, train.images, strict=True)}
    for split in ("val_seen", "test_seen"):
        data = splits[None][split]
        assert not any(
            (c, x.numpy().tobytes()) in known for c, x in zip(data.captions, data.images, strict=True)
        )


def test_size_means_the_split_of_that_train_set(splits, root):
    whole, part = splits[None], splits[2000]
    assert len(part["train"]) == 2000
    for split in SPLITS:
        key = [set(zip(data.fonts, data.captions, strict=True)) for data in (part[split], whole[split])]
        assert key[0] <= key[1]
        if split.endswith("_unseen"):
            assert key[0] == key[1]
    half = GlyphCaptions(root=root, size=1000)
    assert set(zip(half.fonts, half.captions, strict=True)) < set(
        zip(part["train"].fonts, part["train"].captions, strict=True)
    )


def test_seed_decides(root, splits):
    before = torch.get_rng_state(), random.getstate()
    again = GlyphCaptions("val_unseen", root=root, size=500, seed=0)
    other = GlyphCaptions("val_unseen", root=root, size=500, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert same(again, splits[None]["val_unseen"])
    assert set(again.names) != set(other.names)
    subsets = [GlyphCaptions(root=root, size=500, seed=s) for s in (0, 0, 1)]
    assert same(subsets[0], subsets[1])
    assert not same(subsets[0], subsets[2])


def test_seed_means_the_same_in_every_process(root, splits):
    code = (
        "import hashlib, sys; from dro_temp.datasets import GlyphCaptions\n"
        "data = GlyphCaptions(root=sys.argv[1], size=2000)\n"
        "print(hashlib.sha256(''.join(data.captions).encode()).hexdigest())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(root)],
            env=os.environ | {"PYTHONHASHSEED": salt},
            stdout=subprocess.PIPE,
        )
        for salt in ("1", "2")
    ]
    printed = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(printed) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_attributes_agree(splits, split):
    data = splits[None][split]
    assert data.images.dtype == torch.uint8
    assert data.images.shape == (len(data), 32, 32)
    assert data.name_index.dtype == torch.int64
    assert data.names == sorted(set(data.captions))
    assert [data.names[i] for i in data.name_index.tolist()] == data.captions
    assert [unicodedata.name(chr(c)).lower() for c in data.codepoints] == data.captions
    assert len(data.fonts) == len(data)
    assert split in repr(data)
    assert str(len(data)) in repr(data)


def test_glyphs_are_visible_whole_and_centred(splits):
    for data in splits[None].values():
        x = data.images
        assert x.amax((1, 2)).min() >= 64
        border = torch.cat([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], 1)
        assert int(border.max()) == 0
        columns = x.amax(1) > 0
        left = columns.long().argmax(1)
        right = columns.flip(1).long().argmax(1)
        assert int((left - right).abs().max()) <= 1


def test_only_true_names(splits):
    seen = {(f, c) for data in splits[None].values() for f, c in zip(data.fonts, data.captions, strict=True)}
    fonts = {f for f, _ in seen}
    assert not [f for f in fonts if f.startswith(_glyph_images.LEFT_OUT)]
    assert ("cmr10", "latin small letter a") in seen
    assert ("cmr10", "less-than sign") not in seen  # TeX has an inverted exclamation mark there
    assert ("DejaVuSans", "greek capital letter omega") in seen
    assert not {c for _, c in seen} & {"space", "soft hyphen", "zero width space", "no-break space"}


def test_items(splits):
    data = splits[None]["val_seen"]
    image, caption, index = data[torch.tensor(7)]
    assert (image.dtype, image.shape, index) == (torch.float32, (1, 32, 32), 7)
    assert torch.equal((image * 255).round().byte()[0], data.images[7])
    assert caption == data.captions[7]
    images, captions, index = next(iter(DataLoader(data, batch_size=4)))
    assert images.shape == (4, 1, 32, 32)
    assert list(captions) == data.captions[:4]
    assert index.tolist() == [0, 1, 2, 3]


def test_transform(root):
    data = GlyphCaptions("val_unseen", root=root, transform=lambda image: image.flatten().mul(2).sub(1))
    assert data[0][0].shape == (1024,)
    assert float(data[0][0].min()) == -1.0


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"split": "valid"}, ValueError, "val_seen"),
        ({"size": 0}, ValueError, "size >= 1"),
        ({"size": -3}, ValueError, "size >= 1"),
        ({"size": 10**6}, ValueError, "Leave size out"),
        ({"size": 10**6, "split": "test_seen"}, ValueError, "Leave size out"),
        ({"size": 2.5}, TypeError, "size"),
        ({"seed": "a"}, TypeError, "seed=0"),
    ],
)
def test_refuses(root, arguments, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        GlyphCaptions(root=root, **arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize("index", [-1, 10**6])
def test_refuses_numbers_out_of_range(splits, index):
    with pytest.raises(IndexError, match="expected a sample number"):
        splits[None]["train"][index]


# --- Glyphs: the cache ---------------------------------------------------------------------------------------


def test_rendered_once(small, tmp_path):
    first = GlyphCaptions(root=tmp_path)
    for split in SPLITS:
        GlyphCaptions(split, root=tmp_path)
    assert same(first, GlyphCaptions(root=tmp_path))
    assert len(small) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_is_the_users_cache(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    GlyphCaptions()
    assert [p.suffix for p in (tmp_path / "xdg" / "dro_temp").iterdir()] == [".npz"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home" / ".cache" / "dro_temp"


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "folder in place of images"])
def test_damaged_file_is_rendered_again(small, tmp_path, damage):
    first = GlyphCaptions(root=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "text": b"not an archive",
            "pickle": b"\x80\x04N.",
            "folder in place of images": whole.replace(b"images.npy", b"imagex.npy"),
        }[damage]
    )
    assert same(first, GlyphCaptions(root=tmp_path))
    assert len(small) == 2
    assert same(first, GlyphCaptions(root=tmp_path))
    assert len(small) == 2


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """The bytes of a small cache file, what they mean, and a place to damage them."""
    path = tmp_path_factory.mktemp("kept") / "kept.npz"
    with path.open("wb") as file:
        files = [p for p in _glyph_images.font_files() if p.stem in SMALL]
        _glyph_images.write(file, _glyph_images.render(files))
    return path.read_bytes(), _glyph_images.read(path), path.with_name("damaged.npz")


@given(data=st.data())
def test_flipped_bits_never_reach_the_images(kept, data):
    whole, meant, path = kept
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    read = _glyph_images.read(path)
    if read is not None:  # a date, say
        assert torch.equal(read.images, meant.images)
        assert read[1:] == meant[1:]


def test_an_interrupted_write_leaves_nothing(small, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            GlyphCaptions(root=tmp_path)
    assert list(tmp_path.iterdir()) == []
    GlyphCaptions(root=tmp_path)


def test_two_processes_at_once(tmp_path, root):
    code = (
        "import sys; from dro_temp.datasets import GlyphCaptions, _glyph_images as r\n"
        "files = [p for p in r.font_files() if p.stem in sys.argv[2:]]\n"
        "r.font_files = lambda: files\n"
        "print(len(GlyphCaptions(root=sys.argv[1])))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path), *SMALL], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    printed = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(printed) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_while_rendering_leaves_no_file(tmp_path):
    code = (
        "import sys; from dro_temp.datasets import GlyphCaptions, _glyph_images as r\n"
        "inner = r._render_font\n"
        "def told(path):\n    print('rendering', flush=True)\n    yield from inner(path)\n"
        "r._render_font = told\n"
        "GlyphCaptions(root=sys.argv[1])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(timeout=60) != 0
    assert list(tmp_path.iterdir()) == []


def test_version_follows_fonts_and_unicode(small, tmp_path, monkeypatch):
    files = _glyph_images.font_files()
    here = _glyph_images.version(files)
    copies = [tmp_path / path.name for path in files]
    for copy, path in zip(copies, files, strict=True):
        copy.write_bytes(path.read_bytes())
    assert _glyph_images.version(copies) == here
    copies[0].write_bytes(copies[0].read_bytes() + b"\0")
    monkeypatch.setattr(unicodedata, "unidata_version", "0.0.0")
    assert len({here, _glyph_images.version(copies), _glyph_images.version(files)}) == 3


def test_a_folder_that_cannot_be_written_to(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"expected a folder .* received .*Pass another one"):
        GlyphCaptions(root=tmp_path / "file")
    assert small == []


@pytest.mark.parametrize("missing", ["matplotlib", "fontTools.ttLib", "PIL.Image", "numpy"])
def test_a_missing_package_names_the_command(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'dro-temp\[recipes\]'"):
        GlyphCaptions(root=tmp_path)


def test_progress_only_on_a_terminal(small, tmp_path, monkeypatch, capsys):
    GlyphCaptions(root=tmp_path / "a")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    GlyphCaptions(root=tmp_path / "b")
    assert "rendering glyphs" in capsys.readouterr().err


# --- Indexed -------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter([1, 2])

    def __len__(self):
        return 2


def test_indexed_follows_the_kind_of_item():
    assert Indexed([(1, 2), (3, 4)])[1] == (3, 4, 1)
    assert Indexed([{"a": 1}])[0] == {"a": 1, "index": 0}
    assert Indexed(["a", "b"])[1] == ("b", 1)
    assert Indexed([[1, 2]])[0] == ([1, 2], 0)


def test_indexed_leaves_items_alone():
    item = {"a": 1}
    Indexed([item])[0]
    assert item == {"a": 1}


@given(n=st.integers(1, 9), data=st.data())
def test_indexed_numbers_from_zero(n, data):
    dataset = Indexed(range(n))
    index = data.draw(st.integers(-n, n - 1))
    assert dataset[index] == (range(n)[index], index % n)
    assert len(dataset) == n
    assert list(dataset) == [(i, i) for i in range(n)]
    for outside in (n, -n - 1):
        with pytest.raises(IndexError, match="expected a sample number"):
            dataset[outside]


def test_indexed_in_a_loader():
    dataset = Indexed(TensorDataset(torch.arange(6.0), torch.arange(6)))
    x, y, index = next(iter(DataLoader(dataset, batch_size=6, shuffle=True)))
    assert torch.equal(x.long(), index)
    assert torch.equal(y, index)


def test_indexed_refuses_a_key_that_exists():
    with pytest.raises(KeyError, match="expected items without the key 'index', received"):
        Indexed([{"index": 3}])[0]


@pytest.mark.parametrize("dataset", [Stream(), iter([1]), {1, 2}, 3])
def test_indexed_refuses_streams(dataset):
    with pytest.raises(TypeError, match=r"expected a map-style data set .* received"):
        Indexed(dataset)


# --- Words ---------------------------------------------------------------------------------------------------

CAPTIONS = st.lists(st.text("ab c-<pad>", max_size=12), min_size=1, max_size=8)


@given(captions=CAPTIONS, max_words=st.none() | st.integers(1, 5))
def test_words_round_trip(captions, max_words):
    words = [WordTokenizer.words(c) for c in captions]
    if not any(set(w) - {"<pad>"} for w in words):
        return
    tokenizer = WordTokenizer.fit(captions, max_words)
    tokens = tokenizer(captions)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (len(captions), max(map(len, words)))
    for row, expected in zip(tokens.tolist(), words, strict=True):
        assert row[len(expected) :] == [0] * (tokenizer.length - len(expected))
        for number, word in zip(row, expected, strict=False):
            assert number == 1 or tokenizer.vocabulary[number] == word
            assert (number == 1) == (word not in tokenizer.vocabulary[2:])
    if max_words is not None:
        assert len(tokenizer.vocabulary) <= max_words + 2
    again = WordTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert torch.equal(again(captions), tokens)
    assert again.to_dict() == tokenizer.to_dict()


def test_vocabulary_does_not_depend_on_the_order_of_captions():
    captions = ["small b", "small a", "capital a-ring"]
    assert WordTokenizer.fit(captions).vocabulary == WordTokenizer.fit(captions[::-1]).vocabulary
    assert WordTokenizer.fit(captions, 2).vocabulary == ["<pad>", "<unknown>", "a", "small"]


def test_unknown_long_and_empty():
    tokenizer = WordTokenizer.fit(["greek small letter tau"])
    tau, small = tokenizer.vocabulary.index("tau"), tokenizer.vocabulary.index("small")
    assert tokenizer(["tau quux", "small " * 9, ""]).tolist() == [[tau, 1, 0, 0], [small] * 4, [0] * 4]
    assert tokenizer([]).shape == (0, 4)


def test_unseen_names_consist_of_seen_words(splits):
    tokenizer = WordTokenizer.fit(splits[None]["train"].captions)
    tokens = tokenizer(splits[None]["test_unseen"].names)
    assert float((tokens == 1).sum() / (tokens > 0).sum()) < 0.1


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: WordTokenizer.fit("one caption"), TypeError),
        (lambda: WordTokenizer.fit(["a"])("one caption"), TypeError),
        (lambda: WordTokenizer.fit([]), ValueError),
        (lambda: WordTokenizer.fit(["", " - "]), ValueError),
        (lambda: WordTokenizer.fit(["a"], 0), ValueError),
        (lambda: WordTokenizer(["a"], 1), ValueError),
        (lambda: WordTokenizer(["<pad>", "<unknown>", "a", "a"], 1), ValueError),
        (lambda: WordTokenizer(["<pad>", "<unknown>", "a"], 0), ValueError),
        (lambda: WordTokenizer.from_dict({}), ValueError),
    ],
)
def test_words_refuse(call, error):
    with pytest.raises(error, match=r"expected .* received"):
        call()
