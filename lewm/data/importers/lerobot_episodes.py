"""Rows and pictures of LeRobot episodes, read forward: every file is opened and decoded once when they are asked for in
order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.lerobot_tables import Clip, Place, as_numpy
from lewm.data.importers.recording import extra
from lewm.data.importers.video_reader import VideoReader

INDICES = ("episode_index", "frame_index", "timestamp")


class Tables:
    """The parquet files, of which the last one stays open and its last row groups in memory."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._file: Path | None = None
        self._opened: Any = None
        self._starts = np.zeros(1, np.int64)
        self._groups: tuple[int, ...] = ()
        self._table: Any = None

    def rows(self, place: Place, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """All numbers (T, *shape) of one entry in an episode."""
        return as_numpy(self._rows(place).column(name), shape, f"column {name}")

    def pictures(self, place: Place, name: str) -> NDArray[np.uint8]:
        """Pictures (T, Y, X, 3) that are stored as encoded files in the table."""
        import cv2

        frames = []
        for number, value in enumerate(self._rows(place).column(name).to_pylist()):
            encoded = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(encoded, bytes):
                raise ValueError(f"picture {number} of {name} is not in the table: it must hold the encoded file")
            frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
            if frame is None:
                raise ValueError(f"picture {number} of {name} cannot be decoded")
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        return np.stack(frames)

    def check(self, place: Place, fps: float) -> None:
        """Raise ValueError unless the rows are this episode's, consecutive, and at the times they should be."""
        episode, frame, seconds = (self.rows(place, name, ()) for name in INDICES)
        if (episode != place.index).any():
            wrong = int(episode[episode != place.index][0])
            raise ValueError(f"rows {place.first} to {place.first + place.length - 1} belong to episode {wrong}")
        jump = np.flatnonzero(frame != np.arange(place.length))
        if len(jump):
            raise ValueError(f"frames are missing: row {int(jump[0])} of the episode is frame {int(frame[jump[0]])}")
        late = np.flatnonzero(~(np.abs(seconds - frame / fps) <= 0.5 / fps))
        if len(late):
            at = int(late[0])
            raise ValueError(
                f"frame {at} has timestamp {seconds[at]:.4f} s, with {fps:g} frames a second it is {at / fps:.4f} s"
            )

    def _rows(self, place: Place) -> Any:
        self._open(place.data)
        last = place.first + place.length - 1
        if last >= self._starts[-1]:
            raise ValueError(f"the file has {self._starts[-1]} rows, the episode needs rows {place.first} to {last}")
        begin, end = (int(np.searchsorted(self._starts, row, side="right")) for row in (place.first, last))
        groups = tuple(range(begin - 1, end))
        if groups != self._groups:
            self._table = self._opened.read_row_groups(groups, columns=self._names).select(self._names)
            self._groups = groups
        return self._table.slice(place.first - int(self._starts[begin - 1]), place.length)

    def _open(self, file: Path) -> None:
        if file == self._file:
            return
        if not file.is_file():
            raise ValueError("the file is not there")
        opened = extra("pyarrow.parquet", "pyarrow").ParquetFile(file)
        missing = sorted(set(self._names) - set(opened.schema_arrow.names))
        if missing:
            raise ValueError(f"the file has no column {missing}")
        if self._opened is not None:
            self._opened.close()
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        self._file, self._opened, self._groups = file, opened, ()
        self._starts = np.cumsum([0, *sizes])


class Tape:
    """The video files of one camera."""

    def __init__(self) -> None:
        self._reader: VideoReader | None = None

    def pictures(self, clip: Clip, length: int, fps: float) -> NDArray[np.uint8]:
        """The pictures (T, Y, X, 3) of an episode.

        Raises ValueError naming the file when there are not `length` of them, each within half a frame of its time.
        """
        half = 0.5 / fps
        if clip.stop is not None and abs(clip.stop - clip.start - length / fps) > half:
            raise ValueError(
                f"{clip.file} shows it from {clip.start:.4f} to {clip.stop:.4f} s, which is "
                f"{(clip.stop - clip.start) * fps:.1f} frames of {fps:g} a second for {length} rows"
            )
        reader = self._at(clip, half)
        frames: list[NDArray[np.uint8]] = []
        while len(frames) < length:
            found, wanted = reader.take(), clip.start + len(frames) / fps
            if found is None:
                raise ValueError(f"{clip.file} ends after {len(frames)} of the {length} frames")
            if abs(found[0] - wanted) > half:
                raise ValueError(
                    f"{clip.file}: frame {len(frames)} of the episode is at {found[0]:.4f} s, it must be at "
                    f"{wanted:.4f} s"
                )
            frames.append(found[1])
        if clip.stop is None and reader.peek() is not None:
            raise ValueError(f"{clip.file} has more frames than the {length} rows of the episode")
        return np.stack(frames)

    def _at(self, clip: Clip, half: float) -> VideoReader:
        """The file's reader, wound forward to the clip."""
        ahead = self._reader.peek() if self._reader and self._reader.file == clip.file else None
        if self._reader is None or ahead is None or ahead[0] > clip.start + half:
            if self._reader is not None:
                self._reader.close()
            self._reader = VideoReader(clip.file)
        while (frame := self._reader.peek()) is not None and frame[0] < clip.start - half:
            self._reader.take()
        return self._reader
