"""Milliseconds per plan, measured the way a control loop would pay for them: one problem, encoder included."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lewm.evaluate.manifest import Manifest, stand
from lewm.planning.policy import Policy, Start

WARMUP = 5
"""Plans that are made and thrown away before measuring."""


@dataclass(frozen=True)
class PlanTimes:
    """Milliseconds per act of planning, from pixels to the first action."""

    plan_ms_p50: float
    plan_ms_p95: float
    encode_ms_p50: float
    """The encoder's share of it (0 for methods without one)."""
    plans: int
    threads: int


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with a stated number of torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_plans(policy: Policy, manifest: Manifest, plans: int = 50, threads: int = 1) -> PlanTimes:
    """Time single-problem planning on the manifest's starts, `threads` torch threads, warm-up excluded.

    Only steps at which the policy really plans count; rendering does not.
    """
    total, encode = [], []
    with torch_threads(threads):
        for i in range(min(WARMUP + plans, 10 * len(manifest.problems))):
            problem = manifest.problems[i % len(manifest.problems)]
            task = stand(manifest, problem)
            past, actions = np.array(problem.past_states), np.array(problem.actions)
            policy.start([Start(i, task, np.array(problem.goal_state), past, actions)])
            pixels = task.render()[None]
            start = time.perf_counter()
            policy.act(pixels, np.ones(1, bool))
            total.append(1000 * (time.perf_counter() - start))
            agent = getattr(policy, "agent", None)
            encode.append(agent.last.encode_ms if agent is not None else 0.0)
            task.close()
    p50, p95 = np.percentile(total[WARMUP:], [50, 95])
    return PlanTimes(float(p50), float(p95), float(np.median(encode[WARMUP:])), len(total) - WARMUP, threads)


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
    busy = "" if row.load is None else f", load average {row.load:.1f} before"
    return f"{row.threads} thread(s), {row.device}, {row.hardware}{busy}, torch {row.torch}"
