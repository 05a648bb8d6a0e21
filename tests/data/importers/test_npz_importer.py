"""Plain archives: frames against actions, columns, cameras, archives that do not fit the first."""

from pathlib import Path

import numpy as np
import pytest
from recordings import make_npz, toy_episodes, with_last

from lewm.data.importers.archive import Rows
from lewm.data.importers.npz import open_npz
from lewm.data.importers.recording import Choice


def rewrite(file: Path, **arrays: object) -> None:
    np.savez(file, **(dict(np.load(file)) | arrays))


def test_as_many_actions_as_frames_lose_the_last(tmp_path: Path) -> None:
    episode = toy_episodes()[0]
    file = tmp_path / "one.npz"
    np.savez(file, image=episode.pixels, actions=with_last(episode.actions), reward=np.arange(6.0))
    recording = open_npz(file, Choice(columns=("reward",)))
    read = recording.read(0)
    assert recording.episodes == 1
    assert recording.state_names == ()
    assert read.states.shape == (6, 0)
    np.testing.assert_array_equal(read.actions, episode.actions)
    np.testing.assert_array_equal(recording.actions(0), episode.actions)
    np.testing.assert_array_equal(read.extra["reward"], np.arange(6.0))
    assert [(c.name, c.per, c.dtype) for c in recording.columns] == [("reward", "frame", "float64")]


def test_a_column_goes_with_frames_or_with_actions(tmp_path: Path) -> None:
    make_npz(tmp_path)
    for file in tmp_path.glob("*.npz"):
        steps = len(np.load(file)["action"])
        rewrite(file, reward=np.arange(steps, dtype=np.float32), depth=np.ones((steps + 1, 2, 4), np.float32))
    recording = open_npz(tmp_path, Choice(columns=("reward", "depth")))
    assert [(c.name, c.per, c.shape) for c in recording.columns] == [
        ("reward", "action", ()),
        ("depth", "frame", (2, 4)),
    ]
    assert {name: array.shape for name, array in recording.read(1).extra.items()} == {
        "reward": (7,),
        "depth": (8, 2, 4),
    }


def test_a_column_of_actions_loses_its_last_row_with_them(tmp_path: Path) -> None:
    """Episode 0 has an action less than frames, which makes the column one of actions; episode 1 has as many."""
    make_npz(tmp_path)
    for file, steps in ((tmp_path / "000.npz", 5), (tmp_path / "001.npz", 8)):
        rewrite(file, action=np.zeros((steps, 2), np.float32), reward=np.arange(steps, dtype=np.float32))
    recording = open_npz(tmp_path, Choice(columns=("reward",)))
    np.testing.assert_array_equal(recording.read(0).extra["reward"], np.arange(5))
    np.testing.assert_array_equal(recording.read(1).extra["reward"], np.arange(7))


def test_states_are_put_side_by_side_and_named(tmp_path: Path) -> None:
    make_npz(tmp_path)
    for file in tmp_path.glob("*.npz"):
        rewrite(file, angle=np.full(len(np.load(file)["pixels"]), 0.5))
    recording = open_npz(tmp_path, Choice(state=("angle", "state")))
    assert recording.state_names == ("angle", "state_0", "state_1", "state_2")
    np.testing.assert_array_equal(recording.read(2).states, np.c_[np.full(5, 0.5), toy_episodes()[2].states])


def test_cameras_in_the_order_they_are_asked_for(tmp_path: Path) -> None:
    episode = toy_episodes(cameras=2)[0]
    left, right = episode.pixels[..., :3], episode.pixels[..., 3:]
    np.savez(tmp_path / "one.npz", **{"pixels": left, "pixels.right": right}, action=episode.actions)
    np.testing.assert_array_equal(open_npz(tmp_path, Choice()).read(0).pixels, episode.pixels)
    recording = open_npz(tmp_path, Choice(cameras=("pixels.right", "pixels")))
    assert recording.cameras == ("pixels_right", "pixels")
    np.testing.assert_array_equal(recording.read(0).pixels, np.concatenate([right, left], axis=-1))
    with pytest.raises(ValueError, match=r"no pictures 'wrist'; it has pixels, pixels.right: name one of these"):
        open_npz(tmp_path, Choice(cameras=("wrist",)))


def test_cameras_of_two_sizes_are_not_joined(tmp_path: Path) -> None:
    episode = toy_episodes()[0]
    np.savez(tmp_path / "one.npz", pixels=episode.pixels, small=episode.pixels[:, :16], action=episode.actions)
    with pytest.raises(ValueError, match=r"one.npz \(episode 0\).*choose cameras of one size"):
        open_npz(tmp_path, Choice()).read(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": np.zeros((4, 32, 32, 3), np.uint8)}, "4 frames and 7 actions; there must be as many"),
        ({"state": np.zeros((3, 3), np.float32)}, "state has 3 rows where 8 are needed"),
        (
            {"action": np.zeros((7, 5), np.float32)},
            r"a row of action has shape \(5,\), in the first episode it has \(2,\)",
        ),
        ({"pixels": np.full((8, 32, 32, 3), 0.5)}, "pixels are float64 from 0.5 to 0.5; they must be uint8, or floats"),
        ({"pixels": np.full((8, 32, 32, 3), np.nan)}, "they must be uint8"),
    ],
)
def test_an_archive_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    make_npz(tmp_path)
    rewrite(tmp_path / "001.npz", **change)
    with pytest.raises(ValueError, match=message) as caught:
        open_npz(tmp_path, Choice()).read(1)
    assert f"{tmp_path / '001.npz'} (episode 1)" in str(caught.value)


def test_an_entry_or_a_whole_archive_that_is_gone(tmp_path: Path) -> None:
    make_npz(tmp_path)
    recording = open_npz(tmp_path, Choice())
    np.savez(tmp_path / "001.npz", pixels=np.zeros((3, 32, 32, 3), np.uint8))
    (tmp_path / "002.npz").write_bytes(b"half an archive")
    with pytest.raises(ValueError, match=r"001.npz \(episode 1\): it has no 'action'; it has pixels"):
        recording.read(1)
    with pytest.raises(ValueError, match=r"002.npz.*not a readable .npz archive"):
        recording.read(2)


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    episode = toy_episodes()[0]
    np.savez(tmp_path / "one.npz", pixels=episode.pixels, action=np.array([{}] * 5, object))
    with pytest.raises(ValueError, match="no actions 'action'"):
        open_npz(tmp_path, Choice())


def test_without_pictures_there_is_nothing_to_import(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", observations=np.zeros((5, 7)), action=np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"holds no pictures.*observations float64 \(7,\)"):
        open_npz(tmp_path, Choice())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_a_packed_array_come_in_any_order(tmp_path: Path, save: object) -> None:
    array = np.random.default_rng(0).normal(size=(50, 3, 2))
    save(tmp_path / "one.npz", array=array)
    rows = Rows(tmp_path / "one.npz", "array")
    for start, stop in ((0, 5), (5, 20), (45, 50), (2, 2), (3, 9)):
        np.testing.assert_array_equal(rows[start:stop], array[start:stop])
    np.savez(tmp_path / "two.npz", array=np.asfortranarray(array[:, :, 0]))
    with pytest.raises(ValueError, match="not stored row by row"):
        Rows(tmp_path / "two.npz", "array")
