"""What robomimic, zarr, OGBench and Minari files have of their own."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from recordings import CASES, make_minari, make_ogbench, make_robomimic, make_zarr
from test_importers import assert_holds

from lewm.data.importers import minari, ogbench, robomimic, zarr_store
from lewm.data.importers.recording import Choice
from lewm.data.importers.run import ImportConfig, import_recording

CONFIG = ImportConfig(control_dt=0.1)


def test_robomimic_says_its_task_its_clock_and_its_filter_keys(tmp_path: Path) -> None:
    path, _ = make_robomimic(tmp_path)
    recording = robomimic.open_robomimic(path, Choice())
    assert (recording.task, recording.control_dt) == ("Lift", 0.05)
    assert recording.notes == ("the filter keys train are not kept: all 3 demonstrations were taken",)
    assert recording.state_names == ("robot0_eef_pos_0", "robot0_eef_pos_1", "robot0_eef_pos_2")


def test_robomimic_without_next_observations_loses_the_last_action(tmp_path: Path) -> None:
    path, episodes = make_robomimic(tmp_path)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["next_obs"]
    recording = robomimic.open_robomimic(path, Choice())
    for number, episode in enumerate(episodes):
        read = recording.read(number)
        np.testing.assert_array_equal(read.pixels, episode.pixels[:-1])
        np.testing.assert_array_equal(read.actions, episode.actions[:-1])
        np.testing.assert_array_equal(recording.actions(number), episode.actions[:-1])


def test_robomimic_simulator_states_go_with_the_observations(tmp_path: Path) -> None:
    path, episodes = make_robomimic(tmp_path)
    with h5py.File(path, "r+") as file:
        for demo, episode in zip(("demo_0", "demo_2", "demo_10"), episodes):
            file[f"data/{demo}/states"] = np.repeat(episode.states[:-1], 2, axis=1)
            file[f"data/{demo}/rewards"] = np.arange(len(episode.actions))
    recording = robomimic.open_robomimic(path, Choice(state=("states",), columns=("rewards",)))
    read = recording.read(1)
    np.testing.assert_array_equal(read.states, np.repeat(episodes[1].states[:-1], 2, axis=1))
    np.testing.assert_array_equal(read.pixels, episodes[1].pixels[:-1])
    with_next = robomimic.open_robomimic(path, Choice(columns=("rewards",)))
    assert with_next.columns[0].per == "action"
    np.testing.assert_array_equal(with_next.read(1).extra["rewards"], np.arange(7))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("actions", r"episode 1 \(demo_2\): it has 6 actions for 7 steps"),
        ("next_obs/robot0_eef_pos", r"episode 1 \(demo_2\): next_obs/robot0_eef_pos has 6 rows for 7 steps"),
    ],
)
def test_robomimic_counts_every_entry(tmp_path: Path, entry: str, message: str) -> None:
    path, _ = make_robomimic(tmp_path)
    with h5py.File(path, "r+") as file:
        short = file[f"data/demo_2/{entry}"][:-1]
        del file[f"data/demo_2/{entry}"]
        file[f"data/demo_2/{entry}"] = short
    with pytest.raises(ValueError, match=message):
        robomimic.open_robomimic(path, Choice()).read(1)


def test_robomimic_without_pictures_is_refused(tmp_path: Path) -> None:
    path, _ = make_robomimic(tmp_path)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["obs"]
    with pytest.raises(ValueError, match=r"image.hdf5 holds no pictures.*it has actions"):
        robomimic.open_robomimic(path, Choice())


def test_zarr_version_3(tmp_path: Path) -> None:
    path, episodes = make_zarr(tmp_path, zarr_format=3)
    assert_holds(import_recording(path, tmp_path / "out", CONFIG).store, episodes)
    (path / "data" / "img" / "c" / "2" / "0" / "0" / "0").unlink()
    with pytest.raises(ValueError, match=r"episode 1: chunk c/2/0/0/0 of data/img is missing, with rows 8 to 11"):
        zarr_store.open_zarr(path, Choice()).read(1)


def test_zarr_sharded_and_in_bytes(tmp_path: Path) -> None:
    path, episodes = make_zarr(tmp_path, zarr_format=3)
    group = zarr.open_group(path, mode="r+")
    pixels = np.concatenate([episode.pixels for episode in episodes])
    group.create_array("data/img", data=pixels, chunks=(2, 16, 32, 3), shards=(4, 32, 32, 3), overwrite=True)
    assert_holds(import_recording(path, tmp_path / "out", CONFIG).store, episodes)
    (path / "data" / "img" / "c" / "2" / "0" / "0" / "0").unlink()
    with pytest.raises(ValueError, match="chunk c/2/0/0/0 of data/img is missing"):
        zarr_store.open_zarr(path, Choice()).read(1)


@pytest.mark.parametrize("entry", ["action", "state"])
def test_zarr_misses_no_chunk_silently(tmp_path: Path, entry: str) -> None:
    path, _ = make_zarr(tmp_path)
    (path / "data" / entry / "2.0").unlink()
    recording = zarr_store.open_zarr(path, Choice())
    recording.read(0)
    with pytest.raises(ValueError, match=rf"toy.zarr, episode 1: chunk 2.0 of data/{entry} is missing"):
        recording.read(1)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([6, 6, 19], "episode 1: meta/episode_ends says 6, which does not rise"),
        ([6, 14, 18], "data/action has 19 rows, meta/episode_ends ends at 18"),
        ([0, 14, 19], "episode 0: meta/episode_ends says 0"),
    ],
)
def test_zarr_ends_must_rise_to_the_last_row(tmp_path: Path, ends: list[int], message: str) -> None:
    path, _ = make_zarr(tmp_path)
    zarr.open_group(path, mode="r+")["meta/episode_ends"][:] = ends
    with pytest.raises(ValueError, match=message):
        zarr_store.open_zarr(path, Choice())


def test_zarr_pictures_from_0_to_1_are_refused(tmp_path: Path) -> None:
    path, _ = make_zarr(tmp_path)
    group = zarr.open_group(path, mode="r+")
    group["data/img"][:] = group["data/img"][:] / 255
    with pytest.raises(
        ValueError, match=r"toy.zarr, episode 0: the pictures img are float32 from 0 to 0\.\d+; they must"
    ):
        zarr_store.open_zarr(path, Choice()).read(0)


def test_zarr_pictures_are_rounded(tmp_path: Path) -> None:
    """They begin at 40 in the third channel, exactly; 0.6 more is nearer to 41."""
    path, episodes = make_zarr(tmp_path)
    group = zarr.open_group(path, mode="r+")
    group["data/img"][:] = group["data/img"][:] + np.float32(0.6)
    pixels = zarr_store.open_zarr(path, Choice()).read(0).pixels
    np.testing.assert_array_equal(pixels, episodes[0].pixels + 1)


def test_zarr_names_a_codec_that_is_absent(tmp_path: Path) -> None:
    path, _ = make_zarr(tmp_path)
    file = path / "data" / "img" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"compressor": {"id": "imagecodecs_jpegxl"}}))
    with pytest.raises(ValueError, match=r"toy.zarr cannot be read as zarr: .*imagecodecs_jpegxl"):
        zarr_store.open_zarr(path, Choice())


def test_ogbench_uncompressed(tmp_path: Path) -> None:
    path, episodes = make_ogbench(tmp_path, packed=False)
    store = import_recording(path, tmp_path / "out", CONFIG).store
    assert_holds(store, episodes)
    assert store.meta.state_names == ("qpos_0", "qpos_1", "qvel")
    assert max(store.meta.action_high) < 1.0, "the last action of an episode leads nowhere and sets no bound"


def test_ogbench_states_alone_are_refused(tmp_path: Path) -> None:
    path, _ = make_ogbench(tmp_path)
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"observations": arrays["qpos"]}))
    assert ogbench.recognises(path)
    with pytest.raises(
        ValueError, match=r"holds no pictures: its observations have rows of shape \(2,\); take the visual-"
    ):
        ogbench.open_ogbench(path, Choice())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("terminals", lambda array: np.where(np.arange(len(array)) == 18, False, array), "its last episode is cut off"),
        ("terminals", np.zeros_like, "its last episode is cut off"),
        ("qpos", lambda array: array[:-1], r"qpos has shape \(18, 2\) beside 19 observations"),
    ],
)
def test_ogbench_counts_are_checked(tmp_path: Path, name: str, change: object, message: str) -> None:
    path, _ = make_ogbench(tmp_path)
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {name: change(arrays[name])}))
    with pytest.raises(ValueError, match=message):
        ogbench.open_ogbench(path, Choice())


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_minari_formats_without_jpeg_are_exact(tmp_path: Path, data_format: str) -> None:
    path, episodes = make_minari(tmp_path, data_format, jpeg=False)
    config = ImportConfig(choice=CASES["minari"].choice, control_dt=0.1)
    store = import_recording(path / "data", tmp_path / "out", config).store
    assert_holds(store, episodes)
    assert (store.meta.action_low, store.meta.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert store.meta.cameras == ("image",)
    assert store.meta.state_names == ("robot_state_0", "robot_state_1", "robot_state_2")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_discrete_actions_become_the_largest_of_n(tmp_path: Path, data_format: str) -> None:
    path, episodes = make_minari(tmp_path, data_format, discrete=True)
    recording = minari.open_minari(path, Choice())
    assert (recording.action_dim, recording.action_low, recording.action_high) == (3, (-1.0,) * 3, (1.0,) * 3)
    np.testing.assert_array_equal(recording.read(1).actions, episodes[1].actions)
    np.testing.assert_array_equal(recording.read(0).actions[:4], [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, -1]])


def test_minari_discrete_actions_may_begin_elsewhere(tmp_path: Path) -> None:
    path, _ = make_minari(tmp_path, discrete=True)
    file = path / "data" / "metadata.json"
    space = json.dumps({"type": "Discrete", "dtype": "int64", "start": -1, "n": 4})
    file.write_text(json.dumps(json.loads(file.read_text()) | {"action_space": space}))
    actions = minari.open_minari(path, Choice()).read(0).actions
    np.testing.assert_array_equal(actions[:2], [[-1, 1, -1, -1], [-1, -1, 1, -1]])


def test_minari_discrete_actions_outside_their_range_break_the_episode(tmp_path: Path) -> None:
    path, _ = make_minari(tmp_path, discrete=True)
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        file["episode_1/actions"][2] = -1
    with pytest.raises(ValueError, match=r"test-v0, episode 1: .*actions go from -1 to 2, there are 0 to 2"):
        minari.open_minari(path, Choice()).read(1)


def test_minari_actions_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path, _ = make_minari(tmp_path, discrete=True)
    file = path / "data" / "metadata.json"
    spaces = json.dumps({"type": "MultiDiscrete", "dtype": "int64", "nvec": [3, 3], "start": [0, 0]})
    file.write_text(json.dumps(json.loads(file.read_text()) | {"action_space": spaces}))
    with pytest.raises(ValueError, match="its actions are MultiDiscrete; only Box and Discrete actions can be read"):
        minari.open_minari(path, Choice())


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_misses_no_episode_silently(tmp_path: Path, data_format: str) -> None:
    path, _ = make_minari(tmp_path, data_format)
    if data_format == "hdf5":
        with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
            del file["episode_1"]
    else:
        for item in (path / "data" / "1").glob("*.arrow"):
            item.unlink()
    recording = minari.open_minari(path, Choice())
    recording.read(0)
    with pytest.raises(ValueError, match=r"test-v0, episode 1: minari cannot read it"):
        recording.read(1)
