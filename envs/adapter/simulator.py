"""A Gymnasium environment as the adapter drives it: made without a time limit, reset from a seed, stepped and drawn."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import gymnasium
import numpy as np
from numpy.random import get_state, seed, set_state
from numpy.typing import NDArray

from envs.adapter.known import Attributes
from envs.adapter.state import find_source
from envs.camera import load_mujoco
from envs.policies import closest

PACKAGES: dict[str, tuple[str, str]] = {
    "dm_control/*": ("shimmy", "lewm[tasks]"),
    "gym_pusht/*": ("gym_pusht", "gym-pusht"),
    "swm/*": ("stable_worldmodel", "stable-worldmodel"),
    **dict.fromkeys(
        ("PointMaze_*", "AntMaze_*", "Fetch*", "Hand*", "Adroit*", "FrankaKitchen*"),
        ("gymnasium_robotics", "lewm[tasks]"),
    ),
    **dict.fromkeys(
        ("pointmaze-*", "antmaze-*", "humanoidmaze-*", "antsoccer-*", "cube-*", "scene-*", "puzzle-*"),
        ("ogbench", "lewm[tasks]"),
    ),
}
"""Pattern of ids -> the module that registers them when it is imported, and what pip installs to get it."""


class Simulator:
    """One instance of an environment, standing where `reset(seed=0)` puts it, with the place where its state is kept.

    Terminations and truncations are ignored: what the environment calls the end of an episode is a reward's matter,
    and often its own goal's, not ours.
    """

    def __init__(self, id: str, make_kwargs: dict[str, Any], attributes: Attributes | None) -> None:
        self.id = id
        self.env = open_env(id, make_kwargs)
        self.reset(0)
        self.source = find_source(self.env, id, attributes)

    def reset(self, number: int) -> None:
        """The environment's own reset; what it draws depends on `number` alone."""
        reset_seeded(self.env, number)

    def step(self, action: Any) -> None:
        """One step under one of the environment's own actions."""
        self.source.hold()
        self.env.step(action)

    def picture(self) -> NDArray[np.uint8]:
        """What the environment itself draws."""
        self.source.hold()
        return own_picture(self.env, self.id)


def open_env(id: str, make_kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make an environment without a time limit.

    Raises ValueError for an unknown id, ImportError naming the package that is missing, RuntimeError where the
    environment itself fails.
    """
    load_mujoco()  # chooses the OpenGL backend before an environment imports mujoco
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory
    _register(id)
    kwargs: dict[str, Any] = {"render_mode": "rgb_array", "max_episode_steps": -1, "disable_env_checker": True}
    kwargs |= make_kwargs
    try:
        with numpy_seeded(0):
            return gymnasium.make(id, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{id} needs a package that is not installed: {error}") from error
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(
            f"Gymnasium knows no environment {id!r}{closest(id, gymnasium.registry)}; to import the module that "
            f"registers yours first, write my_module:{id}."
        ) from error
    except Exception as error:
        raise RuntimeError(
            f"{id} cannot be made with {kwargs}: {type(error).__name__}: {error}; mend that with gymnasium.make first."
        ) from error


def _register(id: str) -> None:
    """Import the package that registers an id, where we know which one does."""
    if id in gymnasium.registry:
        return
    for pattern, (module, requirement) in PACKAGES.items():
        if fnmatchcase(id, pattern):
            try:
                gymnasium.register_envs(importlib.import_module(module))
            except ImportError as error:
                raise ImportError(f"{id} needs {module} ({error}): pip install '{requirement}'") from error
            return


def reset_seeded(env: gymnasium.Env[Any, Any], number: int) -> None:
    """Reset an environment so that everything it draws from its own and from numpy's global generator is fixed."""
    with numpy_seeded(number):
        env.reset(seed=number)


def seconds_per_step(env: gymnasium.Env[Any, Any], id: str, given: float | None) -> float:
    """As given, else 1 / render_fps. Raises ValueError where an environment says neither."""
    fps = env.metadata.get("render_fps")
    if given is None and not fps:
        raise ValueError(f"{id} does not say how long a step lasts: pass control_dt, in seconds.")
    return given if given is not None else 1.0 / float(fps)  # type: ignore[arg-type]  # checked above


@contextmanager
def numpy_seeded(number: int) -> Iterator[None]:
    """Inside, numpy's global generator, from which some resets draw, starts from `number`; then it is where it was."""
    before = get_state()  # noqa: NPY002
    seed(number)  # noqa: NPY002
    try:
        yield
    finally:
        set_state(before)  # noqa: NPY002


def own_picture(env: gymnasium.Env[Any, Any], id: str) -> NDArray[np.uint8]:
    """Pixels (Y, X, 3) from `env.render()`. Raises RuntimeError where it draws nothing or something else."""
    try:
        frame = np.asarray(env.render())
    except (gymnasium.error.Error, ImportError) as error:
        raise RuntimeError(f"{id} cannot draw: {error}") from error
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise RuntimeError(
            f"{id} draws {frame.dtype} of shape {frame.shape}, but render() must return uint8 pixels (Y, X, 3): "
            "see its render modes, and choose one with make_kwargs={'render_mode': ...}."
        )
    return frame


def fit(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A picture squeezed into (size, size, 3) by averaging areas; contiguous and the caller's own."""
    import cv2

    return np.ascontiguousarray(cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
