"""Shape checks on every call, and the same examples on every run."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

# Without a GPU, Triton's kernels are interpreted. Triton decides that once, when somebody first imports it, so it
# must be said before any test does (torch.compile, for one).
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: two workers, and the processes that they start, share the machine, and threads of each would wait for one
# another. And sums of several threads depend on where their terms lie in memory: "to the last bit" would be luck.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# The pure functions and the subclasses are checked against their shape types. interfaces/, objective/ and optim.py
# are not: there a wrong shape must meet the library's own three-part error.
CHECKED = [
    "dro_temp.functional",
    "dro_temp.estimators",
    "dro_temp.predictors",
    "dro_temp.losses",
    "dro_temp.risks",
    "dro_temp.hosts",
]
_hook = install_import_hook(CHECKED, "beartype.beartype")

settings.register_profile("dro_temp", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dro_temp")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Studies train with one thread; the number of threads is restored afterwards."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """For torch.compile, which cannot trace a type check of a tensor."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
