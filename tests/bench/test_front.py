"""The front: which methods it runs, what its rows say, and that the command writes both files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lewm.bench.front import (
    LADDER,
    REFERENCE,
    FrontRow,
    best_rows,
    front_markdown,
    front_methods,
    front_table,
    frontier,
    load_front,
)
from lewm.bench.sized import continuous_planners, planner_at
from lewm.cli import main
from lewm.config import load
from lewm.data.store import Store
from lewm.evaluate.manifest import GoalSet, make_manifest, save_manifest
from lewm.evaluate.methods import PlanConfig
from planners import CEM, PLANNERS, Hybrid

ROW = FrontRow(
    task="two_room", goals="near", method="", planner="cem", cost="", candidates=1, iterations=1, horizon=1,
    replan_every=1, budget=10, n=200, successes=150, success=0.75, low=0.68, high=0.8, plan_ms_p50=1.0, plan_ms_p95=2.0,
    encode_ms_p50=0.1, threads=1, device="cpu", seed=0, hardware="", torch="", reference_successes=150, p_value=1.0,
    cheaper=100.0,
)  # fmt: skip


@pytest.mark.parametrize("name", continuous_planners())
@pytest.mark.parametrize(("candidates", "iterations"), LADDER)
def test_every_rung_of_the_ladder_is_a_planner(name: str, candidates: int, iterations: int) -> None:
    assert planner_at(name, candidates, iterations, 2).candidates == candidates


@pytest.mark.parametrize("name", continuous_planners())
def test_a_planner_at_a_budget_has_that_budget(name: str) -> None:
    planner = planner_at(name, 40, 3, 2, "best")
    assert (planner.name, planner.candidates, planner.iterations, planner.horizon) == (name, 40, 3, 2)
    assert getattr(planner, "elites", 8) in (8, None)  # MPPI weighs all candidates
    assert getattr(planner, "execute", "best") == "best"


def test_planners_that_need_discrete_actions_or_limits_are_left_out() -> None:
    assert set(PLANNERS) - set(continuous_planners()) == {"categorical_cem", "feasible_first", "augmented_lagrangian"}
    hybrid = planner_at("hybrid", 40, 3, 2)
    assert isinstance(hybrid, Hybrid) and hybrid.search == CEM(candidates=40, iterations=3, horizon=2, elites=8)


@pytest.mark.parametrize("name", ["foo", "augmented_lagrangian", "categorical_cem"])
def test_planners_that_have_no_budget_are_refused_with_those_that_have(name: str) -> None:
    with pytest.raises(ValueError, match=f"planner {name} cannot be run at a budget; those that can are cem, gradient"):
        front_methods(load("two_room"), ["cem", name], proposal=False)


def test_every_replanned_cost_of_the_run_meets_every_planner_at_every_budget() -> None:
    methods = front_methods(load("two_room"), ["cem", "gradient"], proposal=True, ladder=((8, 1), (16, 2)))
    names = [method.name for method in methods]
    assert names[:2] == ["reference", "proposal"]
    for cost in ("cost_to_go", "latent_l2_replanned"):
        for budget in ("8x1", "16x2"):
            assert {f"{cost}.{m}.{budget}" for m in ("cem", "gradient")} | {f"{cost}.cem.{budget}.seeded"} <= set(names)
    assert len(names) == len(set(names)) == 2 + 2 * 2 * 3
    seeded = next(m for m in methods if m.name == "cost_to_go.cem.8x1.seeded")
    assert isinstance(seeded, PlanConfig) and seeded.proposal == "seed" and seeded.planner.candidates == 8


def test_grasp_stops_where_its_iterations_take_minutes() -> None:
    methods = front_methods(load("two_room"), ["grasp"], proposal=False)
    assert {m.planner.candidates for m in methods[1:] if isinstance(m, PlanConfig)} == {8, 16, 32}


def test_a_run_that_never_replans_is_refused() -> None:
    run = load("two_room")
    lazy = replace(run, evaluate=replace(run.evaluate, methods=(replace(REFERENCE, name="open_loop"),)))
    with pytest.raises(ValueError, match="no method that replans at every block"):
        front_methods(lazy, ["cem"], proposal=False)


def test_the_best_row_is_the_cheapest_that_is_not_worse() -> None:
    rows = [
        replace(ROW, method="reference", plan_ms_p50=100.0, cheaper=1.0),
        replace(ROW, method="cheap but worse", successes=100, p_value=1e-6, plan_ms_p50=0.5),
        replace(ROW, method="fewer, may be chance", successes=147, p_value=0.6, plan_ms_p50=2.0),
        replace(ROW, method="more", successes=190, p_value=1e-6, plan_ms_p50=3.0),
        replace(ROW, method="oracle", successes=200, plan_ms_p50=0.1),
    ]
    assert best_rows(rows)["near"].method == "fewer, may be chance"
    text = front_table(rows)
    assert "near: fewer, may be chance succeeds on 147 of 200, the reference on 150" in text
    assert "cheap but worse" in text and "oracle" not in text


def test_the_frontier_leaves_out_what_a_cheaper_row_equals() -> None:
    rows = [
        replace(ROW, method="best", successes=190, plan_ms_p50=3.0),
        replace(ROW, method="cheapest", successes=100, plan_ms_p50=0.5),
        replace(ROW, method="beaten", successes=100, plan_ms_p50=1.0),
        replace(ROW, method="reference", plan_ms_p50=100.0),
        replace(ROW, method="oracle", successes=200, plan_ms_p50=0.1),
        replace(ROW, goals="far", method="alone", successes=1, plan_ms_p50=9.0),
    ]
    assert [row.method for row in frontier(rows)] == ["cheapest", "best", "reference", "alone"]


def test_the_command_writes_rows_and_a_picture(
    tiny_checkpoint_path: Path, tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut-down reference would be another reference, so only the number of goals is small."""
    manifest = make_manifest(GoalSet("near", offset=8, budget=10, count=2), tiny_store, np.array([6, 7]), seed=0)
    save_manifest(manifest, tmp_path / "manifest.json")
    words = ["bench", "front", "two_room", "--checkpoint", str(tiny_checkpoint_path)]
    words += ["--manifest", str(tmp_path / "manifest.json")]
    words += ["--planners", "predictive_sampling", "--evaluate.timed_plans", "1"]
    words += ["--out", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    main(words)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {"reference", "random", "oracle", "cost_to_go.predictive_sampling.8x1"} <= {row["method"] for row in rows}
    assert all(row["cheaper"] > 0 and 0 <= row["p_value"] <= 1 for row in rows)
    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert "times cheaper per plan" in capsys.readouterr().out
    table = (tmp_path / "front.md").read_text()
    assert table == front_markdown(load_front(tmp_path / "rows.json")) + "\n" and "| reference |" in table
