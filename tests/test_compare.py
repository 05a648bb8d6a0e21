"""`lewm compare objectives` on a tiny run: rows, resuming, a wrong name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lewm import compare
from lewm.compare import ADAPTED, CompareRow, collapse_step, compare_objectives, objective_config, table
from lewm.config import RunConfig
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.manifest import GoalSet
from lewm.evaluate.methods import PlanConfig
from lewm.objectives import OBJECTIVES
from lewm.planning.costs import CostConfig
from planners import CEM

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run: RunConfig) -> RunConfig:
    search = CEM(candidates=4, iterations=1, elites=2, horizon=1)
    methods = (PlanConfig(planner=search), PlanConfig("latent_l2", planner=search, cost=CostConfig({"latent_l2": 1.0})))
    goals = (GoalSet("ahead", offset=10, budget=20, count=3),)
    return replace(tiny_run, evaluate=EvaluateConfig(goals, methods))


def test_every_row_has_a_configuration_and_says_what_differs_from_the_published_one() -> None:
    for name in OBJECTIVES:
        config, change = objective_config(name)
        assert config.name == name
        assert bool(change) == (name in ADAPTED)


def test_rows_are_measured_once_and_kept(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = compare_objectives([run], ["sigreg", "vicreg"], [0], tmp_path, CPU)
    assert [(r.objective, r.seed, r.task) for r in rows] == [("sigreg", 0, "two_room"), ("vicreg", 0, "two_room")]
    for row in rows:
        assert set(row.linear_r2) == set(row.mlp_r2) == {"x", "y"}
        assert 1 <= row.effective_rank <= row.ideal_rank * 1.2
        assert [(s.goals, s.method, s.n) for s in row.success] == [
            ("ahead", "cost_to_go", 3),
            ("ahead", "latent_l2", 3),
        ]
    monkeypatch.setattr(compare, "compare_one", lambda *_: pytest.fail("a finished row was measured again"))
    assert compare_objectives([run], ["sigreg", "vicreg"], [0], tmp_path, CPU) == rows
    saved = json.loads((tmp_path / "two_room" / "sigreg.0" / "row.json").read_text())
    assert saved["objective"] == "sigreg"


def test_a_row_killed_after_its_training_is_finished_from_what_it_saved(run: RunConfig, tmp_path: Path) -> None:
    (whole,) = compare_objectives([run], ["sigreg"], [0], tmp_path, CPU)
    (tmp_path / "two_room" / "sigreg.0" / "row.json").unlink()
    assert compare_objectives([run], ["sigreg"], [0], tmp_path, CPU) == [whole]


def test_collapse_is_a_low_rank_or_no_spread_to_the_end() -> None:
    def probe(rank: float, std: float) -> dict[str, float]:
        names = ("effective_rank", "effective_rank/ideal", "std_mean")
        return {f"information in the context/{n}": v for n, v in zip(names, (rank, 60.0, std), strict=True)}

    good, flat, thin = probe(20, 0.6), probe(55, 0.01), probe(3, 0.6)
    assert collapse_step({10: good, 20: good}) is None
    assert collapse_step({10: flat, 20: good}) is None
    assert collapse_step({10: good, 20: flat, 30: thin}) == 20
    assert collapse_step({10: thin, 20: thin}) == 10


def test_a_wrong_name_is_refused_before_any_work(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no objective is called 'sigrek'; there are sigreg, "):
        compare_objectives([run], ["sigreg", "sigrek"], [0], tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_the_table_shows_the_worst_factor_and_the_changes() -> None:
    probes = ({"x": 0.9, "y": 0.2}, {"x": 1.0, "y": None})
    row = CompareRow("t", "ema", 1, "slower", 5, 0.5, 3.0, 4.0, 0.1, 0.9, *probes, (0.1, 0.3), 4, (), "cpu", "2")
    text = table([row])
    assert "| 0.200 | 1.000 | 0.300 |" in text and "| 4 |" in text and "ema: slower" in text
