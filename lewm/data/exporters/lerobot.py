"""LeRobot v3 data sets, written without LeRobot: rows in parquet, pictures in MP4 files, or in the rows with codec png.

LeRobot has as many actions as frames, a store one less: the last frame repeats the last action, and `meta/lewm.json`
says so beside what else LeRobot has no place for. LeRobot passes over that file, our importer reads it.
"""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.codec import encode_frame
from lewm.data.exporters.exporter import ExportConfig, Exporter, Progress, camera_views, episodes_of, frame_rows
from lewm.data.exporters.lerobot_files import (
    CHUNK_FILES,
    DATA_PATH,
    EPISODES_PATH,
    VIDEO_PATH,
    TableFiles,
    VideoFiles,
    numbered,
)
from lewm.data.exporters.lerobot_stats import Stats, merge_stats, number_stats, picture_stats
from lewm.data.exporters.video_writer import VIDEO_CODECS, check_video, frame_rate
from lewm.data.importers.recording import extra
from lewm.data.meta import StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode

INDICES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
CAMERAS = "observation.images."


def write_lerobot(store: Store, out: Path, config: ExportConfig, progress: Progress) -> None:
    """Write the store as a data set folder."""
    meta, as_video = store.meta, config.codec in VIDEO_CODECS
    if as_video:
        check_video(config.codec, meta.frame[:2], config.crf)
    features = features_of(meta, config.codec)
    rate, first = frame_rate(meta.control_dt), 0
    listed: list[dict[str, Any]] = []
    stats: dict[str, list[Stats]] = {name: [] for name in features}
    with ExitStack() as stack:
        tables = stack.enter_context(closing(TableFiles(out, DATA_PATH, config.data_files_size_in_mb)))
        limit = config.video_files_size_in_mb
        videos = {
            key: stack.enter_context(closing(VideoFiles(out, key, config.codec, rate, config.crf, limit)))
            for key, feature in features.items()
            if feature["dtype"] == "video"
        }
        for number, episode in episodes_of(store, config, progress):
            length = len(episode.pixels)
            pictures = {CAMERAS + name: view for name, view in camera_views(store, episode.pixels).items()}
            rows = _rows(meta, episode, number, first, float(rate))
            entry: dict[str, Any] = {"episode_index": number, "tasks": [meta.task], "length": length}
            table = _table(features, rows, {} if as_video else pictures)
            entry |= {f"data/{part}": value for part, value in tables.add(table).items()}
            entry |= {"dataset_from_index": first, "dataset_to_index": first + length}
            for key, files in videos.items():
                entry |= {f"videos/{key}/{part}": value for part, value in files.add(pictures[key]).items()}
            own = {
                name: picture_stats(pictures[name]) if name in pictures else number_stats(rows[name]) for name in stats
            }
            for name, found in own.items():
                stats[name].append(found)
                entry |= {f"stats/{name}/{part}": value.tolist() for part, value in found.items()}
            entry |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            listed.append(entry)
            first += length
    _write_meta(out, store, config, features, listed, stats)


def features_of(meta: StoreMeta, codec: str) -> dict[str, dict[str, Any]]:
    """LeRobot's description of what each frame of the store has."""
    y, x, _ = meta.frame
    fps = _fps(meta)
    picture: dict[str, Any] = {"dtype": "image", "shape": [y, x, 3], "names": ["height", "width", "channels"]}
    if codec in VIDEO_CODECS:
        said = {
            "height": y,
            "width": x,
            "codec": "av1" if codec == "av1" else "h264",
            "pix_fmt": "gbrp" if codec == "lossless" else VIDEO_CODECS[codec].pixels,
            "is_depth_map": False,
            "fps": fps,
            "channels": 3,
        }
        picture |= {
            "dtype": "video",
            "info": {f"video.{key}": value for key, value in said.items()} | {"has_audio": False},
        }
    features = {CAMERAS + name: dict(picture) for name in meta.cameras}
    if meta.state_names:
        features["observation.state"] = _numbers((meta.state_dim,), list(meta.state_names))
    features["action"] = _numbers((meta.action_dim,), [f"action_{i}" for i in range(meta.action_dim)])
    features |= {_column(c.name): _numbers(c.shape, None, c.dtype) for c in meta.columns}
    return features | {name: _numbers((), None, dtype) for name, dtype in INDICES.items()}


