"""Runs a benchmark: all available contenders at every shape; prints, saves and plots."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch

from benchmarks.harness import figure, memory
from benchmarks.harness.bars import Bar
from benchmarks.harness.case import Case
from benchmarks.harness.contender import Contender, Problem, Step
from benchmarks.harness.results import save
from benchmarks.harness.timing import clock_of, interleaved, machine

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Suite:
    """One kind of problem and its contenders.

    Args:
        title: heads tables and plots.
        axes: names of a shape's sizes.
        contenders: all of them.
        baseline: the contender that times are divided by; always runs.
        problem: makes the inputs of one shape from the options.
        small: a shape that takes no time.
        bars: limits at a shape.
        before: from a problem to what runs, untimed, before each call; None for nothing.
    """

    title: str
    axes: tuple[str, ...]
    contenders: Sequence[Contender]
    baseline: str
    problem: Callable[[Shape, Namespace], Problem]
    small: Shape
    bars: Callable[[Case, Namespace], list[Bar]]
    before: Callable[[Any], Step] | None = None


@dataclass(frozen=True)
class Plan:
    """What to measure at one shape."""

    shape: Shape
    time: bool = True
    memory: bool = True


def run(suite: Suite, options: Namespace, plans: Sequence[Plan]) -> int:
    """Measure everything; returns the exit status, 1 if a contender failed for any other reason than memory."""
    torch.set_num_threads(1)
    memory.limit_to_available_memory(options.device)
    wanted = [c for c in suite.contenders if not options.only or c.name in (*options.only, suite.baseline)]
    skipped = {c.name: reason for c in wanted if (reason := c.why_not(options))}
    contenders = [c for c in wanted if c.name not in skipped]
    section, file = options.section or options.device, options.out.with_suffix(".json")
    about = {
        "machine": machine(),
        "options": {key: x for key, x in vars(options).items() if x and isinstance(x, (int, float, str))},
        "versions": {c.package: c.installed for c in contenders if c.package},
        "skipped": skipped,
    }
    print(f"{suite.title}\n{about['machine']}")
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    cases: list[Case] = []
    measured: dict[str, Any] = {}
    for plan in plans:
        case = measure(suite, contenders, options, plan)
        bars = suite.bars(case, options)
        print(f"\n{case.label}\n{case.table()}", *(f"  {bar}" for bar in bars), sep="\n", flush=True)
        cases.append(case)
        measured[case.label] = case.asdict() | {"bars": [bar.asdict() for bar in bars]}
        # After every case, so that an interrupted run leaves whole ones.
        save(file, suite.title, section, {**about, "cases": measured})
    print(f"saved {file}", file=sys.stderr)
    figure.draw(suite.title, cases, options.out.with_name(f"{options.out.name}-{section}.png"))
    broken = {(c.label, name) for c in cases for name, why in c.failures.items() if why != NO_ROOM}
    for label, name in sorted(broken):
        print(f"FAILED: {name} at {label}", file=sys.stderr)
    return int(bool(broken))


def measure(suite: Suite, contenders: Sequence[Contender], options: Namespace, plan: Plan) -> Case:
    """Times and memory at one shape."""
    label = ", ".join(f"{axis} {size}" for axis, size in zip(suite.axes, plan.shape, strict=True))
    case = Case(label, plan.shape, suite.baseline)
    if plan.time and not options.no_time:
        _time(suite, contenders, options, case)
    if plan.memory and not options.no_memory:
        make = partial(_problem, suite.problem, options)
        for contender in contenders:
            if contender.memory:
                print(f"memory of {contender.name} at {label} ...", file=sys.stderr)
                _memory(contender, make, suite.small, options.device, case)
    return case


def _problem(problem: Callable[[Shape, Namespace], Problem], options: Namespace, shape: Shape) -> Problem:
    """`Suite.problem` with the shape last."""
    return problem(shape, options)


def _time(suite: Suite, contenders: Sequence[Contender], options: Namespace, case: Case) -> None:
    problem = suite.problem(case.shape, options)
    steps: dict[str, Step] = {}
    for contender in contenders:
        print(f"warming up {contender.name} at {case.label} ...", file=sys.stderr)
        try:
            step = contender.make(problem)
            loss = step()
        except Exception as error:
            case.failures[contender.name] = reason(f"{type(error).__name__}: {error}")
            continue
        steps[contender.name] = step
        if loss is not None:
            case.losses[contender.name] = float(loss)
    before = None if suite.before is None else suite.before(problem)
    case.seconds = interleaved(
        steps,
        options.rounds,
        options.repeats,
        before=before,
        warm_up=False,
        clock=clock_of(options.device),
    )
    problem.clear()


def _memory(
    contender: Contender, make: Callable[[Shape], Problem], small: Shape, device: str, case: Case
) -> None:
    try:
        case.peaks[contender.name] = memory.in_fresh_process(
            memory.of_step, contender, make, small, case.shape, device
        )
    except RuntimeError as error:
        case.failures[contender.name] = reason(str(error))


NO_ROOM = "does not fit into this machine's memory"


def reason(message: str) -> str:
    """Why a contender failed, on one line."""
    if any(sign in message.lower() for sign in ("allocate memory", "out of memory", "memoryerror")):
        return NO_ROOM
    return "FAILED: " + " ".join(message.split())[:200]
