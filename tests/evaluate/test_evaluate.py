"""The whole of an evaluation on a tiny run: rows, logs, keys, reuse, and what is refused before work starts."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lewm.baselines import BASELINES, OracleConfig, PeerMethod, RandomConfig, ReplayConfig, Sb3Method, ZeroConfig
from lewm.checkpoint import Checkpoint
from lewm.data.store import Store, split_episodes
from lewm.evaluate import evaluate as module
from lewm.evaluate.evaluate import EvaluateConfig, Evaluated, evaluate, held_out_manifests
from lewm.evaluate.manifest import GoalSet
from lewm.evaluate.methods import PlanConfig, labels, make_policy
from lewm.evaluate.statistics import wilson
from lewm.evaluate.timing import WARMUP, time_plans, torch_threads
from lewm.planning.costs import CostConfig
from planners import CEM

SEARCH = CEM(candidates=8, iterations=2, elites=3, horizon=2)
CONFIG = EvaluateConfig(
    goals=(GoalSet("near", offset=8, budget=10, count=4), GoalSet("far", offset=20, budget=20, count=3)),
    methods=(
        PlanConfig("ours", planner=SEARCH, replan_every=2),
        PlanConfig("l2", planner=SEARCH, cost=CostConfig({"latent_l2": 1.0}, "terminal")),
        RandomConfig(),
        OracleConfig(planner=SEARCH),
    ),
    timed_plans=3,
    batch=3,
)


def run(config: EvaluateConfig, store: Store, checkpoint: Checkpoint, out: Path) -> list[Evaluated]:
    return evaluate(config, held_out_manifests(config, store, checkpoint, out), checkpoint, out, quiet=True)


@pytest.fixture(scope="module")
def evaluated(
    tiny_store: Store, tiny_checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Evaluated], Path]:
    from lewm import load

    out = tmp_path_factory.mktemp("evaluation")
    return run(CONFIG, tiny_store, load(tiny_checkpoint_path), out), out


def test_one_row_per_method_and_goal_set(evaluated: tuple[list[Evaluated], Path]) -> None:
    results, out = evaluated
    names = [(e.row.goals, e.row.method) for e in results]
    assert names == [(g, m) for g in ("near", "far") for m in ("ours", "l2", "random", "oracle")]
    for e in results:
        row = e.row
        assert row.n == len(e.outcomes) == len(e.manifest.problems)
        assert row.successes == sum(o.success for o in e.outcomes)
        assert (row.success, (row.low, row.high)) == (row.successes / row.n, wilson(row.successes, row.n))
        assert row.budget == e.manifest.goals.budget and all(o.steps <= row.budget for o in e.outcomes)
        assert 0 < row.plan_ms_p50 <= row.plan_ms_p95
        assert (row.encode_ms_p50 > 0) == isinstance(e.method, PlanConfig)
        assert row.encode_ms_p50 < row.plan_ms_p95
        assert (row.device, row.threads, row.seed, row.task) == ("cpu", 1, 0, "two_room")
    ours, l2, random, oracle = (e.row for e in results[:4])
    assert (ours.planner, ours.candidates, ours.iterations, ours.horizon, ours.replan_every) == ("cem", 8, 2, 2, 2)
    assert (ours.cost, l2.cost) == ("cost_to_go (sum)", "latent_l2 (terminal)")
    assert (random.planner, random.cost, random.candidates) == ("none", "none", 0)
    assert (oracle.planner, oracle.cost) == ("cem", "true distance (sum)")
    assert {p.name for p in out.glob("*.json")} == {"manifest_near.json", "manifest_far.json"}
    assert len(list((out / "outcomes").iterdir())) == 8


def test_goals_come_from_episodes_the_checkpoint_did_not_see(
    evaluated: tuple[list[Evaluated], Path], tiny_store: Store, tiny_checkpoint: Checkpoint
) -> None:
    origin = tiny_checkpoint.origin
    train, held_out = split_episodes(tiny_store.num_episodes, origin.held_out, origin.seed)
    used = {i for e in evaluated[0] for p in e.manifest.problems for i in (p.episode, p.goal_episode)}
    assert used <= set(held_out.tolist()) and not used & set(train.tolist())


def test_a_finished_evaluation_is_reused_and_a_changed_method_is_not(
    evaluated: tuple[list[Evaluated], Path],
    tiny_store: Store,
    tiny_checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results, out = evaluated
    real, ran = module.run_manifest, []
    import lewm.evaluate.runner as runner

    batch = runner.run_batch
    monkeypatch.setattr(
        runner, "run_batch", lambda policy, *rest: ran.append(type(policy).__name__) or batch(policy, *rest)
    )
    assert real is module.run_manifest
    again = run(CONFIG, tiny_store, tiny_checkpoint, out)
    assert ran == []
    assert [e.outcomes for e in again] == [e.outcomes for e in results]
    methods = (replace(CONFIG.methods[0], replan_every=1), *CONFIG.methods[1:])
    run(replace(CONFIG, methods=methods), tiny_store, tiny_checkpoint, out)
    assert set(ran) == {"AgentPolicy"} and len(ran) == 2 + 1
    ran.clear()
    run(CONFIG, tiny_store, tiny_checkpoint, out)  # put the shared folder back
    assert len(ran) == 3


def test_other_weights_are_not_taken_for_these(tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    from lewm.checkpoint import save_checkpoint

    manifest = held_out_manifests(CONFIG, tiny_store, tiny_checkpoint, tmp_path / "e")[0]
    head = tiny_checkpoint.cost_to_go
    assert head is not None
    head.net[-1].bias += 1
    save_checkpoint(tmp_path / "other", tiny_checkpoint.model, head, tiny_checkpoint.origin, {})
    other = replace(tiny_checkpoint, path=tmp_path / "other")
    for method in CONFIG.methods:
        same = module.outcome_key(method, manifest, other, 0) == module.outcome_key(
            method, manifest, tiny_checkpoint, 0
        )
        assert same == (not isinstance(method, PlanConfig))
        assert module.outcome_key(method, manifest, other, 1) != module.outcome_key(method, manifest, other, 0)


def test_other_statistics_are_other_outcomes(tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The weights are the same; what stands in config.json says how a block of actions is read."""
    manifest = held_out_manifests(CONFIG, tiny_store, tiny_checkpoint, tmp_path / "e")[0]
    before = module.outcome_key(CONFIG.methods[0], manifest, tiny_checkpoint, 0)
    tiny_checkpoint.model.facts = replace(tiny_checkpoint.model.facts, action_mean=(0.5, 0.5))
    assert module.outcome_key(CONFIG.methods[0], manifest, tiny_checkpoint, 0) != before


