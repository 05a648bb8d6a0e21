"""`lewm compare objectives` on a tiny run: rows and their curves, resuming, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm.checkpoint import load
from lewm.cli import main
from lewm.compare import objectives as comparing
from lewm.compare.objectives import ADAPTED, compare_objectives, recipe
from lewm.compare.objectives_rows import CompareRow, CurvePoint, collapse_step, load_rows
from lewm.config import RunConfig, dump
from lewm.data.store import Store
from lewm.data.windows import Batch, Windows
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.manifest import GoalSet
from lewm.evaluate.methods import PlanConfig
from lewm.evaluate.statistics import wilson
from lewm.objectives import OBJECTIVES
from lewm.planning.costs import CostConfig
from lewm.probes import Health
from lewm.schema import SchemaError
from lewm.train import Trainer
from lewm.training_loop import Interrupted
from planners import CEM

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tiny_run: RunConfig) -> RunConfig:
    search = CEM(candidates=4, iterations=1, elites=2, horizon=1)
    methods = (PlanConfig(planner=search), PlanConfig("latent_l2", planner=search, cost=CostConfig({"latent_l2": 1.0})))
    goals = (GoalSet("ahead", offset=10, budget=20, count=3),)
    return replace(tiny_run, evaluate=EvaluateConfig(goals, methods))


@pytest.fixture(scope="module")
def compared(run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[CompareRow], Path]:
    """Two objectives, then a second seed of one: the rows and where they lie. Tests that change files copy them."""
    out = tmp_path_factory.mktemp("compare")
    rows = compare_objectives([run], ["sigreg", "cjepa"], [0], out, CPU)
    return [*rows, *compare_objectives([run], ["sigreg"], [1], out, CPU)], out


def untimed(row: CompareRow) -> CompareRow:
    """A row without what depends on the machine's speed."""
    curve = tuple(replace(point, seconds_per_step=None) for point in row.curve)
    return replace(row, seconds_per_step=None, curve=curve)


def test_every_row_has_a_configuration_and_says_what_differs_from_the_published_one() -> None:
    for name in OBJECTIVES:
        row = recipe(name)
        config, change = row.objective, row.change
        assert config.name == name
        assert bool(change) == (name in ADAPTED) == (bool(comparing.changed_settings(config)) or row.batch_norm)


def test_add_ons_are_named_after_a_plus(
    run: RunConfig, compared: tuple[list[CompareRow], Path], tmp_path: Path
) -> None:
    row = recipe("ema+fovea+straightening")
    assert row.name == "ema+fovea+straightening" and row.change == ADAPTED["ema"].change
    changed = row.apply(run).train.add_ons
    assert (changed.fovea, changed.straightening, changed.decoder) == (1.0, 1.0, run.train.add_ons.decoder)
    assert changed != run.train.add_ons and recipe("sigreg").apply(run).train == run.train
    (measured,) = compare_objectives([run], ["sigreg+straightening"], [0], tmp_path, CPU)
    assert measured.objective == "sigreg+straightening"
    assert (tmp_path / "two_room" / "sigreg+straightening.0" / "row.json").exists()
    assert measured.curve[0] == compared[0][0].curve[0] and measured.curve[-1] != compared[0][0].curve[-1]
    with pytest.raises(ValueError, match=r"sigreg\+fova: no add-on is called 'fova'; there are straightening, "):
        recipe("sigreg+fova")


def test_rows_say_what_was_measured(compared: tuple[list[CompareRow], Path]) -> None:
    rows, _ = compared
    assert [(r.objective, r.seed) for r in rows] == [("sigreg", 0), ("cjepa", 0), ("sigreg", 1)]
    assert {(r.task, r.steps) for r in rows} == {("two_room", 6)}
    assert rows[0].curve[0] != rows[2].curve[0]  # another seed is another network
    for row in rows:
        assert set(row.linear_r2) == set(row.mlp_r2) == {"x", "y"}
        assert 1 <= row.effective_rank <= row.ideal_rank * 1.2
        assert row.condition_number is not None and row.condition_number >= 1
        assert 0 < row.std_min <= row.std_mean
        assert row.seconds_per_step is not None and row.seconds_per_step > 0
        assert len(row.rollout_error) == 2  # three frames a clip, from one
        assert [(s.goals, s.method, s.n) for s in row.success] == [
            ("ahead", "cost_to_go", 3),
            ("ahead", "latent_l2", 3),
        ]
        assert all((s.success, s.low, s.high) == (s.successes / 3, *wilson(s.successes, 3)) for s in row.success)
    assert rows[0].settings == {}
    assert rows[1].settings == {"teacher.schedule": "constant", "teacher.momentum": 0.97}