def _fps(meta: StoreMeta) -> int | float:
    rate = frame_rate(meta.control_dt)
    return rate.numerator if rate.denominator == 1 else float(rate)


def _numbers(shape: tuple[int, ...], names: list[str] | None, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) or [1], "names": names}


def _column(name: str) -> str:
    """An extra column's feature; one that would take a name of LeRobot's own is set apart."""
    return f"column.{name}" if name in INDICES else name


def _rows(meta: StoreMeta, episode: Episode, number: int, first: int, fps: float) -> dict[str, NDArray[Any]]:
    length = len(episode.pixels)
    steps = np.arange(length)
    numbers: dict[str, NDArray[Any]] = {"action": episode.actions, "observation.state": episode.states}
    numbers |= {_column(name): values for name, values in episode.extra.items()}
    return {name: frame_rows(values, length) for name, values in numbers.items()} | {
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, number),
        "index": first + steps,
        "task_index": np.zeros(length, np.int64),
    }


def _table(
    features: dict[str, dict[str, Any]], rows: dict[str, NDArray[Any]], pictures: dict[str, NDArray[np.uint8]]
) -> Any:
    pa = extra("pyarrow", "pyarrow")
    columns = {}
    for name, feature in features.items():
        if name in rows:
            columns[name] = _arrow(rows[name].astype(feature["dtype"]))
        elif name in pictures:
            encoded = [encode_frame(frame, "png").tobytes() for frame in pictures[name]]
            paths = pa.nulls(len(encoded), pa.string())
            columns[name] = pa.StructArray.from_arrays([pa.array(encoded, pa.binary()), paths], ["bytes", "path"])
    return pa.table(columns)


def _arrow(values: NDArray[Any]) -> Any:
    pa = extra("pyarrow", "pyarrow")
    array = pa.array(values.reshape(-1))
    for width in reversed(() if values.shape[1:] == (1,) else values.shape[1:]):  # LeRobot's [1] is a plain number
        array = pa.FixedSizeListArray.from_arrays(array, width)
    return array


def _write_meta(
    out: Path,
    store: Store,
    config: ExportConfig,
    features: dict[str, dict[str, Any]],
    listed: list[dict[str, Any]],
    stats: dict[str, list[Stats]],
) -> None:
    pa, parquet = extra("pyarrow", "pyarrow"), extra("pyarrow.parquet", "pyarrow")
    meta = store.meta
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(listed),
        "total_frames": listed[-1]["dataset_to_index"],
        "total_tasks": 1,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": config.data_files_size_in_mb,
        "video_files_size_in_mb": config.video_files_size_in_mb,
        "fps": _fps(meta),
        "splits": {"train": f"0:{len(listed)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if config.codec in VIDEO_CODECS else None,
        "features": features,
    }
    own = {
        "last_action": "repeats the one before: a store of T actions has T + 1 frames",
        "task": meta.task,
        "settings": meta.settings,
        "control_dt": meta.control_dt,
        "action_low": meta.action_low,
        "action_high": meta.action_high,
        "angle_names": meta.angle_names,
        "action_columns": [_column(c.name) for c in meta.columns if c.per == "action"],
    }
    merged = {name: {part: value.tolist() for part, value in merge_stats(s).items()} for name, s in stats.items()}
    for name, content in {"info": info, "stats": merged, "lewm": own}.items():
        file = out / "meta" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    episodes = out / numbered(EPISODES_PATH, 0)
    episodes.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(listed), episodes)
    parquet.write_table(_tasks(meta.task), out / "meta" / "tasks.parquet")


def _tasks(task: str) -> Any:
    """A table that pandas reads as task numbers indexed by the task's words, which is what LeRobot expects."""
    pa = extra("pyarrow", "pyarrow")
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, (kind, numpy) in kinds.items()
    ]
    said = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": pa.array([task])})
    return table.replace_schema_metadata({"pandas": json.dumps(said)})


EXPORTER = Exporter(
    "LeRobot v3 data set: parquet tables with AV1 or H.264 videos, or PNG pictures",
    ("av1", "h264", "lossless", "png"),
    write_lerobot,
)
