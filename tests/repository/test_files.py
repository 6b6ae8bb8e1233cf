"""Where files are kept that can be made again, and who else could write there."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dro_temp import _files

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes as POSIX knows them")


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A user without a home directory, and a temporary folder."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _files.temporary_root.cache_clear()
    yield tmp_path
    _files.temporary_root.cache_clear()


def test_without_a_home_one_private_folder_of_the_user(no_home):
    folder = _files.default_root()
    assert folder.parent == no_home
    if hasattr(os, "geteuid"):
        assert folder.name == f"dro_temp-{os.geteuid()}"
        assert folder.stat().st_mode & 0o777 == 0o700
    assert _files.default_root() == folder


@posix
@pytest.mark.parametrize("what", ["link", "file"])
def test_a_name_that_another_took_is_not_used(no_home, what):
    taken = no_home / f"dro_temp-{os.geteuid()}"
    if what == "file":
        taken.write_text("")
    else:
        (no_home / "elsewhere").mkdir()
        taken.symlink_to(no_home / "elsewhere")
    folder = _files.default_root()
    assert folder.parent == no_home
    assert folder.name not in (taken.name, "elsewhere")
    assert folder.is_dir()


def test_a_relative_cache_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert _files.default_root() == tmp_path / ".cache" / "dro_temp"


@posix
def test_own_folder_closes_what_is_open(tmp_path):
    folder = tmp_path / "a" / "cache"
    _files.own_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    _files.own_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o755


@posix
def test_a_folder_that_another_can_replace_is_refused(tmp_path):
    folder = tmp_path / "open" / "cache"
    folder.mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(
        PermissionError, match=r"expected '.*cache'.*received '.*open' of user .* mode 777.*chmod"
    ):
        _files.own_folder(folder)
    (tmp_path / "open").chmod(0o1777)  # sticky, as /tmp is
    _files.own_folder(folder)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_another_users_folder_and_file_are_refused(tmp_path):
    os.chown(tmp_path, 4711, 4711)
    with pytest.raises(PermissionError, match="of user 4711"):
        _files.refuse_if_not_own(tmp_path)


@posix
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
def test_the_loss_works_without_a_home(tmp_path):
    code = (
        "import os, torch, dro_temp as dt\n"
        "os.setgid(54321), os.setuid(54321)  # after the imports: python may lie where that user cannot read\n"
        "h = torch.randn(600, 32, requires_grad=True)\n"
        "rows = dt.Rows(dt.LinearScores(h, torch.randn(2000, 32)), torch.randint(2000, (600,)))\n"
        "dt.KLRobustLoss(1.)(rows, 1.).mean().backward(); print('ok')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    scratch = Path(tempfile.mkdtemp(dir="/tmp"))
    scratch.chmod(0o1777)
    environment["TMPDIR"] = str(scratch)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-2000:]
    assert [p.name for p in scratch.iterdir()] in ([], ["dro_temp-54321"])