def test_a_curve_runs_from_the_fresh_weights_to_the_last_step(compared: tuple[list[CompareRow], Path]) -> None:
    for row in compared[0]:
        assert [point.step for point in row.curve] == [0, 1, 2, 3, 4, 5, 6]
        assert [point.step for point in row.curve if point.mlp_r2] == [0, 3, 6]
        assert all(set(point.linear_r2) == {"x", "y"} for point in row.curve)
        # Building the trainer before the first step is no training: that stretch is not timed.
        assert [point.step for point in row.curve if point.seconds_per_step is None] == [0, 1]
    sigreg, cjepa = compared[0][:2]
    assert sigreg.curve[0] == cjepa.curve[0]  # the same network, and nothing learned yet
    assert sigreg.curve[1].linear_r2 != cjepa.curve[1].linear_r2


def test_the_curve_and_the_end_are_measured_alike(
    compared: tuple[list[CompareRow], Path], run: RunConfig, tmp_path: Path
) -> None:
    """The final measurement with the clips of a point is that point; the row itself takes more clips."""
    rows, out = compared
    model = load(out / "two_room" / "sigreg.0" / "checkpoint").model
    store = Store.open(out / "two_room" / "data")
    again = comparing.curve_point(6, comparing.measure_latent(model, run, store, run.train.probe_clips), mlp=True)
    last = rows[0].curve[-1]
    assert again.effective_rank == pytest.approx(last.effective_rank, rel=1e-5)
    assert again.linear_r2 == pytest.approx(last.linear_r2, rel=1e-4)
    assert again.mlp_r2 == pytest.approx(last.mlp_r2, rel=1e-2)
    assert again.rollout_error == pytest.approx(last.rollout_error, rel=1e-4)


