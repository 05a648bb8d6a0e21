"""Gymnasium tasks whose goal is a picture: pixels, true states, goal images, scripted experts. Knows no model."""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium

from envs.adapter import make_goal_env
from envs.goal_env import GoalEnv
from envs.policies import Policy, closest
from envs.variation import How

__all__ = ["TASKS", "GoalEnv", "Policy", "Task", "make", "make_goal_env"]


@dataclass(frozen=True)
class Task:
    """One row of the task table."""

    id: str
    """Gymnasium id."""
    entry_point: str
    """`module:Class`, imported only when the task is made."""
    max_episode_steps: int
    """Steps after which `gymnasium.make(id)` truncates an episode; `make` below never truncates."""


TASKS: dict[str, Task] = {
    "two_room": Task(id="lewm/TwoRoom-v0", entry_point="envs.two_room:TwoRoom", max_episode_steps=200),
    "reacher": Task(id="lewm/Reacher-v0", entry_point="envs.reacher:Reacher", max_episode_steps=200),
    "push_t": Task(id="lewm/PushT-v0", entry_point="envs.push_t:PushT", max_episode_steps=200),
    "point_maze": Task(id="lewm/PointMaze-v0", entry_point="envs.point_maze:PointMaze", max_episode_steps=400),
    "door": Task(id="lewm/Door-v0", entry_point="envs.door:Door", max_episode_steps=100),
    "cube": Task(id="lewm/Cube-v0", entry_point="envs.cube:Cube", max_episode_steps=200),
}

for _task in TASKS.values():
    gymnasium.register(_task.id, entry_point=_task.entry_point, max_episode_steps=_task.max_episode_steps)


FOREIGN = "gym:"
"""What stands before the id of any other Gymnasium environment."""


def make(task: str, *, variation: How | None = None, **settings: Any) -> GoalEnv:
    """Build a task from its name (`two_room`), its id (`lewm/TwoRoom-v0`), or `gym:` and any Gymnasium id.

    `settings` are the arguments of the task's class (`size`, `renderer`, ...), or of `make_goal_env` after `gym:`.
    `variation` chooses the world anew in every reset (see `GoalEnv.reset`): "usual" records varied episodes.
    Raises ValueError for an unknown task or setting, naming the closest one.
    """
    builder = _builder(task)
    allowed = [*inspect.signature(builder).parameters, "variation"]
    for name in settings:
        if name not in allowed:
            raise ValueError(
                f"task {task!r} has no setting {name!r}{closest(name, allowed)}; its settings are {', '.join(allowed)}."
            )
    env = builder(**settings)
    if variation is not None:
        env.vary_each_reset(variation)
    return env


def _builder(task: str) -> Callable[..., GoalEnv]:
    """What makes a task from its settings."""
    if task.startswith(FOREIGN):
        return functools.partial(make_goal_env, task.removeprefix(FOREIGN))
    by_name = TASKS | {row.id: row for row in TASKS.values()}
    if task not in by_name:
        raise ValueError(
            f"unknown task {task!r}{closest(task, by_name)}; the tasks are {', '.join(TASKS)}, "
            f"and {FOREIGN} with the id of any Gymnasium environment."
        )
    module, class_name = by_name[task].entry_point.split(":")
    task_class: Callable[..., GoalEnv] = getattr(importlib.import_module(module), class_name)
    return task_class
