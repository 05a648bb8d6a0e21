"""`lewm compare baselines`: a comparison shrunk to seconds, resuming, what is found, what is refused, the table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lewm import config
from lewm.baselines.peer import PeerMethod
from lewm.cli import main
from lewm.compare import baselines as comparing
from lewm.compare.baseline_rows import BaselineRow, BaselinesConfig, load_config, load_manifests
from lewm.compare.baselines import compare_baselines, entries_of
from lewm.compare.baselines_table import table
from lewm.compare.runs_video import roll_out
from lewm.config import RunConfig
from lewm.evaluate.leaderboard import find_results, tables
from lewm.evaluate.logged import load_logged, load_setup
from lewm.evaluate.manifest import load_manifest, save_manifest
from lewm.evaluate.results import ResultRow, load_results
from lewm.evaluate.statistics import wilson
from lewm.schema import SchemaError

CPU = torch.device("cpu")
FROZEN = Path(__file__).parent.parent / "docs" / "results" / "manifests" / "two_room"
FEW = {
    "collect.episodes": 8,
    "collect.steps": 40,
    "collect.shard_episodes": 4,
    "train.batch": 4,
    "train.steps": 2,
    "train.held_out": 0.25,
    "cost_to_go.steps": 2,
    "cost_to_go.batch": 8,
    "proposal.steps": 0,
    "evaluate.timed_plans": 1,
}
CEM = {"name": "cem", "candidates": 4, "iterations": 1, "elites": 2, "horizon": 1}
SMALL = BaselinesConfig(
    run="two_room",
    manifests=("standard", "strict"),
    seeds=(0, 1),
    set=FEW,
    rows=(
        BaselineRow("planned", method={"kind": "world_model", "planner": CEM, "replan_every": 1}),
        BaselineRow("cloned", train="gcbc", settings={"steps": 2, "width": 8}),
        BaselineRow("acting", train="sac", seeds=(0,), settings={"steps": 120, "episode_steps": 20, "evaluations": 2}),
        BaselineRow(
            "other",
            method={"kind": "world_model", "planner": CEM, "replan_every": 1},
            run="two_room_pldm",
            set={"train.frames": 3, "collect.noise": 0.1},
            seeds=(1,),
            manifests=("strict",),
        ),
        BaselineRow("replay", method={"kind": "replay"}),
        BaselineRow("random"),
    ),
)
ROWS = [("planned", 0), ("planned", 1), ("cloned", 0), ("cloned", 1), ("acting", 0), ("other", 1)]
ROWS += [("replay", 0), ("random", 0)]


@pytest.fixture(scope="module")
def goals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of two frozen manifests."""
    folder = tmp_path_factory.mktemp("goals")
    for name in SMALL.manifests:
        whole = load_manifest(FROZEN / f"{name}.json.gz")
        few = replace(whole.goals, count=3)
        save_manifest(replace(whole, goals=few, problems=whole.problems[:3]), folder / f"{name}.json.gz")
    return folder


@pytest.fixture(scope="module")
def compared(goals: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ResultRow], Path]:
    out = tmp_path_factory.mktemp("baselines")
    return compare_baselines(SMALL, [], out, CPU, goals), out


def never(what: str) -> None:
    pytest.fail(f"{what} was done again")


def test_every_row_is_made_once_per_seed_and_measured_on_its_manifests(
    compared: tuple[list[ResultRow], Path],
) -> None:
    results, out = compared
    assert list(dict.fromkeys((row.method, row.seed) for row in results)) == ROWS
    assert {row.goals for row in results if row.method == "other"} == {"strict_25"}
    assert {row.goals for row in results if row.method == "cloned"} == {"ahead_25", "strict_25"}
    assert all(row.n == 3 == len(row.reached) and row.reached.count("1") == row.successes for row in results)
    assert {row.method for row in results if row.true_state} == {"acting"}
    learned = {row.method: row.trained for row in results}
    assert learned["planned"].startswith("246 recorded frames, 2 optimiser steps in ") and learned["random"] == ""
    assert (out / "seed_1" / "cloned" / "baseline.json").is_file() and not (out / "seed_1" / "acting").exists()
    # Another run records for itself; the seeds of one share their recordings.
    assert (out / "two_room_pldm_data" / "meta.json").is_file() and not (out / "seed_1" / "data").exists()
    assert load_results(out / "results.json") == results