def test_finished_rows_are_kept(
    compared: tuple[list[CompareRow], Path], run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = compared
    monkeypatch.setattr(comparing, "compare_one", lambda *_: pytest.fail("a finished row was measured again"))
    assert compare_objectives([run], ["sigreg"], [0, 1], out, CPU) == [rows[0], rows[2]]
    (summary,) = json.loads((out / "summary.json").read_text())
    assert summary["seeds"] == [0, 1] and summary["success"][0]["n"] == 6
    assert (out / "report.html").stat().st_size > 10_000


def test_steps_can_be_timed_again(compared: tuple[list[CompareRow], Path], run: RunConfig, tmp_path: Path) -> None:
    """In all seeds of an objective alike, and nothing else changes."""
    rows, out = compared
    shutil.copytree(out, tmp_path / "out")
    comparing.time_again([run], ["sigreg", "vicreg"], tmp_path / "out", CPU)
    again = compare_objectives([run], ["sigreg"], [0, 1], tmp_path / "out", CPU)
    assert [untimed(row) for row in again] == [untimed(rows[0]), untimed(rows[2])]
    assert again[0].seconds_per_step == again[1].seconds_per_step != rows[0].seconds_per_step
    assert compare_objectives([run], ["cjepa"], [0], tmp_path / "out", CPU) == [rows[1]]


def test_a_row_killed_after_its_training_is_finished_from_what_it_saved(
    compared: tuple[list[CompareRow], Path], run: RunConfig, tmp_path: Path
) -> None:
    """Without its last point and its row, as a kill right after the last step leaves it."""
    rows, out = compared
    shutil.copytree(out, tmp_path / "out")
    folder = tmp_path / "out" / "two_room" / "sigreg.0"
    (folder / "row.json").unlink()
    assert compare_objectives([run], ["sigreg", "cjepa"], [0], tmp_path / "out", CPU) == rows[:2]
    (folder / "row.json").unlink()
    (folder / "curve.json").write_text(json.dumps(json.loads((folder / "curve.json").read_text())[:-1]))
    (row,) = compare_objectives([run], ["sigreg"], [0], tmp_path / "out", CPU)
    assert [point.step for point in row.curve] == [0, 1, 2, 3, 4, 5, 6]
    assert row.curve[:6] == rows[0].curve[:6] and row.linear_r2 == rows[0].linear_r2


def test_a_kill_in_a_training_loses_nothing_but_time(
    compared: tuple[list[CompareRow], Path], run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 5, saved after step 4: the second run measures step 5 again, and the row is the same."""
    add = comparing.Curve.add

    def kill(self: comparing.Curve, step: int, health: Health) -> None:
        add(self, step, health)
        if step == 5:
            raise Interrupted("killed")

    monkeypatch.setattr(comparing.Curve, "add", kill)
    with pytest.raises(Interrupted):
        compare_objectives([run], ["sigreg"], [0], tmp_path, CPU)
    monkeypatch.undo()
    folder = tmp_path / "two_room" / "sigreg.0"
    assert not (folder / "row.json").exists()
    assert [point["step"] for point in json.loads((folder / "curve.json").read_text())] == [0, 1, 2, 3, 4, 5]
    (row,) = compare_objectives([run], ["sigreg"], [0], tmp_path, CPU)
    assert untimed(row) == untimed(compared[0][0])


@pytest.mark.parametrize("finished", [True, False])
def test_a_row_of_other_settings_is_refused(
    finished: bool, compared: tuple[list[CompareRow], Path], run: RunConfig, tmp_path: Path
) -> None:
    settings = (compared[1] / "two_room" / "sigreg.0" / "settings.json").read_text()
    folder = tmp_path / "two_room" / "sigreg.0"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(settings)
    if finished:
        (folder / "row.json").write_text("{}")
    other = replace(run, train=replace(run.train, steps=7))
    with pytest.raises(RuntimeError, match=r"sigreg\.0 .*: train\.steps is 7 here and 6 there; set it to that"):
        compare_objectives([other], ["vicreg", "sigreg"], [0], tmp_path, CPU)
    goals = replace(run.evaluate, goals=(replace(run.evaluate.goals[0], count=4),))
    with pytest.raises(RuntimeError, match=r"evaluate\.goals\.0\.count is 4 here and 3 there"):
        compare_objectives([replace(run, evaluate=goals)], ["sigreg"], [0], tmp_path, CPU)
    assert [path.name for path in (tmp_path / "two_room").iterdir()] == ["sigreg.0"]  # before any work
    kept = json.loads(settings) | {"evaluate.processes": 4, "evaluate.batch": 7}  # they change no outcome
    (folder / "settings.json").write_text(json.dumps(kept))
    with pytest.raises(RuntimeError, match=r"evaluate\.goals\.0\.count is 4 here and 3 there"):
        compare_objectives([replace(run, evaluate=goals)], ["sigreg"], [0], tmp_path, CPU)
    (folder / "settings.json").unlink()
    with pytest.raises(RuntimeError, match=r"sigreg\.0 has no settings\.json"):
        compare_objectives([run], ["sigreg"], [0], tmp_path, CPU)


def test_collapse_is_a_low_rank_or_no_spread_to_the_end() -> None:
    def curve(**states: str) -> list[CurvePoint]:
        kinds = {"good": (20.0, 0.6), "flat": (55.0, 0.01), "thin": (3.0, 0.6)}
        return [
            CurvePoint(int(step[1:]), kinds[state][0], 60.0, 9.0, kinds[state][1], 0.0, {}, {}, (), None)
            for step, state in states.items()
        ]

    assert collapse_step(curve(s0="good", s10="good", s20="good")) is None
    assert collapse_step(curve(s10="flat", s20="good")) is None
    assert collapse_step(curve(s10="good", s20="flat", s30="thin")) == 20
    assert collapse_step(curve(s10="thin", s20="thin")) == 10
    assert collapse_step(curve(s0="flat", s10="flat", s20="flat")) == 10  # fresh weights do not count
    assert collapse_step(curve(s0="flat", s10="good")) is None
    assert collapse_step(curve(s30="flat", s10="good", s20="flat")) == 20


def test_wrong_requests_are_refused_before_any_work(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no objective is called 'sigrek'; there are sigreg, "):
        compare_objectives([run], ["sigreg", "sigrek"], [0], tmp_path, CPU)
    with pytest.raises(ValueError, match="two runs are of the task two_room; compare them one at a time"):
        compare_objectives([run, replace(run, settings={"size": 16})], ["sigreg"], [0], tmp_path, CPU)
    assert not list(tmp_path.iterdir())


class Many:
    """Windows that say they are many, and remember how many of them were asked for."""

    def __init__(self, windows: Windows) -> None:
        self.windows, self.asked = windows, 0

    def __len__(self) -> int:
        return 10_000

    def batch(self, index_B: np.ndarray) -> Batch:
        self.asked = len(index_B)
        return self.windows.batch(index_B[:8] % len(self.windows))


def test_a_point_has_as_many_clips_as_the_trainer_probes(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path
) -> None:
    trainer = Trainer(tiny_run.model, tiny_run.objective, tiny_run.train, tiny_store, tmp_path, CPU)
    trainer.windows, trainer.held_windows = Many(trainer.windows), Many(trainer.held_windows)
    trainer.health()
    assert trainer.windows.asked == trainer.held_windows.asked == tiny_run.train.probe_clips


def test_committed_rows_can_be_read() -> None:
    rows = load_rows(ROOT / "docs" / "results" / "compare" / "objectives_two_room.json")
    assert {row.objective for row in rows} <= set(OBJECTIVES) and len(rows) >= 12


def test_a_file_that_holds_no_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(SchemaError, match=r"rows\.json must hold a list of rows"):
        load_rows(tmp_path / "rows.json")


def test_the_command_prints_the_table_and_writes_everything(
    compared: tuple[list[CompareRow], Path], run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(dump(run))
    words = ["compare", "objectives", "--tasks", str(tmp_path / "tiny.yaml"), "--objectives", "sigreg", "cjepa"]
    words += ["--seeds", "0", "--device", "cpu", "--out", str(compared[1]), "--json", str(tmp_path / "rows.json")]
    main(words)
    printed = capsys.readouterr().out
    assert "two_room: 6 steps, seed 0" in printed and "| cjepa |" in printed
    assert f"report {compared[1] / 'report.html'}" in printed
    assert load_rows(tmp_path / "rows.json") == compared[0][:2]
