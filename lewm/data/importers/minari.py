"""Minari data sets, HDF5 or Arrow, read by the `minari` library: T + 1 observations and T actions in an episode.

Entries: `observations`, or where these are dictionaries their keys joined by dots (`image`, `robot.qpos`); `actions`;
`infos.<key>`. Minari keeps pictures as JPEG unless told otherwise.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.arrays import Arrays, Entry, as_recording, first_of
from lewm.data.importers.recording import Choice, Importer, Recording, extra, reading

FAULTS = (OSError, KeyError, ValueError, IndexError, TypeError, AttributeError, AssertionError, StopIteration)
"""What minari raises over damaged data."""


def recognises(path: Path) -> bool:
    """The folder of a data set, or the folder `data` in it."""
    try:
        return {"data_format", "total_episodes"} <= set(_metadata(path))
    except (OSError, ValueError, TypeError):
        return False


def open_minari(path: Path, choice: Choice) -> Recording:
    """Open such a folder; Box actions come as they are, of n discrete ones each becomes n numbers: 1 for the one that
    was taken and -1 for the others.
    """
    import gymnasium

    minari = extra("minari", "minari")
    try:
        dataset = minari.MinariDataset(_folder(path))
    except (*FAULTS, ImportError, gymnasium.error.Error) as error:
        raise ValueError(f"{path} cannot be read as a Minari data set: {type(error).__name__} {error}") from error
    encode, low, high = _actions(dataset.action_space, path)

    @lru_cache(maxsize=1)
    def load(episode: int) -> dict[str, NDArray[Any]]:
        try:
            found = dataset[episode]
            entries = dict(_flat("", found.observations)) | dict(_flat("infos", found.infos or {}))
            return {**entries, "actions": encode(np.asarray(found.actions))}
        except FAULTS as error:
            raise ValueError(f"minari cannot read it: {type(error).__name__} {error}") from error

    def rows(episode: int, name: str) -> NDArray[Any]:
        if name not in load(episode):
            raise ValueError(f"it has no {name!r}; it has {', '.join(load(episode))}")
        return load(episode)[name]

    if not len(dataset):
        raise ValueError(f"{path} holds no episode")
    with reading(f"{path}, episode 0"):
        first = load(0)
    arrays = Arrays(
        path,
        len(dataset),
        {name: Entry(len(array), array.shape[1:], array.dtype) for name, array in first.items()},
        rows=rows,
        count=lambda episode, name: len(rows(episode, name)),
        place=lambda episode: f"{path}, episode {episode}",
    )
    state = first_of(arrays.entries, "state", "observation", "proprio", "agent_pos", "observations")
    recording = as_recording(arrays, choice, f"minari {dataset.id}", ("actions",), state)
    task = dataset.env_spec.id if dataset.env_spec else ""
    return replace(recording, action_low=low, action_high=high, task=task)


def _folder(path: Path) -> Path:
    return path / "data" if (path / "data").is_dir() else path


def _metadata(path: Path) -> Any:
    return json.loads((_folder(path) / "metadata.json").read_text(encoding="utf-8"))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every array of numbers in nested dictionaries, named by its keys joined by dots."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif (array := np.asarray(value)).ndim and array.dtype.kind in "biuf":
        yield prefix or "observations", array


Bounds = tuple[float, ...] | None


def _actions(space: Any, path: Path) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], Bounds, Bounds]:
    """How recorded actions become rows of numbers, and the bounds of these where the space has them."""
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        count, first = int(space.n), int(space.start)

        def one_hot(taken: NDArray[Any]) -> NDArray[Any]:
            if len(taken) and not first <= taken.min() <= taken.max() < first + count:
                raise ValueError(
                    f"actions go from {taken.min()} to {taken.max()}, there are {first} to {first + count - 1}"
                )
            return 2.0 * np.eye(count, dtype=np.float32)[taken.astype(np.int64) - first] - 1.0

        return one_hot, (-1.0,) * count, (1.0,) * count
    if not isinstance(space, Box):
        raise ValueError(f"{path}: its actions are {type(space).__name__}; only Box and Discrete actions can be read")
    low, high = (tuple(map(float, bound.reshape(-1))) for bound in (space.low, space.high))
    return (lambda taken: taken), low if np.isfinite(low).all() else None, high if np.isfinite(high).all() else None


IMPORTER = Importer("Minari data sets, HDF5 or Arrow", recognises, open_minari)
