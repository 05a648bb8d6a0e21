"""How often a control loop can act with an agent: planning in turn, and planning while executing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lewm import tables
from lewm.evaluate.timing import hardware, load_average, machine_of, torch_threads
from lewm.pipeline import pick_device
from lewm.planning.agent import Agent
from lewm.planning.budget import something_seen
from lewm.planning.realtime import RealtimeAgent

WARMUP = 3
"""Plans that are made and thrown away before measuring."""


@dataclass(frozen=True)
class ControlRow:
    """One kind of step of one way to plan."""

    mode: Literal["in turn", "realtime"]
    """Whether the loop stands still while a plan is made, or goes on executing the last one."""
    step: Literal["plans", "between"]
    """Steps at which a plan is made or taken over, or those that only execute."""
    ms_p50: float
    """Milliseconds of `act`."""
    ms_p95: float
    hz_p50: float
    """1000 / ms."""
    hz_p95: float
    steps: int
    """How many were timed."""
    rate: float | None
    """Steps per second the loop was paced at; None: as fast as it went."""
    misses: int | None
    """Plans that were not ready when they were due; None where none was prepared."""
    wait_ms_p50: float | None
    wait_ms_p95: float | None
    planning_ms_p95: float
    """Of a plan: encode, (predict,) search."""
    sustained_hz: float
    """Steps per second at which 95 % of the plans make no step late: planning in turn has to fit into one step,
    planning while executing into all steps of the blocks under way."""
    planner: str
    candidates: int
    iterations: int
    horizon: int
    block: int
    """Environment steps between two plans."""
    model: str
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the row was begun: what else the machine was doing; None if unknown."""
    torch: str


@dataclass(frozen=True)
class Driven:
    """Milliseconds of every `act` of one run, and of every plan, warm-up excluded."""

    plans: list[float]
    between: list[float]
    planning: list[float]


def drive(agent: Agent, plans: int, rate: float | None) -> Driven:
    """Act on a still picture for `plans` plans after the warm-up, at `rate` steps per second or as fast as it goes."""
    picture, proprio = something_seen(agent)
    agent.reset(picture, goal_proprio=proprio)
    block = agent.skip * agent.replan_every
    took, planning = [], []
    due = time.perf_counter()
    for step in range((WARMUP + agent.history + plans) * block):
        if rate is not None:
            time.sleep(max(0.0, due - time.perf_counter()))
            due = max(due, time.perf_counter()) + 1 / rate
        start = time.perf_counter()
        agent.act(picture, proprio=proprio)
        took.append(1000 * (time.perf_counter() - start))
        if step % block == 0:
            assert agent.last is not None
            planning.append(agent.last.encode_ms + agent.last.plan_ms)
    kept = took[-plans * block :]
    return Driven(kept[::block], [ms for i, ms in enumerate(kept) if i % block], planning[-plans:])


def bench_control(checkpoint: Path, threads: list[int], plans: int, rate: float, device: str) -> list[ControlRow]:
    """Both ways to plan with the agent's own planner and cost, for every number of torch threads."""
    if plans < 1:
        raise ValueError(f"--plans is {plans}; time at least one plan per row")
    if not rate > 0:
        raise ValueError(f"--rate is {rate}; it must be a positive number of steps per second")
    chosen, rows = str(pick_device(device)), []
    in_turn, realtime = Agent.load(checkpoint, device=chosen), RealtimeAgent.load(checkpoint, device=chosen)
    for count in threads:
        with torch_threads(count):
            rows += _rows(in_turn, "in turn", drive(in_turn, plans, None), checkpoint, None)
            rows += _rows(realtime, "realtime", drive(realtime, plans, rate), checkpoint, rate)
            realtime.close()
    return rows


