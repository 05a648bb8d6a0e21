"""`lewm bench data --recording`: frames per second and bytes per frame, by task, renderer and processes."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

import envs
from envs.goal_env import RENDERERS
from lewm.data.collect import CollectConfig, collect
from lewm.data.store import Store
from lewm.evaluate.timing import hardware, load_average, where_measured
from lewm.progress import Stage


@dataclass(frozen=True)
class Recording:
    """How much is recorded."""

    tasks: tuple[str, ...] = tuple(envs.TASKS)
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    sizes: tuple[int, ...] = (64,)
    """Heights and widths of the pictures in pixels."""
    episodes: int = 60
    """Per process."""
    steps: int = 100
    shard_episodes: int = 20
    """Episodes per shard; the clock starts when every process has recorded one."""

    def __post_init__(self) -> None:
        if self.episodes <= self.shard_episodes:
            raise ValueError(f"episodes is {self.episodes}, it must be more than {self.shard_episodes} of one shard")
        for name in ("tasks", "processes", "sizes"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give at least one")
        if min(self.processes) < 1:
            raise ValueError(f"processes is {self.processes}, it must be 1 or more each")
        for task in self.tasks:
            if task not in envs.TASKS:
                raise ValueError(f"task {task!r} is unknown; there are {', '.join(envs.TASKS)}")


FULL = Recording()
QUICK = Recording(sizes=(32,), episodes=4, steps=10, shard_episodes=2)


@dataclass(frozen=True)
class RecordingRow:
    """One task with one renderer and a number of processes."""

    task: str
    renderer: str
    policy: str
    processes: int
    size: int
    """Height and width of a picture in pixels."""
    frames_per_s: float | None
    """All processes together, from the first shard of each to the last; None where it could not be measured."""
    start_s: float | None
    """Seconds before that: starting the processes and recording the first shard of each."""
    bytes_per_frame: float | None
    """Of the unencoded store, numbers included."""
    note: str
    """Why there are no numbers."""
    frames: int
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the row was begun: what else the machine was doing; None if unknown."""
    torch: str


def bench_recording(amount: Recording) -> list[RecordingRow]:
    """Record every task with every renderer, size and number of processes."""
    cases = list(product(amount.tasks, RENDERERS, amount.sizes, amount.processes))
    rows = []
    with Stage("bench recording", len(cases), "rows") as stage:
        for task, renderer, size, processes in cases:
            rows.append(record(amount, task, renderer, size, processes))
            stage.update()
    return rows


def record(amount: Recording, task: str, renderer: str, size: int, processes: int) -> RecordingRow:
    """Record into a scratch folder and time it; what a task or machine cannot draw becomes a note."""
    load, settings = load_average(), {"size": size, "renderer": renderer}
    policy, note = check(task, settings)
    speed: tuple[float, float] | None = None
    stored, frames = None, 0
    if not note:
        with tempfile.TemporaryDirectory(prefix="lewm-bench-") as scratch:
            config = CollectConfig(
                amount.episodes * processes, amount.steps, {policy: 1.0}, shard_episodes=amount.shard_episodes
            )
            store, speed = timed(config, task, settings, Path(scratch) / "data", processes)
            frames = store.num_frames
            stored = sum(sum(shard.bytes.values()) for shard in store.meta.shards) / frames
    return RecordingRow(
        task,
        renderer,
        policy,
        processes,
        size,
        speed[0] if speed else None,
        speed[1] if speed else None,
        stored,
        note,
        frames,
        1,
        "cpu",
        hardware(),
        load,
        torch.__version__,
    )


def check(task: str, settings: dict[str, Any]) -> tuple[str, str]:
    """The task's first policy, or why it cannot be recorded with these settings here."""
    try:
        with closing(envs.make(task, **settings)) as env:
            env.render()
            return env.policies[0], ""
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        return "", " ".join(str(error).split())


def timed(
    config: CollectConfig, task: str, settings: dict[str, Any], path: Path, processes: int
) -> tuple[Store, tuple[float, float]]:
    """Frames per second once every process has finished a shard, and the seconds until then."""
    first = processes * config.shard_episodes
    begin, marks = time.perf_counter(), list[tuple[int, float]]()

    def mark(done: int, total: int) -> None:
        if done >= first:
            marks.append((done, time.perf_counter()))

    store = collect(config, task, settings, path, processes, mark)
    (before, start), (after, end) = marks[0], marks[-1]
    return store, ((after - before) * (config.steps + 1) / (end - start), start - begin)


def table(rows: Sequence[RecordingRow]) -> str:
    """The rows as aligned text."""
    head = f"{'task':<12} {'renderer':<8} {'size':>4} {'processes':>9}"
    lines = [f"{head} {'frames/s':>9} {'start s':>8} {'bytes/frame':>12}  policy"]
    for r in rows:
        start = f"{r.task:<12} {r.renderer:<8} {r.size:>4} {r.processes:>9}"
        if r.frames_per_s is None or r.start_s is None or r.bytes_per_frame is None:
            lines.append(f"{start} {'-':>9}   {r.note}")
            continue
        lines.append(f"{start} {r.frames_per_s:>9.0f} {r.start_s:>8.2f} {r.bytes_per_frame:>12.0f}  {r.policy}")
    lines += [
        "",
        "unencoded; physics, policy, drawing and writing; frames/s of all processes together,",
        "after the first shard of each, start: until then",
        where_measured(rows[0]),
    ]
    return "\n".join(lines)