def test_what_is_finished_is_kept(
    compared: tuple[list[ResultRow], Path], goals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, out = compared
    for name in ("make_policy", "run_method"):
        monkeypatch.setattr(comparing, name, lambda *_, name=name: never(name))
    monkeypatch.setattr("lewm.pipeline.fit", lambda *_: never("training"))
    assert compare_baselines(SMALL, [], out, CPU, goals) == results
    assert compare_baselines(SMALL, ["random"], out, CPU, goals) == [r for r in results if r.method == "random"]
    assert load_results(out / "results.json") == results  # with those that were not asked for


def test_a_killed_evaluation_goes_on_and_gives_the_same(compared: tuple[list[ResultRow], Path], goals: Path) -> None:
    results, out = compared
    kept = out / "seed_0" / "evaluation" / "rows" / "strict_25.planned.json"
    kept.unlink()
    log = out / "seed_0" / "evaluation" / "outcomes" / "strict_25.planned.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:2]) + "\n")
    again = compare_baselines(SMALL, ["planned"], out, CPU, goals)
    assert [row.reached for row in again] == [row.reached for row in results if row.method == "planned"]


def test_a_training_by_hand_is_found_wherever_it_was_done(
    compared: tuple[list[ResultRow], Path], goals: Path, tmp_path: Path
) -> None:
    """With the same weights it decides the same: what counts of a path is what lies there."""
    results, _ = compared
    home, data = tmp_path / "seed_0", tmp_path / "data"
    changes = [word for key, value in FEW.items() for word in (f"--{key}", str(value))]
    main(["collect", "two_room", "--out", str(data), *changes])
    where = ["--data", str(data), "--device", "cpu"]
    main(["train", "two_room", "--seed", "0", "--out", str(home), *where, *changes])
    words = ["--checkpoint", str(home / "checkpoint"), *where, "--width", "8", "--steps", "2"]
    main(["train-baseline", "gcbc", "--out", str(home / "cloned"), *words])
    again = compare_baselines(replace(SMALL, seeds=(0,)), ["cloned"], tmp_path, CPU, goals, stages=("evaluate",))
    assert [row.reached for row in again] == [r.reached for r in results if (r.method, r.seed) == ("cloned", 0)]


def test_rows_that_are_not_trained_are_left_out_of_an_evaluation(
    goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare_baselines(SMALL, ["cloned", "random"], tmp_path, CPU, goals, stages=("evaluate",))
    assert {row.method for row in found} == {"random"}
    assert "cloned: not trained yet, left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (BaselineRow("cloned", train="gcbc", settings={"steps": 3, "width": 8}), r"steps is 3 here and 2 there"),
        (
            BaselineRow("acting", train="sac", settings={"size": 16, "observation": "pixels"}),
            r"is .* here and .* there",
        ),
    ],
)
def test_a_finished_part_of_other_settings_is_refused(
    row: BaselineRow, message: str, compared: tuple[list[ResultRow], Path], goals: Path
) -> None:
    with pytest.raises(RuntimeError, match=message):
        compare_baselines(replace(SMALL, rows=(row,), seeds=(0,)), [], compared[1], CPU, goals)


