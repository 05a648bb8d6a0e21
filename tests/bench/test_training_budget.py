"""`lewm bench budget`: the ladder, where it stops, resuming, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lewm.baselines.random import RandomConfig
from lewm.bench import training_budget
from lewm.bench.training_budget import bench_budget, table
from lewm.cli import main
from lewm.config import RunConfig, dump
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.manifest import GoalSet
from lewm.evaluate.methods import PlanConfig
from lewm.evaluate.statistics import wilson
from planners import CEM

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run: RunConfig) -> RunConfig:
    search = CEM(candidates=4, iterations=1, elites=2, horizon=1)
    goals = (GoalSet("near", offset=10, budget=20, count=3), GoalSet("far", offset=15, budget=20, count=2))
    return replace(tiny_run, evaluate=EvaluateConfig(goals, (RandomConfig(), PlanConfig("first", planner=search))))


def test_it_climbs_until_the_target_is_reached(
    run: RunConfig, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench_budget(run, [1, 2, 3], 1.0, tiny_store, tmp_path, CPU)
    assert [row.steps for row in whole] == [1, 2, 3][: len(whole)] and len(whole) >= 1
    for row in whole:
        assert row.n == 5 and row.method == "first" and row.cpu_minutes > 0 and row.minutes > 0
        assert (row.success, row.low, row.high) == (row.successes / 5, *wilson(row.successes, 5))
    assert whole[-1].success == 1.0 or len(whole) == 3
    # A target that the first rung reaches ends it there; what was trained is found again.
    reached = whole[0].success or 1e-9
    monkeypatch.setattr("lewm.train.Trainer.update", lambda *_: pytest.fail("a finished training was trained again"))
    again = bench_budget(run, [1, 2, 3], reached, tiny_store, tmp_path, CPU)
    assert again[0].successes == whole[0].successes and again[0].cpu_minutes >= whole[0].cpu_minutes
    assert len(again) == 1 or whole[0].success == 0


def test_the_table_says_whether_it_was_reached(run: RunConfig, tiny_store: Store, tmp_path: Path) -> None:
    (row,) = bench_budget(run, [2], 1.0, tiny_store, tmp_path, CPU)
    assert "100 % not reached; try a longer --ladder" in table([replace(row, success=0.4)])
    text = table([replace(row, steps=50, success=0.4), replace(row, steps=100, success=1.0, cpu_minutes=2.25)])
    assert "100 % reached with 100 steps, 2.2 CPU minutes" in text and text.count("\n") == 4


def test_wrong_requests_are_refused(run: RunConfig, tiny_store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--ladder is \[200, 100\]; give rising numbers of steps"):
        bench_budget(run, [200, 100], 0.9, tiny_store, tmp_path, CPU)
    with pytest.raises(ValueError, match=r"--target is 90; it is a share of the goals"):
        bench_budget(run, [100], 90, tiny_store, tmp_path, CPU)
    without = replace(run, evaluate=replace(run.evaluate, methods=(RandomConfig(),)))
    with pytest.raises(ValueError, match="the run plans with no world model"):
        bench_budget(without, [100], 0.9, tiny_store, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_the_command(run: RunConfig, tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(dump(run))
    words = [
        "bench",
        "budget",
        str(tmp_path / "tiny.yaml"),
        "--data",
        str(tiny_store.path),
        "--out",
        str(tmp_path / "o"),
    ]
    main([*words, "--ladder", "1", "2", "--target", "0.99", "--json", str(tmp_path / "rows.json"), "--device", "cpu"])
    assert "success of first" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0]["steps"] == 1 and rows[0]["target"] == 0.99 and training_budget.BudgetRow(**rows[0])
