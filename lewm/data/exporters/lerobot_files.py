"""The numbered files of a LeRobot v3 data set: tables and videos of several episodes each, below a size limit."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.exporters.video_writer import VideoWriter
from lewm.data.importers.recording import extra

CHUNK_FILES = 1000
"""Files in a folder."""
TEMPLATE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{TEMPLATE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{TEMPLATE}.mp4"
EPISODES_PATH = f"meta/episodes/{TEMPLATE}.parquet"
MEGABYTE = 1024 * 1024


def numbered(template: str, number: int, key: str = "") -> str:
    """Path of file `number`, relative to the data set."""
    chunk, file = divmod(number, CHUNK_FILES)
    return template.format(chunk_index=chunk, file_index=file, video_key=key)


class TableFiles:
    """Parquet files to which every episode is added as a row group."""

    def __init__(self, root: Path, template: str, limit_mb: int) -> None:
        self._root, self._template, self._limit = root, template, limit_mb * MEGABYTE
        self._number, self._size = -1, 0
        self._writer: Any = None

    def add(self, table: Any) -> dict[str, int]:
        """Append an episode's rows; returns the chunk and the file it went to."""
        if self._writer is None or self._size + table.nbytes > self._limit:
            self.close()
            self._number, self._size = self._number + 1, 0
            path = self._root / numbered(self._template, self._number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = extra("pyarrow.parquet", "pyarrow").ParquetWriter(path, table.schema)
        self._writer.write_table(table)
        self._size += table.nbytes
        chunk, file = divmod(self._number, CHUNK_FILES)
        return {"chunk_index": chunk, "file_index": file}

    def close(self) -> None:
        """Finish the last file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class VideoFiles:
    """MP4 files of one camera, with the episodes one after the other."""

    def __init__(self, root: Path, key: str, codec: str, rate: Fraction, crf: int | None, limit_mb: int) -> None:
        self._root, self._key, self._codec, self._rate, self._crf = root, key, codec, rate, crf
        self._limit, self._number = limit_mb * MEGABYTE, -1
        self._writer: VideoWriter | None = None

    def add(self, pictures: NDArray[np.uint8]) -> dict[str, float]:
        """Append an episode (T, Y, X, 3); returns chunk and file, and the seconds at its start and behind its end."""
        if self._writer is None or self._writer.size_with(len(pictures)) > self._limit:
            self.close()
            self._number += 1
            path = self._root / numbered(VIDEO_PATH, self._number, self._key)
            self._writer = VideoWriter(path, self._codec, self._rate, pictures.shape[1:3], self._crf, gop=2)
        first = self._writer.frames
        self._writer.add(pictures)
        chunk, file = divmod(self._number, CHUNK_FILES)
        stop = first + len(pictures)
        return {
            "chunk_index": chunk,
            "file_index": file,
            "from_timestamp": float(first / self._rate),
            "to_timestamp": float(stop / self._rate),
        }

    def close(self) -> None:
        """Finish the last file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
