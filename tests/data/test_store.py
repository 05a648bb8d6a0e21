"""The store: what goes in comes out, and what is damaged is refused by name."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_recordings import LENGTHS, make_episode, make_meta

from lewm.data.meta import Column
from lewm.data.store import Store, split_episodes
from lewm.data.writer import StoreWriter


@pytest.mark.parametrize("codec", ["raw", "png", "webp"])
def test_lossless_round_trip(write_store, codec):
    store = write_store(codec=codec)
    assert (store.num_episodes, store.num_frames) == (5, sum(LENGTHS) + 5)
    for number, length in enumerate(LENGTHS):
        episode = make_episode(number, length)
        np.testing.assert_array_equal(store.pixels(number), episode.pixels)
        np.testing.assert_array_equal(store.actions(number), episode.actions)
        np.testing.assert_array_equal(store.states(number), episode.states)
        np.testing.assert_array_equal(store.pixels(number, [2, 0]), episode.pixels[[2, 0]])
        np.testing.assert_array_equal(store.pixels(number, slice(1, None, 2)), episode.pixels[1::2])
        assert store.actions(number).dtype == store.states(number).dtype == np.float32
    np.testing.assert_array_equal(store.episodes["length"], LENGTHS)
    np.testing.assert_array_equal(store.episodes["seed"], 100 + np.arange(5))
    np.testing.assert_array_equal(store.episodes["success"], [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(store.episodes["frame_offset"], np.cumsum([0, *(np.array(LENGTHS[:-1]) + 1)]))
    np.testing.assert_array_equal(store.episodes["action_offset"], np.cumsum([0, *LENGTHS[:-1]]))


def test_jpeg_is_close_and_keeps_the_colour_order(tmp_path):
    smooth = np.zeros((4, 32, 32, 3), np.uint8)
    smooth[..., 0], smooth[..., 1] = 200, np.arange(32)[:, None] * 4  # red high, green a ramp, blue none
    episode = replace(make_episode(0, 3), pixels=smooth)
    with StoreWriter(tmp_path / "j", make_meta("jpeg", size=32)) as writer:
        writer.write([episode])
    error = np.abs(Store.open(tmp_path / "j", verify=True).pixels(0).astype(int) - smooth)
    assert error.max() <= 6


def test_extra_columns_follow_their_alignment(tmp_path):
    columns = (Column("proprio", "frame", (3,)), Column("reward", "action", (), "float64"))
    rng = np.random.default_rng(0)
    extras = [{"proprio": rng.normal(size=(n + 1, 3)), "reward": rng.normal(size=n)} for n in LENGTHS]
    with StoreWriter(tmp_path / "s", make_meta(columns=columns)) as writer:
        episodes = (replace(make_episode(i, n), extra=extras[i]) for i, n in enumerate(LENGTHS))
        writer.write(episodes, shard_episodes=2)
    store = Store.open(tmp_path / "s", verify=True)
    for i, extra in enumerate(extras):
        np.testing.assert_array_equal(store.column("proprio", i), extra["proprio"].astype(np.float32))
        np.testing.assert_array_equal(store.column("reward", i), extra["reward"])
    reward = np.concatenate([extra["reward"] for extra in extras])
    assert store.meta.statistics.columns["reward"].std[0] == pytest.approx(reward.std(), rel=1e-12)
    with pytest.raises(ValueError, match=r"no column 'rewards': it has \['proprio', 'reward'\]"):
        store.column("rewards", 0)


def test_statistics_over_uneven_shards_are_those_of_everything_together(write_store):
    statistics = write_store().meta.statistics
    episodes = [make_episode(i, n) for i, n in enumerate(LENGTHS)]
    pixels = np.concatenate([e.pixels for e in episodes]).reshape(-1, 3) / 255.0
    for name, values in {
        "action": np.concatenate([e.actions for e in episodes]),
        "state": np.concatenate([e.states for e in episodes]),
        "pixel": pixels,
    }.items():
        np.testing.assert_allclose(getattr(statistics, f"{name}_mean"), values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(getattr(statistics, f"{name}_std"), values.std(0), rtol=1e-6)


def test_a_store_without_states_can_be_written_and_read(write_store):
    store = write_store(states=0)
    assert store.states(1).shape == (13, 0)


def test_reopening_and_pickling_pass_the_path(write_store):
    store = write_store()
    blob = pickle.dumps(store)
    assert len(blob) < 1000
    np.testing.assert_array_equal(pickle.loads(blob).pixels(3), store.pixels(3))


def test_what_is_read_is_a_copy(write_store):
    store = write_store()
    store.pixels(0)[:] = 0
    store.actions(0)[:] = 0
    np.testing.assert_array_equal(store.pixels(0), make_episode(0, LENGTHS[0]).pixels)
    np.testing.assert_array_equal(store.actions(0), make_episode(0, LENGTHS[0]).actions)


def test_ids_outside_are_refused(write_store):
    store = write_store()
    with pytest.raises(IndexError, match=r"episode 5 is not in .* episodes 0\.\.4"):
        store.pixels(5)
    with pytest.raises(IndexError, match=r"frames 3\.\.8 of episode 0: it has frames 0\.\.7"):
        store.pixels(0, [3, 8])


def test_truncated_file_is_refused_with_file_and_byte(write_store):
    store = write_store()
    file = store.path / "shards" / "00001" / "frames.npy"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(size - 100)
    with pytest.raises(
        ValueError, match=rf"00001/frames\.npy is truncated at byte {size - 100}, meta\.json says {size}"
    ):
        Store.open(store.path)


def test_missing_file_is_refused(write_store):
    store = write_store()
    (store.path / "shards" / "00000" / "action.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"00000/action\.npy is missing"):
        Store.open(store.path)


def test_wrong_shape_is_refused(write_store):
    store = write_store()
    file = store.path / "shards" / "00000" / "state.npy"
    np.save(file, np.load(file).reshape(2, -1))
    with pytest.raises(ValueError, match=r"state\.npy has shape \(2, 21\).*meta\.json says \(21, 2\)"):
        Store.open(store.path)


def test_impossible_episode_table_is_refused(write_store):
    store = write_store()
    file = store.path / "shards" / "00000" / "episodes.npy"
    table = np.load(file)
    table["frame_offset"][1] += 1
    np.save(file, table)
    with pytest.raises(ValueError, match=r"00000/episodes\.npy: episode 1 has impossible values"):
        Store.open(store.path)


def test_nan_on_disk_is_found_by_verify_only(write_store):
    store = write_store()
    file = store.path / "shards" / "00001" / "action.npy"
    actions = np.load(file)
    actions[4, 1] = np.nan
    np.save(file, actions)
    Store.open(store.path)
    with pytest.raises(ValueError, match=r"00001/action\.npy holds nan at \(4, 1\)"):
        Store.open(store.path, verify=True)


def test_damaged_picture_is_refused_with_frame_and_byte(write_store):
    store = write_store(codec="png")
    file = store.path / "shards" / "00000" / "frames.bin"
    start = int(np.load(file.parent / "frames_index.npy")[9])
    blob = bytearray(file.read_bytes())
    blob[start : start + 30] = bytes(30)
    file.write_bytes(blob)
    match = rf"00000/frames\.bin: frame 9 \(byte {start}\) cannot be decoded"
    with pytest.raises(ValueError, match=match):
        Store.open(store.path, verify=True)
    with pytest.raises(ValueError, match=match):
        Store.open(store.path).pixels(1)


def edit(path: Path, **changes: object) -> None:
    file = path / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 2}, r"format version 2, this lewm reads 1\.\.1: install a newer lewm"),
        ({"format": "hdf5"}, r"format 'hdf5', not 'lewm-store'"),
        ({"codec": "gif"}, r"meta\.json: codec: Input should be 'raw', 'png', 'jpeg' or 'webp'"),
        ({"action_dim": 3}, r"action_dim is 3 with 2 lower and 2 upper bounds"),
    ],
)
def test_foreign_meta_is_refused(write_store, changes, match):
    store = write_store()
    edit(store.path, **changes)
    with pytest.raises(ValueError, match=match):
        Store.open(store.path)


def test_no_store_and_broken_json_are_refused(tmp_path, write_store):
    with pytest.raises(FileNotFoundError, match=r"is not a lewm store: it has no meta\.json"):
        Store.open(tmp_path / "nothing")
    store = write_store()
    (store.path / "meta.json").write_text('{"format": "lewm-st')
    with pytest.raises(ValueError, match=r"meta\.json is not readable JSON"):
        Store.open(store.path)


def test_split_is_by_episode_disjoint_and_complete():
    train, held = split_episodes(50, 0.1, seed=3)
    assert (len(train), len(held)) == (45, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(50))
    np.testing.assert_array_equal(held, split_episodes(50, 0.1, seed=3)[1])
    assert not np.array_equal(held, split_episodes(50, 0.1, seed=4)[1])
    assert [len(part) for part in split_episodes(3, 0.01, seed=0)] == [2, 1]
    assert [len(part) for part in split_episodes(3, 0.0, seed=0)] == [3, 0]
    with pytest.raises(ValueError, match=r"held_out is 1\.0"):
        split_episodes(3, 1.0, seed=0)
    with pytest.raises(ValueError, match="1 episodes cannot be split"):
        split_episodes(1, 0.5, seed=0)
