"""What exactly each exporter writes, as other readers will find it."""

import csv
import json
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import h5py
import hdf5plugin  # noqa: F401  registers Blosc
import numpy as np
import pyarrow.parquet as pq
import pytest

from lewm.data.exporters import lerobot_files
from lewm.data.exporters.exporter import ExportConfig
from lewm.data.exporters.lerobot_stats import QUANTILES, merge_stats, number_stats, picture_stats
from lewm.data.exporters.run import export_store
from lewm.data.exporters.video_writer import VIDEO_CODECS, VideoWriter, frame_rate
from lewm.data.importers.run import ImportConfig, import_recording
from lewm.data.meta import Column
from lewm.data.store import Store

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def test_lerobot_describes_itself(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    out = export_store(toy_store(cameras=("top", "wrist")), tmp_path / "out", ExportConfig("lerobot", "h264"))
    info = json.loads((out / "meta" / "info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": 3,
        "total_frames": 20,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert features["observation.state"] == {"dtype": "float32", "shape": [2], "names": ["x", "angle"]}
    assert features["touch"] == {"dtype": "float64", "shape": [2, 3], "names": None}
    assert features["reward"]["shape"] == features["column.index"]["shape"] == features["index"]["shape"] == [1]
    assert features[TOP]["dtype"] == "video"
    assert (features[TOP]["shape"], features[TOP]["info"]["video.codec"]) == ([64, 64, 3], "h264")


def test_lerobot_rows_and_episodes(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    store = toy_store(cameras=("top", "wrist"))
    out = export_store(store, tmp_path / "out", ExportConfig("lerobot", "h264"))
    table = pq.read_table(out / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    assert table["frame_index"] == [*range(6), *range(10), *range(4)]
    assert table["episode_index"] == [0] * 6 + [1] * 10 + [2] * 4
    assert table["index"] == list(range(20))
    assert set(table["task_index"]) == {0}
    np.testing.assert_allclose(table["timestamp"], np.array(table["frame_index"]) / 10, rtol=1e-6)
    np.testing.assert_array_equal(np.float32(table["action"][:5]), store.actions(0))
    assert table["action"][5] == table["action"][4]  # nothing leaves the last frame: the action before it again
    assert table["reward"][5] == table["reward"][4]
    listed = pq.read_table(out / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [row["length"] for row in listed] == [6, 10, 4]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in listed] == [(0, 6), (6, 16), (16, 20)]
    for key in (TOP, WRIST):
        spans = [[row[f"videos/{key}/{edge}_timestamp"] for edge in ("from", "to")] for row in listed]
        assert spans == [[0.0, 0.6], [0.6, 1.6], [1.6, 2.0]]
    assert listed[1]["tasks"] == ["toy"]
    assert listed[1]["stats/action/max"] == pytest.approx(store.actions(1).max(axis=0).tolist())
    tasks = pq.read_table(out / "meta" / "tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "task": ["toy"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_lerobot_writes_rows_of_one_number_as_plain_numbers(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    """LeRobot declares the type of a feature of shape [1] as a number, and refuses a list of one."""
    store = toy_store(states=("x",), columns=(Column("touch", "frame", (1,)), Column("grid", "frame", (2, 3))))
    out = export_store(store, tmp_path / "out", ExportConfig("lerobot", "png"))
    schema = pq.read_schema(out / "data" / "chunk-000" / "file-000.parquet")
    assert {name: str(schema.field(name).type) for name in ("observation.state", "touch", "action", "grid")} == {
        "observation.state": "float",
        "touch": "float",
        "action": "fixed_size_list<element: float>[2]",
        "grid": "fixed_size_list<element: fixed_size_list<element: float>[3]>[2]",
    }
    restored = import_recording(out, tmp_path / "back", ImportConfig()).store
    np.testing.assert_array_equal(restored.states(1), store.states(1))


def test_lerobot_restores_what_it_has_no_place_for(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    store = toy_store(control_dt=0.03)
    out = export_store(store, tmp_path / "out", ExportConfig("lerobot", "png"))
    restored = import_recording(out, tmp_path / "back", ImportConfig()).store.meta
    for name in ("task", "action_low", "action_high", "angle_names", "state_names", "control_dt", "cameras", "frame"):
        assert getattr(restored, name) == getattr(store.meta, name)
    assert json.loads((out / "meta" / "info.json").read_text())["fps"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("codec", ["png", "lossless"])
def test_lerobot_files_stay_below_their_limits(
    codec: str, toy_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise of 64 x 64 pixels takes 12 KiB a frame in PNG and 17 in H.264: 1 MiB holds two of the short episodes."""
    monkeypatch.setattr(lerobot_files, "CHUNK_FILES", 2)
    store = toy_store(lengths=(23, 23, 23, 23, 120, 23), noise=True, columns=())
    config = ExportConfig("lerobot", codec, data_files_size_in_mb=1, video_files_size_in_mb=1)
    out = export_store(store, tmp_path / "out", config)
    files = sorted(out.glob("data/*/*" if codec == "png" else "videos/*/*/*"))
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    assert names == ["chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000", "chunk-001/file-001"]
    sizes = [file.stat().st_size / 2**20 for file in files]
    assert max(sizes[0], sizes[1], sizes[3]) < 1.0 < sizes[2]  # one episode alone may be larger
    restored = import_recording(out, tmp_path / "back", ImportConfig()).store
    for number in range(store.num_episodes):
        np.testing.assert_array_equal(restored.pixels(number), store.pixels(number))


def test_lerobot_statistics_by_hand() -> None:
    stats = number_stats(np.array([[0.0, 4.0], [1.0, 4.0], [2.0, 4.0], [3.0, 4.0]]))
    assert stats["mean"].tolist() == [1.5, 4.0]
    assert stats["std"].tolist() == [pytest.approx(1.25**0.5), 0.0]
    assert stats["q50"].tolist() == [1.5, 4.0]
    assert (stats["min"].tolist(), stats["max"].tolist(), stats["count"].tolist()) == ([0, 4], [3, 4], [4])
    assert number_stats(np.arange(4))["mean"].tolist() == [1.5]
    pictures = np.zeros((4, 2, 2, 3), np.uint8)
    pictures[:, 0] = 255
    pictures[..., 1] = 51
    found = picture_stats(pictures)
    assert {name: found[name].reshape(-1).tolist() for name in ("min", "max", "mean", "std")} == {
        "min": [0.0, 0.2, 0.0],
        "max": [1.0, 0.2, 1.0],
        "mean": [0.5, 0.2, 0.5],
        "std": [0.5, 0.0, 0.5],
    }
    assert found["q10"].reshape(-1).tolist() == [0.0, 0.2, 0.0]
    assert found["q90"].reshape(-1).tolist() == [1.0, 0.2, 1.0]
    assert found["mean"].shape == (3, 1, 1)


def test_lerobot_statistics_of_episodes_merge_to_those_of_all() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 2)) * [1, 5] + [3, 0]
    merged = merge_stats([number_stats(rows[:4]), number_stats(rows[4:11]), number_stats(rows[11:])])
    whole = number_stats(rows)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[name], whole[name], rtol=1e-12)
    assert set(merged) == {"min", "max", "mean", "std", "count", *QUANTILES}


def test_lerobot_statistics_are_those_of_the_store(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    store = toy_store()
    out = export_store(store, tmp_path / "out", ExportConfig("lerobot", "png"))
    stats = json.loads((out / "meta" / "stats.json").read_text())
    states = np.concatenate([store.states(number) for number in range(3)]).astype(np.float64)
    np.testing.assert_allclose(stats["observation.state"]["std"], states.std(axis=0), rtol=1e-9)
    pixels = np.concatenate([store.pixels(number) for number in range(3)]) / 255  # fewer than are sampled: all of them
    np.testing.assert_allclose(np.ravel(stats["observation.images.main"]["mean"]), pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(np.ravel(stats["observation.images.main"]["std"]), pixels.std(axis=(0, 1, 2)))
    assert stats["observation.images.main"]["count"] == [20]


@pytest.mark.parametrize("codec", ["blosc", "none"])
def test_hdf5_layout(codec: str, toy_store: Callable[..., Store], tmp_path: Path) -> None:
    store = toy_store()
    out = export_store(store, tmp_path / "out.h5", ExportConfig("hdf5", codec))
    with h5py.File(out) as file:
        assert file["ep_len"][:].tolist() == [6, 10, 4]
        assert file["ep_offset"][:].tolist() == [0, 6, 16]
        assert file["episode_idx"][:].tolist() == [0] * 6 + [1] * 10 + [2] * 4
        assert file["step_idx"][:].tolist() == [*range(6), *range(10), *range(4)]
        assert file["pixels"].shape == (20, 64, 64, 3)
        assert file["pixels"].chunks == (1, 64, 64, 3)
        assert file["pixels"].dtype == np.uint8
        assert file["touch"].dtype == np.float64
        assert np.isnan(file["action"][:]).all(axis=1).nonzero()[0].tolist() == [5, 15, 19]
        assert np.isnan(file["reward"][:]).nonzero()[0].tolist() == [5, 15, 19]
        assert not np.isnan(file["state"][:]).any()
        packed = file["pixels"].id.get_storage_size()
        assert (packed < 20 * 64 * 64 * 3) == (codec == "blosc")


def test_hdf5_of_several_cameras(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    store = toy_store(cameras=("top", "wrist"))
    with h5py.File(export_store(store, tmp_path / "out.h5", ExportConfig("hdf5"))) as file:
        assert "pixels" not in file
        np.testing.assert_array_equal(file["pixels.wrist"][:6], store.pixels(0)[..., 3:])


def test_videos_tables(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    store = toy_store(control_dt=1 / 30)
    out = export_store(store, tmp_path / "out", ExportConfig("videos"))
    names = [f"episode_{number:06d}.{suffix}" for number in range(3) for suffix in ("csv", "mp4")]
    assert sorted(file.name for file in out.iterdir()) == names
    with (out / "episode_000001.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    touch = [f"touch_{i}" for i in range(6)]
    assert header == ["action_0", "action_1", "state_x", "state_angle", "reward", *touch, "index"]
    assert len(rows) == 10
    assert (rows[-1][:2], rows[-1][4]) == (["", ""], "")
    np.testing.assert_array_equal(np.float32([row[:2] for row in rows[:-1]]), store.actions(1))
    with av.open(str(out / "episode_000001.mp4")) as container:
        assert container.streams.video[0].average_rate == 30
        assert container.streams.video[0].frames == 10


def test_two_columns_of_one_name_are_refused(toy_store: Callable[..., Store], tmp_path: Path) -> None:
    store = toy_store(columns=(Column("state_x", "frame"),))
    with pytest.raises(ValueError, match="two columns of the table would be called 'state_x'"):
        export_store(store, tmp_path / "out", ExportConfig("videos"))


RATES = {0.1: Fraction(10), 1 / 30: Fraction(30), 1001 / 30000: Fraction(30000, 1001), 4.0: Fraction(1, 4)}


@pytest.mark.parametrize("seconds", RATES)
def test_frame_rates(seconds: float) -> None:
    assert frame_rate(seconds) == RATES[seconds]


@pytest.mark.skipif(sys.platform != "linux", reason="only there does an encoder make threads real-time")
@pytest.mark.parametrize("codec", VIDEO_CODECS)
def test_encoding_makes_no_thread_real_time(codec: str, tmp_path: Path) -> None:
    """SVT-AV1 does when root runs it, and two spinning threads of its caller then stop a machine of two cores."""

    def policies() -> set[int]:
        return {os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir()}

    before = policies()
    with VideoWriter(tmp_path / "video.mp4", codec, Fraction(10), (64, 64)) as video:
        video.add(np.zeros((3, 64, 64, 3), np.uint8))
        assert policies() == before
    assert policies() == before
