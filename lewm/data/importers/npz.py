"""Plain NumPy archives: a folder with one `.npz` per episode, or one `.npz` with a single episode.

Each holds `pixels` (T + 1 or T, Y, X, 3) uint8, `action` (T, a), and any of `state` and further columns, with as many
rows as frames or as actions. With as many actions as frames the last action is left out: it leads nowhere.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.archive import headers
from lewm.data.importers.arrays import Arrays, Entry, as_recording, first_of
from lewm.data.importers.recording import Choice, Importer, Recording


def files_of(path: Path) -> list[Path]:
    """The archives of a recording, sorted by name."""
    return sorted(path.glob("*.npz")) if path.is_dir() else [path]


def recognises(path: Path) -> bool:
    """A folder of `.npz` files that hold `pixels` or `image`, or one such file."""
    files = files_of(path) if path.is_dir() or path.suffix == ".npz" else []
    if not files or not files[0].is_file():
        return False
    try:
        entries = _entries(files[0])
    except ValueError:
        return False
    return any(entries[name].is_picture for name in ("pixels", "image") if name in entries)


def open_npz(path: Path, choice: Choice) -> Recording:
    """Open one archive or a folder of them."""
    files = files_of(path)
    if not files:
        raise ValueError(f"{path} holds no .npz file: give a folder of archives, one per episode, or one archive")
    entries = _entries(files[0])
    arrays = Arrays(
        path,
        len(files),
        entries,
        rows=lambda episode, name: _load(files[episode], name),
        count=lambda episode, name: _there(_entries(files[episode]), name).rows,
        place=lambda episode: f"{files[episode]} (episode {episode})",
    )
    state = first_of(entries, "state", "states")
    return as_recording(arrays, choice, f"npz {path.name}", ("action", "actions"), state)


def _entries(file: Path) -> dict[str, Entry]:
    return {
        name: Entry(header.shape[0], header.shape[1:], header.dtype)
        for name, header in headers(file).items()
        if header.shape
    }


def _there(entries: dict[str, Entry], name: str) -> Entry:
    if name not in entries:
        raise ValueError(f"it has no {name!r}; it has {', '.join(entries) or 'nothing'}")
    return entries[name]


def _load(file: Path, name: str) -> NDArray[Any]:
    _there(_entries(file), name)
    with np.load(file, allow_pickle=False) as archive:
        array: NDArray[Any] = archive[name]
        return array


IMPORTER = Importer("plain NumPy archives, one .npz per episode (pixels, action, state, ...)", recognises, open_npz)
