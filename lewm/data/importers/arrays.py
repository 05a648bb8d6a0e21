"""Recordings that are named arrays, one per episode and entry: how they become episodes, whatever file holds them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.recording import Choice, Recording, identifier, join_cameras, numbered, pick, reading
from lewm.data.meta import Column
from lewm.data.writer import Episode

SMALLEST_PICTURE = 8


@dataclass(frozen=True)
class Entry:
    """What the header of a named array says."""

    rows: int
    """Rows in the first episode."""
    shape: tuple[int, ...]
    """Shape of one row."""
    dtype: np.dtype[Any]
    """Type of the numbers."""

    @property
    def is_picture(self) -> bool:
        """Whether a row is an RGB picture, of bytes or of floats."""
        colour = len(self.shape) == 3 and self.shape[-1] == 3 and min(self.shape[:2]) >= SMALLEST_PICTURE
        return colour and (self.dtype == np.uint8 or self.dtype.kind == "f")

    @property
    def is_number(self) -> bool:
        """Whether a row is numbers that can be a state or a column."""
        return self.dtype.kind in "biuf" and not self.is_picture


@dataclass(frozen=True)
class Arrays:
    """An opened source. A frame entry has one row per frame, an action entry one per action or one per frame."""

    path: Path
    """File or folder."""
    episodes: int
    """How many there are."""
    entries: dict[str, Entry]
    """Every entry, in the source's order."""
    rows: Callable[[int, str], NDArray[Any]]
    """All rows of an entry in an episode."""
    count: Callable[[int, str], int]
    """How many rows that are, from the header alone."""
    place: Callable[[int], str]
    """File and episode, for messages."""
    check: Callable[[int], None] = lambda episode: None
    """What the format wants checked before an episode is read; raises ValueError."""


def as_recording(
    arrays: Arrays, choice: Choice, source: str, action: tuple[str, ...], state: tuple[str, ...] = ()
) -> Recording:
    """The recording in `arrays`: entries by `choice`, else every picture, the first of `action` and all of `state`.

    Raises ValueError naming the entry that is missing and those that are there.
    """
    cameras = _cameras(arrays, choice)
    numbers = [name for name, entry in arrays.entries.items() if entry.is_number]
    move = pick(choice.action, numbers, action, "actions", arrays.path)
    states = choice.state or state
    for name in (*states, *choice.columns):
        pick(name, numbers, (), "numbers", arrays.path)
    columns = {name: _column(arrays, name, move, cameras[0]) for name in choice.columns}

    def actions(episode: int) -> NDArray[np.float32]:
        with reading(arrays.place(episode)):
            return flat(_rows(arrays, episode, move))[: arrays.count(episode, cameras[0]) - 1]

    def read(episode: int) -> Episode:
        where = arrays.place(episode)
        with reading(where):
            arrays.check(episode)
            pixels = join_cameras([as_frames(arrays.rows(episode, name), name) for name in cameras], where)
            moves = flat(_rows(arrays, episode, move))
            frames = len(pixels)
            if len(moves) not in (frames, frames - 1):
                raise ValueError(
                    f"{frames} frames and {len(moves)} actions; there must be as many actions as frames, or one less"
                )
            wanted = {name: frames for name in states}
            wanted |= {name: frames if column.per == "frame" else len(moves) for name, column in columns.items()}
            found = {name: _rows(arrays, episode, name, rows) for name, rows in wanted.items()}
            state = [flat(found[name]) for name in states] or [np.zeros((frames, 0), np.float32)]
            extra = {c.name: found[name][: frames - (c.per == "action")] for name, c in columns.items()}
            return Episode(pixels, moves[: frames - 1], np.concatenate(state, axis=1), extra=extra)

    return Recording(
        source=source,
        episodes=arrays.episodes,
        cameras=tuple(map(identifier, cameras)),
        action_dim=_width(arrays.entries[move]),
        state_names=tuple(label for name in states for label in numbered(name, _width(arrays.entries[name]))),
        actions=actions,
        read=read,
        columns=tuple(columns.values()),
    )


def flat(array: NDArray[Any]) -> NDArray[np.float32]:
    """One row of float32 numbers per row."""
    return array.reshape(len(array), -1).astype(np.float32)


def as_frames(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Pictures as bytes; floats count from 0 to 255. Raises ValueError for floats of another range."""
    if array.dtype == np.uint8:
        return array
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 255.0)
    if not (low >= 0.0 and 1.0 < high <= 255.0):
        raise ValueError(
            f"the pictures {name} are {array.dtype} from {low:g} to {high:g}; "
            "they must be uint8, or floats that count from 0 to 255"
        )
    return np.rint(array).astype(np.uint8)


def first_of(entries: dict[str, Entry], *names: str) -> tuple[str, ...]:
    """The first of `names` that is there and holds numbers, alone; nothing when none does."""
    return tuple(name for name in names if name in entries and entries[name].is_number)[:1]


def span(array: Any, name: str, start: int, count: int) -> NDArray[Any]:
    """Rows `start` to `start + count` of an array on disk. Raises ValueError when it ends before."""
    if start + count > array.shape[0]:
        raise ValueError(f"{name} ends at row {array.shape[0]}, the episode needs rows {start} to {start + count - 1}")
    return np.asarray(array[start : start + count])


def _cameras(arrays: Arrays, choice: Choice) -> list[str]:
    pictures = [name for name, entry in arrays.entries.items() if entry.is_picture]
    if not pictures:
        there = ", ".join(f"{name} {entry.dtype} {entry.shape}" for name, entry in arrays.entries.items())
        raise ValueError(
            f"{arrays.path} holds no pictures: no entry has rows of (height, width, 3); it has {there or 'nothing'}: "
            "record it again with a camera"
        )
    return [pick(name, pictures, (), "pictures", arrays.path) for name in choice.cameras] or pictures


def _column(arrays: Arrays, name: str, action: str, camera: str) -> Column:
    entry, entries = arrays.entries[name], arrays.entries
    per_action = entry.rows == entries[action].rows != entries[camera].rows
    wide = entry.dtype.itemsize > 4
    return Column(identifier(name), "action" if per_action else "frame", entry.shape, "float64" if wide else "float32")


def _rows(arrays: Arrays, episode: int, name: str, rows: int | None = None) -> NDArray[Any]:
    array, shape = arrays.rows(episode, name), arrays.entries[name].shape
    if rows is not None and len(array) != rows:
        raise ValueError(f"{name} has {len(array)} rows where {rows} are needed")
    if array.shape[1:] != shape:
        raise ValueError(f"a row of {name} has shape {array.shape[1:]}, in the first episode it has {shape}")
    return array


def _width(entry: Entry) -> int:
    return int(np.prod(entry.shape, dtype=int))
