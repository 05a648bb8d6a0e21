"""LeRobot data sets written by hand to their documented layout, and MP4 files with the timestamps one wants."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lewm.data.writer import Episode

FPS = 10
CAMERA = "observation.images.top"
NUMBERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}


def write_mp4(file: Path, frames: NDArray[np.uint8], times: list[int] | None = None, fps: int = FPS) -> Path:
    """Lossless H.264; `times` are the numbers of the frames on the clock of `fps` ticks a second."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0", "bf": "0", "g": "2"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for number, picture in zip(times or range(len(frames)), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def png(picture: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def features(episode: Episode, kind: str = "video") -> dict[str, dict[str, Any]]:
    y, x = episode.pixels.shape[1:3]
    joints = ["shoulder.pos", "elbow.pos", "gripper.pos"]
    described = {
        CAMERA: {"dtype": kind, "shape": [y, x, 3], "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [3], "names": joints},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["left", "right"]}},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "instruction": {"dtype": "string", "shape": [1], "names": None},
    }
    return described | {n: {"dtype": d, "shape": [1], "names": None} for n, d in NUMBERS.items()}


def rows(episode: Episode, number: int, first: int, pictures: bool = False) -> pa.Table:
    """A LeRobot episode has as many actions as frames: the last one here holds 99."""
    count = len(episode.pixels)
    actions = np.concatenate([episode.actions, np.full((1, 2), 99, np.float32)])
    columns: dict[str, Any] = {
        "observation.state": pa.array(list(episode.states), pa.list_(pa.float32())),
        "action": pa.FixedSizeListArray.from_arrays(pa.array(actions.reshape(-1)), 2),
        "next.reward": pa.array(np.arange(count, dtype=np.float32)),
        "instruction": pa.array(["go"] * count),
        "timestamp": pa.array((np.arange(count) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(count)),
        "episode_index": pa.array(np.full(count, number)),
        "index": pa.array(first + np.arange(count)),
    }
    if pictures:
        columns[CAMERA] = pa.array(
            [{"bytes": png(frame), "path": f"{t}.png"} for t, frame in enumerate(episode.pixels)]
        )
    return pa.table(columns)


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def change_json(file: Path, **entries: Any) -> None:
    write_json(file, json.loads(file.read_text()) | entries)


def change_rows(file: Path, name: str, row: int, value: Any) -> None:
    """Put another value into one cell of a parquet file."""
    table = pq.read_table(file)
    values = table.column(name).to_pylist()
    values[row] = value
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array(values, table.schema.field(name).type)), file)


def write_v3(root: Path, episodes: list[Episode], pictures: bool = False, groups: int | None = None) -> Path:
    """Episodes 0 and 1 share the first table and video file, the rest have the second, in another chunk."""
    starts = np.cumsum([0, *(len(e.pixels) for e in episodes)])
    listed: list[dict[str, Any]] = []
    for chunk, numbers in enumerate((range(2), range(2, len(episodes)))):
        part = f"chunk-{chunk:03d}/file-{chunk:03d}"
        tables = [rows(episodes[n], n, int(starts[n]), pictures) for n in numbers]
        (root / "data" / part).parent.mkdir(parents=True)
        pq.write_table(pa.concat_tables(tables), root / "data" / f"{part}.parquet", row_group_size=groups)
        if not pictures:
            write_mp4(root / "videos" / CAMERA / f"{part}.mp4", np.concatenate([episodes[n].pixels for n in numbers]))
        for n in numbers:
            seconds = [int(starts[i] - starts[numbers[0]]) / FPS for i in (n, n + 1)]
            entry = {"episode_index": n, "tasks": ["push it"], "length": len(episodes[n].pixels)}
            entry |= {"dataset_from_index": int(starts[n]), "dataset_to_index": int(starts[n + 1])}
            entry |= {"data/chunk_index": chunk, "data/file_index": chunk}
            video = {
                "chunk_index": chunk,
                "file_index": chunk,
                "from_timestamp": seconds[0],
                "to_timestamp": seconds[1],
            }
            listed.append(entry | ({} if pictures else {f"videos/{CAMERA}/{k}": v for k, v in video.items()}))
    write_info(root, "v3.0", episodes, pictures)
    for number, entries in enumerate((listed[2:], listed[:2])):  # files are not in the order of the episodes
        file = root / "meta" / "episodes" / "chunk-000" / f"file-{number:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(entries), file)
    tasks = pa.table({"task_index": [0], "__index_level_0__": ["push it"]})
    pq.write_table(tasks, root / "meta" / "tasks.parquet")
    return root


def write_v21(root: Path, episodes: list[Episode], pictures: bool = False) -> Path:
    """One table and one video per episode; a chunk holds two."""
    for number, episode in enumerate(episodes):
        stem = f"episode_{number:06d}"
        file = root / "data" / f"chunk-{number // 2:03d}" / f"{stem}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(episode, number, 0, pictures), file)
        if not pictures:
            write_mp4(root / "videos" / f"chunk-{number // 2:03d}" / CAMERA / f"{stem}.mp4", episode.pixels)
    write_info(root, "v2.1", episodes, pictures)
    lines = [{"episode_index": n, "tasks": ["push it"], "length": len(e.pixels)} for n, e in enumerate(episodes)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (root / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "push it"}))
    return root


def write_info(root: Path, version: str, episodes: list[Episode], pictures: bool) -> None:
    chunk = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    data, video = f"data/{chunk}.parquet", f"videos/{{video_key}}/{chunk}.mp4"
    if version == "v2.1":
        data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    info = {
        "codebase_version": version,
        "fps": FPS,
        "features": features(episodes[0], "image" if pictures else "video"),
        "total_episodes": len(episodes),
        "total_frames": sum(len(e.pixels) for e in episodes),
        "chunks_size": 2,
        "data_path": data,
        "video_path": None if pictures else video,
    }
    write_json(root / "meta" / "info.json", info)
