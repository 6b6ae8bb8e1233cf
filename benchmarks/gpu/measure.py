"""Interleaved times of contenders on a GPU, their peak memory, and a table."""

from collections.abc import Callable

import torch

from benchmarks.harness.timing import clock_of, interleaved, ratios

MIB = 2**20


def peak(step: Callable[[], object], device: torch.device) -> float:
    """MiB that a step adds at its peak to what is allocated before it, gradients included; 0 on the CPU."""
    if device.type == "cpu":
        step()
        return 0.0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def replayed(step: Callable[[], object]) -> Callable[[], None]:
    """Replays of a step, captured in a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        graph.replay()

    replay()
    return replay


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    """A step that many times."""

    def several() -> None:
        for _ in range(times):
            step()

    return several


def compare(
    title: str,
    steps: dict[str, Callable[[], object]],
    floor: str,
    *,
    rounds: int,
    device: torch.device,
    warm_up: int = 2,
    in_a_row: int = 1,
    as_graph: bool = False,
) -> dict[str, dict[str, float]]:
    """Measure all, print the table, and return it.

    Args:
        title: heads the table.
        steps: contenders; one that fails is reported and left out, on the CPU raised.
        floor: the contender that times are divided by.
        rounds: in each of which every contender takes its turn.
        device: where they run.
        warm_up: untimed calls of each contender.
        in_a_row: calls that are timed together, without a wait for the device between them, as in training.
        as_graph: True for replays of a CUDA graph: the device's time, where launching one by one takes the host longer.
    """
    print(f"\n{title}", flush=True)
    peaks, running = {}, {}
    for name, step in steps.items():
        try:
            for _ in range(warm_up):
                step()
            peaks[name] = peak(step, device)
            running[name] = replayed(step) if as_graph and device.type == "cuda" else step
        except Exception as error:
            if device.type == "cpu":
                raise  # a dry run is there to find this
            print(
                f"  {name}: FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True
            )
            torch.cuda.empty_cache()
    if floor not in running:
        return {}
    several = {name: repeated(step, in_a_row) for name, step in running.items()}
    seconds = interleaved(several, rounds, 1, warm_up=False, clock=clock_of(device.type))
    seconds = {name: [x / in_a_row for x in times] for name, times in seconds.items()}
    table = ratios(seconds, floor)
    width = max(map(len, table))
    for name, row in table.items():
        row["peak_mib"] = peaks[name]
        row["best_ms"] = 1e3 * min(seconds[name])
        print(
            f"  {name:{width}}  {row['median']:6.3f}x [{row['q1']:.3f}, {row['q3']:.3f}]  {row['ms']:8.2f} ms"
            f"  peak {peaks[name]:7.0f} MiB",
            flush=True,
        )
    return table


def busy_ms(step: Callable[[], object]) -> tuple[int, float, list[tuple[str, float, int]]]:
    """Launches of a step, the time that the device works on them, and the ten that take longest."""
    from torch.profiler import ProfilerActivity, profile

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        step()
        torch.cuda.synchronize()
    events = [e for e in record.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    totals: dict[str, list[float]] = {}
    for event in events:
        totals.setdefault(event.name, []).append(event.self_device_time_total / 1e3)
    longest = sorted(((name, sum(t), len(t)) for name, t in totals.items()), key=lambda x: -x[1])[:12]
    return len(events), sum(sum(t) for t in totals.values()), longest
