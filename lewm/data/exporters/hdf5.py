"""HDF5 as stable-worldmodel reads it: one flat dataset per column, and `ep_len` and `ep_offset` for the episodes.

A row is a frame; the action that would leave an episode's last frame is NaN, and so is the last row of every extra
column that belongs to actions.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.exporters.exporter import ExportConfig, Exporter, Progress, camera_views, episodes_of
from lewm.data.importers.recording import extra
from lewm.data.store import Store
from lewm.data.writer import Episode

COMPRESSION_LEVEL = 5
NUMBER_ROWS = 1024
"""Rows of numbers in a chunk; pictures lie one in a chunk."""


def write_hdf5(store: Store, out: Path, config: ExportConfig, progress: Progress) -> None:
    """Write the store as one file."""
    h5py = extra("h5py", "h5py")
    filters = {}
    if config.codec == "blosc":
        filters = dict(extra("hdf5plugin", "hdf5plugin").Blosc(cname="zstd", clevel=COMPRESSION_LEVEL, shuffle=0))
    counts = store.episodes["length"][: config.episodes].astype(np.int64) + 1
    with h5py.File(out, "w", libver="latest") as file:
        start = 0
        for number, episode in episodes_of(store, config, progress):
            columns = rows_of(store, episode, number)
            if not start:
                for name, values in columns.items():
                    _create(file, name, (int(counts.sum()), *values.shape[1:]), values.dtype, filters)
            for name, values in columns.items():
                file[name][start : start + len(values)] = values
            start += len(episode.pixels)
        file["ep_len"] = counts.astype(np.int32)
        file["ep_offset"] = np.cumsum(counts) - counts


def rows_of(store: Store, episode: Episode, number: int) -> dict[str, NDArray[Any]]:
    """Every column of an episode, one row per frame."""
    frames = len(episode.pixels)
    views = camera_views(store, episode.pixels)
    single = len(views) == 1
    columns: dict[str, NDArray[Any]] = {"pixels" if single else f"pixels.{name}": v for name, v in views.items()}
    columns["action"] = _with_last(episode.actions, frames)
    if store.meta.state_names:
        columns["state"] = episode.states
    columns |= {name: _with_last(np.asarray(values), frames) for name, values in episode.extra.items()}
    columns["episode_idx"] = np.full(frames, number, np.int32)
    columns["step_idx"] = np.arange(frames, dtype=np.int32)
    return columns


def _with_last(rows: NDArray[Any], frames: int) -> NDArray[Any]:
    return rows if len(rows) == frames else np.concatenate([rows, np.full_like(rows[:1], np.nan)])


def _create(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], filters: dict[str, Any]) -> None:
    picture = dtype == np.uint8
    chunk = (1 if picture else min(NUMBER_ROWS, shape[0]), *shape[1:])
    file.create_dataset(name, shape, dtype, maxshape=(None, *shape[1:]), chunks=chunk, **(filters if picture else {}))


EXPORTER = Exporter(
    "one HDF5 file in the layout of stable-worldmodel", ("blosc", "none"), write_hdf5, suffixes=(".h5", ".hdf5")
)
