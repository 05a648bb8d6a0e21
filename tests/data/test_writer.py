"""Writers refuse bad episodes, lock the store, and leave it readable whatever happens to them."""

from dataclasses import replace

import numpy as np
import pytest
from toy_recordings import make_episode, make_meta

from lewm.data.meta import Column, Provenance
from lewm.data.store import Store
from lewm.data.writer import StoreWriter, write_shard


def spoil(name: str, at: tuple[int, ...]):
    episode = make_episode(0, 4)
    values = getattr(episode, name).copy()
    values[at] = np.nan
    return replace(episode, **{name: values})


@pytest.mark.parametrize(
    ("episode", "match"),
    [
        (spoil("actions", (2, 1)), r"shard 00000, episode 0: action holds nan at \(2, 1\)"),
        (spoil("states", (4, 0)), r"state holds nan at \(4, 0\)"),
        (
            replace(make_episode(0, 4), pixels=np.zeros((4, 8, 8, 3), np.uint8)),
            r"for 4 actions they must be uint8 \(5, 8, 8, 3\)",
        ),
        (replace(make_episode(0, 4), pixels=np.zeros((5, 8, 8, 3))), r"pixels are float64"),
        (
            replace(make_episode(0, 4), actions=np.zeros((4, 3), np.float32)),
            r"action has shape \(4, 3\), it must be \(4, 2\)",
        ),
        (
            replace(make_episode(0, 4), states=np.zeros((4, 2), np.float32)),
            r"state has shape \(4, 2\), it must be \(5, 2\)",
        ),
        (
            replace(make_episode(0, 4), extra={"reward": np.zeros(4)}),
            r"columns \['action', 'reward', 'state'\], the store has",
        ),
        (replace(make_episode(0, 4), policy=1), r"policy 1 is not one of the 1 policies"),
    ],
)
def test_bad_episodes_are_refused_with_the_position(tmp_path, episode, match):
    with pytest.raises(ValueError, match=match):
        write_shard(tmp_path / "shard", make_meta(), [episode], "00000")


def test_a_bad_episode_costs_only_its_shard(tmp_path):
    good = [make_episode(i, 4) for i in range(4)]
    with StoreWriter(tmp_path / "s", make_meta()) as writer, pytest.raises(ValueError, match="holds nan"):
        writer.write([*good, make_episode(4, 4), spoil("actions", (0, 0))], shard_episodes=2)
    assert Store.open(tmp_path / "s", verify=True).num_episodes == 4


def test_leftovers_of_a_killed_writer_are_cleared_and_never_read(tmp_path):
    path = tmp_path / "s"
    with StoreWriter(path, make_meta()) as writer:
        writer.write([make_episode(i, 4) for i in range(2)], shard_episodes=2)
        write_shard(writer.temporary("00001"), writer.meta, [make_episode(2, 4)], "00001")
        half = writer.temporary("00002")
        half.mkdir()
        (half / "frames.npy").write_bytes(b"half")
        write_shard(path / "shards" / "00003", writer.meta, [make_episode(3, 4)], "00003")  # renamed, not yet in meta
        (path / "meta.json.tmp").write_text("{")
    assert Store.open(path, verify=True).num_episodes == 2
    with StoreWriter(path, make_meta()) as writer:
        assert sorted(item.name for item in (path / "shards").iterdir()) == ["00000"]
        writer.write([make_episode(2, 4)])
    assert Store.open(path, verify=True).num_episodes == 3


def test_a_second_writer_is_refused(tmp_path):
    with (
        StoreWriter(tmp_path / "s", make_meta()),
        pytest.raises(RuntimeError, match="is being written by another process"),
    ):
        StoreWriter(tmp_path / "s", make_meta())
    StoreWriter(tmp_path / "s", make_meta()).close()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"is no store but holds \['thesis\.tex'\]"):
        StoreWriter(tmp_path, make_meta())
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_settings_are_refused_by_name(tmp_path):
    StoreWriter(tmp_path / "s", make_meta()).close()
    other = replace(make_meta(), provenance=replace(make_meta().provenance, seed=5))
    with pytest.raises(ValueError, match=r"recorded with provenance\.seed = 0, now it is 5"):
        StoreWriter(tmp_path / "s", other)
    with pytest.raises(ValueError, match=r"recorded with settings\.size = 8, now it is 9"):
        StoreWriter(tmp_path / "s", replace(make_meta(), settings={"size": 9}))
    with pytest.raises(ValueError, match=r"recorded with codec = 'raw', now it is 'png'"):
        StoreWriter(tmp_path / "s", make_meta("png"))


def test_versions_and_time_may_differ(tmp_path):
    StoreWriter(tmp_path / "s", make_meta()).close()
    provenance = replace(make_meta().provenance, versions={"numpy": "9"}, created="now", git_revision="abc")
    StoreWriter(tmp_path / "s", replace(make_meta(), provenance=provenance)).close()


def test_an_empty_store_says_so(tmp_path):
    StoreWriter(tmp_path / "s", make_meta()).close()
    with pytest.raises(ValueError, match="holds no complete shard yet"):
        Store.open(tmp_path / "s")


def test_bad_declarations_are_refused():
    with pytest.raises(ValueError, match="column name 'action' is reserved"):
        Column("action", "frame")
    with pytest.raises(ValueError, match=r"column name '\.\./x' is reserved or no identifier"):
        Column("../x", "frame")
    with pytest.raises(ValueError, match="two extra columns have the same name"):
        make_meta(columns=(Column("a", "frame"), Column("a", "action")))
    with pytest.raises(ValueError, match=r"angle_names \['theta'\] are not among"):
        replace(make_meta(), angle_names=("theta",))
    with pytest.raises(ValueError, match="must be finite"):
        replace(make_meta(), action_high=(float("inf"), 1.0))
    assert Provenance(policies=()).source == "collect"


@pytest.mark.parametrize("codec", ["raw", "png", "webp"])
def test_two_cameras_travel_in_the_channels(tmp_path, codec):
    meta = replace(make_meta(codec), frame=(8, 6, 6), cameras=("front", "wrist"))
    rng = np.random.default_rng(0)
    episodes = [
        replace(make_episode(i, length), pixels=rng.integers(0, 256, (length + 1, 8, 6, 6), np.uint8))
        for i, length in enumerate((4, 3))
    ]
    with StoreWriter(tmp_path / "store", meta) as writer:
        writer.write(episodes)
    store = Store.open(tmp_path / "store", verify=True)
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(store.pixels(number), episode.pixels)
        np.testing.assert_array_equal(store.pixels(number, [2]), episode.pixels[[2]])
    every = np.concatenate([episode.pixels.reshape(-1, 6) for episode in episodes]) / 255
    np.testing.assert_allclose(store.meta.statistics.pixel_mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(store.meta.statistics.pixel_std, every.std(0), rtol=1e-6)


def test_cameras_and_channels_must_agree():
    with pytest.raises(ValueError, match=r"with 2 cameras it must be \(height, width, 6\)"):
        replace(make_meta(), cameras=("front", "wrist"))
    with pytest.raises(ValueError, match="give each its own name"):
        replace(make_meta(), frame=(8, 8, 6), cameras=("front", "front"))
