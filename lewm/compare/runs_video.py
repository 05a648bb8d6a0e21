"""The goals on which two runs differ, rolled out again side by side, as videos."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import envs
from lewm.checkpoint import Checkpoint, load
from lewm.compare.runs import Pair
from lewm.data.codec import side_by_side
from lewm.evaluate.logged import Logged, load_setup
from lewm.evaluate.manifest import stand
from lewm.evaluate.methods import LearnedConfig, make_policy
from lewm.evaluate.runner import Outcome, run_batch
from lewm.video import write_panels


class _Camera:
    """Takes a picture of every problem after every step until it is over; one list per problem."""

    def __init__(self, count: int) -> None:
        self.pictures: list[list[np.ndarray]] = [[] for _ in range(count)]
        self.alive = np.ones(count, bool)

    def __call__(self, step: int, tasks: Sequence[envs.GoalEnv], active: np.ndarray) -> None:
        for row in np.flatnonzero(self.alive).tolist():
            self.pictures[row].append(side_by_side(tasks[row].render()))
        self.alive = active.copy()


def roll_out(
    logged: Logged, run: Path, problems: Sequence[int], device: str, checkpoint: Path | None = None
) -> tuple[list[Outcome], list[list[np.ndarray]]]:
    """Run problems again as `run` did: their outcomes, and the pictures after every step.

    checkpoint: where the model is now, if not where the run found it. Raises ValueError or FileNotFoundError where the
    method or its model is gone.
    """
    setup = load_setup(run)
    methods = {method.name: method for method in setup.methods}
    if logged.row.method not in methods:
        raise ValueError(f"{run}/evaluation/setup.json does not say how {logged.row.method} was run: evaluate again")
    method, model = methods[logged.row.method], None
    if isinstance(method, LearnedConfig):
        model = _model(run, setup.model_of(method.name), checkpoint, device)
    policy = make_policy(method, model, setup.seed)
    camera = _Camera(len(problems))
    outcomes = run_batch(policy, logged.manifest, problems, camera)
    return outcomes, camera.pictures


def _model(run: Path, recorded: str | None, given: Path | None, device: str) -> Checkpoint:
    path = given or (Path(recorded) if recorded else None)
    if path is None or not path.is_dir():
        raise FileNotFoundError(
            f"the model of {run} is not at {path} any more: say where it is with --checkpoints, or add --videos 0"
        )
    return load(path, device)


def write_videos(
    pair: Pair,
    runs: tuple[Path, Path],
    problems: Sequence[int],
    out: Path,
    device: str = "cpu",
    checkpoints: tuple[Path | None, Path | None] = (None, None),
) -> list[str]:
    """One video per problem in `out`: a, the goal, b; who is done waits. Returns a line about each.

    A line says so where a run ended otherwise than in its table, which other hardware or another torch can cause.
    """
    if not problems:
        return []
    sides = (pair.a, pair.b)
    rolled = [
        roll_out(side, run, problems, device, checkpoint) for side, run, checkpoint in zip(sides, runs, checkpoints)
    ]
    lines = []
    for row, problem in enumerate(problems):
        task = stand(pair.a.manifest, pair.a.manifest.problems[problem])
        goal = side_by_side(task.goal_image(np.array(pair.a.manifest.problems[problem].goal_state)))
        films = [[side_by_side(task.render()), *pictures[row]] for _, pictures in rolled]
        task.close()
        length = max(map(len, films))
        frames = [(_at(films[0], t), goal, _at(films[1], t)) for t in range(length)]
        ends = [outcomes[row] for outcomes, _ in rolled]
        captions = [f"{name}: {_end(end)}" for name, end in zip("AB", ends)]
        path = out / f"{pair.a.row.goals}_{problem:04d}.mp4"
        write_panels(path, frames, (captions[0], "goal", captions[1]), fps=max(1, round(1 / task.control_dt)))
        lines.append(f"video {path}" + _otherwise(problem, sides, ends))
    return lines


def _at(film: Sequence[np.ndarray], t: int) -> np.ndarray:
    return film[min(t, len(film) - 1)]


def _end(outcome: Outcome) -> str:
    return f"{'reached' if outcome.success else 'not reached'}, {outcome.steps} steps"


def _otherwise(problem: int, sides: Sequence[Logged], ends: Sequence[Outcome]) -> str:
    """Which sides did not end as logged."""
    changed = []
    for name, side, end in zip("AB", sides, ends):
        logged = next(o for o in side.outcomes if o.problem == problem)
        if (logged.success, logged.steps) != (end.success, end.steps):
            changed.append(f"{name} ended otherwise than in its table ({_end(logged)})")
    return f": {', '.join(changed)}" if changed else ""
