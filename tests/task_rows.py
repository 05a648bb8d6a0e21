"""Rows of the task table as test parameters: one that needs OpenGL is marked, one without its package is skipped."""

import importlib
import importlib.util
from typing import Any

import pytest

import envs

PACKAGES = {"cube": "ogbench"}
"""Task -> the package of extra `[tasks]` it is made of. These tasks draw with OpenGL only."""


def needs(task: str) -> list[pytest.MarkDecorator]:
    """The marks of a test that makes this task."""
    package = PACKAGES.get(task)
    if package is None:
        return []
    missing = importlib.util.find_spec(package) is None
    return [pytest.mark.gl, pytest.mark.skipif(missing, reason=f"needs {package}: pip install 'lewm[tasks]'")]


def task_row(name: str, *values: Any) -> Any:
    """The parameters (name, *values) of one task."""
    return pytest.param(name, *values, marks=needs(name))


def task_rows() -> list[Any]:
    """One parameter per task."""
    return [task_row(name) for name in envs.TASKS]


def task_class(name: str) -> type[envs.GoalEnv]:
    """The class of a task, without making one."""
    module, class_name = envs.TASKS[name].entry_point.split(":")
    found: type[envs.GoalEnv] = getattr(importlib.import_module(module), class_name)
    return found
