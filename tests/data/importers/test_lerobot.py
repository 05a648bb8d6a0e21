"""LeRobot data sets of both layouts, and what is said of those that do not add up."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_layout import CAMERA, change_json, change_rows, write_json, write_mp4, write_v3, write_v21
from recordings import LENGTHS, toy_episodes

from lewm.data.importers.recording import Choice
from lewm.data.importers.run import ImportConfig, import_recording, open_recording
from lewm.data.writer import Episode

VIDEO = Path("videos") / CAMERA / "chunk-000" / "file-000.mp4"
DATA = Path("data/chunk-000/file-000.parquet")
EPISODES = Path("meta/episodes/chunk-000/file-001.parquet")  # of episodes 0 and 1
WRITERS: dict[str, Callable[[Path], Path]] = {
    "v2.1": lambda path: write_v21(path, toy_episodes()),
    "v2.1 pictures": lambda path: write_v21(path, toy_episodes(), pictures=True),
    "v3.0": lambda path: write_v3(path, toy_episodes()),
    "v3.0 pictures": lambda path: write_v3(path, toy_episodes(), pictures=True),
    "v3.0 in row groups of 3": lambda path: write_v3(path, toy_episodes(), pictures=True, groups=3),
}


def assert_equal(read: Episode, episode: Episode) -> None:
    np.testing.assert_array_equal(read.pixels, episode.pixels)
    np.testing.assert_array_equal(read.actions, episode.actions)
    np.testing.assert_array_equal(read.states, episode.states)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_layout_gives_the_recorded_episodes(kind: str, tmp_path: Path) -> None:
    recording = open_recording(WRITERS[kind](tmp_path / "toy"), ImportConfig())
    assert recording.episodes == len(LENGTHS)
    for number, episode in enumerate(toy_episodes()):
        assert_equal(recording.read(number), episode)
        np.testing.assert_array_equal(recording.actions(number), episode.actions)


def test_what_the_features_say_is_kept(tmp_path: Path) -> None:
    store = import_recording(WRITERS["v3.0"](tmp_path / "toy"), tmp_path / "out", ImportConfig()).store
    assert store.meta.control_dt == 0.1
    assert store.meta.cameras == ("top",)
    assert store.meta.state_names == ("shoulder.pos", "elbow.pos", "gripper.pos")
    assert store.meta.task == "push it"
    assert store.meta.provenance.source == "lerobot v3.0 toy"
    # smallest and largest of the toy's actions, (10 e + t + i / 4) / 100 of episode e, time t, number i; never the 99
    assert store.meta.action_low == pytest.approx((0.0, 0.0025))
    assert store.meta.action_high == pytest.approx((0.23, 0.2325))


def test_further_features_become_columns(tmp_path: Path) -> None:
    choice = Choice(state=("next.reward",), columns=("observation.state", "index"))
    root = WRITERS["v3.0"](tmp_path / "toy")
    store = import_recording(root, tmp_path / "out", ImportConfig(choice=choice)).store
    assert [(c.name, c.per, c.shape, c.dtype) for c in store.meta.columns] == [
        ("observation_state", "frame", (3,), "float32"),
        ("index", "frame", (), "float64"),
    ]
    assert store.meta.state_names == ("next_reward",)
    np.testing.assert_array_equal(store.states(1)[:, 0], np.arange(LENGTHS[1] + 1))
    np.testing.assert_array_equal(store.column("index", 1), LENGTHS[0] + 1 + np.arange(LENGTHS[1] + 1))


def test_text_is_no_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no numbers 'instruction'; it has observation\.state, action, next\.reward"):
        open_recording(WRITERS["v3.0"](tmp_path / "toy"), ImportConfig(choice=Choice(columns=("instruction",))))


def test_depth_maps_are_left_out_and_said(tmp_path: Path) -> None:
    root = WRITERS["v3.0"](tmp_path / "toy")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    depth = {"dtype": "video", "shape": [32, 32, 1], "names": ["height", "width", "channels"]}
    masked = {"dtype": "video", "shape": [32, 32, 3], "info": {"video.is_depth_map": True}}
    change_json(root / "meta/info.json", features=features | {"depth": depth, "coloured_depth": masked})
    imported = import_recording(root, tmp_path / "out", ImportConfig())
    assert imported.store.meta.cameras == ("top",)
    assert imported.notes == ("depth maps are left out: coloured_depth, depth",)


def test_several_tasks_are_told(tmp_path: Path) -> None:
    root = WRITERS["v2.1"](tmp_path / "toy")
    lines = [json.dumps({"task_index": i, "task": text}) for i, text in enumerate(("push it", "pull it"))]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(lines))
    recording = open_recording(root, ImportConfig())
    assert recording.task == ""
    assert "the texts of its 2 tasks are left out" in recording.notes[0]


def test_channels_may_come_first_in_the_features(tmp_path: Path) -> None:
    root = WRITERS["v3.0"](tmp_path / "toy")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[CAMERA] |= {"shape": [3, 32, 32], "names": ["channels", "height", "width"]}
    change_json(root / "meta/info.json", features=features)
    assert_equal(open_recording(root, ImportConfig()).read(1), toy_episodes()[1])


def test_later_episodes_are_read_after_a_damaged_one(tmp_path: Path) -> None:
    root = WRITERS["v3.0"](tmp_path / "toy")
    change_rows(root / DATA, "timestamp", 2, 0.3)
    imported = import_recording(root, tmp_path / "out", ImportConfig(broken="skip"))
    assert len(imported.skipped) == 1
    assert imported.store.num_episodes == 2
    for number, episode in enumerate(toy_episodes()[1:]):
        np.testing.assert_array_equal(imported.store.pixels(number), episode.pixels)


def shift_times(root: Path) -> None:
    """Every frame of the file comes 0.6 of a frame late, on a clock of 10 ticks per frame."""
    frames = np.concatenate([episode.pixels for episode in toy_episodes()[:2]])
    write_mp4(root / VIDEO, frames, [10 * t + 6 for t in range(len(frames))], fps=100)


def cut_end(root: Path) -> None:
    frames = np.concatenate([episode.pixels for episode in toy_episodes()[:2]])
    write_mp4(root / VIDEO, frames[:-2])


def empty_file(root: Path) -> None:
    (root / VIDEO).write_bytes((root / VIDEO).read_bytes()[:300])


def unknown_codec(root: Path) -> None:
    content = (root / VIDEO).read_bytes()
    assert content.count(b"avc1") >= 1
    (root / VIDEO).write_bytes(content.replace(b"avc1", b"zzzz"))


def remove_video(root: Path) -> None:
    (root / VIDEO).unlink()


def remove_table(root: Path) -> None:
    (root / DATA).unlink()


def cut_table(root: Path) -> None:
    pq.write_table(pq.read_table(root / DATA).slice(0, LENGTHS[0] + 4), root / DATA)  # episode 0 has 6


FIRST, SECOND = r"file-000\.parquet, episode 0: ", r"file-000\.parquet, episode 1: "
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "times": (shift_times, FIRST + r".*file-000\.mp4: frame 0 of the episode is at 0\.0600 s, it must be at 0\.0000 s"),
    "end": (cut_end, SECOND + r".*file-000\.mp4 ends after 6 of the 8 frames"),
    "half": (empty_file, FIRST + r".*file-000\.mp4 is not a readable video"),
    "codec": (unknown_codec, FIRST + r".*file-000\.mp4 is in a codec that this PyAV cannot decode: encode it again"),
    "no video": (remove_video, FIRST + r".*file-000\.mp4 is not there"),
    "no table": (remove_table, FIRST + r"the file is not there"),
    "table": (cut_table, SECOND + r"the file has 9 rows, the episode needs rows 6 to 13"),
    "timestamp": (
        lambda root: change_rows(root / DATA, "timestamp", 8, 0.26),
        SECOND + r"frame 2 has timestamp 0\.2600 s, with 10 frames a second it is 0\.2000 s",
    ),
    "frame": (
        lambda root: change_rows(root / DATA, "frame_index", 8, 3),
        SECOND + "frames are missing: row 2 of the episode is frame 3",
    ),
    "owner": (
        lambda root: change_rows(root / DATA, "episode_index", 8, 7),
        SECOND + "rows 6 to 13 belong to episode 7",
    ),
    "number": (
        lambda root: change_rows(root / DATA, "observation.state", 8, [1.0, 2.0]),
        SECOND + r"column observation\.state has 23 numbers for 8 rows of shape \[3\]",
    ),
    "duration": (
        lambda root: change_rows(root / EPISODES, f"videos/{CAMERA}/to_timestamp", 1, 1.3),
        SECOND + r".*mp4 shows it from 0\.6000 to 1\.3000 s, which is 7\.0 frames of 10 a second for 8 rows",
    ),
    "start": (
        lambda root: change_rows(root / EPISODES, f"videos/{CAMERA}/chunk_index", 1, 1),
        SECOND + r".*chunk-001/file-000\.mp4 is not there",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_add_up_is_said(damage: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    root = WRITERS["v3.0"](tmp_path / "in" / "toy")
    spoil, message = DAMAGES[damage]
    spoil(root)
    with pytest.raises(ValueError, match=message):
        import_recording(root, tmp_path / "out", ImportConfig())
    assert [item.name for item in tmp_path.iterdir()] == ["in"]


def test_a_time_within_half_a_frame_is_accepted(tmp_path: Path) -> None:
    root = WRITERS["v3.0"](tmp_path / "toy")
    change_rows(root / DATA, "timestamp", 8, 0.24)
    frames = np.concatenate([episode.pixels for episode in toy_episodes()[:2]])
    write_mp4(root / VIDEO, frames, [10 * t + (4 if t else 0) for t in range(len(frames))], fps=100)
    assert_equal(open_recording(root, ImportConfig()).read(1), toy_episodes()[1])


def test_a_video_of_one_episode_has_no_more_frames_than_rows(tmp_path: Path) -> None:
    root = WRITERS["v2.1"](tmp_path / "toy")
    file = root / "videos" / "chunk-000" / CAMERA / "episode_000001.mp4"
    write_mp4(file, np.concatenate([toy_episodes()[1].pixels, toy_episodes()[1].pixels[:1]]))
    with pytest.raises(ValueError, match=r"episode 1: .*episode_000001\.mp4 has more frames than the 8 rows"):
        open_recording(root, ImportConfig()).read(1)


def test_a_picture_that_is_only_a_path_is_refused(tmp_path: Path) -> None:
    root = WRITERS["v3.0 pictures"](tmp_path / "toy")
    change_rows(root / DATA, CAMERA, 7, {"bytes": None, "path": "7.png"})
    with pytest.raises(ValueError, match=r"episode 1: picture 1 of observation\.images\.top is not in the table"):
        open_recording(root, ImportConfig()).read(1)


META = {
    "version": ({"codebase_version": "v1.6"}, r"codebase_version 'v1\.6': v2\.x and v3\.x are read"),
    "fps": ({"fps": 0}, "has fps = 0, it must be frames per second"),
    "episodes": ({"total_episodes": 4}, r"lists 3 episodes \(3 different\), info.json says 4"),
    "frames": ({"total_frames": 20}, "lists episodes of 19 frames, info.json says 20"),
    "path": ({"data_path": "data/{shard}.parquet"}, r"data_path = 'data/\{shard\}\.parquet', a path that may name"),
    "features": ({"features": None}, "features = None: a LeRobot data set has a dict there"),
}


@pytest.mark.parametrize("entry", META)
def test_what_info_json_says_is_checked(entry: str, tmp_path: Path) -> None:
    root = WRITERS["v3.0"](tmp_path / "toy")
    entries, message = META[entry]
    change_json(root / "meta" / "info.json", **entries)
    with pytest.raises(ValueError, match=message):
        open_recording(root, ImportConfig(format="lerobot"))


def test_episodes_that_were_not_fetched_are_missed(tmp_path: Path) -> None:
    root = WRITERS["v3.0"](tmp_path / "toy")
    (root / EPISODES).unlink()
    with pytest.raises(ValueError, match="lists 1 episodes"):
        open_recording(root, ImportConfig())


def test_other_json_is_not_recognised(tmp_path: Path) -> None:
    write_json(tmp_path / "toy" / "meta" / "info.json", {"codebase_version": "v3.0"})
    with pytest.raises(ValueError, match="is in no format that is recognised"):
        open_recording(tmp_path / "toy", ImportConfig())
