"""robomimic HDF5: a group `data/demo_<i>` per episode with `obs/<key>`, `actions` and, mostly, `next_obs/<key>`.

There are as many observations as actions; the last one of `next_obs` is the frame that the last action leads to, and
where it is missing the last action is left out. Entries are named as in `obs` (`agentview_image`, `robot0_eef_pos`),
beside the demonstration's own `actions`, `states` (of the simulator), `rewards` and `dones`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.arrays import Arrays, Entry, as_recording
from lewm.data.importers.hdf5 import entries_of, is_hdf5, open_hdf5
from lewm.data.importers.recording import Choice, Importer, Recording

USUAL_STATE = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""What robomimic's policies observe of the robot unless told otherwise."""


def recognises(path: Path) -> bool:
    """An HDF5 file with a group `data` of demonstrations."""
    if not is_hdf5(path):
        return False
    try:
        with open_hdf5(path) as content:
            return bool(_demonstrations(content))
    except ValueError:
        return False


def open_robomimic(path: Path, choice: Choice) -> Recording:
    """Open such a file: all demonstrations in the order of their numbers, whatever filter keys there are."""
    content = open_hdf5(path)
    names = _demonstrations(content)
    if not names:
        raise ValueError(f"{path} has no group data/demo_<number>; it has {', '.join(content) or 'nothing'}")
    demos = [content["data"][name] for name in names]
    observed = entries_of(demos[0].get("obs", {}))
    pictures = [name for name, entry in observed.items() if entry.is_picture]
    follows = "states" not in choice.state and all(name in demos[0].get("next_obs", {}) for name in pictures)

    def dataset(episode: int, name: str) -> Any:
        return demos[episode]["obs"][name] if name in observed else demos[episode][name]

    def rows(episode: int, name: str) -> NDArray[Any]:
        array = np.asarray(dataset(episode, name)[:])
        if not (follows and name in observed):
            return array
        return np.concatenate([array, demos[episode]["next_obs"][name][-1:]])

    arrays = Arrays(
        path,
        len(demos),
        entries_of(demos[0]) | {name: Entry(e.rows + follows, e.shape, e.dtype) for name, e in observed.items()},
        rows=rows,
        count=lambda episode, name: len(dataset(episode, name)) + (follows and name in observed),
        place=lambda episode: f"{path}, episode {episode} ({names[episode]})",
        check=lambda episode: _check(demos[episode]),
    )
    state = tuple(name for name in USUAL_STATE if name in observed)
    recording = as_recording(arrays, choice, f"robomimic {path.name}", ("actions",), state)
    task, control_dt = _environment(content["data"], path)
    return replace(recording, task=task, control_dt=control_dt, notes=_notes(content, len(demos)))


def _demonstrations(content: Any) -> list[str]:
    data = content.get("data", {})
    names = [name for name in data if re.fullmatch(r"demo_\d+", name) and hasattr(data[name], "keys")]
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _check(demo: Any) -> None:
    """Raise ValueError unless the demonstration has as many steps as it says, in every entry."""
    steps = int(demo.attrs.get("num_samples", len(demo["actions"])))
    for group in ("obs", "next_obs"):
        for name, item in demo.get(group, {}).items():
            if len(item) != steps:
                raise ValueError(f"{group}/{name} has {len(item)} rows for {steps} steps")
    if len(demo["actions"]) != steps:
        raise ValueError(f"it has {len(demo['actions'])} actions for {steps} steps (num_samples)")


def _environment(data: Any, path: Path) -> tuple[str, float | None]:
    """Name of the environment and seconds per action, as far as `env_args` says."""
    try:
        arguments = json.loads(data.attrs.get("env_args", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the attribute env_args of data is not readable JSON ({error}); mend it") from error
    frequency = arguments.get("env_kwargs", {}).get("control_freq")
    return arguments.get("env_name", ""), 1.0 / frequency if frequency else None


def _notes(content: Any, episodes: int) -> tuple[str, ...]:
    keys = ", ".join(content.get("mask", {}))
    return (f"the filter keys {keys} are not kept: all {episodes} demonstrations were taken",) if keys else ()


IMPORTER = Importer("robomimic HDF5 (data/demo_<i>/obs, actions)", recognises, open_robomimic)
