"""Any Gymnasium environment as a goal-image task: `envs.make("gym:Reacher-v5")`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from envs.adapter.known import Attributes, Known, Rule, known
from envs.adapter.stateless import StatelessEnv
from envs.adapter.task import AdaptedEnv
from envs.adapter.view import Look, View
from envs.goal_env import GoalEnv
from envs.policies import closest

__all__ = ["AdaptedEnv", "StatelessEnv", "make_goal_env"]


def make_goal_env(
    id: str,
    *,
    size: int = 64,
    success: str | Rule | Sequence[Rule] | None = None,
    state: str | Sequence[str] | Mapping[str, Any] | None = None,
    camera: View = None,
    flags: Mapping[str, bool] | None = None,
    hide: Sequence[str] | None = None,
    scatter: int | None = None,
    control_dt: float | None = None,
    make_kwargs: Mapping[str, Any] | None = None,
) -> GoalEnv:
    """The environment that `gymnasium.make(id)` makes, as a goal-image task.

    id: `Reacher-v5`, `dm_control/reacher-easy-v0`, ...; `my_module:Mine-v0` imports my_module first.
    size: picture width and height in pixels.
    success: {"entries": [...], "tolerance": 0.05, "norm": "max" or "euclidean"} or a list of these, all of which must
        hold; the name of a known rule; None for the first known one.
    state: which entries form the state, by name; {"attributes": [...], "names": [...], "angles": [...],
        "constants": {...}} for an environment that keeps it in attributes (see `Attributes`); "none" for one that is
        only recorded; None for every entry that an action can change.
    camera: a camera of the MuJoCo model by name or number, a free one as {"lookat": [x, y, z], "distance": 3,
        "azimuth": 90, "elevation": -45}, or None for where the environment itself looks from.
    flags: MuJoCo's rendering flags to switch, such as {"shadow": true}; shadows and reflections are off by default.
    hide: bodies, geoms and sites of the MuJoCo model that are not drawn; None for what is known to be its own target.
    scatter: a drawn state is the environment's own reset and up to this many random steps; None for 50, fewer where
        that is known to be too many.
    control_dt: seconds per step, where the environment does not say it.
    make_kwargs: arguments of the environment itself.

    Raises ValueError, ImportError or RuntimeError, in one sentence, for what cannot be supported.
    """
    kwargs = plain(make_kwargs or {}, "make_kwargs")
    row = known(id) or Known({})
    scatter = row.scatter if scatter is None else scatter
    if isinstance(scatter, bool) or not isinstance(scatter, int) or scatter < 0:
        raise ValueError(f"scatter is {scatter!r}, but must be a number of steps, 0 or more.")
    if control_dt is not None and not 0 < control_dt < float("inf"):
        raise ValueError(f"control_dt is {control_dt!r}, but must be a number of seconds above 0.")
    if isinstance(state, str):
        if state != "none":
            raise ValueError(f"state is {state!r}, but the only word for it is 'none'; entries come as a list.")
        if success is not None or camera is not None or flags or hide:
            raise ValueError("state is 'none': success, camera, flags and hide have nothing to act on, leave them out.")
        return StatelessEnv(id, size, control_dt, kwargs)
    chosen = parse_attributes(state) if isinstance(state, Mapping) else state
    look = Look(camera, flags or {}, tuple(row.hide if hide is None else hide))
    return AdaptedEnv(id, size, success, chosen, look, scatter, control_dt, kwargs)


def parse_attributes(state: Mapping[str, Any]) -> Attributes:
    """Attributes from plain data. Raises ValueError for an unknown or a missing key."""
    keys = [field.name for field in fields(Attributes)]
    for key in state:
        if key not in keys:
            raise ValueError(f"state has no key {key!r}{closest(key, keys)}; its keys are {', '.join(keys)}.")
    if not state.get("attributes") or isinstance(state["attributes"], str):
        raise ValueError(f"state is {dict(state)}, but state.attributes must be a list of attributes that hold it.")
    constants = plain(state.get("constants", {}), "state.constants")
    return Attributes(
        tuple(state["attributes"]), tuple(state.get("names", ())), tuple(state.get("angles", ())), constants
    )


def plain(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A mapping as JSON gives it back, since settings are saved with recordings. Raises ValueError where it cannot."""
    try:
        return dict(json.loads(json.dumps(dict(data))))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {dict(data)!r}, but must be plain data, as JSON holds it ({error}).") from error
