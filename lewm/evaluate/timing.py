"""Milliseconds per plan, measured the way a control loop would pay for them: one problem, encoder included."""

import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lewm.evaluate.energy import EnergyMeter
from lewm.evaluate.manifest import Manifest, stand
from lewm.planning.policy import Clocked, PlanClock, Policy, Start
from lewm.schema import build, read_json, write_json

WARMUP = 5
"""Plans that are made and thrown away before measuring."""


@dataclass(frozen=True)
class PlanTimes:
    """Milliseconds per act of planning, from pixels to the first action; of a peer, in its own process."""

    plan_ms_p50: float
    plan_ms_p95: float
    encode_ms_p50: float
    """The encoder's share of it (0 for methods without one)."""
    plans: int
    threads: int
    joules: float | None = None
    """Per plan, of everything the devices did meanwhile; None where they count nothing, see `lewm.evaluate.energy`.

    All that the timed loop used, less what it used when run again without planning: counters move too seldom to be read
    around one plan. Off by one move of the counter and by how unevenly the rest draws, over the number of plans.
    """


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with a stated number of torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_plans(policy: Policy, manifest: Manifest, plans: int = 50, threads: int = 1, device: str = "cpu") -> PlanTimes:
    """Time single-problem planning on the manifest's starts, `threads` torch threads, warm-up excluded.

    Only steps at which the policy really plans count; rendering does not.
    """
    total, encode, one = [], [], np.ones(1, bool)
    steps = range(min(WARMUP + plans, 10 * len(manifest.problems)))
    meter = EnergyMeter.of(device)
    with torch_threads(threads):
        for pixels in _beginnings(policy, manifest, steps[:WARMUP]):
            policy.act(pixels, one)
        before = meter.joules()
        for pixels in _beginnings(policy, manifest, steps[WARMUP:]):
            start = time.perf_counter()
            policy.act(pixels, one)
            took = 1000 * (time.perf_counter() - start)
            clock = policy.clock if isinstance(policy, Clocked) else PlanClock(encode_ms=0.0)
            total.append(took if clock.plan_ms is None else clock.plan_ms)
            encode.append(clock.encode_ms)
        joules = meter.since(before)
        if joules is not None:
            before = meter.joules()
            for _ in _beginnings(policy, manifest, steps[WARMUP:]):
                pass
            joules = max(0.0, joules - (meter.since(before) or 0.0)) / len(total)
    p50, p95 = np.percentile(total, [50, 95])
    return PlanTimes(float(p50), float(p95), float(np.median(encode)), len(total), threads, joules)


def _beginnings(policy: Policy, manifest: Manifest, steps: Iterable[int]) -> Iterator[np.ndarray]:
    """The first picture of one problem after another, with the policy told of its goal."""
    for i in steps:
        problem = manifest.problems[i % len(manifest.problems)]
        task = stand(manifest, problem)
        past, actions = np.array(problem.past_states), np.array(problem.actions)
        policy.start([Start(i, task, np.array(problem.goal_state), past, actions)])
        yield task.render()[None]
        task.close()


def hardware() -> str:
    """The processor, its cores, and the accelerator if there is one."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = f"{models[0]} x {len(models)}" if models else name
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def load_average() -> float | None:
    """Processes that wanted to run, mean of the last minute: what else the machine is doing. None where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@dataclass(frozen=True)
class Spent:
    """What a stage took, over all calls that worked on it."""

    seconds: float
    """On the wall."""
    cpu_seconds: float
    """Of this process, all threads together."""


@contextmanager
def keep_time(folder: Path, stage: str) -> Iterator[None]:
    """Add what a stage takes to `folder/spent.json`, also where it is interrupted; only a hard kill loses its part."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        known = kept_times(folder)
        before = known.get(stage, Spent(0.0, 0.0))
        seconds = before.seconds + time.perf_counter() - wall
        known[stage] = Spent(seconds, before.cpu_seconds + time.process_time() - cpu)
        write_json({name: asdict(spent) for name, spent in known.items()}, folder / "spent.json")


def kept_times(folder: Path) -> dict[str, Spent]:
    """What `keep_time` kept, by stage; nothing for a fresh folder."""
    path = folder / "spent.json"
    saved = read_json(path) if path.exists() else {}
    return {stage: build(Spent, spent, str(path), stage) for stage, spent in saved.items()}


class Measured(Protocol):
    """A row that says where it was measured."""

    @property
    def threads(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def hardware(self) -> str: ...
    @property
    def load(self) -> float | None: ...
    @property
    def torch(self) -> str: ...


def where_measured(row: Measured) -> str:
    """The last line under a table of such rows."""
    return f"{row.threads} thread(s), {machine_of(row)}"


def machine_of(row: Measured) -> str:
    """The same without the threads, for tables that have a column of them."""
    busy = "" if row.load is None else f", load average {row.load:.1f} before"
    return f"{row.device}, {row.hardware}{busy}, torch {row.torch}"
