"""Zarr in the layout of diffusion policy: `data/<name>` holds all episodes one after the other, `meta/episode_ends`
the row after the last of each. Pictures (`data/img`) are bytes, or floats from 0 to 255.
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.arrays import Arrays, Entry, as_recording, first_of, span
from lewm.data.importers.recording import Choice, Importer, Recording, extra

MARKS = (".zarray", "zarr.json")


def recognises(path: Path) -> bool:
    """A folder with the arrays `meta/episode_ends` and `data/action`, or others, in either version of zarr."""
    return (path / "data").is_dir() and any((path / "meta" / "episode_ends" / mark).is_file() for mark in MARKS)


def open_zarr(path: Path, choice: Choice) -> Recording:
    """Open such a folder; `episode_ends` must rise, and end where the data ends."""
    zarr = extra("zarr", "zarr")
    if not recognises(path):
        raise ValueError(f"{path} has no data/ and meta/episode_ends; give the folder that holds these two")
    try:
        group = zarr.open_group(path, mode="r")
        ends = np.asarray(group["meta/episode_ends"][:], np.int64)
        found = {name: array for name, array in sorted(group["data"].arrays()) if array.shape}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as zarr: {error}") from error
    _check_ends(path, ends, found)
    starts = np.concatenate([[0], ends[:-1]])

    def rows(episode: int, name: str) -> NDArray[Any]:
        start, count = int(starts[episode]), int(ends[episode] - starts[episode])
        _check_chunks(path / "data" / name, found[name], start, count)
        return span(found[name], name, start, count)

    arrays = Arrays(
        path,
        len(ends),
        {name: Entry(array.shape[0], array.shape[1:], np.dtype(array.dtype)) for name, array in found.items()},
        rows=rows,
        count=lambda episode, name: int(ends[episode] - starts[episode]),
        place=lambda episode: f"{path}, episode {episode}",
    )
    return as_recording(
        arrays, choice, f"zarr {path.name}", ("action", "actions"), first_of(arrays.entries, "state", "agent_pos")
    )


def _check_ends(path: Path, ends: NDArray[np.int64], found: dict[str, Any]) -> None:
    rises = np.diff(ends, prepend=0) > 0
    if not rises.all():
        episode = int(np.argmin(rises))
        raise ValueError(f"{path}, episode {episode}: meta/episode_ends says {ends[episode]}, which does not rise")
    for name, array in found.items():
        if len(ends) and array.shape[0] != ends[-1]:
            raise ValueError(f"{path}: data/{name} has {array.shape[0]} rows, meta/episode_ends ends at {ends[-1]}")


def _check_chunks(folder: Path, array: Any, start: int, count: int) -> None:
    """Raise ValueError for a chunk file that is not there, which zarr would read as zeros without a word."""
    size = (array.shards or array.chunks)[0]
    others = [range(-(-edge // width)) for edge, width in zip(array.shape[1:], (array.shards or array.chunks)[1:])]
    for chunk in product(range(start // size, -(-(start + count) // size)), *others):
        key = array.metadata.encode_chunk_key(chunk)
        if not (folder / key).is_file():
            raise ValueError(
                f"chunk {key} of data/{folder.name} is missing, with rows {chunk[0] * size} to "
                f"{min((chunk[0] + 1) * size, array.shape[0]) - 1}; copy it again"
            )


IMPORTER = Importer("zarr in the layout of diffusion policy (data/..., meta/episode_ends)", recognises, open_zarr)
