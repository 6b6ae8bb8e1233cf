"""Tensors on different devices, GPUs that are too old, and too little memory: what each error says.

The device "meta" is the second one.
"""

import pytest
import torch

import dro_temp as dt
from dro_temp.kernels import dispatch, memory

X, ELSEWHERE = torch.randn(4, 8), torch.device("meta")


def rows(index):
    return dt.Rows(torch.randn(4, 5), torch.arange(4), index=index)


def estimated(**options):
    return dt.KLRobustLoss(0.5, estimator=dt.LogMovingAverage(9, **options))


def towers(index):
    host = dt.hosts.TwoTower(torch.nn.Linear(8, 4), torch.nn.Linear(8, 4))
    return dt.recipes.sogclr(host, num_samples=20)(X, X, index=index)


MIXED = {
    "sample numbers": (
        lambda: estimated()(rows(torch.arange(4, device=ELSEWHERE)), 1.0),
        r"expected the sample numbers on cpu.*received index on meta. Pass index=index.to\('cpu'\)",
    ),
    "sample numbers, table in host memory": (
        lambda: estimated(on_host=True)(rows(torch.arange(4, device=ELSEWHERE)), 1.0),
        "expected the sample numbers on cpu",
    ),
    "sample numbers of an objective": (
        lambda: towers(torch.arange(4, device=ELSEWHERE)),
        "expected the sample numbers on cpu",
    ),
    "table": (
        lambda: estimated().to(ELSEWHERE)(rows(torch.arange(4)), 1.0),
        r"expected the table of LogMovingAverage on cpu.*received it on meta. Call objective.to\('cpu'\)",
    ),
    "keys": (
        lambda: dt.LinearScores(X, X.to(ELSEWHERE)),
        r"received cpu and meta. Pass keys.to\(queries.device\)",
    ),
    "bias": (
        lambda: dt.LinearScores(X, X, torch.zeros(4, device=ELSEWHERE)),
        r"expected bias on cpu.*received it on meta. Pass bias.to\(queries.device\)",
    ),
    "local keys": (
        lambda: dt.LinearScores(X, X, local_keys=X.to(ELSEWHERE)),
        r"expected local_keys on cpu.*received it on meta",
    ),
    "targets": (
        lambda: dt.Rows(X, torch.arange(4, device=ELSEWHERE)),
        r"expected target on cpu.*received it on meta. Pass target.to\(scores.device\)",
    ),
    "sides of pairs": (
        lambda: dt.hosts.pair_rows(X, X.to(ELSEWHERE)),
        "expected queries and keys on one device",
    ),
}


@pytest.mark.parametrize("case", MIXED)
def test_mixed_devices(case):
    call, message = MIXED[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GTX 1080")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(dispatch, "_triton_is_installed", lambda: True)


def test_a_gpu_that_is_too_old(old_gpu):
    with pytest.raises(
        ImportError, match=r"capability 7.0 or later.*received a GTX 1080. Pass backend='torch'"
    ):
        dispatch.triton_backend(torch.device("cuda"))
    assert dispatch.fastest_backend(torch.device("cuda"), torch.float32) == "torch"


@pytest.mark.parametrize(("room", "rows_found"), [(2000, 1000), (130, 128), (100, None)])
def test_blocks_shrink_to_what_there_is_room_for(room, rows_found, monkeypatch):
    def allocate(purpose, rows, columns, like, dtype):
        if rows > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return torch.empty(rows, columns, dtype=dtype)

    monkeypatch.setattr(memory, "acquire", allocate)
    if rows_found is None:
        with pytest.raises(
            torch.cuda.OutOfMemoryError,
            match=r"(?s)expected 62 MiB .* 128 rows of 128,000 .*received less. Pass fewer",
        ):
            memory.acquire_block(1000, 128_000, X, torch.float32)
        return
    assert len(memory.acquire_block(1000, 128, X, torch.float32)) == rows_found
