"""A block of scores shared among as many threads as PyTorch uses; C code does not hold Python's lock."""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Scores that are worth a thread: handing work over takes some 50 microseconds.
_SHARE = 2**17


def shared(work: Callable[[int, int], None], count: int, scores_each: int) -> None:
    """Call `work(first, last)` on parts of `range(count)`, side by side.

    Args:
        work: fills in its part.
        count: rows, or columns.
        scores_each: scores of one of them.
    """
    threads = min(torch.get_num_threads(), max(count * scores_each // _SHARE, 1), max(count, 1))
    if threads == 1:
        work(0, count)
        return
    mine, *parts = itertools.pairwise(count * k // threads for k in range(threads + 1))
    others = [_pool(os.getpid(), threads - 1).submit(work, *part) for part in parts]
    work(*mine)
    for other in others:
        other.result()


@functools.lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix=f"dro_temp-{process}")
