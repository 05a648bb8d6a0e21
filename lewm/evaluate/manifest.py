"""A manifest: the exact start and goal states of an evaluation and its success test, as a file anybody can rerun.

Pairs come from held-out episodes. Pairs that are solved at the start are left out, and how many were is recorded.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import envs
from envs.variation import Value
from lewm.data.store import Store
from lewm.evaluate.worlds import check_shift, draw_world, recorded_world
from lewm.schema import build, read_json, write_json

PAST_FRAMES = 10
"""Recorded states kept before each start, so that a model with stacked frames starts with what it would have seen."""


@dataclass(frozen=True)
class GoalSet:
    """Which start and goal pairs to draw."""

    name: str
    """Name in tables and file names."""
    goal: Literal["ahead", "across", "elsewhere"] = "ahead"
    """ahead: `offset` steps later in the same episode. across: later in the same episode, in another region of the
    task (the other room). elsewhere: a frame of another held-out episode."""
    offset: int = 25
    """Environment steps from start to goal (goal ahead)."""
    budget: int = 50
    """Environment steps the agent may take."""
    count: int = 200
    """Number of pairs."""
    pairs: str = ""
    """Goal sets that say the same here, and agree in goal, offset, budget and count, have the same pairs; empty stands
    for the name."""
    tolerance: float = 1.0
    """Share of the task's own success distance within which a state meets the goal."""
    hold: int = 1
    """Environment steps in a row after which the goal must be met; 1 is first hit."""
    orientation: bool = False
    """Whether an orientation that the task's own test leaves out counts too, where the task has one."""
    shift: tuple[str, ...] = ()
    """Factors of variation that each pair has a shifted value of: their names, or picture, physics or all."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.budget < 1 or self.offset < 1:
            raise ValueError(f"goals {self.name}: count, budget and offset must be at least 1")
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"goals {self.name}: tolerance is {self.tolerance}; it must be positive, such as 0.5")
        if not 1 <= self.hold <= self.budget:
            raise ValueError(f"goals {self.name}: hold is {self.hold}; it must lie in 1..{self.budget}, the budget")
        if self.goal == "ahead" and self.offset + self.hold - 1 > self.budget:
            held = "" if self.hold == 1 else f", held for {self.hold} steps"
            raise ValueError(
                f"goals {self.name}: offset is {self.offset}{held}; it must not exceed the budget, {self.budget}, "
                "or the recording itself would fail"
            )


@dataclass(frozen=True)
class Problem:
    """One start and one goal."""

    episode: int
    """Recorded episode the start comes from."""
    start: int
    """Its frame."""
    goal_episode: int
    """Recorded episode the goal comes from."""
    goal: int
    """Its frame."""
    start_state: tuple[float, ...]
    goal_state: tuple[float, ...]
    past_states: tuple[tuple[float, ...], ...]
    """Recorded states just before the start, oldest first."""
    distance: float
    """The task's own distance from start to goal."""
    actions: tuple[tuple[float, ...], ...] = ()
    """Recorded actions from the start to the goal; empty for goals from elsewhere, and in older manifests."""
    variation: dict[str, Value] = field(default_factory=dict)
    """Factors of variation that are not at their default in this problem's world."""


@dataclass(frozen=True)
class Manifest:
    """Everything that defines an evaluation except the method."""

    task: str
    settings: dict[str, Any]
    goals: GoalSet
    seed: int
    solved_at_start: int
    """Drawn pairs that were left out because the start already met the goal."""
    problems: tuple[Problem, ...]
    held_out: tuple[int, ...] = ()
    """Episodes the pairs were drawn from; empty in older manifests."""


def with_shifts(goals: Sequence[GoalSet], words: Sequence[str]) -> tuple[GoalSet, ...]:
    """The goal sets, and after each the same pairs in worlds where a factor is shifted, one set NAME_WORD per word."""
    return tuple(
        one
        for plain in goals
        for one in (
            plain,
            *(replace(plain, name=f"{plain.name}_{w}", pairs=plain.pairs or plain.name, shift=(w,)) for w in words),
        )
    )


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest as JSON."""
    write_json(asdict(manifest), path, indent=None)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest; raises ValueError naming the file and the key that does not fit."""
    return build(Manifest, read_json(path), str(path))


