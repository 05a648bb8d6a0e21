"""One small recording per importer, as its own library writes it, and the episodes it must become."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from lerobot_layout import write_mp4, write_v3
from numpy.typing import NDArray

from lewm.data.importers.recording import Choice
from lewm.data.writer import Episode

SIZE = 32
LENGTHS = (5, 7, 4)


@dataclass
class Case:
    """How to make a recording of one format, and what it must become."""

    make: Callable[[Path], tuple[Path, list[Episode]]]
    """Writes a recording into a folder; returns what to import and the episodes expected of it."""
    spoil: Callable[[Path], None]
    """Damages episode 1 of what `make` returned, so that reading it must fail."""
    choice: Choice = field(default_factory=Choice)
    """What to take."""
    config: dict[str, Any] = field(default_factory=dict)
    """Further fields of the ImportConfig."""
    lossy: float = 0.0
    """Largest mean pixel difference allowed; 0: pictures are exact."""
    needs: str = ""
    """A module without which the case is skipped; empty: always there."""


def toy_episodes(
    lengths: tuple[int, ...] = LENGTHS, size: int = SIZE, actions: int = 2, states: int = 3, cameras: int = 1
) -> list[Episode]:
    """Smooth pictures (kind to lossy codecs) whose brightness names episode, time and camera; numbers likewise."""
    return [
        Episode(
            np.concatenate([pictures(number, length + 1, size, camera) for camera in range(cameras)], axis=-1),
            numbers(number, length, actions) / 100,
            numbers(number, length + 1, states),
        )
        for number, length in enumerate(lengths)
    ]


def pictures(episode: int, frames: int, size: int, camera: int = 0) -> NDArray[np.uint8]:
    ramp = np.arange(size, dtype=np.float32) * 64 / size
    planes = [ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.full((size, size), 40.0, np.float32)]
    flat = np.stack(planes, axis=-1)
    light = 40 * episode + 6 * np.arange(frames) + 20 * camera
    return (flat + light[:, None, None, None]).astype(np.uint8)


def numbers(episode: int, rows: int, width: int) -> NDArray[np.float32]:
    return (10.0 * episode + np.arange(rows)[:, None] + 0.25 * np.arange(width)).astype(np.float32)


def with_last(actions: NDArray[np.float32], value: float = np.nan) -> NDArray[np.float32]:
    """As many actions as frames: the last one, which leads nowhere, holds `value`."""
    return np.concatenate([actions, np.full_like(actions[:1], value)])


def make_npz(folder: Path) -> tuple[Path, list[Episode]]:
    episodes = toy_episodes()
    for number, episode in enumerate(episodes):
        np.savez(folder / f"{number:03d}.npz", pixels=episode.pixels, action=episode.actions, state=episode.states)
    return folder, episodes


def spoil_npz(path: Path) -> None:
    file = path / "001.npz"
    arrays = dict(np.load(file))
    np.savez(file, **(arrays | {"pixels": arrays["pixels"][:-2]}))


def make_swm_hdf5(folder: Path, index: str = "episode_idx", blosc: bool = True) -> tuple[Path, list[Episode]]:
    """Flat columns in chunks of one row, compressed with Blosc, the last action of an episode NaN."""
    import h5py
    import hdf5plugin

    episodes = toy_episodes()
    lengths = [len(episode.pixels) for episode in episodes]
    columns = {
        "pixels": np.concatenate([episode.pixels for episode in episodes]),
        "action": np.concatenate([with_last(episode.actions) for episode in episodes]),
        "state": np.concatenate([episode.states for episode in episodes]),
        "proprio": np.concatenate([episode.states[:, :1] for episode in episodes]),
        index: np.repeat(np.arange(len(episodes)), lengths),
        "step_idx": np.concatenate([np.arange(length) for length in lengths]),
    }
    with h5py.File(folder / "toy.h5", "w") as file:
        for name, column in columns.items():
            packed = dict(hdf5plugin.Blosc(cname="zstd")) if blosc else {}
            file.create_dataset(name, data=column, chunks=(1, *column.shape[1:]), **packed)
        file["ep_len"] = np.array(lengths, np.int32)
        file["ep_offset"] = np.cumsum([0, *lengths[:-1]])
    return folder / "toy.h5", episodes


def spoil_swm_hdf5(path: Path) -> None:
    """A frame of episode 1 is gone: its steps jump."""
    import h5py

    with h5py.File(path, "r+") as file:
        start = int(file["ep_offset"][1])
        file["step_idx"][start + 2 : start + 4] += 1


def make_lance(folder: Path) -> tuple[Path, list[Episode]]:
    """A table as stable-worldmodel writes it; PNG instead of JPEG, so that pictures are exact."""
    import cv2
    import lance
    import pyarrow as pa

    episodes = toy_episodes()

    def floats(rows: NDArray[np.float32]) -> pa.FixedSizeListArray:
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])

    def encode(frame: NDArray[np.uint8]) -> bytes:
        return bytes(cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes())

    tables = [
        pa.table(
            {
                "episode_idx": pa.array(np.full(len(episode.pixels), number, np.int32)),
                "step_idx": pa.array(np.arange(len(episode.pixels), dtype=np.int32)),
                "pixels": pa.array([encode(frame) for frame in episode.pixels], pa.binary()),
                "action": floats(with_last(episode.actions)),
                "state": floats(episode.states),
            }
        )
        for number, episode in enumerate(episodes)
    ]
    lance.write_dataset(pa.concat_tables(tables), str(folder / "toy.lance"))
    return folder / "toy.lance", episodes


def spoil_lance(path: Path) -> None:
    import lance

    lance.dataset(str(path)).delete("episode_idx = 1 AND step_idx = 3")


def make_robomimic(folder: Path) -> tuple[Path, list[Episode]]:
    """Demonstrations with gaps in their numbers, past 9, the last frame in next_obs, a filter key."""
    import h5py

    episodes = toy_episodes()
    with h5py.File(folder / "image.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(episode.actions) for episode in episodes)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for number, episode in zip((0, 2, 10), episodes):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(episode.actions)
            demo["actions"] = episode.actions
            for group, rows in (("obs", slice(None, -1)), ("next_obs", slice(1, None))):
                demo[f"{group}/agentview_image"] = episode.pixels[rows]
                demo[f"{group}/robot0_eef_pos"] = episode.states[rows]
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])
    return folder / "image.hdf5", episodes


def spoil_robomimic(path: Path) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        short = file["data/demo_2/obs/agentview_image"][:-1]
        del file["data/demo_2/obs/agentview_image"]
        file["data/demo_2/obs/agentview_image"] = short


def make_zarr(folder: Path, zarr_format: int = 2) -> tuple[Path, list[Episode]]:
    """As the diffusion policy's Push-T: float pictures from 0 to 255, as many actions as frames."""
    import zarr

    episodes = toy_episodes()
    lengths = [len(episode.pixels) for episode in episodes]
    path = folder / "toy.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    columns = {
        "data/img": np.concatenate([episode.pixels for episode in episodes]).astype(np.float32),
        "data/action": np.concatenate([with_last(episode.actions, 99.0) for episode in episodes]),
        "data/state": np.concatenate([episode.states for episode in episodes]),
        "meta/episode_ends": np.cumsum(lengths),
    }
    for name, column in columns.items():
        root.create_array(name, data=column, chunks=(4, *column.shape[1:]))
    return path, episodes


