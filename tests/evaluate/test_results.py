"""Rows of the results table: what the issue asks to be in them, and the file they live in."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lewm.evaluate.results import ResultRow, load_results, save_results, table
from lewm.evaluate.summary import summary

ROW = ResultRow(
    task="two_room",
    goals="ahead_25",
    method="cost_to_go",
    planner="cem",
    cost="cost_to_go (sum)",
    candidates=32,
    iterations=3,
    horizon=2,
    replan_every=1,
    budget=50,
    n=200,
    successes=197,
    success=0.985,
    low=0.9568,
    high=0.9949,
    plan_ms_p50=2.4,
    plan_ms_p95=3.1,
    encode_ms_p50=0.4,
    threads=1,
    device="cpu",
    seed=0,
    hardware="a CPU",
    torch="2.13",
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    rows = [ROW, replace(ROW, method="random", planner="none", candidates=0)]
    save_results(rows, path)
    assert load_results(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    save_results([], path)
    assert load_results(path) == []


def test_the_columns_users_were_promised() -> None:
    promised = "task goals method planner cost candidates iterations horizon n successes success low high plan_ms_p50"
    assert {*promised.split(), "plan_ms_p95", "encode_ms_p50", "threads", "device", "seed"} <= asdict(ROW).keys()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    good = asdict(ROW)
    for rows, expected in (
        ({}, r"results\.json must hold a list of rows"),
        ([good, good | {"n": "many"}], r"results\.json: row 1\.n is 'many'"),
        ([{k: v for k, v in good.items() if k != "low"}], r"results\.json: row 0\.low is missing"),
        ([good | {"sucess": 1}], r"results\.json: row 0\.sucess is unknown; did you mean row 0\.success\?"),
        ([3], r"results\.json: row 0 must be a mapping"),
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=expected):
            load_results(path)
    path.write_text("[{")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        load_results(path)


def test_the_table_says_what_a_reader_needs() -> None:
    lines = table([ROW, replace(ROW, method="random", planner="none", candidates=0, success=0.0, low=0.0, high=0.0188)])
    head, ours, random = lines.splitlines()
    for word in ("goals", "method", "planner", "success", "95 % interval", "n", "ms/plan p50", "p95", "encoder"):
        assert word in head
    for word in ("ahead_25", "cost_to_go", "cem 32x3x2", "98.5 %", "95.7 - 99.5", "200", "2.40", "3.10", "0.40"):
        assert word in ours
    assert "none" not in random and "0.0 - 1.9" in random
    assert head.index("success") == ours.index("98.5") == random.index("0.0 %")


def test_a_summary_has_a_row_per_method_and_a_column_per_goal_set() -> None:
    far = replace(ROW, goals="far", budget=100, n=50, success=0.5, low=0.37, high=0.63, plan_ms_p50=3.0)
    chance = replace(ROW, method="random", planner="none", candidates=0, success=0.1, low=0.0666, high=0.1494)
    assert summary([ROW, far, chance]).splitlines() == [
        "| method | search | ahead_25, n = 200, 50 steps | far, n = 50, 100 steps | ms per plan |",
        "|---|---|---|---|---|",
        "| cost_to_go | cem 32 x 3 x 2 | 98.5 (95.7 - 99.5) | 50.0 (37.0 - 63.0) | 2.7 |",
        "| random | - | 10.0 (6.7 - 14.9) | - | - |",
    ]


def test_a_summary_marks_what_may_be_chance() -> None:
    """Of 40 goals: 30, of which another method has lost one and won none, 4, and one that is told the true state."""
    reached = {"best": "1" * 30 + "0" * 10, "close": "1" * 29 + "0" * 11, "poor": "1" * 4 + "0" * 36, "told": "1" * 40}
    rows = [
        replace(ROW, method=name, successes=said.count("1"), n=40, reached=said, true_state=name == "told")
        for name, said in reached.items()
    ]

    def cells(text: str) -> list[str]:
        return [line.split(" | ")[2] for line in text.splitlines()[2:]]

    best, close, poor, told = cells(summary(rows))
    assert best.startswith("**") and close.startswith("≈ ") and poor == told == "98.5 (95.7 - 99.5)"
    best, close, poor, told = cells(summary(rows, "poor"))
    assert poor.startswith("**") and best == close == told
    with pytest.raises(ValueError, match="there is no row 'cem' to compare with; the rows are best, close, poor, told"):
        summary(rows, "cem")
