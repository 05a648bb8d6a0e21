"""The tables of a LeRobot data set: where the rows and pictures of each episode are, in v2 and in v3 layout."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.recording import extra


@dataclass(frozen=True)
class Clip:
    """The part of a video file that is one episode."""

    file: Path
    """The video file."""
    start: float = 0.0
    """Seconds at its first frame."""
    stop: float | None = None
    """Seconds behind its last frame; None: the file is this episode alone."""


@dataclass(frozen=True)
class Place:
    """Where an episode is."""

    index: int
    """Its number in the data set."""
    length: int
    """Frames, and rows of the table."""
    data: Path
    """The parquet file that holds its rows."""
    first: int
    """Its first row in there."""
    clips: Mapping[str, Clip] = field(default_factory=dict)
    """Video feature -> its part of a file."""


def read_info(root: Path) -> dict[str, Any]:
    """`meta/info.json`, checked for what is used here.

    Raises ValueError naming the entry that is missing, or a version that this reader does not know.
    """
    file = root / "meta" / "info.json"
    info = read_json(file)
    for name, kind in {"codebase_version": str, "features": dict, "data_path": str, "total_episodes": int}.items():
        if not isinstance(info.get(name), kind):
            raise ValueError(f"{file} has {name} = {info.get(name)!r}: a LeRobot data set has a {kind.__name__} there")
    if not info["codebase_version"].startswith(("v2.", "v3.")):
        raise ValueError(f"{file} has codebase_version {info['codebase_version']!r}: v2.x and v3.x are read")
    if not isinstance(info.get("fps"), int | float) or info["fps"] <= 0:
        raise ValueError(f"{file} has fps = {info.get('fps')!r}, it must be frames per second")
    return info


def read_json(file: Path) -> dict[str, Any]:
    """An object in a JSON file; ValueError when it is not there or no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object")
    return content


def read_places(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[Place]:
    """All episodes in the order of their numbers, with the clips of the given video features.

    Raises ValueError when the episodes listed are not as many, or not as long, as `info.json` says.
    """
    places = (_places_v2 if info["codebase_version"].startswith("v2.") else _places_v3)(root, info, videos)
    numbers = [place.index for place in places]
    if len(set(numbers)) != len(numbers) or len(places) != info["total_episodes"]:
        raise ValueError(
            f"{root / 'meta'} lists {len(places)} episodes ({len(set(numbers))} different), "
            f"info.json says {info['total_episodes']}: fetch or mend the data set"
        )
    frames = sum(place.length for place in places)
    if frames != info.get("total_frames", frames):
        raise ValueError(f"{root / 'meta'} lists episodes of {frames} frames, info.json says {info['total_frames']}")
    return places


def read_tasks(root: Path, info: Mapping[str, Any]) -> tuple[str, ...]:
    """The descriptions of the tasks, in words."""
    if info["codebase_version"].startswith("v2."):
        file = root / "meta" / "tasks.jsonl"
        return tuple(str(line.get("task", "")) for line in _lines(file)) if file.exists() else ()
    file = root / "meta" / "tasks.parquet"
    if not file.exists():
        return ()
    table = _table(file, ())
    texts = [table.column(name) for name in table.column_names if name != "task_index"]  # it is a data frame's index
    return tuple(map(str, texts[0].to_pylist())) if texts else ()


def as_numpy(column: Any, shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """An Arrow column as an array (rows, *shape); ValueError when a row is missing or of another size."""
    pa = extra("pyarrow", "pyarrow")
    array, rows = column.combine_chunks(), len(column)
    while not pa.types.is_primitive(array.type):
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks)
        elif isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif (
            pa.types.is_list(array.type)
            or pa.types.is_large_list(array.type)
            or pa.types.is_fixed_size_list(array.type)
        ):
            array = array.flatten()
        else:
            raise ValueError(f"{where} holds {array.type}, not numbers")
    if array.null_count or len(array) != rows * int(np.prod(shape)):
        raise ValueError(
            f"{where} has {len(array) - array.null_count} numbers for {rows} rows of shape {list(shape)}, "
            "it needs as many as fill them"
        )
    return array.to_numpy(zero_copy_only=False).reshape(rows, *shape)


def _places_v2(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[Place]:
    places = []
    for line in _lines(root / "meta" / "episodes.jsonl"):
        index, length = line.get("episode_index"), line.get("length")
        if not isinstance(index, int) or not isinstance(length, int):
            raise ValueError(f"{root / 'meta' / 'episodes.jsonl'}: {line} has no episode_index and length")
        values = {"episode_index": index, "episode_chunk": index // int(info.get("chunks_size", 1000))}
        clips = {key: Clip(_path(root, info, "video_path", {**values, "video_key": key})) for key in videos}
        places.append(Place(index, length, _path(root, info, "data_path", values), 0, clips))
    return sorted(places, key=lambda place: place.index)


def _places_v3(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[Place]:
    entries = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    entries += ["data/chunk_index", "data/file_index"]
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    names = (*entries, *(f"videos/{key}/{part}" for key in videos for part in parts))
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise ValueError(f"{root / 'meta' / 'episodes'} holds no parquet file: fetch the whole data set")
    rows = sorted((row for file in files for row in _table(file, names).to_pylist()), key=lambda r: r["episode_index"])
    files_start: dict[tuple[int, int], int] = {}
    for row in rows:
        key = (row["data/chunk_index"], row["data/file_index"])
        files_start[key] = min(files_start.get(key, row["dataset_from_index"]), row["dataset_from_index"])
    return [_place_v3(root, info, videos, row, files_start) for row in rows]


def _place_v3(
    root: Path,
    info: Mapping[str, Any],
    videos: Sequence[str],
    row: Mapping[str, Any],
    files_start: Mapping[tuple[int, int], int],
) -> Place:
    index, length = row["episode_index"], row["length"]
    if row["dataset_to_index"] - row["dataset_from_index"] != length:
        raise ValueError(
            f"{root / 'meta' / 'episodes'}: episode {index} has length {length} but rows "
            f"{row['dataset_from_index']}..{row['dataset_to_index']}"
        )
    at = {part: row[f"data/{part}"] for part in ("chunk_index", "file_index")}
    clips = {}
    for key in videos:
        video = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
        start, stop = (float(row[f"videos/{key}/{part}"]) for part in ("from_timestamp", "to_timestamp"))
        clips[key] = Clip(_path(root, info, "video_path", {**video, "video_key": key}), start, stop)
    first = row["dataset_from_index"] - files_start[(at["chunk_index"], at["file_index"])]
    return Place(index, length, _path(root, info, "data_path", at), first, clips)


def _path(root: Path, info: Mapping[str, Any], template: str, values: Mapping[str, Any]) -> Path:
    try:
        return root / str(info[template]).format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{root / 'meta' / 'info.json'} has {template} = {info.get(template)!r}, "
            f"a path that may name {', '.join(values)}"
        ) from error


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not readable JSON lines ({error})") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{file} holds lines that are no objects")
    return lines


def _table(file: Path, names: Sequence[str]) -> Any:
    """A whole parquet file, or its columns `names`."""
    parquet, pa = extra("pyarrow.parquet", "pyarrow"), extra("pyarrow", "pyarrow")
    try:
        with parquet.ParquetFile(file) as opened:
            missing = sorted(set(names) - set(opened.schema_arrow.names))
            if missing:
                raise ValueError(f"{file} has no column {missing}")
            table = opened.read(columns=list(names) or None)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} is not a readable parquet file ({error})") from error
    return table.select(list(names)) if names else table