def test_goals_are_never_drawn_from_episodes_that_training_saw(
    tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    held_out_manifests(CONFIG, tiny_store, tiny_checkpoint, tmp_path)
    seeds = range(1, 50)  # another seed splits otherwise; find one that saw an episode of these goals
    known = split_episodes(tiny_store.num_episodes, 0.25, 0)[1].tolist()
    seed = next(s for s in seeds if split_episodes(tiny_store.num_episodes, 0.25, s)[1].tolist() != known)
    other = replace(tiny_checkpoint, origin=replace(tiny_checkpoint.origin, seed=seed))
    with pytest.raises(ValueError, match=r"manifest_near\.json holds goals .* from episodes that .* may have seen"):
        held_out_manifests(CONFIG, tiny_store, other, tmp_path)
    grown = replace(tiny_checkpoint, origin=replace(tiny_checkpoint.origin, episodes=4))
    with pytest.raises(ValueError, match=r"holds 8 episodes, but .* was trained on recordings of 4, so that nobody"):
        held_out_manifests(CONFIG, tiny_store, grown, tmp_path / "grown")
    foreign = replace(tiny_checkpoint, origin=replace(tiny_checkpoint.origin, task="reacher"))
    with pytest.raises(ValueError, match=r"holds recordings of two_room, but .* was trained on reacher"):
        held_out_manifests(CONFIG, tiny_store, foreign, tmp_path / "foreign")
    older = replace(tiny_checkpoint, origin=replace(tiny_checkpoint.origin, episodes=0))
    assert held_out_manifests(CONFIG, tiny_store, older, tmp_path), "an older checkpoint did not count them"
    assert tiny_checkpoint.origin.episodes == 8


def test_another_goal_set_under_the_same_name_is_refused(
    tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    held_out_manifests(CONFIG, tiny_store, tiny_checkpoint, tmp_path)
    for changed in (replace(CONFIG, seed=1), replace(CONFIG, goals=(replace(CONFIG.goals[0], count=5),))):
        with pytest.raises(
            ValueError, match=r"manifest_near\.json holds another goal set or seed: choose another --out"
        ):
            held_out_manifests(changed, tiny_store, tiny_checkpoint, tmp_path)


def test_labels_and_policies_cover_every_kind(
    tiny_checkpoint: Checkpoint, tiny_sb3: Path, tiny_peer: PeerMethod
) -> None:
    methods = (*CONFIG.methods, ReplayConfig(), ZeroConfig(), Sb3Method(str(tiny_sb3)), tiny_peer)
    assert {m.kind for m in methods} == {"world_model", *BASELINES}
    for method in methods:
        assert asdict(labels(method))["method"] == method.name
        policy = make_policy(method, tiny_checkpoint, 0)
        assert callable(policy.act) and callable(policy.start)
    with pytest.raises(ValueError, match="method ours plans with a world model: pass --checkpoint"):
        make_policy(CONFIG.methods[0], None, 0)


def test_timing_counts_plans_without_the_warm_up(
    tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch

    manifest = held_out_manifests(CONFIG, tiny_store, tiny_checkpoint, tmp_path)[0]
    policy = make_policy(CONFIG.methods[0], tiny_checkpoint, 0)
    assert time_plans(policy, manifest, plans=4).plans == 4
    few = replace(manifest, problems=manifest.problems[:1])
    assert time_plans(policy, few, plans=50).plans == 10 - WARMUP
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(2):
        assert torch.get_num_threads() == 2
        raise KeyError
    assert torch.get_num_threads() == before


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.methods: two are called 'random'"):
        EvaluateConfig(methods=(RandomConfig(), RandomConfig(hold=2)))
    with pytest.raises(ValueError, match=r"evaluate\.goals: two are called 'a'"):
        EvaluateConfig(goals=(GoalSet("a"), GoalSet("b"), GoalSet("a")))
    with pytest.raises(ValueError, match=r"method m: replan_every is 9; it must lie in 1\.\.2, the planner's horizon"):
        PlanConfig("m", planner=SEARCH, replan_every=9)


def test_random_floor_lies_below_the_oracle_ceiling(evaluated: tuple[list[Evaluated], Path]) -> None:
    rows = {(e.row.goals, e.row.method): e for e in evaluated[0]}
    for goals in ("near", "far"):
        closest = {m: np.mean([o.closest for o in rows[goals, m].outcomes]) for m in ("random", "oracle")}
        assert closest["oracle"] < closest["random"]
