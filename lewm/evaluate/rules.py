"""Rules of difficulty by name: which goals, how near, for how long, in which world. `lewm manifest` draws by them.

Adding a rule is one row of `RULES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import envs
from lewm.data.store import Store, split_episodes
from lewm.evaluate.fingerprint import fingerprint, keep_manifest
from lewm.evaluate.manifest import GoalSet, Manifest, make_manifest


@dataclass(frozen=True)
class Rule:
    """A kind of difficulty."""

    distances: tuple[str, ...]
    """Where the goals lie: steps ahead in the same episode, `across` (in another region), `elsewhere` (any episode)."""
    prefix: str
    """Of the names of its goal sets."""
    what: str
    """One line for the help."""
    tolerance: float = 1.0
    """As in GoalSet, and the next three."""
    hold: int = 1
    orientation: bool = False
    shift: tuple[str, ...] = ()


RULES = {
    "standard": Rule(("25",), "ahead", "goals 25 steps ahead, 50 allowed, first hit, as in the literature"),
    "strict": Rule(
        ("25",),
        "strict",
        "the same pairs within half the task's success distance, orientation counted, held for 5 steps",
        tolerance=0.5,
        hold=5,
        orientation=True,
    ),
    "far": Rule(("50", "75", "across"), "far", "goals 50 and 75 steps ahead, and in another room or end of the maze"),
    "shift": Rule(("25",), "shift", "the standard pairs in worlds with shifted factors of variation", shift=("all",)),
}

BUDGETS = {"across": 150, "elsewhere": 100}
"""Environment steps allowed; to goals ahead twice the distance."""


def goal_sets(
    rule: str,
    count: int,
    distances: Sequence[str] = (),
    budget: int | None = None,
    tolerance: float | None = None,
    hold: int | None = None,
    shift: Sequence[str] = (),
) -> list[GoalSet]:
    """The goal sets of a rule, one per distance; what is given replaces what the rule says.

    Worlds in which given factors are shifted have these in their name, as in shift_speed_25.
    Goal sets of different rules with the same distance and seed have the same pairs. Raises ValueError for a distance
    that is none.
    """
    row = RULES[rule]
    prefix = "_".join((row.prefix, *shift)) if row.shift else row.prefix
    return [
        replace(
            _at(prefix, distance, count, budget),
            tolerance=row.tolerance if tolerance is None else tolerance,
            hold=row.hold if hold is None else hold,
            orientation=row.orientation,
            shift=tuple(shift) or row.shift,
        )
        for distance in (tuple(distances) or row.distances)
    ]


def _at(prefix: str, distance: str, count: int, budget: int | None) -> GoalSet:
    """Goals at a distance, met as the task itself says."""
    if distance in ("across", "elsewhere"):
        name = distance if prefix == "ahead" else f"{prefix}_{distance}"
        given = BUDGETS[distance] if budget is None else budget
        return GoalSet(name, distance, budget=given, count=count, pairs="" if name == distance else distance)  # type: ignore[arg-type]
    if not distance.isdecimal() or int(distance) < 1:
        raise ValueError(f"--distances has {distance!r}; it takes steps such as 25, across and elsewhere")
    steps, name, pairs = int(distance), f"{prefix}_{distance}", f"ahead_{distance}"
    given = 2 * steps if budget is None else budget
    return GoalSet(name, "ahead", steps, given, count, pairs="" if name == pairs else pairs)


def draw(goals: Sequence[GoalSet], store: Store, episodes: NDArray[np.int64], seed: int) -> list[Manifest]:
    """The manifests of goal sets, from some episodes of a store."""
    return [make_manifest(goal_set, store, episodes, seed) for goal_set in goals]


def unseen(store: Store, held_out: float, split_seed: int) -> NDArray[np.int64]:
    """The episodes that a training with this split does not see; held_out 1 takes all: nothing is trained on them."""
    if held_out == 1:
        return np.arange(store.num_episodes)
    return split_episodes(store.num_episodes, held_out, split_seed)[1]


def check_task(task: str, store: Store) -> None:
    """Raise ValueError unless the recordings are of this task, given by its name or id."""
    known = envs.TASKS.get(store.meta.task)
    if task not in (store.meta.task, known.id if known is not None else None):
        raise ValueError(f"{store.path} holds recordings of {store.meta.task}, not of {task}: give its own --data")


def within_reach(goals: Sequence[GoalSet], store: Store) -> list[GoalSet]:
    """The goal sets without those across regions where the recordings never leave one."""
    if all(goal_set.goal != "across" for goal_set in goals):
        return list(goals)
    env = envs.make(store.meta.task, **store.meta.settings)
    visited = {int(r) for i in range(store.num_episodes) for r in np.unique(env.region(store.states(i)))}
    env.close()
    return [goal_set for goal_set in goals if goal_set.goal != "across" or len(visited) > 1]


def factors_of(store: Store) -> list[str]:
    """The factors of variation of a store's task. Raises ValueError where it has none."""
    env = envs.make(store.meta.task, **store.meta.settings)
    env.close()
    if not env.factors:
        raise ValueError(f"{store.meta.task} has no factors of variation to shift: choose another rule")
    return list(env.factors)


def files(goals: Sequence[GoalSet], out: Path) -> list[Path]:
    """Where each manifest goes: `out` itself, or for several `out` with what tells them apart in its name."""
    if len(goals) == 1:
        return [out]
    shifts, distances = {goal_set.shift for goal_set in goals}, {_distance(goal_set) for goal_set in goals}
    ends = []
    for goal_set in goals:
        parts = [*(goal_set.shift if len(shifts) > 1 else ()), *([_distance(goal_set)] if len(distances) > 1 else [])]
        ends.append("_".join(parts))
    stem, dot, suffix = out.name.partition(".")
    return [out.with_name(f"{stem}_{end}.{suffix if dot else 'json'}") for end in ends]


def _distance(goal_set: GoalSet) -> str:
    return goal_set.name.rsplit("_", 1)[-1]


def write(manifests: Sequence[Manifest], paths: Sequence[Path]) -> str:
    """Save manifests and say what is in them. Raises ValueError, and writes none, where a file holds another one."""
    for manifest, path in zip(manifests, paths, strict=True):
        if path.exists():
            keep_manifest(manifest, path)
    lines = []
    for manifest, path in zip(manifests, paths, strict=True):
        keep_manifest(manifest, path)
        low, middle, high = np.quantile([p.distance for p in manifest.problems], [0, 0.5, 1])
        lines.append(
            f"{manifest.goals.name}: {len(manifest.problems)} pairs from {len(manifest.held_out)} held-out episodes, "
            f"distance {low:.3g} / {middle:.3g} / {high:.3g} (least, median, most), {manifest.goals.budget} steps "
            f"allowed, {manifest.solved_at_start} pairs solved at the start left out\n"
            f"manifest {path} {fingerprint(manifest)[:12]}"
        )
    return "\n".join(lines)
