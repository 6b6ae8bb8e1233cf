"""Real processes in a gloo group on this machine."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _run(rank: int, world: int, port: int, job, args, results) -> None:
    torch.set_num_threads(1)
    # As torchrun sets them: accelerate reads them.
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        results[rank] = job(rank, world, *args)
    finally:
        dist.destroy_process_group()


def in_processes(world: int, job, *args):
    """Run `job(rank, world, *args)` in that many processes; their results in rank order.

    A process takes seconds to start: do many things in one job.
    """
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_run, (world, _free_port(), job, args, results), nprocs=world, join=True)
        return [results[rank] for rank in range(world)]
