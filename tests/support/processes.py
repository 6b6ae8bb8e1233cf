"""Real processes in a gloo group on this machine."""

import importlib.util
import multiprocessing
import os
import socket
import sys
from types import SimpleNamespace

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


def _server():
    """A context whose processes are forked from one that has imported what takes seconds, and has run nothing."""
    slow = ("torch.distributed", "dro_temp.cli.lm.fit", "transformers.trainer", "sentence_transformers")
    found = [name for name in slow if importlib.util.find_spec(name.partition(".")[0]) is not None]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(found)
    return context


def start(job, *args, world: int):
    """Run `job(rank, *args, results)` in that many processes; what they leave in `results[rank]`, in rank order."""
    with _server().Manager() as manager:
        results = manager.dict()
        mp.start_processes(job, (*args, results), nprocs=world, join=True, start_method="forkserver")
        return [results[rank] for rank in range(world)]


def _execute(code: str, arguments, stderr) -> None:
    os.dup2(stderr.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    stderr.close()
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def run_code(code: str, *arguments: str) -> SimpleNamespace:
    """As `python -c code arguments`: its exit code, negative if a signal ended it, and what it wrote to stderr."""
    context = _server()
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_execute, args=(code, arguments, writing))
    process.start()
    writing.close()
    written = []
    while piece := os.read(reading.fileno(), 65536):
        written.append(piece)
    process.join()
    return SimpleNamespace(returncode=process.exitcode, stderr=b"".join(written).decode())


def in_processes(world: int, job, *args):
    """Run `job(rank, world, *args)` in that many processes; their results in rank order."""
    return start(_run, world, free_port(), job, args, world=world)