def spoil_zarr(path: Path) -> None:
    """The chunk of rows 8 to 11 is lost; episode 1 has rows 6 to 13."""
    (path / "data" / "img" / "2.0.0.0").unlink()


def make_minari(
    folder: Path, data_format: str = "hdf5", discrete: bool = False, jpeg: bool = True
) -> tuple[Path, list[Episode]]:
    """Written by minari itself: dictionaries of observations, T + 1 of them."""
    import minari
    from gymnasium.spaces import Box, Dict, Discrete
    from minari.data_collector import EpisodeBuffer

    episodes = toy_episodes()
    one_hot = 2.0 * np.eye(3, dtype=np.float32) - 1.0
    if discrete:
        episodes = [replace(e, actions=one_hot[np.arange(len(e.actions)) % 3]) for e in episodes]
    frame = Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    robot = Dict({"state": Box(-np.inf, np.inf, (3,), np.float32)})
    buffers = [
        EpisodeBuffer(
            id=number,
            observations={"image": list(e.pixels), "robot": {"state": list(e.states)}},
            actions=list(e.actions.argmax(axis=1)) if discrete else list(e.actions),
            rewards=[0.0] * len(e.actions),
            terminations=[False] * len(e.actions),
            truncations=[False] * (len(e.actions) - 1) + [True],
        )
        for number, e in enumerate(episodes)
    ]
    with mock.patch.dict(os.environ, {"MINARI_DATASETS_PATH": str(folder)}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no author, no code and no environment are named
        minari.create_dataset_from_buffers(
            "toy/test-v0",
            buffers,
            observation_space=Dict({"image": frame, "robot": robot}),
            action_space=Discrete(3) if discrete else Box(-1.0, 1.0, (2,), np.float32),
            data_format=data_format,
            jpeg_encoding=jpeg,
        )
    return folder / "toy" / "test-v0", episodes


def spoil_minari(path: Path) -> None:
    import h5py

    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        short = file["episode_1/observations/image"][:-2]
        del file["episode_1/observations/image"]
        file["episode_1/observations/image"] = short


def make_ogbench(folder: Path, packed: bool = True) -> tuple[Path, list[Episode]]:
    episodes = toy_episodes()
    columns = {
        "observations": np.concatenate([episode.pixels for episode in episodes]),
        "actions": np.concatenate([with_last(episode.actions, 99.0) for episode in episodes]),
        "terminals": np.concatenate([np.arange(len(e.pixels)) == len(e.actions) for e in episodes]),
        "qpos": np.concatenate([episode.states[:, :2] for episode in episodes]),
        "qvel": np.concatenate([episode.states[:, 2:] for episode in episodes]),
    }
    (np.savez_compressed if packed else np.savez)(folder / "visual-toy-v0.npz", **columns)
    return folder / "visual-toy-v0.npz", episodes


def spoil_ogbench(path: Path) -> None:
    """Episode 1 is cut down to a single frame, which no action leaves."""
    arrays = dict(np.load(path))
    arrays["terminals"][LENGTHS[0] + 1] = True
    np.savez_compressed(path, **arrays)


def make_lerobot(folder: Path) -> tuple[Path, list[Episode]]:
    """Version 3: tables and videos of several episodes each."""
    return write_v3(folder / "lerobot_toy", toy_episodes()), toy_episodes()


def spoil_lerobot(path: Path) -> None:
    """A frame of episode 1 is missing in the video that it shares with episode 0."""
    frames = np.concatenate([episode.pixels for episode in toy_episodes()[:2]])
    times = [t for t in range(len(frames)) if t != LENGTHS[0] + 3]
    write_mp4(path / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4", frames[times], times)


def make_videos(folder: Path) -> tuple[Path, list[Episode]]:
    """One row per frame; the last row of episode 1 has no action, that of the others one that leads nowhere."""
    path, episodes = folder / "videos_toy", toy_episodes()
    for number, episode in enumerate(episodes):
        write_mp4(path / f"run{number}.mp4", episode.pixels)
        actions = with_last(episode.actions, 99.0).astype(str)
        if number == 1:
            actions[-1] = ""
        cells = np.concatenate([actions, episode.states.astype(str)], axis=1)
        lines = ["action_x,action_y,state_a,state_b,state_c", *map(",".join, cells)]
        (path / f"run{number}.csv").write_text("\n".join(lines) + "\n")
    return path, episodes


def spoil_videos(path: Path) -> None:
    write_mp4(path / "run1.mp4", toy_episodes()[1].pixels[:-1])


DT = {"control_dt": 0.1}
CASES: dict[str, Case] = {
    "npz": Case(make_npz, spoil_npz, config=DT),
    "swm_hdf5": Case(make_swm_hdf5, spoil_swm_hdf5, config=DT),
    "lance": Case(make_lance, spoil_lance, config=DT, needs="lance"),
    "robomimic": Case(make_robomimic, spoil_robomimic),
    "zarr": Case(make_zarr, spoil_zarr, config=DT),
    "minari": Case(make_minari, spoil_minari, choice=Choice(state=("robot.state",)), config=DT, lossy=2.5),
    "ogbench": Case(make_ogbench, spoil_ogbench, config=DT),
    "lerobot": Case(make_lerobot, spoil_lerobot),
    "videos": Case(make_videos, spoil_videos),
}
"""Format name -> its recording; every row of IMPORTERS has one."""