def _rows(
    agent: Agent, mode: Literal["in turn", "realtime"], driven: Driven, checkpoint: Path, rate: float | None
) -> list[ControlRow]:
    block = agent.skip * agent.replan_every
    handed = agent.handovers[-len(driven.plans) :] if isinstance(agent, RealtimeAgent) else []
    waits = np.percentile([h.wait_ms for h in handed], (50, 95)).tolist() if handed else (None, None)
    planning_p95 = float(np.percentile(driven.planning, 95))
    slowest = float(np.percentile(driven.plans, 95)) if not handed else planning_p95 / block
    kinds: tuple[tuple[Literal["plans", "between"], list[float]], ...] = (
        ("plans", driven.plans),
        ("between", driven.between),
    )
    rows = []
    for kind, times in kinds:
        if not times:
            continue
        p50, p95 = np.percentile(times, (50, 95)).tolist()
        rows.append(
            ControlRow(
                mode=mode,
                step=kind,
                ms_p50=p50,
                ms_p95=p95,
                hz_p50=1000 / p50,
                hz_p95=1000 / p95,
                steps=len(times),
                rate=rate,
                misses=sum(h.missed for h in handed) if handed else None,
                wait_ms_p50=waits[0],
                wait_ms_p95=waits[1],
                planning_ms_p95=planning_p95,
                sustained_hz=1000 / slowest,
                planner=type(agent.planner).__name__,
                candidates=agent.planner.candidates,
                iterations=agent.planner.iterations,
                horizon=agent.planner.horizon,
                block=block,
                model=str(checkpoint),
                threads=torch.get_num_threads(),
                device=agent.model.device.type,
                hardware=hardware(),
                load=load_average(),
                torch=torch.__version__,
            )
        )
    return rows


def table(rows: Sequence[ControlRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'mode':<9} {'step':<8} {'threads':>7} {'ms p50':>8} {'ms p95':>8} {'Hz p50':>9} {'Hz p95':>9}"
        f" {'sustained Hz':>13} {'wait ms p50':>12} {'p95':>7} {'misses':>9}"
    ]
    for r in rows:
        plans = r.step == "plans"
        waits = (
            f"{r.wait_ms_p50:>12.2f} {r.wait_ms_p95:>7.2f}" if plans and r.misses is not None else f"{'-':>12} {'-':>7}"
        )
        misses = f"{r.misses} of {r.steps}" if plans and r.misses is not None else "-"
        sustained = f"{r.sustained_hz:>13.0f}" if plans else f"{'-':>13}"
        lines.append(
            f"{r.mode:<9} {r.step:<8} {r.threads:>7} {r.ms_p50:>8.3f} {r.ms_p95:>8.3f} {r.hz_p50:>9.0f}"
            f" {r.hz_p95:>9.0f} {sustained} {waits} {misses:>9}"
        )
    return "\n".join([*lines, _notes(rows)])


def markdown(rows: Sequence[ControlRow]) -> str:
    """The rows as docs show them: one per way to plan and number of threads."""
    together: dict[tuple[str, int], dict[str, ControlRow]] = {}
    for r in rows:
        together.setdefault((r.mode, r.threads), {})[r.step] = r
    head = ["planning", "threads", "ms of a step that plans, p50 / p95", "of a step between", "steps per second"]
    lines = []
    for (mode, threads), by_step in together.items():
        plans = by_step["plans"]
        between = _ms(by_step["between"], 3) if "between" in by_step else "-"
        late = "-" if plans.misses is None else f"{plans.misses} of {plans.steps}"
        lines.append([mode, str(threads), _ms(plans, 1), between, f"{plans.sustained_hz:.0f}", late])
    table = tables.markdown([*head, "plans not ready when due"], lines)
    return f"{table}\n\nsteps per second: at which 95 % of the plans make no step late; {_notes(rows)}"


def _ms(row: ControlRow, digits: int) -> str:
    return f"{row.ms_p50:.{digits}f} / {row.ms_p95:.{digits}f}"


def _notes(rows: Sequence[ControlRow]) -> str:
    first, paced = rows[0], next(r.rate for r in rows if r.rate is not None)
    search = f"{first.planner} {first.candidates} x {first.iterations} x {first.horizon}"
    return (
        f"milliseconds of act, one problem, encoder included; {search}, a plan every {first.block} steps; "
        f"realtime paced at {paced:g} steps/s; {machine_of(first)}"
    )
