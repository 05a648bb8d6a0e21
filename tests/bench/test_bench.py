"""`lewm bench plan`: a row for every combination, its file, its table; no time is asserted."""

import json
from itertools import count
from pathlib import Path

import pytest
import torch

from lewm.bench import plan as module
from lewm.bench.plan import BenchRow, bench_plan, fresh_model, markdown, searches, table, time_plan
from lewm.cli import main
from lewm.evaluate.energy import EnergyMeter
from lewm.planning.costs import CostConfig


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGETS", ((32, 1, 1), (40, 2, 2)))
    monkeypatch.setattr(module, "BATCHES", (1, 2))
    monkeypatch.setattr(module, "WARMUP", 1)


@pytest.fixture
def fuel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that says 6 joules more every time it is read."""
    readings = count(0.0, 6.0)
    monkeypatch.setattr(EnergyMeter, "of", lambda device: EnergyMeter((lambda: next(readings),)))


def test_searches_are_the_planners_that_need_nothing() -> None:
    assert {"cem", "mppi"} <= set(searches())
    assert not {"gradient", "categorical_cem", "feasible_first"} & set(searches())


def test_a_row_for_every_combination(tiny_checkpoint_path: Path) -> None:
    threads = torch.get_num_threads()
    rows = bench_plan(tiny_checkpoint_path, "two_room", 1, 2, "cpu")
    cases = {(r.case, r.batch, r.candidates, r.iterations, r.horizon, r.cost) for r in rows}
    assert len(cases) == len(rows) == len(searches()) * 2 * 2 * 2
    assert {r.case for r in rows} == set(searches())
    assert {r.cost for r in rows} == {"latent_l2 (terminal)", "cost_to_go (sum)"}
    for row in rows:
        assert 0 < row.ours_ms_p50 <= row.ours_ms_p95 and row.plans_per_second * row.ours_ms_p50 == pytest.approx(1000)
        assert (row.plans, row.joules) == (2, None)
        assert (row.device, row.threads, row.torch, row.model) == (
            "cpu",
            1,
            torch.__version__,
            str(tiny_checkpoint_path),
        )
    assert torch.get_num_threads() == threads
    lines = table(rows).splitlines()
    assert len(lines) == len(rows) + 3 and "32x1x1" in lines[1] and "1 thread(s)" in lines[-1]
    assert "plans/s" in lines[0] and "joules" not in lines[0]


def test_joules_are_shared_among_the_plans_and_problems_of_a_row(tiny_checkpoint_path: Path, fuel: None) -> None:
    rows = bench_plan(tiny_checkpoint_path, "two_room", 1, 3, "cpu", ["cem"], [1, 4])
    assert {(r.case, r.batch, r.joules) for r in rows} == {("cem", 1, 6 / 3), ("cem", 4, 6 / 12)}
    assert "joules" in table(rows).splitlines()[0] and "2.000" in table(rows)


def test_a_long_row_stops_at_three_plans(tiny_checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_SECONDS", 0.0)
    plans = [bench_plan(tiny_checkpoint_path, "two_room", 1, n, "cpu", ["cem"], [1])[0].plans for n in (2, 30)]
    assert plans == [2, 3]


def row(cost: str, batch: int, ms: float, joules: float | None) -> BenchRow:
    return BenchRow(
        "cem", "cpu", 2, "C", batch, 64, 3, 4, cost, ms, 2 * ms, 1000 / ms, 30, joules, "A CPU", 0.25, "2.9.1"
    )


def test_the_page_shows_a_row_per_search_budget_and_cost() -> None:
    rows = [row(cost, batch, ms / batch, None) for batch in (1, 10) for cost, ms in (("near", 2.0), ("far", 400.0))]
    assert markdown(rows) == (
        "| search | budget | cost | ms per plan at batch 1, p50 / p95 | plans per second at batch 1 "
        "| plans per second at batch 10 |\n"
        "|---|---|---|---|---|---|\n"
        "| cem | 64 x 3 x 4 | near | 2.0 / 4.0 | 500 | 5,000 |\n"
        "| cem | 64 x 3 x 4 | far | 400.0 / 800.0 | 2.5 | 25 |\n\n"
        "candidates x iterations x horizon; per plan and problem, latents to actions; "
        "2 thread(s), cpu, A CPU, load average 0.2 before, torch 2.9.1"
    )


def test_the_page_shows_joules_where_any_are_counted() -> None:
    head, _, near, far, *_ = markdown([row("near", 1, 2.0, 0.0125), row("far", 1, 2.0, None)]).splitlines()
    assert head.endswith("| joules per plan |") and near.endswith("| 0.013 |") and far.endswith("| - |")


def test_fresh_weights_have_the_architecture_of_the_run() -> None:
    model, head = fresh_model("two_room")
    assert (model.facts.size, model.latent_dim, model.config.frame_skip, model.training) == (64, 64, 5, False)
    again, _ = fresh_model("two_room")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    times = time_plan(model, head, "cem", (32, 1, 1), 2, CostConfig(), 2)
    assert len(times.ms) == 2 and min(times.ms) > 0


def test_from_the_command_line(tiny_checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "deep" / "bench.json"
    main(
        [
            "bench",
            "plan",
            "--checkpoint",
            str(tiny_checkpoint_path),
            "--plans",
            "1",
            "--device",
            "cpu",
            "--json",
            str(file),
        ]
    )
    assert "ms p50" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert len(rows) == len(searches()) * 8 and rows[0]["ours_ms_p50"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ["--plans", "0"],
        ["--threads", "0"],
        ["--batches", "0"],
        ["--planners", "gradient"],
        ["--batches", "1", "--peer"],
    ],
)
def test_nothing_to_measure_is_one_sentence(
    options: list[str], tiny_checkpoint_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "plan", "--checkpoint", str(tiny_checkpoint_path), "--device", "cpu", *options])
    assert stopped.value.code in (1, 2)
    error = capsys.readouterr().err
    assert options[0].strip("-") in error.splitlines()[-1] and "Traceback" not in error
