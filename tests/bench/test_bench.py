"""`lewm bench plan`: a row for every combination, its file, its table; no time is asserted."""

import json
from pathlib import Path

import pytest
import torch

from lewm.bench import plan as module
from lewm.bench.plan import bench_plan, fresh_model, searches, table, time_plan
from lewm.cli import main
from lewm.planning.costs import CostConfig


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGETS", ((32, 1, 1), (40, 2, 2)))
    monkeypatch.setattr(module, "BATCHES", (1, 2))
    monkeypatch.setattr(module, "WARMUP", 1)


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
        assert 0 < row.ours_ms_p50 <= row.ours_ms_p95
        assert (row.device, row.threads, row.torch, row.model) == (
            "cpu",
            1,
            torch.__version__,
            str(tiny_checkpoint_path),
        )
    assert torch.get_num_threads() == threads
    lines = table(rows).splitlines()
    assert len(lines) == len(rows) + 2 and "32x1x1" in lines[1] and "1 thread(s)" in lines[-1]


def test_fresh_weights_have_the_architecture_of_the_run() -> None:
    model, head = fresh_model("two_room")
    assert (model.facts.size, model.latent_dim, model.config.frame_skip, model.training) == (64, 64, 5, False)
    again, _ = fresh_model("two_room")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    times = time_plan(model, head, "cem", (32, 1, 1), 2, CostConfig(), 2)
    assert 0 < times[0] <= times[1]


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


@pytest.mark.parametrize("options", [["--plans", "0"], ["--threads", "0"]])
def test_nothing_to_measure_is_one_sentence(
    options: list[str], tiny_checkpoint_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "plan", "--checkpoint", str(tiny_checkpoint_path), "--device", "cpu", *options])
    assert stopped.value.code in (1, 2)
    error = capsys.readouterr().err
    assert options[0].strip("-") in error.splitlines()[-1] and "Traceback" not in error
