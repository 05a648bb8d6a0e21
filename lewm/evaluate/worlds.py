"""The world of a start and a goal: as recorded, with the factors of variation that the goal set shifts."""

from collections.abc import Mapping, Sequence

import numpy as np

import envs
from envs.policies import closest
from envs.variation import Factor, Value, choose
from lewm.data.store import Store

GROUPS = ("all", "picture", "physics")
"""Words that stand for several factors."""
WORLDS = 20
"""Worlds tried for a pair before it is left out: in some its start or goal may be impossible."""


def check_shift(who: str, shift: Sequence[str], factors: Mapping[str, Factor]) -> list[str]:
    """Names of the factors to shift, groups spelled out, in the task's order.

    Raises ValueError, which `who` starts, for a word that is neither a factor of the task nor a group.
    """
    for word in shift:
        if word not in factors and word not in GROUPS:
            near = closest(word, (*factors, *GROUPS))
            raise ValueError(f"{who}: shift names {word!r}{near}; it takes {', '.join((*GROUPS, *factors))}")
    names = [name for name, factor in factors.items() if {name, factor.acts, "all"} & set(shift)]
    if shift and not names:
        raise ValueError(f"{who}: shift is {list(shift)}, but the task has no such factors: choose another rule")
    return names


def recorded_world(env: envs.GoalEnv, store: Store, episode: int) -> dict[str, Value]:
    """The factors of the world that an episode was recorded in, as its seed drew them; {} where none vary.

    `env`, a task of the store's settings, is left in its own world, at another state.
    """
    if "variation" not in store.meta.settings:
        return {}
    env.reset(seed=int(store.episodes["seed"][episode]))
    world = env.variation
    env.vary({})
    return world


def draw_world(
    env: envs.GoalEnv,
    world: Mapping[str, Value],
    shifted: Sequence[str],
    rng: np.random.Generator,
    start: np.ndarray,
    goal: np.ndarray,
) -> dict[str, Value] | None:
    """A world with shifted values of some factors that has the start and the goal; None when no such one is found."""
    if not shifted:
        return dict(world)
    for _ in range(WORLDS):
        values = dict(world) | choose(env.factors, dict.fromkeys(shifted, "shifted"), rng)
        if _possible(env, values, start, goal):
            return values
    return None


def _possible(env: envs.GoalEnv, values: Mapping[str, Value], start: np.ndarray, goal: np.ndarray) -> bool:
    """Whether a world has both states, and does not have the one meet the other; the env goes back to its own."""
    try:
        env.vary(values)
        return not env.is_success(env.check_state(start), env.check_state(goal))
    except ValueError:
        return False
    finally:
        env.vary({})
