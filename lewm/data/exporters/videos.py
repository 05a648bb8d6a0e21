"""A folder of videos with a table of numbers beside each: `episode_000000.mp4` and `episode_000000.csv`.

The table has one row per frame, with columns `action_<i>`, `state_<name>` and those of the store; the last row is empty
where a number belongs to actions. With several cameras the videos are `episode_000000.<camera>.mp4`.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.exporters.exporter import ExportConfig, Exporter, Progress, camera_views, episodes_of
from lewm.data.exporters.video_writer import VIDEO_CODECS, VideoWriter, check_video, frame_rate
from lewm.data.meta import StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode


def write_videos(store: Store, out: Path, config: ExportConfig, progress: Progress) -> None:
    """Write the store as a folder."""
    meta = store.meta
    size = (meta.frame[0], meta.frame[1])
    check_video(config.codec, size, config.crf)
    header, rate = header_of(meta), frame_rate(meta.control_dt)
    out.mkdir()
    for number, episode in episodes_of(store, config, progress):
        stem = f"episode_{number:06d}"
        for camera, pictures in camera_views(store, episode.pixels).items():
            name = f"{stem}.mp4" if len(meta.cameras) == 1 else f"{stem}.{camera}.mp4"
            with VideoWriter(out / name, config.codec, rate, size, config.crf) as video:
                video.add(pictures)
        with (out / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            table.writerows(zip(*(cells for values in numbers_of(episode) for cells in _cells(values, episode))))


def header_of(meta: StoreMeta) -> list[str]:
    """Names of the columns. Raises ValueError when two would have the same."""
    header = [f"action_{i}" for i in range(meta.action_dim)] + [f"state_{name}" for name in meta.state_names]
    for column in meta.columns:
        width = int(np.prod(column.shape, dtype=int))
        header += [column.name] if column.shape == () else [f"{column.name}_{i}" for i in range(width)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"two columns of the table would be called {twice[0]!r}: use another format")
    return header


def numbers_of(episode: Episode) -> list[NDArray[Any]]:
    """What the columns of an episode hold, in the order of the header."""
    return [episode.actions, episode.states, *map(np.asarray, episode.extra.values())]


def _cells(values: NDArray[Any], episode: Episode) -> list[list[str]]:
    """Text of each column, one cell per frame: as many digits as it takes to read the same number back."""
    missing = len(episode.pixels) - len(values)
    flat = values.reshape(len(values), -1)
    return [[*map(str, flat[:, i]), *[""] * missing] for i in range(flat.shape[1])]


EXPORTER = Exporter(
    "a folder of MP4 videos, each with a CSV table of its actions and states", tuple(VIDEO_CODECS), write_videos
)
