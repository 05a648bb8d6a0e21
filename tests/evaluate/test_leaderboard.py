"""Committed results as one page: which files count, which rows may share a table, what every row says."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_results import ROW

from lewm import cli
from lewm.evaluate.leaderboard import Entry, find_results, markdown, tables, write_page
from lewm.evaluate.results import ResultRow, load_results, save_results
from lewm.schema import write_json

ROOT = Path(__file__).parent.parent.parent
ONE, OTHER = "a" * 64, "b" * 64


def row(method: str, success: float, manifest: str = "", **facts: object) -> ResultRow:
    return replace(ROW, method=method, success=success, manifest=manifest, **facts)  # type: ignore[arg-type]


def entries(*rows: ResultRow) -> list[Entry]:
    return [Entry(r, f"{i}.json") for i, r in enumerate(rows)]


def test_the_committed_results_make_a_page(tmp_path: Path) -> None:
    found, left_out = find_results([ROOT / "docs" / "results"])
    names = {Path(entry.source).name for entry in found}
    assert {"two_room_cpu.json", "reacher_cpu.json"} <= names and "objectives_two_room.json" not in names
    assert "front_two_room.json" in {path.name for path in left_out}
    every = tables(found, split=True)
    page = write_page(every, tmp_path / "deep" / "board.html").read_text()
    assert "http" not in page and "<script" not in page and "{{" not in page
    assert page.count("<tbody>") == len(every) and page.count("<tr class=") == len(found)
    assert sum(len(t.entries) for t in every) == len(found)


def test_rows_of_one_task_and_goal_set_stand_together_best_first() -> None:
    found = tables(entries(row("b", 0.5, ONE), row("a", 0.9, ONE), row("c", 0.9, ONE, goals="far"), row("d", 0.7, ONE)))
    assert [(t.task, t.goals, [e.row.method for e in t.entries]) for t in found] == [
        ("two_room", "ahead_25", ["a", "d", "b"]),
        ("two_room", "far", ["c"]),
    ]
    assert found[0].note == f"manifest {ONE[:12]}"


def test_other_manifests_are_refused_or_kept_apart() -> None:
    rows = entries(row("a", 0.9, ONE), row("b", 0.8, OTHER), row("c", 0.7))
    with pytest.raises(
        ValueError, match=r"two_room, ahead_25: 0\.json was measured on manifest aaaaaaaaaaaa and 1\.json"
    ):
        tables(rows)
    assert [(t.manifest, [e.row.method for e in t.entries]) for t in tables(rows, split=True)] == [
        (ONE, ["a"]),
        (OTHER, ["b"]),
        ("", ["c"]),
    ]
    apart = entries(row("a", 0.9, ONE), row("a", 0.9, OTHER, task="reacher"), row("a", 0.9, OTHER, goals="far"))
    assert len(tables(apart)) == 3


def test_seeds_are_told_apart() -> None:
    one, two = row("a", 0.9, ONE), row("a", 0.8, ONE, seed=1)
    text = markdown(tables([Entry(one, "x.json"), Entry(two, "x.json"), Entry(one, "y.json")]))
    assert f"| a, seed {one.seed} |" in text and "| a, seed 1 |" in text and "| a |" in text


def test_rows_without_a_manifest_are_shown_as_such() -> None:
    (mixed,) = tables(entries(row("new", 0.9, ONE, commit="c" * 40 + "+changes"), row("old", 0.8)))
    assert mixed.note == f"manifest {ONE[:12]}; of 1 row it is not recorded: they may be of other goals"
    lines = markdown([mixed]).splitlines()
    assert lines[0].startswith("**two_room, ahead_25** (manifest aaaaaaaaaaaa; of 1 row")
    assert "| new |" in lines[4] and f"| {'c' * 12}+changes | 0.json |" in lines[4]
    assert "| old (manifest not recorded) |" in lines[5] and "| not recorded | 1.json |" in lines[5]
    assert "a CPU, cpu, 1 thread, torch 2.13" in lines[4] and "cem 32 x 3 x 2" in lines[4]
    (two,) = tables(entries(row("new", 0.9, ONE, commit=f"{'c' * 40}, {'d' * 40}+changes")))
    assert f"| {'c' * 12}, {'d' * 12}+changes |" in markdown([two])
    (old,) = tables(entries(row("old", 0.8)))
    assert old.note == "manifest not recorded" and "| old |" in markdown([old])


def test_older_files_load(tmp_path: Path) -> None:
    old = {name: value for name, value in asdict(ROW).items() if name not in ("kind", "manifest", "commit")}
    write_json([old], tmp_path / "old.json")
    assert load_results(tmp_path / "old.json") == [ROW]
    save_results([row("a", 0.5, ONE, kind="world_model", commit="abc")], tmp_path / "new.json")
    (loaded,) = load_results(tmp_path / "new.json")
    assert (loaded.kind, loaded.manifest, loaded.commit) == ("world_model", ONE, "abc")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, page, text = tmp_path / "results", tmp_path / "board.html", tmp_path / "deep" / "board.md"
    save_results([row("<ours>", 0.9, ONE)], folder / "sub" / "one.json")
    write_json({"not": "rows"}, folder / "bench.json")
    cli.main(["leaderboard", str(folder), "--out", str(page), "--markdown", str(text)])
    out, err = capsys.readouterr()
    assert f"leaderboard {page}" in out and text.read_text().strip() in out
    assert err == f"{folder / 'bench.json'}: no rows of an evaluation, left out\n"
    assert "&lt;ours&gt;" in page.read_text() and "<ours>" not in page.read_text()
    save_results([row("b", 0.9, OTHER)], folder / "two.json")
    for words, expected in (
        ([str(folder)], "do not belong in one table: leave one out, or add --split"),
        ([str(folder / "bench.json")], "bench.json must hold a list of rows"),
        ([str(tmp_path / "nowhere")], "nowhere does not exist: give result files"),
        ([str(text.parent)], "there is no row of an evaluation"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["leaderboard", *words, "--out", str(page)])
        err = capsys.readouterr().err
        assert expected in err and err.splitlines()[-1].startswith("lewm leaderboard: ")
    cli.main(["leaderboard", str(folder), "--out", str(page), "--split"])
    assert capsys.readouterr().out.count("**two_room, ahead_25**") == 2
