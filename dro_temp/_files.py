"""Atomic writes, and the folder for cached files."""

import atexit
import functools
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: The owner that a container without the host's users shows for their files, the administrator's included.
_UNMAPPED = 65534


def default_root() -> Path:
    """`$XDG_CACHE_HOME/dro_temp`, or `~/.cache/dro_temp`; in the temporary folder for a user who has no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The standard has relative paths ignored: they would mean another folder, of another owner, after every cd.
    if base and Path(base).is_absolute():
        return Path(base) / "dro_temp"
    try:
        return Path.home() / ".cache" / "dro_temp"
    except RuntimeError:  # neither HOME nor an entry in the password file, as in many containers
        return temporary_root()


@functools.cache
def temporary_root() -> Path:
    """A folder in the temporary one that only this user can write to, shared by processes if that is safe."""
    shared = Path(tempfile.gettempdir()) / f"dro_temp-{_user()}"
    try:
        if shared.is_symlink():
            raise FileExistsError(shared)
        own_folder(shared)
    except OSError:  # another user was there first: a folder of this process, gone with it
        alone = tempfile.mkdtemp(prefix="dro_temp-")
        atexit.register(shutil.rmtree, alone, ignore_errors=True)
        return Path(alone)
    return shared


def own_folder(folder: Path) -> None:
    """Create a folder that only this user can write to, or restrict an existing one.

    Raises PermissionError if it belongs to another user, or another user can replace it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    real = folder.resolve()
    state = real.stat()
    if _user() is not None and state.st_uid == _user() and _others_may_write(state):
        real.chmod(stat.S_IMODE(state.st_mode) & ~0o022)
    refuse_if_not_own(folder)


def refuse_if_not_own(path: Path) -> None:
    """Raise PermissionError if a user other than this one and the administrator can change what is read from here.

    The parents of the file or folder are checked as well, since their owners can replace it.
    """
    if _user() is None:  # Windows, whose folders of a user are closed to others from the start
        return
    real = path.resolve(strict=True)
    for part in (real, *real.parents):
        state = part.stat()
        # In a sticky folder, such as /tmp, only its owner can rename a file.
        open_above = _others_may_write(state) and (part == real or not state.st_mode & stat.S_ISVTX)
        owners = (0, _user()) if part == real else (0, _user(), _UNMAPPED)
        if state.st_uid not in owners or open_above:
            raise PermissionError(
                f"expected {str(path)!r} to be writable for this user only, received {str(part)!r} of user "
                f"{state.st_uid} with mode {stat.S_IMODE(state.st_mode):o}. Type chmod go-w {part}, or set "
                "XDG_CACHE_HOME to a folder of your own."
            )


def _others_may_write(state: os.stat_result) -> bool:
    # A group with its user's number is that user's private group, as on most systems.
    private_group = state.st_gid == state.st_uid
    return bool(state.st_mode & (0o002 if private_group else 0o022))


def _user() -> int | None:
    return os.geteuid() if hasattr(os, "geteuid") else None


def check_writable(folder: Path) -> None:
    """Raise OSError if a folder can be neither created nor written to; nothing is created."""
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise NotADirectoryError(
            f"expected a folder, or a path where one can be made, received {str(folder)!r}, where {str(place)!r} is no "
            "folder. Pass another path."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f"expected a folder that can be written to, received {str(folder)!r}, where {str(place)!r} is closed to "
            "this user. Pass another path, or change its permissions."
        )


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary file, which replaces `path` atomically when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
