"""Every error as one sentence."""

import errno
from collections.abc import Iterator

#: In the environment: errors come with the place where they were raised.
TRACEBACK = "DRO_TEMP_TRACEBACK"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
#: What torch says when a file could not be written to its end.
_CUT_SHORT = ("PytorchStreamWriter failed", "unexpected pos", "No space left", "File too large")


def sentence(error: BaseException) -> str:
    """What was expected, what arrived, what to type instead; in one line.

    Args:
        error: whatever was raised.
    """
    told = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return _of_system(cause)
    if any(mark in told for mark in _CUT_SHORT):
        return _full("a file of the run", told)
    if told.startswith("expected "):
        return told
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"expected a model and a batch that fit into the memory of the device, received: {told} Pass a smaller "
            "--batch (with --accumulate for fit), or a smaller --block."
        )
    return (
        "expected the command to end without an error, received one that was not foreseen: "
        f"{type(error).__name__}: {told.rstrip('.')}. Check the options; to see where it was raised, set {TRACEBACK}=1 "
        "and type the command again."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_system(error: OSError) -> str:
    place = "a file" if error.filename is None else repr(str(error.filename))
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return _full(place, reason)
    if error.errno in _CLOSED:
        return (
            f"expected {place} to be open to this user, received: {reason}. Pass another path, or change its "
            "permissions."
        )
    if error.errno in _NO_FOLDER:
        return f"expected a folder where {place} is to be, received: {reason}. Pass another path."
    return f"expected to read or write {place}, received: {reason}. Check the path."


def _full(place: str, reason: str) -> str:
    return (
        f"expected room on the disk for {place}, received: {reason}. Free some and type the same command again: it "
        "goes on from the last whole checkpoint."
    )
