"""Goals shared among processes end as in one, whoever runs them, and a killed evaluation goes on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lewm.baselines import OracleConfig, RandomConfig
from lewm.checkpoint import load
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig, evaluate
from lewm.evaluate.manifest import GoalSet, Manifest, make_manifest
from lewm.evaluate.methods import PlanConfig
from lewm.evaluate.workers import shared_by
from lewm.processes import Processes
from planners import CEM

SEARCH = CEM(candidates=6, iterations=2, elites=2, horizon=2)
CONFIG = EvaluateConfig(
    methods=(PlanConfig(planner=SEARCH), RandomConfig(), OracleConfig(planner=SEARCH)), timed_plans=1
)


@pytest.fixture(scope="module")
def manifest(tiny_store: Store) -> Manifest:
    return make_manifest(GoalSet("g", offset=6, budget=10, count=50), tiny_store, np.arange(tiny_store.num_episodes), 0)


@pytest.fixture(scope="module")
def pool() -> Iterator[Processes]:
    with Processes(2) as started:
        yield started


def test_processes_change_no_outcome(manifest: Manifest, tiny_checkpoint_path: Path, tmp_path: Path) -> None:
    checkpoint = load(tiny_checkpoint_path)
    alone = evaluate(CONFIG, [manifest], checkpoint, tmp_path / "alone", quiet=True)
    shared = evaluate(replace(CONFIG, processes=3), [manifest], checkpoint, tmp_path / "shared", quiet=True)
    assert [e.row.method for e in shared] == [e.row.method for e in alone] == ["cost_to_go", "random", "oracle"]
    for ours, theirs in zip(shared, alone, strict=True):
        assert [(o.problem, o.success, o.steps) for o in ours.outcomes] == [
            (o.problem, o.success, o.steps) for o in theirs.outcomes
        ]
        np.testing.assert_allclose(
            [o.final for o in ours.outcomes], [o.final for o in theirs.outcomes], atol=1e-5, err_msg=ours.row.method
        )
    assert alone[2].row.successes > 0


def test_everybody_has_something_to_do_and_only_what_is_missing_is_run(pool: Processes, manifest: Manifest) -> None:
    run = shared_by(pool, RandomConfig(), None, 0, manifest)
    assert run is not None
    parts = list(run(range(10, 31), 50))
    assert sorted(len(part) for part in parts) == [10, 11]
    assert sorted(outcome.problem for part in parts for outcome in part) == list(range(10, 31))
    assert sorted(len(part) for part in run(range(9), 2)) == [1, 2, 2, 2, 2]
    assert list(run([], 50)) == []


def test_the_log_of_one_process_is_continued_by_several(
    manifest: Manifest, tiny_checkpoint_path: Path, tmp_path: Path
) -> None:
    config, checkpoint = replace(CONFIG, methods=(PlanConfig(planner=SEARCH),)), load(tiny_checkpoint_path)
    whole = evaluate(config, [manifest], checkpoint, tmp_path, quiet=True)[0]
    log = tmp_path / "outcomes" / "g.cost_to_go.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:20]))
    again = evaluate(replace(config, processes=2), [manifest], checkpoint, tmp_path, quiet=True)[0]
    assert again.row.reached == whole.row.reached
    assert sorted(json.loads(line)["problem"] for line in log.read_text().splitlines()[1:]) == list(range(50))


def test_one_process_needs_no_pool(manifest: Manifest) -> None:
    assert shared_by(Processes(1), RandomConfig(), None, 0, manifest) is None
    with pytest.raises(ValueError, match=r"evaluate.processes is 0; it must be at least 1"):
        EvaluateConfig(processes=0)
