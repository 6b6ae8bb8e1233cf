"""Where the C passes run, how they are built, and that threads share them; what they compute is tested beside."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

import dro_temp as dt
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.cpu import library, ops
from dro_temp.kernels.backends.protocol import ColumnSums
from dro_temp.kernels.dispatch import cpu_backend, cpu_runs_on

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not cpu_runs_on(CPU, torch.float32), reason="there is no C compiler")

CHOICE = """
import torch, dro_temp as dt
rows = dt.Rows(dt.LinearScores(torch.randn(600, 4), torch.randn(600, 4)), torch.arange(600))
choice = dt.KLRobustLoss(0.5).evaluate(rows, torch.ones(600)).backend
print(choice.name)
try:
    dt.KLRobustLoss(0.5, backend="cpu")(rows, torch.ones(600))
except RuntimeError as error:
    print(error)
"""


def _no_sums(like: torch.Tensor) -> ColumnSums:
    """Column sums before the first stripe."""
    zero = torch.zeros_like(like)
    return ColumnSums(torch.full_like(like, -torch.inf), zero, zero.clone())


def _python(check: bool = True, **variables: str) -> str:
    environment = {**os.environ, **variables}
    run = [sys.executable, "-c", CHOICE]
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=check).stdout


@needs_compiler
def test_built_once_into_the_cache_folder(tmp_path):
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]
    (built,) = (tmp_path / "dro_temp").iterdir()
    made = built.stat().st_mtime_ns
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]
    assert built.stat().st_mtime_ns == made
    # A compiler that fails is not asked when the library is there; another one makes another library.
    assert "torch" in _python(XDG_CACHE_HOME=str(tmp_path), CC="false")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"DRO_TEMP_NATIVE": "0"}, "DRO_TEMP_NATIVE=0 is set"),
        ({"CC": "no-such-compiler"}, "no C compiler was found"),
        ({"CC": "false"}, "the C compiler 'false' failed"),
    ],
)
def test_without_the_library_auto_streams_in_pytorch(tmp_path, variables, reason):
    said = _python(XDG_CACHE_HOME=str(tmp_path), **variables)
    assert said.startswith("torch\n")
    assert "backend='torch'" in said
    assert reason in said
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@needs_compiler
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]


def _built_in(folder):
    """The library that lies there."""
    (built,) = (folder / "dro_temp").glob("*.so")
    return built


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="modes as POSIX knows them")
def test_its_folder_and_file_are_the_users_own(tmp_path):
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]
    assert (tmp_path / "dro_temp").stat().st_mode & 0o777 == 0o700
    assert _built_in(tmp_path).stat().st_mode & 0o022 == 0


@needs_compiler
@pytest.mark.parametrize(
    "damage", ["half", *(pytest.param(d, marks=pytest.mark.slow) for d in ("empty", "text", "one byte"))]
)
def test_a_damaged_library_is_built_again(tmp_path, damage):
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]
    built = _built_in(tmp_path)
    whole = built.read_bytes()
    wrong = bytes([whole[-1] ^ 1])
    contents = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "one byte": whole[:-1] + wrong,
    }
    built.write_bytes(contents[damage])
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]
    assert _built_in(tmp_path).read_bytes() == whole


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="modes as POSIX knows them")
@pytest.mark.parametrize("who", [pytest.param("everyone", marks=pytest.mark.slow), "another user"])
def test_a_planted_library_is_not_loaded(tmp_path, who):
    """It would print as it is loaded; the digest in its name is right."""
    planted, cache = tmp_path / "planted.c", tmp_path / "dro_temp"
    planted.write_text(
        '#include <stdio.h>\n__attribute__((constructor)) void loaded(void) { puts("planted"); }\n'
    )
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]
    built = _built_in(tmp_path)
    made = tmp_path / "planted.so"
    subprocess.run([*library._compiler(), "-shared", "-fPIC", "-o", str(made), str(planted)], check=True)
    stem = built.name.rpartition("-")[0]
    place = cache / f"{stem}-{library._digest(made)}.so"
    place.write_bytes(made.read_bytes())
    built.unlink()
    assert "planted" in _python(False, XDG_CACHE_HOME=str(tmp_path)), "or this test shows nothing"
    if who == "everyone":
        place.chmod(0o777)
        cache.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(place, 4711, 4711)
    else:
        pytest.skip("only root can give a file away")
    assert _python(XDG_CACHE_HOME=str(tmp_path)).split() == ["cpu"]
    assert _built_in(tmp_path).read_bytes() != made.read_bytes()
    assert cache.stat().st_mode & 0o022 == 0


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="a path that cannot be made on POSIX")
@pytest.mark.slow
def test_no_folder_is_left_behind_where_the_cache_cannot_be_used(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for _ in range(2):
        said = _python(XDG_CACHE_HOME="/dev/null", HOME="/dev/null", TMPDIR=str(scratch))
        assert said.split() == ["cpu"]
        (folder,) = scratch.iterdir()
        assert folder.name == f"dro_temp-{os.geteuid()}"
        assert [file.suffix for file in folder.iterdir()] == [".so"]


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="a path that cannot be made on POSIX")
def test_the_reason_names_every_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr(library, "temporary_root", lambda: tmp_path / "shared")

    def full(folder):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(library, "own_folder", full)
    made = library.native.__wrapped__()
    assert made.library is None
    assert "/dev/null/dro_temp" in made.lack
    assert "shared" in made.lack
    assert "No space left" in made.lack


def test_a_compiler_that_cannot_be_read(tmp_path):
    assert "no C compiler was found" in _python(XDG_CACHE_HOME=str(tmp_path), CC="'gcc")


def test_what_it_cannot_take_is_refused():
    with pytest.raises(RuntimeError, match=r"expected float32 scores.*received.*float64.*backend='torch'"):
        cpu_backend(CPU, torch.float64)
    with pytest.raises(RuntimeError, match=r"expected float32 scores.*received.*'cuda'.*backend='torch'"):
        cpu_backend(torch.device("cuda"), torch.float32)
    rows = dt.Rows(dt.LinearScores(*torch.randn(2, 600, 4).double()), torch.arange(600))
    assert dt.KLRobustLoss(0.5).choose_backend(rows).name == "torch"


@needs_compiler
@pytest.mark.parametrize("count", [2, 3, 7])
def test_threads_share_a_block(monkeypatch, count):
    monkeypatch.setattr(ops, "_THREAD_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    native, g = cpu_backend(CPU, torch.float32), torch.Generator().manual_seed(0)
    scores, taus = torch.randn(5, 1300, generator=g), torch.rand(1305, generator=g) + 0.1
    tau, wide = taus[:5], taus[5:]
    tilted, expected = (
        way.softmax_partials_(scores.clone(), tau, mean_excess=True) for way in (native, torch_backend)
    )
    for name in ("weights", "row_max", "sum_exp", "mean_excess"):
        torch.testing.assert_close(getattr(tilted, name), getattr(expected, name))
    sums, plain = _no_sums(wide), _no_sums(wide)
    native.column_sums_(scores, wide, sums)
    torch_backend.column_sums_(scores, wide, plain)
    torch.testing.assert_close(vars(sums), vars(plain))
    sides = (tau, tilted.row_max, tau, wide, sums.column_max, wide)
    coupled, expected = (way.pair_logits_grad_(scores.clone(), *sides) for way in (native, torch_backend))
    torch.testing.assert_close(coupled, expected)


def _sum_in_child(queue):
    tilted = cpu_backend(CPU, torch.float32).softmax_partials_(
        torch.ones(4, 8), torch.ones(4), mean_excess=False
    )
    queue.put(float(tilted.sum_exp.sum()))


@needs_compiler
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_threads_survive_a_fork(monkeypatch):
    monkeypatch.setattr(ops, "_THREAD_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu_backend(CPU, torch.float32).softmax_partials_(
        torch.ones(4, 8), torch.ones(4), mean_excess=False
    )  # starts a pool
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 32.0
    child.join()


def test_the_library_is_part_of_the_package():
    assert all(file.exists() for file in (library.HEADER, *library.SOURCES))
