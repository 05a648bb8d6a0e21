"""A folder of videos with a table of numbers beside each: `<stem>.csv` and `<stem>.mp4`, or `<stem>.<camera>.mp4` each.

A table has a header and one row per frame, or per action. An entry is a column, or all columns that begin with its name
and `_` or `.`: `action` takes `action_x` and `action_y`. Row t's action leaves frame t; with as many rows as frames the
last row's action leads nowhere and may be empty.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.arrays import Arrays, Entry, as_recording
from lewm.data.importers.recording import Choice, Importer, Recording, pick, reading
from lewm.data.importers.video_reader import VideoReader

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm")
MAIN = "main"
"""The camera of a video that is called like its table."""
RATE_TOLERANCE = 0.01
"""Largest relative difference between the frame rates of two episodes."""


@dataclass(frozen=True)
class Table:
    """The content of a `.csv` file."""

    header: list[str]
    """Names of the columns."""
    rows: list[list[str]]
    """Cells as text."""

    @property
    def entries(self) -> list[str]:
        """What can be chosen: every column, and every name that several begin with."""
        stems = [name[: name.index(mark)] for name in self.header for mark in "_." if mark in name]
        return list(dict.fromkeys((*stems, *self.header)))

    def columns(self, entry: str) -> list[int]:
        """Which columns an entry takes."""
        if entry in self.header:
            return [self.header.index(entry)]
        return [i for i, name in enumerate(self.header) if name.startswith((f"{entry}_", f"{entry}."))]

    def numbers(self, entry: str) -> NDArray[np.float64]:
        """Numbers (T, n) of an entry, (T,) of a single column; a last row without any is left out."""
        columns = self.columns(entry)
        if not columns:
            raise ValueError(f"the table has no column {entry!r}; it has {', '.join(self.header)}")
        cells = [[row[i].strip() for i in columns] for row in self.rows]
        if cells and not any(cells[-1]):
            cells.pop()
        values = np.empty((len(cells), len(columns)))
        for t, row in enumerate(cells):
            for i, cell in enumerate(row):
                try:
                    values[t, i] = float(cell)
                except ValueError as error:
                    where = f"{self.header[columns[i]]!r} in row {t + 1}"
                    raise ValueError(f"{where} holds {cell!r}, which is no number") from error
        return values[:, 0] if entry in self.header else values


def recognises(path: Path) -> bool:
    """A folder that holds a `.csv` with a video of its name."""
    return path.is_dir() and any(videos_of(file) for file in path.glob("*.csv"))


def open_videos(path: Path, choice: Choice) -> Recording:
    """Open a folder; every `.csv` is an episode. Frames and rows are counted when it is read."""
    files = sorted(path.glob("*.csv"))
    if not files:
        raise ValueError(f"{path} holds no .csv file: give a folder with <name>.csv beside each <name>.mp4")
    videos = [videos_of(file) for file in files]
    _refuse_lonely(path, videos)
    places = [f"{file}, episode {number}" for number, file in enumerate(files)]
    table = lru_cache(maxsize=1)(lambda episode: read_table(files[episode]))
    with reading(places[0]):
        first = table(0)
        headers = {camera: _header(video) for camera, video in videos[0].items()}
    action = pick(choice.action, first.entries, ("action", "actions"), "actions", files[0])
    states = choice.state or tuple(name for name in ("state",) if first.columns(name))
    entries = {camera: Entry(frames, (*size, 3), np.dtype(np.uint8)) for camera, (size, frames, _) in headers.items()}
    with reading(places[0]):
        for name in (action, *states, *choice.columns):
            values = first.numbers(pick(name, first.entries, (), "column", files[0]))
            entries[name] = Entry(len(values), values.shape[1:], values.dtype)

    def check(episode: int) -> None:
        for camera in headers:
            video = _video(videos[episode], camera)
            _, frames, rate = _header(video)
            if frames - len(table(episode).rows) not in (0, 1):
                raise ValueError(
                    f"{video.name} has {frames} frames and the table {len(table(episode).rows)} rows; there must be as "
                    "many, or one frame more"
                )
            expected = headers[camera][2]
            if rate and expected and abs(rate / expected - 1) > RATE_TOLERANCE:
                raise ValueError(
                    f"{video.name} has {float(rate):g} frames per second, in episode 0 it is {float(expected):g}"
                )

    def rows(episode: int, name: str) -> NDArray[Any]:
        return _decode(_video(videos[episode], name)) if name in headers else table(episode).numbers(name)

    def count(episode: int, name: str) -> int:
        return _header(_video(videos[episode], name))[1] if name in headers else len(table(episode).numbers(name))

    arrays = Arrays(path, len(files), entries, rows, count, place=lambda episode: places[episode], check=check)
    recording = as_recording(arrays, choice, f"videos {path.resolve().name}", (action,), states)
    rate = next((rate for _, _, rate in headers.values() if rate), None)
    return replace(
        recording,
        state_names=_labels(first, states, recording.state_names),
        control_dt=float(1 / rate) if rate else None,
    )


def videos_of(table: Path) -> dict[str, Path]:
    """Camera -> video of a table, `<stem>.<suffix>` or `<stem>.<camera>.<suffix>`."""
    found = {}
    for file in sorted(table.parent.iterdir()):
        camera = file.stem.removeprefix(table.stem)
        if file.suffix.lower() not in SUFFIXES or not file.stem.startswith(table.stem):
            continue
        if not camera:
            found[MAIN] = file
        elif camera.startswith(".") and camera.count(".") == 1:
            found[camera[1:]] = file
    return found


def read_table(file: Path) -> Table:
    """Read a `.csv` file; ValueError when a row has not one cell per column."""
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = [row for row in csv.reader(opened) if row]
    if not rows:
        raise ValueError("the table is empty: its first row must name the columns")
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise ValueError(f"row {number + 1} of the table has {len(row)} cells for {len(header)} columns")
    return Table(header, rows[1:])


def _refuse_lonely(path: Path, videos: list[dict[str, Path]]) -> None:
    known = {video for found in videos for video in found.values()}
    lonely = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file not in known)
    if lonely:
        raise ValueError(f"{lonely[0]} has no table beside it: its actions must be in {lonely[0].stem}.csv")


def _video(videos: Mapping[str, Path], camera: str) -> Path:
    if camera not in videos:
        there = ", ".join(file.name for file in videos.values())
        raise ValueError(f"it has no video of camera {camera}; it has {there or 'none'}")
    return videos[camera]


def _header(video: Path) -> tuple[tuple[int, int], int, Fraction | None]:
    """Height and width, number of frames, frames per second; nothing is decoded."""
    reader = VideoReader(video)
    try:
        return reader.size, reader.packets(), reader.rate
    finally:
        reader.close()


def _decode(video: Path) -> NDArray[np.uint8]:
    reader, frames = VideoReader(video), []
    try:
        while (frame := reader.take()) is not None:
            frames.append(frame[1])
    finally:
        reader.close()
    return np.stack(frames)


def _labels(table: Table, states: tuple[str, ...], numbered: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the numbers of a state: those of the columns, without the entry's name where a name is left."""
    names = []
    for entry in states:
        for column in table.columns(entry):
            rest = table.header[column].removeprefix(entry)[1:]
            names.append(rest if rest.isidentifier() else table.header[column])
    return tuple(names) if len(set(names)) == len(names) else numbered


IMPORTER = Importer(
    "a folder of videos, each with a .csv table of its actions (action_*) and states", recognises, open_videos
)
