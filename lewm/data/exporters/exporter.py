"""What every exporter is: a function that writes episodes of a store in a foreign format, and how it is asked to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewm.data.store import Store
from lewm.data.writer import Episode

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportConfig:
    """What to write, and how."""

    format: str
    """Name of the format."""
    codec: str = ""
    """How pictures are stored; empty: the first of the format's codecs."""
    crf: int | None = None
    """Constant rate factor of a lossy video codec, 0 to 63: larger is smaller and coarser. None: 30 for av1, 18 for
    h264."""
    episodes: int | None = None
    """Only the first so many; None: all."""
    data_files_size_in_mb: int = 100
    """lerobot: a new table file begins when one would hold more than this, uncompressed."""
    video_files_size_in_mb: int = 200
    """lerobot: a new video file begins when one would grow beyond this."""

    def __post_init__(self) -> None:
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise ValueError(f"crf is {self.crf}, it must be 0 to 63")
        for name in ("episodes", "data_files_size_in_mb", "video_files_size_in_mb"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")


@dataclass(frozen=True)
class Exporter:
    """One row of the table."""

    what: str
    """One line for `lewm export --help`."""
    codecs: tuple[str, ...]
    """How it can store pictures; the first is used when none is asked for."""
    write: Callable[[Store, Path, ExportConfig, Progress], None]
    """Write the store to a new path. The config names one of the codecs. Raises ValueError for a store that the format
    or the codec cannot hold."""
    suffixes: tuple[str, ...] = ()
    """What the name of the file must end in; empty: the format is a folder."""


def episodes_of(store: Store, config: ExportConfig, progress: Progress) -> Iterator[tuple[int, Episode]]:
    """Number and content of every episode that is written, with its extra columns."""
    count = min(store.num_episodes, config.episodes or store.num_episodes)
    for number in range(count):
        extra = {column.name: store.column(column.name, number) for column in store.meta.columns}
        yield number, Episode(store.pixels(number), store.actions(number), store.states(number), extra=extra)
        progress(number + 1, count)


def camera_views(store: Store, pixels_TYXC: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """The pictures (T, Y, X, 3) of every camera."""
    return {name: pixels_TYXC[..., 3 * i : 3 * i + 3] for i, name in enumerate(store.meta.cameras)}


def frame_rows(rows: NDArray[np.floating], frames: int) -> NDArray[np.floating]:
    """One row per frame: where there are only as many as actions, the last one again."""
    return rows if len(rows) == frames else np.concatenate([rows, rows[-1:]])
