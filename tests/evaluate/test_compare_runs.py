"""Two results goal by goal: counts, refusals, videos of what differs, and what a folder needs to be run again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from lewm import cli, pipeline
from lewm.baselines import OracleConfig, RandomConfig, ReplayConfig
from lewm.checkpoint import load
from lewm.compare.runs import Versus, pair_up, text, versus, worth_watching
from lewm.compare.runs_video import roll_out, write_videos
from lewm.config import RunConfig
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.logged import load_logged, load_setup
from lewm.evaluate.manifest import GoalSet, make_manifest
from lewm.evaluate.methods import PlanConfig
from lewm.evaluate.report import rebuild_report
from lewm.evaluate.statistics import mcnemar
from planners import CEM

Capture = pytest.CaptureFixture[str]
SEARCH = CEM(candidates=6, iterations=1, elites=2, horizon=2)
GOALS = GoalSet("near", offset=6, budget=12, count=10, shift=("floor",))


@pytest.fixture(scope="module")
def runs(
    tiny_run: RunConfig, tiny_store: Store, tiny_checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two evaluations of one manifest, the second with another seed; replay reaches all goals."""
    out = tmp_path_factory.mktemp("runs")
    methods = (PlanConfig("ours", planner=SEARCH), ReplayConfig(), RandomConfig(), OracleConfig(planner=SEARCH))
    manifest = make_manifest(GOALS, tiny_store, np.arange(8), 0)
    for name, seed in (("a", 0), ("b", 1)):
        config = replace(tiny_run, evaluate=EvaluateConfig((GOALS,), methods, seed=seed, timed_plans=1))
        pipeline.measure_manifests(config, load(tiny_checkpoint_path), [manifest], out / name, quiet=True)
    return out / "a", out / "b"


def test_a_run_says_what_it_takes_to_run_it_again(runs: tuple[Path, Path], tiny_checkpoint_path: Path) -> None:
    for seed, run in enumerate(runs):
        setup = load_setup(run)
        assert setup.checkpoint == str(tiny_checkpoint_path.resolve()) and setup.seed == seed
        assert setup.methods[0] == PlanConfig("ours", planner=SEARCH)
        assert [m.kind for m in setup.methods] == ["world_model", "replay", "random", "oracle"]
        rows = [logged.row for logged in load_logged(run)]
        assert [row.kind for row in rows] == [m.kind for m in setup.methods]
        assert len({row.manifest for row in rows}) == 1 and len(rows[0].manifest) == 64
        assert len({row.commit for row in rows}) == 1


def test_the_counts_are_those_of_the_outcomes(runs: tuple[Path, Path]) -> None:
    (pair,) = pair_up(*runs, "replay", "random")
    row = versus(pair, *runs)
    ours, theirs = ([o.success for o in side.outcomes] for side in (pair.a, pair.b))
    assert all(ours) and not all(theirs)
    assert (row.n, row.both, row.neither, row.only_b) == (10, sum(theirs), 0, ())
    assert row.only_a == tuple(i for i, reached in enumerate(theirs) if not reached)
    assert row.p == mcnemar(ours, theirs) and row.difference == pytest.approx(1 - sum(theirs) / 10)
    assert 0 < row.low < row.difference < row.high <= 1
    assert versus(pair, *runs, seed=0) == row
    swapped = versus(*[pair_up(runs[1], runs[0], "random", "replay")[0]], runs[1], runs[0])
    assert (swapped.only_b, swapped.difference, swapped.p) == (row.only_a, -row.difference, row.p)


ROW = Versus(
    "t", "g", "f" * 64, "x", "y", "one", "two", 40, 12, 6, 0.0041, 0.35, 0.1, 0.6, tuple(range(18)), (30, 31, 32, 33)
)


def test_the_text() -> None:
    lines = text(ROW).splitlines()
    assert lines[0] == "t, g: 40 goals, manifest ffffffffffff"
    assert lines[1].endswith("one of x: 75.0 %") and lines[2].endswith("two of y: 40.0 %")
    assert lines[4].split()[-2:] == ["12", "18"] and lines[5].split()[-2:] == ["4", "6"]
    assert "A - B +35.0 points, 95 % interval +10.0 to +60.0" in lines[6]
    assert lines[7] == "  exact McNemar p = 0.0041: A reaches more goals"
    assert lines[9] == "  only B reached 30, 31, 32, 33"
    assert "the difference may be chance" in text(replace(ROW, p=0.06))
    assert text(replace(ROW, only_a=tuple(range(25)), only_b=())).splitlines()[8:] == [
        f"  only A reached {', '.join(map(str, range(20)))} and 5 more",
        "  only B reached none",
    ]


def test_both_sides_wins_are_watched_in_turn() -> None:
    assert worth_watching(ROW, 5) == [0, 30, 1, 31, 2]
    assert worth_watching(replace(ROW, only_a=(3,)), 9) == [30, 3, 31, 32, 33]
    assert worth_watching(ROW, 0) == [] and len(worth_watching(ROW, 99)) == 22


