"""`lewm bench budget`: how many minutes of training it takes to a given success.

A ladder of whole trainings, each with its own schedule and heads, since a snapshot of a longer one has not cooled down
yet. Stops at the first that reaches the target. Resumable: every rung keeps what it finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lewm import pipeline
from lewm.checkpoint import load
from lewm.compare.objectives import plan_with
from lewm.config import RunConfig
from lewm.data.store import Store
from lewm.evaluate.methods import PlanConfig
from lewm.evaluate.statistics import wilson
from lewm.evaluate.timing import hardware, kept_times, load_average
from lewm.study.figures import aligned


@dataclass(frozen=True)
class BudgetRow:
    """One training."""

    task: str
    steps: int
    """Optimiser steps of the world model."""
    minutes: float
    """Wall time of training the world model and its heads, recording left out."""
    cpu_minutes: float
    """Processor time of the same."""
    method: str
    """Planner that the success is of."""
    n: int
    """Goals tried, over all goal sets of the run."""
    successes: int
    success: float
    low: float
    """Lower end of the Wilson 95 % interval."""
    high: float
    target: float
    """Success that was asked for."""
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the training had ended; None if unknown."""
    torch: str


def bench_budget(
    run: RunConfig, ladder: Sequence[int], target: float, store: Store, out: Path, device: torch.device
) -> list[BudgetRow]:
    """Train with more and more steps until the run's first planner reaches the target; its rungs lie in `out`.

    Raises ValueError for a ladder that does not rise, a target outside (0, 1] and a run that plans with no world model.
    """
    if not ladder or list(ladder) != sorted(set(ladder)) or ladder[0] < 1:
        raise ValueError(f"--ladder is {list(ladder)}; give rising numbers of steps, 1 or more")
    if not 0 < target <= 1:
        raise ValueError(f"--target is {target}; it is a share of the goals, above 0 and at most 1")
    method = next((method for method in run.evaluate.methods if isinstance(method, PlanConfig)), None)
    if method is None:
        raise ValueError("the run plans with no world model; give evaluate.methods one of kind world_model")
    rows: list[BudgetRow] = []
    for steps in ladder:
        rung = replace(run, train=replace(run.train, steps=steps), evaluate=replace(run.evaluate, methods=(method,)))
        folder = out / str(steps)
        path = pipeline.fit(rung, store, folder, device)
        load_after = load_average()
        found = [success for success, _, _ in plan_with(rung, load(path, str(device)), store, folder)]
        n, successes = sum(s.n for s in found), sum(s.successes for s in found)
        low, high = wilson(successes, n)
        spent = kept_times(folder)["train"]
        rows.append(
            BudgetRow(
                task=run.task,
                steps=steps,
                minutes=spent.seconds / 60,
                cpu_minutes=spent.cpu_seconds / 60,
                method=method.name,
                n=n,
                successes=successes,
                success=successes / n,
                low=low,
                high=high,
                target=target,
                threads=torch.get_num_threads(),
                device=device.type,
                hardware=hardware(),
                load=load_after,
                torch=torch.__version__,
            )
        )
        if rows[-1].success >= target:
            break
    return rows


def table(rows: Sequence[BudgetRow]) -> str:
    """Aligned text, and whether the target was reached."""
    lines = [("steps", "minutes", "CPU minutes", f"success of {rows[0].method}", "95 % interval", "n")]
    for row in rows:
        interval = f"{100 * row.low:.1f} - {100 * row.high:.1f}"
        cells = (f"{row.minutes:.1f}", f"{row.cpu_minutes:.1f}", f"{100 * row.success:.1f} %", interval, str(row.n))
        lines.append((str(row.steps), *cells))
    last = rows[-1]
    verdict = (
        f"{100 * last.target:g} % reached with {last.steps} steps, {last.cpu_minutes:.1f} CPU minutes"
        if last.success >= last.target
        else f"{100 * last.target:g} % not reached; try a longer --ladder"
    )
    where = f"{last.threads} thread(s), {last.device}, {last.hardware}, torch {last.torch}"
    return f"{aligned(lines)}\n{verdict}\n{where}"
