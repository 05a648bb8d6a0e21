"""The control-rate benchmark: which steps it times, what it derives from them, what it refuses."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import pytest
from toy_models import FACTS, toy_checkpoint

from lewm.bench.control_rate import ControlRow, bench_control, drive, markdown, table
from lewm.cli import main
from lewm.data.proprio import Measured
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig
from lewm.planning.agent import DEFAULT_PLANNERS, Agent
from lewm.planning.costs import CostConfig
from lewm.world_model import ModelConfig, WorldModel
from planners import CEM


def test_rows_of_both_ways_to_plan(tiny_checkpoint_path: Path) -> None:
    rows = bench_control(tiny_checkpoint_path, [1], plans=4, rate=500.0, device="cpu")
    assert [(r.mode, r.step) for r in rows] == [
        ("in turn", "plans"),
        ("in turn", "between"),
        ("realtime", "plans"),
        ("realtime", "between"),
    ]
    planner = DEFAULT_PLANNERS["cost_to_go"]
    for r in rows:
        assert r.steps == (4 if r.step == "plans" else 16) and r.block == 5
        assert 0 < r.ms_p50 <= r.ms_p95
        assert (r.hz_p50, r.hz_p95) == pytest.approx((1000 / r.ms_p50, 1000 / r.ms_p95))
        assert (r.threads, r.device, r.model) == (1, "cpu", str(tiny_checkpoint_path))
        assert (r.candidates, r.iterations, r.horizon) == (planner.candidates, planner.iterations, planner.horizon)
    in_turn, _, realtime, _ = rows
    assert (in_turn.rate, in_turn.misses, in_turn.wait_ms_p50) == (None, None, None)
    assert in_turn.sustained_hz == in_turn.hz_p95
    assert realtime.rate == 500 and realtime.misses is not None and 0 <= realtime.misses <= 4
    assert realtime.sustained_hz == pytest.approx(5 * 1000 / realtime.planning_ms_p95)
    text = table(rows)
    assert text.count("\n") == 5 and f"{realtime.misses} of 4" in text and "paced at 500 steps/s" in text


def test_the_page_shows_a_row_per_way_to_plan() -> None:
    rows = [
        row("in turn", "plans", 8.0, None, None),
        row("in turn", "between", 0.01, None, None),
        row("realtime", "plans", 0.5, 100.0, 2),
    ]
    assert markdown(rows) == (
        "| planning | threads | ms of a step that plans, p50 / p95 | of a step between | steps per second "
        "| plans not ready when due |\n"
        "|---|---|---|---|---|---|\n"
        "| in turn | 1 | 8.0 / 16.0 | 0.010 / 0.020 | 120 | - |\n"
        "| realtime | 1 | 0.5 / 1.0 | - | 120 | 2 of 50 |\n\n"
        "steps per second: at which 95 % of the plans make no step late; milliseconds of act, one problem, encoder "
        "included; CEM 64 x 3 x 4, a plan every 5 steps; realtime paced at 100 steps/s; cpu, A CPU, load average 1.2 "
        "before, torch 2.9.1"
    )


def row(
    mode: Literal["in turn", "realtime"],
    step: Literal["plans", "between"],
    ms: float,
    rate: float | None,
    misses: int | None,
) -> ControlRow:
    timed = {"ms_p50": ms, "ms_p95": 2 * ms, "hz_p50": 1000 / ms, "hz_p95": 500 / ms, "steps": 50}
    plans = {"wait_ms_p50": None, "wait_ms_p95": None, "planning_ms_p95": 8.0, "sustained_hz": 120.0}
    search = {"planner": "CEM", "candidates": 64, "iterations": 3, "horizon": 4, "block": 5, "model": "C"}
    where = {"threads": 1, "device": "cpu", "hardware": "A CPU", "load": 1.25, "torch": "2.9.1"}
    return ControlRow(mode, step, rate=rate, misses=misses, **timed, **plans, **search, **where)  # type: ignore[arg-type]


def test_every_step_is_one_act(tiny_checkpoint_path: Path) -> None:
    agent = Agent.load(tiny_checkpoint_path, replan_every=2)
    driven = drive(agent, 3, None)
    assert (len(driven.plans), len(driven.between), len(driven.planning)) == (3, 27, 3)
    for act, planning in zip(driven.plans, driven.planning, strict=True):
        assert act >= planning, "an act that plans holds its plan"


@pytest.mark.parametrize(("cameras", "entries"), [(2, ()), (1, ("x", "angle"))])
def test_models_of_several_cameras_and_of_measurements_are_timed(cameras: int, entries: tuple[str, ...]) -> None:
    config = ModelConfig(ConvConfig(latent_dim=4, channels=(4, 4, 4)), MLPConfig(width=16), 2, proprio=entries)
    facts = replace(FACTS, pixel_mean=FACTS.pixel_mean * cameras, pixel_std=FACTS.pixel_std * cameras)
    measured = tuple(Measured("state", i, name == "angle", 0.0, 1.0) for i, name in enumerate(entries))
    model = WorldModel(config, replace(facts, proprio=measured)).eval()
    agent = Agent(toy_checkpoint(model), CEM(candidates=4, iterations=1, elites=2), CostConfig({"latent_l2": 1.0}))
    assert len(drive(agent, 2, None).plans) == 2


def test_nonsense_is_refused(tiny_checkpoint_path: Path) -> None:
    with pytest.raises(ValueError, match="--plans is 0; time at least one plan per row"):
        bench_control(tiny_checkpoint_path, [1], 0, 100.0, "cpu")
    with pytest.raises(ValueError, match=r"--rate is 0\.0; it must be a positive number of steps per second"):
        bench_control(tiny_checkpoint_path, [1], 1, 0.0, "cpu")


def test_on_the_command_line(tiny_checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "control.json"
    main(
        [
            "bench",
            "control",
            "--checkpoint",
            str(tiny_checkpoint_path),
            "--plans",
            "2",
            "--rate",
            "500",
            "--json",
            str(out),
        ]
    )
    rows = json.loads(out.read_text())
    assert len(rows) == 4 and set(rows[0]) == {f.name for f in fields(ControlRow)}
    assert capsys.readouterr().out.startswith("mode")
