"""Runs a policy on the problems of a manifest, many at once, and records what happened.

Success is first hit: the goal counts as reached when any environment step within the budget meets the manifest's test,
which is the task's own unless the goal set says otherwise, or has met it for `goals.hold` steps in a row.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

import envs
from lewm.data.collect import git_revision
from lewm.evaluate.manifest import Manifest, meets, stand
from lewm.planning.policy import Policy, Start


@dataclass(frozen=True)
class Outcome:
    """What happened on one problem."""

    problem: int
    """Index in the manifest."""
    success: bool
    steps: int
    """Environment steps until the goal counted as reached, or the budget."""
    closest: float
    """Smallest distance to the goal on the way (the task's own distance)."""
    final: float
    """Distance to the goal at the end."""


Observer = Callable[[int, Sequence[envs.GoalEnv], np.ndarray], None]
"""Called after every environment step with (step, envs, active): how the report watches an episode."""


def run_batch(
    policy: Policy, manifest: Manifest, indices: Sequence[int], observe: Observer | None = None
) -> list[Outcome]:
    """Run the problems `indices` side by side until each is solved or its budget is spent."""
    problems = [manifest.problems[i] for i in indices]
    tasks = [stand(manifest, problem) for problem in problems]
    goals = np.array([p.goal_state for p in problems])
    policy.start(
        [
            Start(index, task, np.array(p.goal_state), np.array(p.past_states), np.array(p.actions))
            for index, task, p in zip(indices, tasks, problems, strict=True)
        ]
    )
    active = np.ones(len(problems), bool)
    met = np.zeros(len(problems), int)  # steps in a row
    steps = np.full(len(problems), manifest.goals.budget)
    closest = np.array([p.distance for p in problems])
    final = closest.copy()
    for step in range(manifest.goals.budget):
        pixels = np.stack([task.render() for task in tasks]) if policy.needs_frame else None
        actions = policy.act(pixels, active)
        for row in np.flatnonzero(active):
            task = tasks[row]
            task.advance(actions[row])
            final[row] = float(task.distance(task.state, goals[row]))
            closest[row] = min(closest[row], final[row])
            met[row] = met[row] + 1 if meets(manifest.goals, task, task.state, goals[row]) else 0
            if met[row] == manifest.goals.hold:
                active[row], steps[row] = False, step + 1
        if observe is not None:
            observe(step, tasks, active)
        if not active.any():
            break
    for task in tasks:
        task.close()
    return [
        Outcome(int(i), bool(not active[row]), int(steps[row]), float(closest[row]), float(final[row]))
        for row, i in enumerate(indices)
    ]


Run = Callable[[Sequence[int], int], Iterator[list[Outcome]]]
"""Runs the problems of these indices, so many at a time, and gives their outcomes as they come."""


def run_in_turn(policy: Policy, manifest: Manifest, todo: Sequence[int], batch: int) -> Iterator[list[Outcome]]:
    """Batch after batch, in this process."""
    for first in range(0, len(todo), batch):
        yield run_batch(policy, manifest, todo[first : first + batch])


def run_manifest(
    policy: Policy,
    manifest: Manifest,
    log: Path,
    key: str,
    batch: int = 50,
    progress: Callable[[int, int], None] | None = None,
    run: Run | None = None,
) -> list[Outcome]:
    """Run every problem of a manifest, `batch` at a time, writing each outcome to `log` (JSON lines).

    A log of the same `key` (method, checkpoint and manifest) is continued; one of another key is replaced. Its first
    line also says which revisions of the code ran the problems, see `revisions`. run: who runs them, such as other
    processes (`lewm.evaluate.workers`); the policy in this one for None.
    """
    done, by = _read_log(log, key)
    todo = [i for i in range(len(manifest.problems)) if i not in done]
    if todo:
        log.parent.mkdir(parents=True, exist_ok=True)
        head = {"key": key, "commits": list(dict.fromkeys([*by, git_revision() or ""]))}
        partial_log = log.with_name(log.name + ".partial")
        partial_log.write_text("".join(json.dumps(line) + "\n" for line in (head, *map(asdict, done.values()))))
        partial_log.replace(log)
    for outcomes in (run or partial(run_in_turn, policy, manifest))(todo, batch):
        with log.open("a") as file:
            file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)
        done |= {outcome.problem: outcome for outcome in outcomes}
        if progress is not None:
            progress(len(outcomes), sum(o.success for o in done.values()))
    return [done[i] for i in range(len(manifest.problems))]


def revisions(log: Path) -> str:
    """The revisions of the code that ran a log's problems, several after a comma; empty where it does not say."""
    with log.open() as file:
        return ", ".join(json.loads(file.readline()).get("commits", ()))


def _read_log(log: Path, key: str) -> tuple[dict[int, Outcome], list[str]]:
    """Outcomes of an earlier run with the same key, and by whom; a last line cut off by a kill is dropped."""
    if not log.exists():
        return {}, []
    first, *lines = log.read_text().splitlines(keepends=True) or [""]
    head = json.loads(first) if first.endswith("}\n") else {}
    if head.get("key") != key:
        return {}, []
    outcomes = [Outcome(**json.loads(line)) for line in lines if line.endswith("}\n")]
    return {outcome.problem: outcome for outcome in outcomes}, head.get("commits", [])
