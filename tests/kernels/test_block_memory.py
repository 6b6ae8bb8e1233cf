"""Blocks of scores on a device that has little memory left."""

import pytest
import torch

from dro_temp.kernels import memory


def _with_room(monkeypatch, most):
    """The sizes that are asked for, on a device with room for so many rows."""
    asked = []

    def acquire(purpose, rows, columns, like, dtype):
        asked.append(rows)
        if rows > most:
            raise torch.cuda.OutOfMemoryError
        return torch.empty(rows, columns, dtype=dtype)

    monkeypatch.setattr(memory, "acquire", acquire)
    return asked


def test_smaller_blocks_are_tried(monkeypatch):
    asked = _with_room(monkeypatch, 300)
    block = memory.acquire_block(1000, 7, torch.empty(0), torch.float32)
    assert asked == [1000, 500, 250]
    assert block.shape == (250, 7)


def test_no_room_for_one_block_says_what_to_do(monkeypatch):
    asked = _with_room(monkeypatch, 0)
    with pytest.raises(
        torch.cuda.OutOfMemoryError, match=r"128 rows of 2097152 scores \(1024 MiB.*byte_budget"
    ):
        memory.acquire_block(1000, 2**21, torch.empty(0), torch.float32)
    assert asked == [1000, 500, 250, 128]
