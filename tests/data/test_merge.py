"""A merged store holds every episode of its parts, unchanged and in order; or there is none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from toy_recordings import make_episode, make_meta

from lewm.data import merge as module
from lewm.data.merge import merge
from lewm.data.meta import Column, PolicyMeta, Provenance, StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode, StoreWriter

EXPERT, RANDOM, PUSH = (PolicyMeta(name, 1.0, 0.3) for name in ("expert", "random", "push"))
REWARD = Column("reward", "action")


def part(path: Path, lengths: tuple[int, ...], policies: tuple[PolicyMeta, ...], seed: int, **layout: object) -> Store:
    """A store whose episode i was recorded by policy i modulo their number; `seed` makes its pictures its own."""
    provenance = Provenance(policies, seed=seed, episodes=len(lengths), steps=9, versions={"numpy": f"2.{seed}"})
    meta = replace(make_meta(columns=(REWARD,)), **{"provenance": provenance, **layout})
    with StoreWriter(path, meta) as writer:
        writer.write((toy(10 * seed + i, n, i % max(len(policies), 1), meta) for i, n in enumerate(lengths)), 2)
    return Store.open(path)


def toy(number: int, length: int, policy: int, meta: StoreMeta) -> Episode:
    episode = make_episode(number, length, size=meta.frame[0])
    episode = replace(episode, pixels=np.repeat(episode.pixels, len(meta.cameras), -1))
    success = (None, False, True)[number % 3]
    return replace(episode, policy=policy, success=success, extra={"reward": np.arange(length) + number / 8})


@pytest.fixture
def parts(tmp_path: Path) -> list[Store]:
    return [
        part(tmp_path / "a", (7, 12, 3), (EXPERT, RANDOM), seed=1),
        part(tmp_path / "b", (5, 9), (PUSH,), seed=2),
        part(tmp_path / "c", (4,), (), seed=3),
    ]


def test_every_episode_is_there_unchanged_and_in_order(parts: list[Store], tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    merge(parts, tmp_path / "deep" / "out", progress=lambda done, total: heard.append((done, total)))
    merged = Store.open(tmp_path / "deep" / "out", verify=True)
    assert heard == [(2, 6), (3, 6), (5, 6), (6, 6)]
    assert [shard.name for shard in merged.meta.shards] == ["00000", "00001", "00002", "00003"]
    number = 0
    for store in parts:
        for episode in range(store.num_episodes):
            assert_array_equal(merged.pixels(number), store.pixels(episode))
            assert_array_equal(merged.actions(number), store.actions(episode))
            assert_array_equal(merged.states(number), store.states(episode))
            assert_array_equal(merged.column("reward", number), store.column("reward", episode))
            for name in ("length", "seed", "success"):
                assert merged.episodes[name][number] == store.episodes[name][episode]
            number += 1
    assert number == merged.num_episodes == 6


def test_who_acted_is_still_known(parts: list[Store], tmp_path: Path) -> None:
    merged = merge(parts, tmp_path / "out")
    origin = merged.meta.provenance
    assert [policy.name for policy in origin.policies] == ["expert", "random", "push", "unknown"]
    assert [origin.policies[i].name for i in merged.episodes["policy"]] == [
        *("expert", "random", "expert"),
        *("push", "push"),
        "unknown",
    ]
    assert origin.episodes == 6 and origin.steps == 9 and origin.versions == {"numpy": "2.1, 2.2, 2.3"}
    folder = tmp_path.name
    assert origin.source == f"merge of {folder}/a (collect), {folder}/b (collect), {folder}/c (collect)"
    again = merge([merged, part(tmp_path / "d", (4,), (PUSH,), seed=4)], tmp_path / "again")
    assert [policy.name for policy in again.meta.provenance.policies][-2:] == ["unknown", "push"]
    assert again.episodes["policy"].tolist() == [0, 1, 0, 2, 2, 3, 4]


def test_statistics_are_those_of_all_numbers(parts: list[Store], tmp_path: Path) -> None:
    statistics = merge(parts, tmp_path / "out").meta.statistics
    actions = np.concatenate([s.actions(i) for s in parts for i in range(s.num_episodes)]).astype(np.float64)
    pixels = np.concatenate([s.pixels(i) for s in parts for i in range(s.num_episodes)]).reshape(-1, 3) / 255
    assert_allclose(statistics.action_mean, actions.mean(0), rtol=1e-12)
    assert_allclose(statistics.action_std, actions.std(0), rtol=1e-12)
    assert_allclose(statistics.pixel_mean, pixels.mean(0), rtol=1e-6)
    assert_allclose(statistics.pixel_std, pixels.std(0), rtol=1e-6)
    rewards = np.concatenate([s.column("reward", i) for s in parts for i in range(s.num_episodes)])
    assert_allclose(statistics.columns["reward"].mean, [rewards.mean()], rtol=1e-6)


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_shards_are_copied_byte_for_byte(codec: str, tmp_path: Path) -> None:
    """A lossy picture that was decoded and encoded again would not be the same."""
    stores = [part(tmp_path / str(i), (3, 4), (EXPERT,), seed=i, codec=codec) for i in (1, 2)]
    merged = merge(stores, tmp_path / "out")
    for store, shard in zip(stores, ("00000", "00001")):
        for file in (store.path / "shards" / "00000").iterdir():
            copied = tmp_path / "out" / "shards" / shard / file.name
            if file.name != "episodes.npy":
                assert copied.read_bytes() == file.read_bytes()
    assert merged.meta.codec == codec


def test_different_codecs_need_a_choice(tmp_path: Path) -> None:
    raw = part(tmp_path / "raw", (3, 4), (EXPERT,), seed=1)
    png = part(tmp_path / "png", (5,), (EXPERT,), seed=2, codec="png")
    with pytest.raises(ValueError, match=r"stored in different ways \(.*raw raw, .*png png\): choose one with --codec"):
        merge([raw, png], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for codec in ("raw", "png", "webp"):
        merged = merge([raw, png], tmp_path / codec / "out", codec)
        assert merged.meta.codec == codec
        assert_array_equal(merged.pixels(1), raw.pixels(1))
        assert_array_equal(merged.pixels(2), png.pixels(0))
        assert merged.episodes["success"].tolist() == [*raw.episodes["success"], *png.episodes["success"]]
        assert merged.episodes["policy"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "layout, difference",
    [
        ({"task": "other"}, "task = 'other', .*has 'toy'"),
        ({"settings": {"size": 9}}, "settings = {'size': 9}"),
        ({"frame": (12, 12, 3)}, r"frame = \[12, 12, 3\], .*has \[8, 8, 3\]"),
        ({"action_low": (-2.0, -1.0)}, r"action_low = \[-2.0, -1.0\]"),
        ({"state_names": ("x", "z")}, r"state_names = \['x', 'z'\]"),
        ({"angle_names": ("x",)}, r"angle_names = \['x'\]"),
        ({"control_dt": 0.2}, "control_dt = 0.2"),
        ({"frame": (8, 8, 6), "cameras": ("a", "b")}, r"frame = \[8, 8, 6\]"),
        ({"columns": (Column("reward", "action", dtype="float64"),)}, "columns = "),
    ],
)
def test_the_first_difference_is_named(layout: dict[str, object], difference: str, tmp_path: Path) -> None:
    stores = [part(tmp_path / "a", (3,), (EXPERT,), 1), part(tmp_path / "b", (3,), (EXPERT,), 2, **layout)]
    with pytest.raises(ValueError, match=f"b has {difference}.*only stores of one task and layout can be merged"):
        merge(stores, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_names_of_several_cameras_must_agree_and_of_one_need_not(tmp_path: Path) -> None:
    one = [make_meta(), replace(make_meta(), cameras=("front",))]
    two = [replace(make_meta(), frame=(8, 8, 6), cameras=names) for names in (("a", "b"), ("b", "a"))]
    stores = []
    for number, meta in enumerate([*one, *two]):
        with StoreWriter(tmp_path / str(number), meta) as writer:
            episode = make_episode(number, 3)
            writer.write([replace(episode, pixels=np.repeat(episode.pixels, len(meta.cameras), -1))])
        stores.append(Store.open(tmp_path / str(number)))
    assert merge(stores[:2], tmp_path / "out").meta.cameras == ("main",)
    with pytest.raises(ValueError, match=r"3 has cameras = \['b', 'a'\]"):
        merge(stores[2:], tmp_path / "other")


def test_refusals(parts: list[Store], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is 1 store to merge: name two or more"):
        merge(parts[:1], tmp_path / "out")
    with pytest.raises(ValueError, match="a is named twice"):
        merge([parts[0], parts[1], Store.open(tmp_path / "b" / ".." / "a")], tmp_path / "out")
    with pytest.raises(FileExistsError, match="a is not empty"):
        merge(parts, tmp_path / "a")
    (tmp_path / "out.merging").mkdir()
    (tmp_path / "out.merging" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"out\.merging is in the way"):
        merge(parts, tmp_path / "out")
    assert (tmp_path / "out.merging" / "thesis.txt").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_half_merged_remains(
    error: BaseException, parts: list[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, copy = [], module.shutil.copyfile

    def fail(source: Path, target: Path) -> None:
        copied.append(source)
        if len(copied) > 8:
            raise error
        copy(source, target)

    monkeypatch.setattr(module.shutil, "copyfile", fail)
    with pytest.raises(type(error)):
        merge(parts, tmp_path / "out")
    assert len(copied) > 8 and sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_killed_merge_is_begun_again(parts: list[Store], tmp_path: Path) -> None:
    (tmp_path / "out.merging" / "out").mkdir(parents=True)
    (tmp_path / "out.merging" / "out" / "meta.json").write_text(json.dumps({}))
    (tmp_path / "out").mkdir()
    assert merge(parts, tmp_path / "out").num_episodes == 6
    assert not (tmp_path / "out.merging").exists()
