"""The C library: built by the machine's compiler on first use, and cached for the next process."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dro_temp._files import default_root, own_folder, refuse_if_not_own, temporary_root

SOURCES = tuple(Path(__file__).with_name(name) for name in ("scores.c", "decode.c", "products.c"))
HEADER = Path(__file__).with_name("numbers.h")

# Flags that keep results and NaN as they are: no -ffast-math.
_FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
_TUNING = ("-march=native", "-ffp-contract=fast")
_COMPILER_TIMEOUT = 120.0  # seconds


@dataclass(frozen=True)
class Native:
    """The C library, if there is one.

    Args:
        library: the loaded library, or None.
        lack: why there is none.
    """

    library: ctypes.CDLL | None
    lack: str = ""


@functools.cache
def native() -> Native:
    """The library, built at most once per machine and release; a second or two the first time.

    It is cached in `$XDG_CACHE_HOME/dro_temp` (`~/.cache/dro_temp`), or, if that is not writable, in a folder of the
    user inside the temporary one. `DRO_TEMP_NATIVE=0` in the environment disables it.
    """
    if os.environ.get("DRO_TEMP_NATIVE", "1") == "0":
        return Native(None, "DRO_TEMP_NATIVE=0 is set")
    compiler = _compiler()
    if compiler is None:
        return Native(None, "no C compiler was found (apt install gcc, or set CC)")
    obstacles = []
    try:
        stem = f"passes-{_fingerprint(compiler)}"
        for cache_root in (default_root, temporary_root):
            try:
                return Native(_from_folder(cache_root(), stem, compiler))
            except (OSError, subprocess.CalledProcessError) as error:  # a compiler fails on a full disk, too
                obstacles.append(str(error))
        with tempfile.TemporaryDirectory(prefix="dro_temp-", ignore_cleanup_errors=True) as folder:
            return Native(_from_folder(Path(folder), stem, compiler))  # once loaded, it needs no file
    except subprocess.SubprocessError as error:
        output = getattr(error, "stderr", None) or error
        return Native(None, f"the C compiler {compiler[0]!r} failed: {str(output).strip()[:500]}")
    except OSError as error:
        reasons = dict.fromkeys([*obstacles, str(error)])
        return Native(None, f"no folder could hold the compiled library: {'; '.join(reasons)}")


def _compiler() -> list[str] | None:
    if command := os.environ.get("CC"):
        try:
            words = shlex.split(command)
        except ValueError:  # an unmatched quotation mark
            return None
        return words if words and shutil.which(words[0]) else None
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def _from_folder(folder: Path, stem: str, compiler: list[str]) -> ctypes.CDLL:
    """The library of this folder, built if there is no complete one; several processes may build it at once.

    Its name ends in the digest of its content: loading a truncated library can kill the process, past any `except`.

    Raises:
        OSError: the folder is unusable, or other users can write to it.
        subprocess.SubprocessError: the compiler failed.
    """
    own_folder(folder)
    for file in sorted(folder.glob(f"{stem}-*.so")):
        if _trusted(file):
            return ctypes.CDLL(str(file.resolve()))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / f"{stem}.so"
        _compile(compiler, built)
        library = folder / f"{stem}-{_digest(built)}.so"
        built.chmod(0o700)
        os.replace(built, library)  # atomically
    for file in folder.glob(f"{stem}-*.so"):  # damaged, or planted by another user
        if not _trusted(file):
            file.unlink(missing_ok=True)
    return ctypes.CDLL(str(library.resolve()))


def _trusted(file: Path) -> bool:
    """Whether the file is complete, and no other user can write to it."""
    try:
        refuse_if_not_own(file)
        return file.stem.endswith(f"-{_digest(file)}")
    except OSError:
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _compile(compiler: list[str], out: Path) -> None:
    for tuning in (_TUNING, ()):
        command = [*compiler, *_FLAGS, *tuning, "-o", str(out), *map(str, SOURCES), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILER_TIMEOUT, check=False)
        if done.returncode == 0:
            return
    done.check_returncode()


def _fingerprint(compiler: list[str]) -> str:
    """Differs wherever the library might: different machines may share a home folder."""
    cpu = Path("/proc/cpuinfo")
    flags = ""
    if cpu.exists():
        flags = next(
            (line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), ""
        )
    texts = [file.read_text(encoding="utf-8") for file in (HEADER, *SOURCES)]
    parts = [*texts, *compiler, *_FLAGS, *_TUNING, platform.platform(), platform.processor(), flags]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