def test_a_row_of_other_settings_that_was_not_asked_for_leaves_the_table(
    compared: tuple[list[ResultRow], Path], goals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, out = compared
    other = tuple(replace(r, settings={"steps": 3, "width": 8}) if r.name == "cloned" else r for r in SMALL.rows)
    compare_baselines(replace(SMALL, rows=other), ["random"], out, CPU, goals)
    assert "cloned: left out of the table" in capsys.readouterr().err
    left = [(row.method, row.goals, row.seed) for row in load_results(out / "results.json")]
    assert left == [(row.method, row.goals, row.seed) for row in results if row.method != "cloned"]


def test_more_steps_train_on_and_fewer_are_refused(
    compared: tuple[list[ResultRow], Path], goals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = compared
    given = SMALL.rows[2]
    more, fewer = (replace(given, settings=given.settings | {"steps": steps}) for steps in (1000, 20))
    assert compare_baselines(replace(SMALL, rows=(more,)), [], out, CPU, goals, stages=("evaluate",)) == []
    assert "acting: not trained yet, left out" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=r"acting belongs to .*: steps is 20 here and 120 there"):
        compare_baselines(replace(SMALL, rows=(fewer,)), [], out, CPU, goals)


def test_the_peer_plans_with_the_checkpoint_of_its_run_where_there_is_one(
    goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuple(BaselineRow(name, {"kind": "peer"}, run="two_room_lewm") for name in ("theirs", "again"))
    run = config.load("two_room", [])
    made = [next(entries_of(SMALL, row, run, tmp_path, [], Path("/a/python"))) for row in rows]
    assert [entry.home for entry in made] == [tmp_path / "seed_0" / "two_room_lewm"] * 2  # trained once
    for entry in made:
        assert isinstance(entry.method, PeerMethod) and entry.method.python == "/a/python"
        assert Path(entry.method.path) == entry.home / "checkpoint"
    assert compare_baselines(replace(SMALL, rows=rows), [], tmp_path, CPU, goals) == []
    assert "theirs: left out, since no interpreter with stable-worldmodel is given" in capsys.readouterr().err


def test_another_world_model_is_refused(compared: tuple[list[ResultRow], Path], goals: Path) -> None:
    with pytest.raises(RuntimeError, match=r"train\.batch is 2 here and 4 there"):
        compare_baselines(SMALL, ["planned"], compared[1], CPU, goals, ["--train.batch", "2"])


def test_wrong_comparisons(goals: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no row is called 'nobody'; there are planned, cloned"):
        compare_baselines(SMALL, ["nobody"], tmp_path, CPU, goals)
    with pytest.raises(FileNotFoundError, match=r"standard\.json\.gz is missing: pass --manifests FOLDER"):
        compare_baselines(SMALL, [], tmp_path, CPU, tmp_path)
    with pytest.raises(ValueError, match=r"holds goals of two_room, but the run is of reacher"):
        compare_baselines(replace(SMALL, run="reacher"), [], tmp_path, CPU, goals)
    with pytest.raises(ValueError, match=r"row mine has no method, and none of its run is called so"):
        compare_baselines(replace(SMALL, rows=(BaselineRow("mine"),)), [], tmp_path, CPU, goals)
    with pytest.raises(ValueError, match=r"train is 'dreamer'; choose one of"):
        BaselineRow("a", train="dreamer")
    with pytest.raises(ValueError, match=r"row a: run is 'mine/train.yaml', whose name is a folder of ours"):
        BaselineRow("a", run="mine/train.yaml")
    with pytest.raises(ValueError, match=r"row a has settings but no train"):
        BaselineRow("a", settings={"steps": 2})
    with pytest.raises(ValueError, match=r"has both train and run"):
        BaselineRow("a", train="gcbc", run="two_room_pldm")
    with pytest.raises(ValueError, match=r"it names a folder, other than checkpoint"):
        BaselineRow("checkpoint")
    with pytest.raises(ValueError, match=r"row a: manifest 'far' is not among standard"):
        replace(SMALL, rows=(BaselineRow("a", manifests=("far",)),))
    pldm = [BaselineRow(name, run="two_room_pldm", set={"train.steps": steps}) for name, steps in (("a", 2), ("b", 3))]
    with pytest.raises(ValueError, match=r"rows a and b would share one world model's folder, but run or set differ"):
        replace(SMALL, rows=tuple(pldm))  # b would be measured with the world model of a
    with pytest.raises(ValueError, match=r"row two_room_pldm is trained, and has the name of the run of a: rename it"):
        replace(SMALL, rows=(pldm[0], BaselineRow("two_room_pldm", train="gcbc")))
    with pytest.raises(SchemaError, match=r"step is unknown"):
        compare_baselines(
            replace(SMALL, rows=(BaselineRow("a", train="gcbc", settings={"step": 2}),)), [], tmp_path, CPU, goals
        )


@pytest.mark.parametrize("name", config.shipped("baselines"))
def test_shipped_comparisons_can_be_run(name: str, tmp_path: Path) -> None:
    """Every key is known, every manifest there with 200 goals; those of a whole task have every kind of method."""
    comparison = load_config(name)
    run: RunConfig = config.load(comparison.run, [])
    goals = load_manifests(comparison, FROZEN.parent / run.task, run.task)
    assert all(len(manifest.problems) >= 200 for manifest in goals.values())
    python = Path("python")
    entries = [entry for row in comparison.rows for entry in entries_of(comparison, row, run, tmp_path, [], python)]
    assert {entry.row.name for entry in entries} == {row.name for row in comparison.rows}
    kinds = {entry.method.kind for entry in entries}
    every = {"world_model", "gcbc", "gcivl", "gciql", "hilp", "inverse", "tdmpc2", "sb3", "oracle", "replay"}
    assert every < kinds or name != run.task


def row_of(method: str, reached: str, goals: str = "standard", seed: int = 0, **changes: object) -> ResultRow:
    n, successes = len(reached), reached.count("1")
    low, high = wilson(successes, n)
    row = ResultRow(
        "two_room", goals, method, "cem", "cost_to_go", 8, 1, 2, 1, 50, n, successes, successes / n, low, high,
        2.0, 3.0, 1.0, 1, "cpu", seed, "EPYC x 2", "2.13", kind="world_model", manifest="a", reached=reached,
    )  # fmt: skip
    return replace(row, **changes)  # type: ignore[arg-type]


def test_the_table() -> None:
    """Seeds are averaged and do not narrow the interval; what may be chance is marked; the simulator is no winner."""
    rows = [
        row_of("a", "1" * 36 + "0" * 4),
        row_of("a", "1" * 40, seed=1),
        row_of("b", "1" * 34 + "0" * 6),
        row_of("c", "1" * 4 + "0" * 36, trained="9 frames"),
        row_of("oracle", "1" * 40, kind="oracle"),
        row_of("a", "1" * 20 + "0" * 20, "far"),
    ]
    low, high = wilson(38, 40)
    lines = table(rows).splitlines()
    assert lines[0].startswith("| method | search | seeds | standard, n = 40, 50 steps | far, n = 40, 50 steps |")
    a, b, c, oracle = lines[2:6]
    assert f"| 2 | **95.0 ({100 * low:.1f} - {100 * high:.1f}) ± 7.1** | **50.0 (" in a
    assert "| 1 | ≈ 85.0 (" in b and "| - | 2.0 | - |" in b
    assert "| 1 | 10.0 (" in c and c.endswith("| 9 frames |")
    assert "| 1 | ≈ 100.0 (" in oracle
    assert table([]) == "no rows"
    with pytest.raises(ValueError, match="standard: the rows were measured on different manifests"):
        table([*rows, row_of("d", "1" * 40, manifest="b")])


def test_what_may_be_chance_is_asked_of_all_seeds() -> None:
    """By its first seed alone `lucky` would differ from `steady`, and be ahead of it."""
    rows = [row_of("lucky", "1" * reached + "0" * (40 - reached), seed=s) for s, reached in enumerate((40, 8, 8))]
    rows += [row_of("steady", "1" * 22 + "0" * 18, seed=s) for s in range(3)]
    rows += [row_of("poor", "1" * reached + "0" * (40 - reached), seed=s) for s, reached in enumerate((12, 8, 8))]
    lucky, steady, poor = table(rows).splitlines()[2:5]
    assert "| **55.0 (" in steady and "| ≈ 46.7 (" in lucky and "| 23.3 (" in poor


def test_more_manifests_than_methods_go_down_the_page() -> None:
    lines = table([row_of("a", "1100", name) for name in ("one", "two", "three")]).splitlines()
    assert lines[0] == "| method | a |" and lines[2:4] == ["| search | cem 8 x 1 x 2 |", "| seeds | 1 |"]
    assert lines[4].startswith("| one, n = 4, 50 steps | **50.0 (") and lines[7] == "| ms per plan | 2.0 |"


def test_what_seeds_say_together() -> None:
    """Methods with every seed on all manifests, against the best of them that is told nothing."""
    goals = {"standard": "1" * 20, "far": "1" * 10 + "0" * 10}
    rows = [row_of("oracle", "1" * 20, name, seed, kind="oracle") for name in goals for seed in (0, 1)]
    rows += [row_of("good", reached, name, seed) for name, reached in goals.items() for seed in (0, 1)]
    rows += [
        row_of("poor", "1" * (4 + 4 * seed) + "0" * (16 - 4 * seed), name, seed) for name in goals for seed in (0, 1)
    ]
    rows += [row_of("once", "1" * 20), row_of("once", "1" * 20, "far"), row_of("part", "1" * 20)]
    rows += [row_of("part", "1" * 20, seed=1)]
    lines = table(rows).splitlines()[-5:]
    assert lines[0] == "| method | success, interquartile mean | good is better |"
    assert lines[2] == "| oracle | 100.0 (100.0-100.0) | 0.25 (0.25-0.25) |"
    assert lines[3] == "| good | 75.0 (75.0-75.0) | - |"
    assert lines[4] == "| poor | 30.0 (20.0-40.0) | 1.00 (1.00-1.00) |"


def test_methods_are_compared_on_the_goals_that_both_were_measured_on(
    compared: tuple[list[ResultRow], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    seed = str(compared[1] / "seed_1")
    main(["compare", "runs", seed, seed, "--methods", "planned", "other", "--videos", "0"])
    text = capsys.readouterr().out
    assert "strict_25: 3 goals" in text and "ahead_25" not in text  # `other` has the strict ones alone


def test_a_seed_can_be_rolled_out_again(compared: tuple[list[ResultRow], Path]) -> None:
    """As `lewm compare runs` does for its videos: each method with its own world model."""
    seed = compared[1] / "seed_1"
    setup = load_setup(seed)
    assert setup.model_of("other") == str(seed / "two_room_pldm" / "checkpoint")
    assert setup.model_of("planned") == setup.model_of("cloned") == str(seed / "checkpoint")
    for logged in load_logged(seed):
        outcomes, _ = roll_out(logged, seed, [0, 1], "cpu")
        again = [(o.success, o.steps, pytest.approx(o.final, abs=1e-5)) for o in outcomes]
        assert [(o.success, o.steps, o.final) for o in logged.outcomes[:2]] == again, logged.row.method


def test_the_command_and_the_leaderboard(
    compared: tuple[list[ResultRow], Path], goals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, out = compared
    rows = [
        {"name": "planned", "method": {"kind": "world_model", "planner": CEM, "replan_every": 1}},
        {"name": "replay", "method": {"kind": "replay"}},
    ]
    raw = {"run": "two_room", "manifests": ["standard"], "seeds": [0, 1], "set": FEW, "rows": rows}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    words = [str(tmp_path / "mine.yaml"), "--manifests", str(goals), "--out", str(out), "--device", "cpu"]
    main(["compare", "baselines", *words, "--seeds", "0", "--json", str(tmp_path / "rows.json")])
    assert "| planned | cem 4 x 1 x 1 | 1 | " in capsys.readouterr().out
    found = load_results(tmp_path / "rows.json")
    assert [row.reached for row in found] == [
        r.reached for r in results if r.seed == 0 and r.goals == "ahead_25" and r.method in ("planned", "replay")
    ]
    entries, _ = find_results([tmp_path / "rows.json"])
    assert [len(each.entries) for each in tables(entries)] == [2]
    with pytest.raises(SystemExit):
        main(["compare", "baselines", "nothing", "--out", str(out)])
    assert "no comparison nothing: give a YAML file, or one of reacher, two_room" in capsys.readouterr().err
    assert json.loads((tmp_path / "rows.json").read_text())[0]["seed"] == 0