def is_recorded(manifest: Manifest) -> bool:
    """Whether the recording leads from every start to its goal, so that it can be replayed: not to goals elsewhere.

    Raises ValueError for an older manifest, which kept no actions.
    """
    if manifest.goals.goal == "elsewhere":
        return False
    if not all(problem.actions for problem in manifest.problems):
        raise ValueError(
            f"goals {manifest.goals.name}: the manifest is of an older lewm and keeps no recorded actions to replay; "
            "delete its file, so that the same pairs are drawn again with their actions, or leave out method replay"
        )
    return True


def stand(manifest: Manifest, problem: Problem) -> envs.GoalEnv:
    """A new environment in the problem's world, standing at its start."""
    task = envs.make(manifest.task, **manifest.settings)
    if problem.variation:
        task.vary(problem.variation)
    task.set_state(np.array(problem.start_state))
    return task


def meets(goals: GoalSet, task: envs.GoalEnv, state_S: np.ndarray, goal_S: np.ndarray) -> bool:
    """Whether a state meets a goal as the goal set counts it; `goals.hold` is for the caller to count."""
    if goals.tolerance == 1.0:
        met = bool(task.is_success(state_S, goal_S))
    else:
        met = bool(task.distance(state_S, goal_S) < goals.tolerance * task.success_distance)
    if met and goals.orientation and task.success_turn is not None:
        met = bool(task.turn(state_S, goal_S) < goals.tolerance * task.success_turn)
    return met


def _goal_frame(
    rng: np.random.Generator, goals: GoalSet, env: envs.GoalEnv, store: Store, held: np.ndarray
) -> tuple[int, int, int, int] | None:
    """One candidate (episode, start, goal episode, goal), or None when the draw does not fit the goal set."""
    episode = int(rng.choice(held))
    states = store.states(episode)
    start = int(rng.integers(len(states)))
    if goals.goal == "ahead":
        goal = start + goals.offset
        return (episode, start, episode, goal) if goal < len(states) else None
    if goals.goal == "across":
        goal = int(rng.integers(len(states)))
        reached = start < goal <= start + goals.budget
        crosses = env.region(states[start]) != env.region(states[goal])
        return (episode, start, episode, goal) if reached and crosses else None
    other = int(rng.choice(held))
    return (episode, start, other, int(rng.integers(len(store.states(other))))) if other != episode else None


def make_manifest(goals: GoalSet, store: Store, held_out: np.ndarray, seed: int) -> Manifest:
    """Draw `goals.count` pairs from the held-out episodes; the same seed gives the same pairs.

    Raises ValueError when the recordings cannot provide them.
    """
    env = envs.make(store.meta.task, **store.meta.settings)
    shifted = check_shift(f"goals {goals.name}", goals.shift, env.factors)
    key = (seed, zlib.crc32((goals.pairs or goals.name).encode()))
    rng = np.random.default_rng(key)
    problems: list[Problem] = []
    seen: set[tuple[int, int, int, int]] = set()
    solved = 0
    for _ in range(1000 * goals.count):
        pair = _goal_frame(rng, goals, env, store, held_out)
        if pair is None or pair in seen:
            continue
        seen.add(pair)
        episode, start, goal_episode, goal = pair
        states = store.states(episode)
        start_state, goal_state = states[start], store.states(goal_episode)[goal]
        if bool(env.is_success(start_state, goal_state)) or meets(goals, env, start_state, goal_state):
            solved += 1
            continue
        # A generator of its own for the world, so that goal sets with and without a shift have the same pairs.
        world, rng_world = recorded_world(env, store, episode), np.random.default_rng((*key, len(seen)))
        variation = draw_world(env, world, shifted, rng_world, start_state, goal_state)
        if variation is None:
            continue
        past = states[max(0, start - PAST_FRAMES) : start]
        actions = store.actions(episode)[start:goal] if goal_episode == episode else store.actions(episode)[:0]
        problems.append(
            Problem(
                *pair,
                start_state=tuple(start_state.tolist()),
                goal_state=tuple(goal_state.tolist()),
                past_states=tuple(tuple(s) for s in past.tolist()),
                distance=float(env.distance(start_state, goal_state)),
                actions=tuple(tuple(a) for a in actions.tolist()),
                variation=variation,
            )
        )
        if len(problems) == goals.count:
            env.close()
            episodes = tuple(int(i) for i in held_out)
            settings = dict(store.meta.settings)
            return Manifest(store.meta.task, settings, goals, seed, solved, tuple(problems), episodes)
    raise ValueError(
        f"goals {goals.name}: only {len(problems)} of {goals.count} pairs found in {len(held_out)} held-out episodes; "
        "record more or longer episodes, or lower count, offset or budget"
    )
