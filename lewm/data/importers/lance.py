"""Lance tables of stable-worldmodel: one row per step, with `episode_idx`, `step_idx`, pictures as JPEG, float lists.

Pictures are the binary columns (`pixels`, `pixels_<camera>`). A row's action leaves its frame; the last one of an
episode leads nowhere. Needs `pylance`, whose 200 MB are not part of the extras.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.arrays import Arrays, Entry, as_recording, first_of
from lewm.data.importers.recording import Choice, Importer, Recording
from lewm.data.importers.stable_worldmodel import check_steps

INDEX = ("episode_idx", "step_idx")


def recognises(path: Path) -> bool:
    """A folder `<name>.lance`, or one that holds a single such folder."""
    return (_table(path) / "_versions").is_dir()


def open_lance(path: Path, choice: Choice) -> Recording:
    """Open such a table. Raises ImportError saying how to install its library where that is missing."""
    try:
        import lance
    except ImportError as error:
        raise ImportError("pylance is needed to read this format: pip install pylance") from error
    table = _table(path)
    try:
        dataset = lance.dataset(str(table))
    except (OSError, ValueError) as error:
        raise ValueError(f"{table} cannot be read as a Lance table: {error}") from error
    missing = [name for name in INDEX if name not in dataset.schema.names]
    if missing or not dataset.count_rows():
        there = ", ".join(dataset.schema.names)
        raise ValueError(
            f"{table} has {dataset.count_rows()} rows and the columns {there}; it needs {' and '.join(INDEX)}"
        )
    owner, step = (dataset.to_table(columns=[name])[name].to_numpy() for name in INDEX)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(owner)) + 1])
    counts = np.diff(starts, append=len(owner))
    ids, runs = np.unique(owner[starts], return_counts=True)
    torn = set(ids[runs > 1].tolist())

    def read(name: str, start: int, count: int) -> NDArray[Any]:
        column = dataset.to_table(columns=[name], offset=start, limit=count)[name].combine_chunks()
        return _decode(column, name)

    def check(episode: int) -> None:
        if owner[starts[episode]] in torn:
            raise ValueError(f"the rows with {INDEX[0]} {owner[starts[episode]]} do not stand together")
        check_steps(step[starts[episode] : starts[episode] + counts[episode]])

    arrays = Arrays(
        table,
        len(starts),
        {name: _entry(read(name, 0, 1), int(counts[0])) for name in _readable(dataset.schema)},
        rows=lambda episode, name: read(name, int(starts[episode]), int(counts[episode])),
        count=lambda episode, name: int(counts[episode]),
        place=lambda episode: f"{table}, episode {episode}",
        check=check,
    )
    return as_recording(
        arrays, choice, f"lance {table.name}", ("action",), first_of(arrays.entries, "state", "proprio")
    )


def _table(path: Path) -> Path:
    tables = sorted(path.glob("*.lance")) if path.is_dir() and path.suffix != ".lance" else []
    return tables[0] if len(tables) == 1 else path


def _readable(schema: Any) -> list[str]:
    """Columns of encoded pictures and of numbers."""
    import pyarrow.types as kind

    def known(type_: Any) -> bool:
        value = type_.value_type if kind.is_fixed_size_list(type_) else type_
        return any(test(value) for test in (kind.is_binary, kind.is_large_binary, kind.is_integer, kind.is_floating))

    return [field.name for field in schema if field.name not in INDEX and known(field.type)]


def _entry(first: NDArray[Any], rows: int) -> Entry:
    return Entry(rows, first.shape[1:], first.dtype)


def _decode(column: Any, name: str) -> NDArray[Any]:
    import pyarrow.types as kind

    if kind.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
    if kind.is_binary(column.type) or kind.is_large_binary(column.type):
        return np.stack([_picture(blob.as_py(), f"{name}, frame {t}") for t, blob in enumerate(column)])
    return np.asarray(column)


def _picture(blob: bytes | None, what: str) -> NDArray[np.uint8]:
    import cv2

    picture = None if not blob else cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{what} is no picture that OpenCV can decode")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


IMPORTER = Importer("Lance tables of stable-worldmodel (needs pylance)", recognises, open_lance)
