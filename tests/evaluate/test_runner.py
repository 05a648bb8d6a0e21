"""The runner: first hit within the budget, logs that survive a kill, and outcomes that no batch size changes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import envs
from lewm.checkpoint import Checkpoint
from lewm.data.store import Store, split_episodes
from lewm.evaluate import runner
from lewm.evaluate.manifest import GoalSet, Manifest, Problem, make_manifest
from lewm.evaluate.methods import PlanConfig, make_policy
from lewm.evaluate.runner import Outcome, revisions, run_batch, run_manifest
from lewm.planning.policy import Start


class Mover:
    """Moves right at a fixed speed; wants frames only when told to. Counts what it is asked."""

    def __init__(self, needs_frame: bool = False) -> None:
        self.needs_frame, self.acts, self.frames, self.batches = needs_frame, 0, 0, []

    def start(self, starts: Sequence[Start]) -> None:
        self.count = len(starts)
        self.batches.append([s.index for s in starts])

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        self.acts += 1
        if pixels is not None:
            self.frames += 1
            assert pixels.shape == (self.count, 32, 32, 3)
        assert (pixels is not None) == self.needs_frame
        return np.tile(np.float32([1.0, 0.0]), (self.count, 1))


def line(distances: Sequence[float], budget: int = 10) -> Manifest:
    """Goals to the right of x = 0.06, on a line; one step moves 0.03 and success is within 0.05."""
    problems = tuple(Problem(0, 0, 0, i + 1, (0.06, 0.8), (0.06 + d, 0.8), (), d) for i, d in enumerate(distances))
    return Manifest("two_room", {"size": 32}, GoalSet("line", budget=budget, offset=1, count=1), 0, 0, problems)


def test_first_hit_counts() -> None:
    """A goal that is passed counts from the step that first meets it; the runner stops there."""
    outcomes = run_batch(Mover(), line([0.1, 0.2, 0.33, 0.34]), [0, 1, 2, 3])
    assert [o.problem for o in outcomes] == [0, 1, 2, 3]
    assert [(o.success, o.steps) for o in outcomes] == [(True, 2), (True, 6), (True, 10), (True, 10)]
    outcomes = run_batch(Mover(), line([0.3505, 0.1]), [0, 1])
    assert [(o.success, o.steps) for o in outcomes] == [(False, 10), (True, 2)]
    assert outcomes[0].final == pytest.approx(0.0505) and outcomes[0].closest == outcomes[0].final
    assert outcomes[1].final == pytest.approx(0.04)


def test_closest_remembers_what_was_passed() -> None:
    manifest = line([0.09])
    aside = replace(manifest.problems[0], goal_state=(0.15, 0.86), distance=float(np.hypot(0.09, 0.06)))
    outcome = run_batch(Mover(), replace(manifest, problems=(aside,)), [0])[0]
    assert not outcome.success
    assert outcome.closest == pytest.approx(0.06) and outcome.final == pytest.approx(np.hypot(0.21, 0.06))


def test_it_stops_when_everybody_has_arrived_and_renders_only_on_request() -> None:
    policy = Mover()
    run_batch(policy, line([0.1, 0.2]), [0, 1])
    assert (policy.acts, policy.frames) == (6, 0)
    policy = Mover(needs_frame=True)
    run_batch(policy, line([0.1, 0.2]), [1])
    assert (policy.acts, policy.frames, policy.batches) == (6, 6, [[1]])


def test_observers_see_every_step() -> None:
    seen = []

    def observe(step: int, tasks: Sequence[envs.GoalEnv], active: np.ndarray) -> None:
        seen.append((step, round(float(tasks[1].state[0]), 3), active.tolist()))

    run_batch(Mover(), line([0.1, 0.16]), [0, 1], observe)
    assert [s for s, _, _ in seen] == [0, 1, 2, 3]
    assert [x for _, x, _ in seen] == [0.09, 0.12, 0.15, 0.18]
    assert [a for _, _, a in seen] == [[True, True], [False, True], [False, True], [False, False]]


DISTANCES = [0.1, 0.2, 0.3, 0.4, 0.15, 0.25]


def test_a_finished_log_is_not_run_again(tmp_path: Path) -> None:
    manifest, log = line(DISTANCES), tmp_path / "deep" / "log.jsonl"
    outcomes = run_manifest(Mover(), manifest, log, "key", 4)
    policy = Mover()
    assert run_manifest(policy, manifest, log, "key", 4) == outcomes
    assert policy.acts == 0


def test_a_log_cut_anywhere_is_continued_to_the_same_outcomes(tmp_path: Path) -> None:
    """Every byte at which a kill may cut it, also just before a line end or within the first line."""
    manifest, log = line(DISTANCES), tmp_path / "log.jsonl"
    expected = run_manifest(Mover(), manifest, log, "key", 2)
    whole = log.read_bytes()
    head = len(whole.splitlines(keepends=True)[0])
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {
        0,
        5,
        head - 2,
        head - 1,
        head,
        head + 1,
        *ends,
        *(e + 1 for e in ends),
        *(e - 1 for e in ends),
        *(e - 9 for e in ends),
    }
    for cut in sorted(c for c in cuts if 0 <= c <= len(whole)):
        log.write_bytes(whole[:cut])
        policy = Mover()
        assert run_manifest(policy, manifest, log, "key", 2) == expected, cut
        again = Mover()
        assert run_manifest(again, manifest, log, "key", 2) == expected, cut
        assert again.acts == 0, f"cut at {cut}: the continued log is not complete"
        kept = max(0, len(whole[:cut].splitlines()) - 2)
        assert sum(len(b) for b in policy.batches) <= len(DISTANCES) - kept


def test_a_log_says_whose_code_ran_its_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, log = line(DISTANCES), tmp_path / "log.jsonl"
    for revision, cut in (("one", 3), ("two+changes", 5), ("two+changes", 7), ("three", 7)):
        monkeypatch.setattr(runner, "git_revision", lambda revision=revision: revision)
        run_manifest(Mover(), manifest, log, "key", 2)
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:cut]))
    assert revisions(log) == "one, two+changes", "the last call had nothing left to run"
    log.write_text('{"key": "key"}\n')
    assert revisions(log) == "", "a log of an older lewm"


def test_another_key_starts_over(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run_manifest(Mover(), line(DISTANCES), log, "old", 4)
    policy = Mover()
    other = run_manifest(policy, line([0.1] * 6), log, "new", 4)
    assert policy.batches == [[0, 1, 2, 3], [4, 5]]
    assert [o.steps for o in other] == [2] * 6
    assert [json.loads(text).get("key") for text in log.read_text().splitlines()] == ["new", *[None] * 6]


def test_progress_counts_what_is_done_and_solved(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    run_manifest(
        Mover(), line(DISTANCES), tmp_path / "log", "key", 4, lambda done, solved: calls.append((done, solved))
    )
    assert calls == [(4, 3), (2, 5)]


@pytest.mark.parametrize("stack", [1, 2])
def test_no_batch_size_changes_an_outcome(
    stack: int, tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from toy_models import toy_checkpoint, toy_model

    from planners import CEM

    held_out = split_episodes(tiny_store.num_episodes, 0.25, 0)[1]
    manifest = make_manifest(GoalSet("g", offset=8, budget=12, count=20), tiny_store, held_out, 0)
    checkpoint = tiny_checkpoint if stack == 1 else toy_checkpoint(toy_model(frame_skip=5, frame_stack=2))
    method = PlanConfig(planner=CEM(candidates=16, iterations=2, elites=4, horizon=2))
    runs: list[list[Outcome]] = []
    for batch in (1, 5, 20):
        policy = make_policy(method, checkpoint, 0)
        runs.append(run_manifest(policy, manifest, tmp_path / f"{batch}", "key", batch))
    for run in runs[1:]:
        assert [(o.success, o.steps) for o in run] == [(o.success, o.steps) for o in runs[0]]
        np.testing.assert_allclose([o.final for o in run], [o.final for o in runs[0]], atol=1e-5)
