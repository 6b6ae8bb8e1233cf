"""The C library: built by the machine's own compiler the first time it is wanted, kept for the next process."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dro_temp._files import default_root

SOURCES = tuple(Path(__file__).with_name(name) for name in ("passes.c", "decode.c", "products.c"))
HEADER = Path(__file__).with_name("numbers.h")

# Neither changes what is computed where nothing is NaN or infinite, nor hides those: no -ffast-math.
_FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
_TUNED = ("-march=native", "-ffp-contract=fast")
_PATIENCE = 120.0  # seconds for the compiler


@dataclass(frozen=True)
class Native:
    """The library, or why there is none.

    Args:
        library: loaded.
        lack: what stands in the way.
    """

    library: ctypes.CDLL | None
    lack: str = ""


@functools.cache
def native() -> Native:
    """The library, built at most once per machine and release; a second or two the first time.

    It lies in `$XDG_CACHE_HOME/dro_temp` (`~/.cache/dro_temp`). `DRO_TEMP_NATIVE=0` in the environment does without.
    """
    if os.environ.get("DRO_TEMP_NATIVE", "1") == "0":
        return Native(None, "DRO_TEMP_NATIVE=0 is set")
    compiler = _compiler()
    if compiler is None:
        return Native(None, "no C compiler was found (apt install gcc, or set CC)")
    try:
        return Native(ctypes.CDLL(str(_built(compiler))))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return Native(None, f"the C compiler {compiler[0]!r} failed: {str(said).strip()[:500]}")


def _compiler() -> list[str] | None:
    given = os.environ.get("CC")
    if given:
        words = shlex.split(given)
        return words if words and shutil.which(words[0]) else None
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    return None if found is None else [found]


def _built(compiler: list[str]) -> Path:
    """The library's file, made if there is none; several processes may make it at once."""
    name = f"passes-{_fingerprint(compiler)}.so"
    for folder in _folders():
        library = folder / name
        if library.exists():
            return library
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / name
                _compile(compiler, made)
                os.replace(made, library)  # whole or not at all
        except PermissionError:
            continue
        return library
    raise OSError("no folder for the compiled library can be written to")


def _compile(compiler: list[str], out: Path) -> None:
    for tuned in (_TUNED, ()):
        command = [*compiler, *_FLAGS, *tuned, "-o", str(out), *map(str, SOURCES), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        if done.returncode == 0:
            return
    done.check_returncode()


def _folders() -> Iterator[Path]:
    """Where it may lie: with what other programs keep for this user, or where it is gone tomorrow."""
    yield default_root()
    yield Path(tempfile.mkdtemp(prefix="dro_temp-"))


def _fingerprint(compiler: list[str]) -> str:
    """Differs wherever the library might: a home folder may be shared by unlike machines."""
    cpu = Path("/proc/cpuinfo")
    flags = ""
    if cpu.exists():
        flags = next(
            (line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), ""
        )
    texts = [file.read_text() for file in (HEADER, *SOURCES)]
    parts = [
        *texts,
        *compiler,
        *_FLAGS,
        *_TUNED,
        platform.platform(),
        platform.processor(),
        flags,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
