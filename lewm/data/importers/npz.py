"""Plain NumPy archives: a folder with one `.npz` per episode, or one `.npz` with a single episode.

Each holds `pixels` (T + 1 or T, Y, X, 3) uint8, `action` (T, a), and any of `state` and further columns, with as many
rows as frames or as actions. With as many actions as frames the last action is left out: it leads nowhere.
"""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.recording import Choice, Importer, Recording, identifier, join_cameras, numbered, pick
from lewm.data.meta import Column
from lewm.data.writer import Episode


def files_of(path: Path) -> list[Path]:
    """The archives of a recording, sorted by name."""
    return sorted(path.glob("*.npz")) if path.is_dir() else [path]


def recognises(path: Path) -> bool:
    """A folder of `.npz` files that hold pictures, or one such file."""
    files = files_of(path) if path.is_dir() or path.suffix == ".npz" else []
    if not files or not files[0].is_file():
        return False
    try:
        with np.load(files[0], allow_pickle=False) as archive:
            return any(_looks_like_pictures(archive[name]) for name in archive.files if name in ("pixels", "image"))
    except (OSError, ValueError, BadZipFile):
        return False


def open_npz(path: Path, choice: Choice) -> Recording:
    """Open one archive or a folder of them."""
    files = files_of(path)
    if not files:
        raise ValueError(f"{path} holds no .npz file: give a folder of archives, one per episode, or one archive")
    first = _load(files[0], None)
    names = list(first)
    pictures = [name for name in names if _looks_like_pictures(first[name])]
    cameras = list(choice.cameras) or pictures or [pick("", names, ("pixels",), "pictures", files[0])]
    for camera in cameras:
        pick(camera, pictures, (), "pictures", files[0])
    action = pick(choice.action, names, ("action", "actions"), "actions", files[0])
    states = list(choice.state) or [name for name in ("state", "states") if name in names][:1]
    for name in (*states, *choice.columns):
        pick(name, names, (), "entry", files[0])
    wanted = {*cameras, action, *states, *choice.columns}
    length = len(first[action])

    def read(episode: int) -> Episode:
        file = files[episode]
        arrays = _load(file, wanted)
        where = f"{file} (episode {episode})"
        pixels = join_cameras([arrays[camera] for camera in cameras], where)
        count = len(arrays[action])
        if len(pixels) not in (count, count + 1):
            raise ValueError(f"{where}: {len(pixels)} frames and {count} actions; give as many, or one frame more")
        steps = len(pixels) - 1
        state = [_rows(arrays[name], steps + 1, f"{where}: {name}") for name in states]
        return Episode(
            pixels,
            _flat(arrays[action])[:steps],
            np.concatenate(state, 1) if state else np.zeros((steps + 1, 0), np.float32),
            extra={identifier(name): _column(arrays[name], count, steps, where, name) for name in choice.columns},
        )

    return Recording(
        source=f"npz {path.name}",
        episodes=len(files),
        cameras=tuple(map(identifier, cameras)),
        action_dim=_flat(first[action]).shape[1],
        state_names=tuple(label for name in states for label in numbered(name, _flat(first[name]).shape[1])),
        actions=lambda episode: _flat(_load(files[episode], {action})[action]),
        read=read,
        columns=tuple(
            Column(identifier(name), "action" if len(first[name]) == length else "frame", first[name].shape[1:])
            for name in choice.columns
        ),
    )


def _looks_like_pictures(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3


def _load(file: Path, names: set[str] | None) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = (names or set()) - set(archive.files)
            if missing:
                raise ValueError(f"{file} has no {sorted(missing)}; it has {sorted(archive.files)}")
            return {name: archive[name] for name in archive.files if names is None or name in names}
    except (OSError, BadZipFile) as error:
        raise ValueError(f"{file} is not a readable .npz archive ({error})") from error


def _flat(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.reshape(len(array), -1).astype(np.float32)


def _rows(array: NDArray[Any], rows: int, where: str) -> NDArray[np.float32]:
    if len(array) != rows:
        raise ValueError(f"{where} has {len(array)} rows for {rows} frames; give one per frame")
    return _flat(array)


def _column(array: NDArray[Any], actions: int, steps: int, where: str, name: str) -> NDArray[Any]:
    if len(array) not in (actions, steps + 1):
        raise ValueError(
            f"{where}: {name} has {len(array)} rows for {steps + 1} frames and {actions} actions; give as many as one"
        )
    return array[:steps] if len(array) == actions else array


IMPORTER = Importer("plain NumPy archives, one .npz per episode (pixels, action, state, ...)", recognises, open_npz)
