"""Gymnasium tasks whose goal is a picture: pixels, true states, goal images, scripted experts. Knows no model."""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import gymnasium

from envs.goal_env import GoalEnv
from envs.policies import Policy, closest

__all__ = ["TASKS", "GoalEnv", "Policy", "Task", "make"]


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
    "door": Task(id="lewm/Door-v0", entry_point="envs.door:Door", max_episode_steps=100),
}

for _task in TASKS.values():
    gymnasium.register(_task.id, entry_point=_task.entry_point, max_episode_steps=_task.max_episode_steps)


def make(task: str, **settings: Any) -> GoalEnv:
    """Build a task, without Gymnasium's wrappers, from its name (`two_room`) or id (`lewm/TwoRoom-v0`).

    `settings` are the arguments of the task's class (`size`, `renderer`, ...). Raises ValueError for an unknown task
    or setting, naming the closest one.
    """
    by_name = TASKS | {row.id: row for row in TASKS.values()}
    if task not in by_name:
        raise ValueError(f"unknown task {task!r}{closest(task, by_name)}; the tasks are {', '.join(TASKS)}.")
    module, class_name = by_name[task].entry_point.split(":")
    task_class = getattr(importlib.import_module(module), class_name)
    allowed = list(inspect.signature(task_class).parameters)
    for name in settings:
        if name not in allowed:
            raise ValueError(
                f"task {task!r} has no setting {name!r}{closest(name, allowed)}; its settings are {', '.join(allowed)}."
            )
    env: GoalEnv = task_class(**settings)
    return env
