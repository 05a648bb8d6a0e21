"""OGBench `.npz`: `observations`, `actions`, `terminals`, in most `qpos` and `qvel`; episodes one after the other.

An episode ends in the row where `terminals` is 1; the action of that row leads nowhere. The archive is unpacked once,
from front to back, and only one episode of it is held at a time.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.archive import Header, Rows, headers
from lewm.data.importers.arrays import Arrays, Entry, as_recording, span
from lewm.data.importers.recording import Choice, Importer, Recording, reading

NEEDED = ("observations", "actions", "terminals")


def recognises(path: Path) -> bool:
    """One `.npz` with observations, actions and terminals."""
    try:
        return path.suffix == ".npz" and path.is_file() and set(NEEDED) <= set(headers(path))
    except ValueError:
        return False


def open_ogbench(path: Path, choice: Choice) -> Recording:
    """Open such an archive. Raises ValueError where the observations are states: there is nothing to see."""
    found = headers(path)
    _check(path, found)
    with reading(str(path)):
        ends = np.flatnonzero(Rows(path, "terminals")[:].reshape(-1)) + 1
    total = found["observations"].shape[0]
    if not len(ends) or ends[-1] != total:
        raise ValueError(
            f"{path}: the last of its {total} rows is not marked in terminals, so its last episode is cut off; "
            "download it again"
        )
    starts = np.concatenate([[0], ends[:-1]])
    opened: dict[str, Rows] = {}

    def rows(episode: int, name: str) -> NDArray[Any]:
        if name not in opened:
            opened[name] = Rows(path, name)
        return span(opened[name], name, int(starts[episode]), int(ends[episode] - starts[episode]))

    arrays = Arrays(
        path,
        len(ends),
        {
            name: Entry(header.shape[0], header.shape[1:], header.dtype)
            for name, header in found.items()
            if header.shape
        },
        rows=rows,
        count=lambda episode, name: int(ends[episode] - starts[episode]),
        place=lambda episode: f"{path}, episode {episode}",
    )
    state = tuple(name for name in ("qpos", "qvel") if name in found)
    return as_recording(arrays, choice, f"ogbench {path.name}", ("actions",), state)


def _check(path: Path, found: dict[str, Header]) -> None:
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}; it has {', '.join(found) or 'nothing'}")
    shape = found["observations"].shape
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"{path} holds no pictures: its observations have rows of shape {shape[1:]}; "
            "take the visual- data set of this task, whose rows are (height, width, 3)"
        )
    for name, header in found.items():
        if header.shape[:1] != shape[:1]:
            raise ValueError(f"{path}: {name} has shape {header.shape} beside {shape[0]} observations")


IMPORTER = Importer("OGBench .npz with pictures (observations, actions, terminals)", recognises, open_ogbench)
