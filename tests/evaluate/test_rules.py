"""Rules of difficulty: what each asks for, the same pairs under all, and the command that writes them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import envs
from lewm import cli
from lewm.commands import evaluation
from lewm.data.store import Store, split_episodes
from lewm.evaluate.manifest import GoalSet, load_manifest
from lewm.evaluate.rules import RULES, factors_of, files, goal_sets
from lewm.schema import SchemaError

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    try:
        cli.main(list(words))
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_rules() -> None:
    assert tuple(RULES) == evaluation.RULES
    assert goal_sets("standard", 200) == [GoalSet("ahead_25")]  # what the shipped runs call ahead_25
    assert goal_sets("strict", 9) == [
        GoalSet("strict_25", count=9, pairs="ahead_25", tolerance=0.5, hold=5, orientation=True)
    ]
    assert goal_sets("far", 9) == [
        GoalSet("far_50", offset=50, budget=100, count=9, pairs="ahead_50"),
        GoalSet("far_75", offset=75, budget=150, count=9, pairs="ahead_75"),
        GoalSet("far_across", "across", budget=150, count=9, pairs="across"),
    ]
    assert goal_sets("shift", 9) == [GoalSet("shift_25", count=9, pairs="ahead_25", shift=("all",))]


def test_what_is_given_replaces_what_the_rule_says() -> None:
    (goals,) = goal_sets("strict", 5, ["10"], budget=30, tolerance=0.25, hold=2, shift=["floor"])
    assert goals == GoalSet("strict_10", "ahead", 10, 30, 5, "ahead_10", 0.25, 2, True, ("floor",))
    names = [goals.name for goals in goal_sets("standard", 5, ["across", "elsewhere", "8"])]
    assert names == ["across", "elsewhere", "ahead_8"]
    for wrong in ("-5", "0", "near", "2.5"):
        with pytest.raises(ValueError, match=f"--distances has '{wrong}'; it takes steps such as 25, across and else"):
            goal_sets("standard", 5, [wrong])


def test_a_manifest_for_each_factor(tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    assert (
        draw(capsys, tiny_store, tmp_path / "s.json", "--rule", "shift", "--each-factor", "--distances", "10")[0] == 0
    )
    names = envs.make("two_room").factors
    assert {path.name for path in tmp_path.iterdir()} == {f"s_{name}.json" for name in names}
    pairs = []
    for name in names:
        manifest = load_manifest(tmp_path / f"s_{name}.json")
        assert manifest.goals.name == f"shift_{name}_10" and manifest.goals.shift == (name,)
        assert all(set(problem.variation) == {name} for problem in manifest.problems)
        pairs.append([(problem.episode, problem.start) for problem in manifest.problems])
    assert pairs == [pairs[0]] * len(names)  # the same pairs, so that what a factor costs can be read goal by goal
    words = ["--rule", "shift", "--each-factor", "--factors", "speed", "floor", "--distances", "8", "10"]
    assert draw(capsys, tiny_store, tmp_path / "two.json", *words)[0] == 0
    assert {path.name for path in tmp_path.glob("two*")} == {
        f"two_{name}_{distance}.json" for name in ("speed", "floor") for distance in (8, 10)
    }


def test_a_task_without_factors_is_said(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "make", lambda *_, **__: SimpleNamespace(factors={}, close=lambda: None))
    with pytest.raises(ValueError, match="two_room has no factors of variation to shift: choose another rule"):
        factors_of(tiny_store)


def test_recordings_that_nothing_is_trained_on_are_held_out_whole(
    tiny_store: Store, tmp_path: Path, capsys: Capture
) -> None:
    words = ["manifest", "two_room", "--data", str(tiny_store.path), "--n", "5", "--distances", "10", "--held-out", "1"]
    assert run(capsys, *words, "--out", str(tmp_path / "m.json.gz"))[0] == 0
    assert run(capsys, *words, "--out", str(tmp_path / "m.json"))[0] == 0
    packed, plain = tmp_path / "m.json.gz", tmp_path / "m.json"
    assert load_manifest(packed) == load_manifest(plain) and load_manifest(plain).held_out == tuple(range(8))
    assert packed.stat().st_size < plain.stat().st_size / 2
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(SchemaError, match=r"m\.json\.gz is not JSON"):
        load_manifest(packed)


def test_several_distances_are_several_files() -> None:
    assert files(goal_sets("far", 5), Path("a/m.json.gz"))[0] == Path("a/m_50.json.gz")
    assert files(goal_sets("far", 5), Path("a/m"))[2] == Path("a/m_across.json")
    assert files(goal_sets("standard", 5), Path("a/m.json")) == [Path("a/m.json")]
    assert files(goal_sets("far", 5), Path("a/m.json")) == [Path(f"a/m_{d}.json") for d in ("50", "75", "across")]


def draw(capsys: Capture, store: Store, out: Path, *words: str) -> tuple[int, str, str]:
    common = ["manifest", "two_room", "--data", str(store.path), "--out", str(out), "--n", "5", "--held-out", "0.5"]
    return run(capsys, *common, *words)


def test_all_rules_have_the_same_pairs(tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    manifests = {}
    for rule in RULES:
        code, out, err = draw(capsys, tiny_store, tmp_path / f"{rule}.json", "--rule", rule, "--distances", "10")
        assert code == 0, err
        manifests[rule] = load_manifest(tmp_path / f"{rule}.json")
        assert f"manifest {tmp_path / f'{rule}.json'}" in out and "5 pairs from 4 held-out episodes" in out
    plain = manifests["standard"]
    assert plain.held_out == tuple(split_episodes(8, 0.5, 0)[1]) and plain.goals.name == "ahead_10"
    for rule, manifest in manifests.items():
        assert [replace(p, variation={}) for p in manifest.problems] == list(plain.problems)
        assert (manifest.goals.hold > 1) == (rule == "strict")
        assert all(bool(p.variation) == (rule == "shift") for p in manifest.problems)


def test_goals_across_rooms_come_along_where_there_are_rooms(
    tiny_store: Store, tmp_path: Path, capsys: Capture
) -> None:
    words = ("--rule", "far", "--distances", "12", "across", "--n", "3")
    code, out, err = draw(capsys, tiny_store, tmp_path / "m.json", *words)
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_12.json", "m_across.json"]
    across = load_manifest(tmp_path / "m_across.json")
    assert all((p.start_state[0] > 0.5) != (p.goal_state[0] > 0.5) for p in across.problems)
    assert "far_across: 3 pairs" in out


def test_the_checkpoint_says_which_episodes_it_has_not_seen(
    tiny_store: Store, tiny_checkpoint_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["manifest", "two_room", "--data", str(tiny_store.path), "--n", "4", "--distances", "10"]
    words += ["--checkpoint", str(tiny_checkpoint_path), "--out", str(tmp_path / "m.json")]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    assert load_manifest(tmp_path / "m.json").held_out == tuple(split_episodes(8, 0.25, 0)[1])
    code, _, err = run(capsys, *words, "--held-out", "0.5")
    assert code == 1 and "--checkpoint says which episodes are held out; leave out --held-out" in err


def test_a_file_is_written_whole_and_once(tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.json"
    assert draw(capsys, tiny_store, path, "--distances", "10")[0] == 0
    before = path.read_bytes()
    assert draw(capsys, tiny_store, path, "--distances", "10")[0] == 0  # the same pairs again
    code, _, err = draw(capsys, tiny_store, path, "--distances", "10", "--seed", "1")
    assert code == 1 and f"{path} holds another manifest: choose another --out, or delete it" in err
    assert path.read_bytes() == before
    both = ("--rule", "far", "--distances", "10", "12")
    (tmp_path / "m_12.json").write_bytes(before)
    assert draw(capsys, tiny_store, path, *both)[0] == 1 and not (tmp_path / "m_10.json").exists()


def test_mistakes_are_one_sentence(tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.json"
    for words, expected in (
        (["--distances", "far"], "--distances has 'far'; it takes steps"),
        (["--distances", "39", "--n", "20"], "only 8 of 20 pairs found in 4 held-out episodes; record more"),
        (["--rule", "shift", "--factors", "colour", "--distances", "9"], "goals shift_colour_9: shift names 'colour'"),
        (["--each-factor"], "--each-factor shifts worlds, but the rule is standard: add --rule shift"),
        (["--hold", "40", "--distances", "25"], "offset is 25, held for 40 steps; it must not exceed the budget, 50"),
    ):
        code, _, err = draw(capsys, tiny_store, path, *words)
        assert code == 1 and expected in err and err.count("\n") == 1
    code, _, err = run(capsys, "manifest", "reacher", "--data", str(tiny_store.path), "--out", str(path))
    assert code == 1 and "holds recordings of two_room, not of reacher: give its own --data" in err
    assert (
        run(capsys, "manifest", "lewm/TwoRoom-v0", "--data", str(tiny_store.path), "--out", str(path), "--n", "3")[0]
        == 0
    )


def test_across_needs_two_regions(tmp_path: Path, capsys: Capture) -> None:
    from lewm.data.collect import CollectConfig, collect

    store = collect(CollectConfig(episodes=4, steps=30, noise=0.5), "reacher", {"size": 32}, tmp_path / "data")
    words = ["manifest", "reacher", "--data", str(store.path), "--rule", "far", "--n", "2", "--held-out", "0.5"]
    code, _, err = run(capsys, *words, "--out", str(tmp_path / "m.json"), "--distances", "10", "across")
    assert code == 1 and "these recordings of reacher never leave one region" in err
    assert np.array_equal(sorted(p.name for p in tmp_path.iterdir()), ["data"])
    code, _, err = run(capsys, *words, "--out", str(tmp_path / "m.json"))
    assert code == 1 and "no goals across regions: the recordings never leave one\n" in err and "far_50" in err