def test_what_is_rolled_out_again_ends_as_logged(runs: tuple[Path, Path]) -> None:
    for run in runs:
        for logged in load_logged(run):
            outcomes, pictures = roll_out(logged, run, [1, 4, 7], "cpu")
            assert outcomes == [logged.outcomes[i] for i in (1, 4, 7)]
            assert [len(film) for film in pictures] == [o.steps for o in outcomes]


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_videos_show_both_until_the_later_one_is_done(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (pair,) = pair_up(*runs, "replay", "ours")
    lines = write_videos(pair, runs, [0, 3], tmp_path)
    assert lines == [f"video {tmp_path / 'near_0000.mp4'}", f"video {tmp_path / 'near_0003.mp4'}"]
    for problem in (0, 3):
        longest = max(side.outcomes[problem].steps for side in (pair.a, pair.b))
        assert frames(tmp_path / f"near_{problem:04d}.mp4") == longest + 1
    other = replace(pair.b, outcomes=tuple(replace(o, steps=1, success=True) for o in pair.b.outcomes))
    (line,) = write_videos(replace(pair, b=other), runs, [0], tmp_path)
    assert line.endswith("near_0000.mp4: B ended otherwise than in its table (reached, 1 steps)")
    assert write_videos(pair, runs, [], tmp_path) == []


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    try:
        cli.main(list(words))
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_command(runs: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    words = ["compare", "runs", *map(str, runs), "--out", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    code, out, err = run(capsys, *words, "--methods", "replay", "random", "--videos", "2", "--device", "cpu")
    assert code == 0, err
    assert "replay of" in out and "random of" in out and out.count("video ") == 2
    assert len(list(tmp_path.glob("near_*.mp4"))) == 2
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["n"] == 10 and row["method_a"] == "replay"
    same = [*words[:2], str(runs[0]), str(runs[0]), "--videos", "0"]
    code, out, err = run(capsys, *same, "--methods", "random", "oracle")
    assert code == 0 and "B did not" in out and "video" not in out


def test_what_cannot_be_compared_is_said_in_one_sentence(
    runs: tuple[Path, Path], tiny_store: Store, tmp_path: Path, capsys: Capture
) -> None:
    a, b = runs
    other = tmp_path / "other"
    shutil.copytree(b, other)
    manifest = make_manifest(GOALS, tiny_store, np.arange(8), 7)
    from lewm.evaluate.manifest import save_manifest

    save_manifest(manifest, other / "evaluation" / "manifest_near.json")
    cut = tmp_path / "cut"
    shutil.copytree(b, cut)
    log = cut / "evaluation" / "outcomes" / "near.ours.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:6]))
    old = tmp_path / "old"
    shutil.copytree(b, old)
    (old / "evaluation" / "setup.json").unlink()
    gone = tmp_path / "gone"
    shutil.copytree(b, gone)
    setup = json.loads((gone / "evaluation" / "setup.json").read_text())
    (gone / "evaluation" / "setup.json").write_text(json.dumps(setup | {"checkpoint": str(tmp_path / "nowhere")}))
    for words, expected in (
        ([str(a), str(other)], "which are other goals: evaluate one again with --manifest"),
        ([str(a), str(a)], "both sides are ours of"),
        ([str(a), str(b), "--methods", "theirs"], "has no method theirs on near; its methods are ours, replay, random"),
        ([str(a), str(b), "--goals", "far"], "so far cannot be compared: evaluate both on the same manifest"),
        ([str(a), str(cut)], "ours on near has 5 of 10 outcomes; run `lewm evaluate` again"),
        ([str(a), str(tmp_path)], "has no results.json"),
        ([str(a), str(b), "--methods", "x", "y", "z"], "--methods has 3 names; give one for both"),
        ([str(a), str(b), "--videos", "-1"], "--videos is -1; give 0 for none"),
        ([str(a), str(old), "--methods", "replay", "random"], "setup.json is missing, so its methods cannot be run"),
        ([str(a), str(gone), "--methods", "replay", "ours"], "say where it is with --checkpoints, or add --videos 0"),
    ):
        code, _, err = run(capsys, "compare", "runs", *words, "--out", str(tmp_path / "v"))
        assert code == 1 and expected in err and err.count("\n") == 1, (words, err)


def test_reports_mark_what_is_significant_against_a_chosen_row(
    runs: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    code, plain, _ = run(capsys, "report", str(runs[0]), "--markdown")
    assert code == 0 and "difference" not in plain
    code, best, _ = run(capsys, "report", str(runs[0]), "--markdown", "--against", "best")
    code, chosen, _ = run(capsys, "report", str(runs[0]), "--markdown", "--against", "replay")
    assert "the goal set's best row" in best and "≈: the difference to replay may be chance" in chosen
    assert "| replay | - | 100.0 % of 10 |" in chosen and chosen.splitlines()[3].endswith("| reference |")
    page = rebuild_report(runs[0], tmp_path / "r.html", "replay").read_text()
    assert "<th>against replay</th>" in page and "in worlds with floor shifted" in page
    code, _, err = run(capsys, "report", str(runs[0]), "--against", "them")
    assert code == 1 and "goals near: there is no row 'them' to compare with" in err


def test_another_manifest_of_the_same_name_is_not_mixed_in(
    runs: tuple[Path, Path], tiny_run: RunConfig, tiny_store: Store, tiny_checkpoint_path: Path
) -> None:
    config = replace(tiny_run, evaluate=EvaluateConfig((GOALS,), (RandomConfig(),), timed_plans=1))
    other = make_manifest(GOALS, tiny_store, np.arange(8), 3)
    before = (runs[0] / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"manifest_near\.json holds another manifest: choose another --out"):
        pipeline.measure_manifests(config, load(tiny_checkpoint_path), [other], runs[0], quiet=True)
    assert (runs[0] / "results.json").read_bytes() == before
    with pytest.raises(ValueError, match="two manifests are called near: evaluate them one at a time"):
        pipeline.measure_manifests(config, load(tiny_checkpoint_path), [other, other], runs[0].parent / "c", quiet=True)
