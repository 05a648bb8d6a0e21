"""Recording: a function of the seed alone, resumable after a kill, refused when the settings differ."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import envs
from lewm.data.collect import CollectConfig, collect
from lewm.data.store import Store

CONFIG = CollectConfig(episodes=7, steps=6, policies={"expert": 3.0, "random": 1.0}, shard_episodes=2, seed=5)
SETTINGS = {"size": 32}


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a store; of meta.json without time and git revision."""
    files = {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
    meta = json.loads(files["meta.json"])
    del meta["provenance"]["created"], meta["provenance"]["git_revision"]
    return files | {"meta.json": json.dumps(meta).encode()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return collect(CONFIG, "two_room", SETTINGS, tmp_path_factory.mktemp("collect") / "whole")


def test_what_was_recorded_can_be_replayed(recorded):
    store = Store.open(recorded.path, verify=True)
    assert (store.num_episodes, store.num_frames, len(store.meta.shards)) == (7, 49, 4)
    env = envs.make(store.meta.task, **store.meta.settings)
    for episode in range(7):
        frame, _ = env.reset(seed=int(store.episodes["seed"][episode]))
        pixels, states, actions = store.pixels(episode), store.states(episode), store.actions(episode)
        np.testing.assert_array_equal(frame, pixels[0])
        for t, action in enumerate(actions):
            np.testing.assert_array_equal(env.state.astype(np.float32), states[t])
            env.advance(action)
            np.testing.assert_array_equal(env.render(), pixels[t + 1])


def test_episodes_differ_and_policies_follow_their_weights(tmp_path):
    store = collect(replace(CONFIG, episodes=40, steps=2, shard_episodes=40), "two_room", SETTINGS, tmp_path / "s")
    assert len(np.unique(store.episodes["seed"])) == 40
    assert 22 <= (store.episodes["policy"] == 0).sum() <= 37  # 3 to 1: mean 30, +-2.7 std


def test_provenance_says_how_to_record_it_again(recorded):
    meta = recorded.meta
    assert meta.settings["size"] == 32 and meta.state_names == ("x", "y") and meta.frame == (32, 32, 3)
    assert [(p.name, p.weight, p.noise) for p in meta.provenance.policies] == [
        ("expert", 3.0, 0.3),
        ("random", 1.0, 0.3),
    ]
    assert meta.provenance.versions["numpy"] == np.__version__
    assert len(meta.provenance.renderer) > 20 and meta.provenance.created.endswith("+00:00")


def test_processes_do_not_change_the_data(recorded, tmp_path):
    seen: list[tuple[int, int]] = []
    two = collect(CONFIG, "two_room", SETTINGS, tmp_path / "two", 2, lambda *done: seen.append(done))
    assert contents(two.path) == contents(recorded.path)
    assert seen[0] == (0, 7) and seen[-1] == (7, 7)


def test_an_interrupted_recording_is_continued_byte_by_byte(recorded, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 5:  # in the middle of the third shard
            raise Stop

    with pytest.raises(Stop):
        collect(CONFIG, "two_room", SETTINGS, tmp_path / "s", progress=stop)
    assert Store.open(tmp_path / "s", verify=True).num_episodes == 4
    assert (tmp_path / "s" / "shards" / "00002.tmp").is_dir()
    seen: list[tuple[int, int]] = []
    collect(CONFIG, "two_room", SETTINGS, tmp_path / "s", progress=lambda *done: seen.append(done))
    assert seen[0] == (4, 7) and contents(tmp_path / "s") == contents(recorded.path)


KILLED = """
import sys, time
from pathlib import Path
from lewm.data.collect import CollectConfig, collect
if __name__ == "__main__":
    config = CollectConfig(episodes=7, steps=6, policies={"expert": 3.0, "random": 1.0}, shard_episodes=2, seed=5)
    def slow(done, total):
        print(done, flush=True)
        if done == 3:
            time.sleep(60)
    collect(config, "two_room", {"size": 32}, Path(sys.argv[1]), progress=slow)
"""


def test_sigkill_loses_at_most_the_shard_in_hand(recorded, tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert Store.open(tmp_path / "s", verify=True).num_episodes == 2
    collect(CONFIG, "two_room", SETTINGS, tmp_path / "s")
    assert contents(tmp_path / "s") == contents(recorded.path)


ORPHANS = """
import os, sys
from pathlib import Path
from lewm.data import collect as module
def shard(config, meta, job, folder, count=None):
    (Path(sys.argv[1]) / f"{os.getpid()}.pid").touch()
    import time; time.sleep(60)
module._record_shard = shard
if __name__ == "__main__":
    config = module.CollectConfig(episodes=2, steps=2, shard_episodes=1)
    module.collect(config, "two_room", {"size": 32}, Path(sys.argv[1]) / "s", processes=2)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    script, root = tmp_path / "orphans.py", Path(__file__).parents[2]
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment, cwd=root) as process:
        workers = wait_for(lambda: [int(f.stem) for f in tmp_path.glob("*.pid")], count=2)
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: [pid for pid in workers if not alive(pid)], count=2)


def wait_for(find, count: int) -> list[int]:
    for _ in range(600):
        if len(found := find()) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited 30 s for {count}, found {found}")


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_recording_can_grow_by_whole_shards(recorded, tmp_path):
    collect(replace(CONFIG, episodes=4), "two_room", SETTINGS, tmp_path / "s")
    collect(CONFIG, "two_room", SETTINGS, tmp_path / "s")
    assert contents(tmp_path / "s") == contents(recorded.path)
    with pytest.raises(
        ValueError, match=r"has 1 episodes in shard 00003, a store of 8 has 2 there: ask for 7 episodes"
    ):
        collect(replace(CONFIG, episodes=8), "two_room", SETTINGS, tmp_path / "s")
    with pytest.raises(ValueError, match=r"has 2 episodes in shard 00001, a store of 3 has 1 there"):
        collect(replace(CONFIG, episodes=3), "two_room", SETTINGS, tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "settings", "match"),
    [
        ({"seed": 6}, SETTINGS, r"recorded with provenance\.seed = 5, now it is 6"),
        ({"noise": 0.5}, SETTINGS, r"recorded with provenance\.policies = .*now it is"),
        ({"steps": 9}, SETTINGS, r"provenance\.steps = 6, now it is 9"),
        ({"codec": "png"}, SETTINGS, r"codec = 'raw', now it is 'png'"),
        ({}, {"size": 48}, r"settings\.size = 32, now it is 48"),
        ({}, {"size": 32, "door_y": 0.5}, r"settings\.door_y = 0\.3, now it is 0\.5"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(recorded, change, settings, match):
    before = contents(recorded.path)
    with pytest.raises(ValueError, match=match):
        collect(replace(CONFIG, **change), "two_room", settings, recorded.path)
    assert contents(recorded.path) == before


def test_bad_configs_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="episodes is 0, it must be at least 1"):
        CollectConfig(episodes=0)
    with pytest.raises(ValueError, match="give at least one name with a weight above 0"):
        CollectConfig(policies={"expert": 0.0})
    with pytest.raises(ValueError, match="noise is -1"):
        CollectConfig(noise=-1)
    with pytest.raises(ValueError, match="seed is -1"):
        CollectConfig(seed=-1)
    with pytest.raises(ValueError, match="expret"):
        collect(replace(CONFIG, policies={"expret": 1.0}), "two_room", SETTINGS, tmp_path / "s")
    with pytest.raises(ValueError, match="processes is 0"):
        collect(CONFIG, "two_room", SETTINGS, tmp_path / "s", processes=0)
    assert not (tmp_path / "s").exists()
