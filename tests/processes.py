"""Real processes in a gloo group on this machine."""

import importlib.util
import multiprocessing
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def free_port() -> int:
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


def start(job, *args, world: int):
    """Run `job(rank, *args, results)` in that many processes; what they leave in `results[rank]`, in rank order.

    They are forked from a server that has imported what takes seconds to import, and has run nothing.
    """
    slow = ("torch.distributed", "dro_temp", "transformers.trainer", "sentence_transformers")
    found = [name for name in slow if importlib.util.find_spec(name.partition(".")[0]) is not None]
    multiprocessing.set_forkserver_preload(found)
    with mp.get_context("forkserver").Manager() as manager:
        results = manager.dict()
        mp.start_processes(job, (*args, results), nprocs=world, join=True, start_method="forkserver")
        return [results[rank] for rank in range(world)]


def in_processes(world: int, job, *args):
    """Run `job(rank, world, *args)` in that many processes; their results in rank order."""
    return start(_run, world, free_port(), job, args, world=world)
