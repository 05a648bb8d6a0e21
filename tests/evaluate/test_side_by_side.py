"""No neighbour changes an outcome, nor does the order: every method kind, on strict goals in shifted worlds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from toy_models import toy_checkpoint, toy_model

from lewm.baselines import BASELINES, OracleConfig, RandomConfig, ReplayConfig, ZeroConfig
from lewm.baselines.offline import OFFLINE, train_offline
from lewm.baselines.tdmpc2 import TDMPC2Method
from lewm.baselines.trainers import settings
from lewm.checkpoint import Checkpoint
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.manifest import GoalSet, Manifest, make_manifest
from lewm.evaluate.methods import InverseModelConfig, MethodConfig, PlanConfig, make_policy
from lewm.evaluate.runner import Outcome, run_in_turn
from lewm.proposal import Proposal, ProposalConfig
from lewm.schema import build
from planners import CEM

Methods = dict[str, MethodConfig]
SEARCH = CEM(candidates=6, iterations=2, elites=2, horizon=2)
SMALL = {"width": 8, "layers": 1, "steps": 1, "batch": 4}
NO_FOLDER: Methods = {
    "world_model": PlanConfig(planner=SEARCH),
    "proposal": InverseModelConfig(),
    "random": RandomConfig(),
    "oracle": OracleConfig(planner=SEARCH),
    "replay": ReplayConfig(),
    "zero": ZeroConfig(),
}
KINDS = (*NO_FOLDER, *OFFLINE)
GOALS = GoalSet(
    "g", offset=4, budget=15, count=50, tolerance=0.8, hold=2, orientation=True, shift=("floor", "agent", "speed")
)


def offline_method(kind: str, path: Path) -> MethodConfig:
    """As a run's YAML says it, but for a small search."""
    method = build(EvaluateConfig, {"methods": [{"kind": kind, "path": str(path)}]}, "test").methods[0]
    return replace(method, planner=SEARCH, policy_samples=3) if isinstance(method, TDMPC2Method) else method


@pytest.fixture(scope="module")
def manifest(tiny_store: Store) -> Manifest:
    return make_manifest(GOALS, tiny_store, np.arange(tiny_store.num_episodes), 0)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Untrained weights, two stacked frames, a cost-to-go and a proposal."""
    bare = toy_checkpoint(toy_model(frame_skip=5, frame_stack=2))
    model = bare.model
    torch.manual_seed(0)
    proposal = Proposal(ProposalConfig(width=16, layers=1, horizon=2), model.latent_dim, model.tokens, model.action_dim)
    return replace(bare, proposal=proposal.requires_grad_(False).eval())


@pytest.fixture(scope="module")
def methods(tiny_store: Store, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Methods:
    """By kind; the offline baselines after one step of training."""
    out = tmp_path_factory.mktemp("offline")
    for kind in OFFLINE:
        train_offline(kind, settings(kind, SMALL), checkpoint, tiny_store, out / kind, quiet=True)
    return NO_FOLDER | {kind: offline_method(kind, out / kind) for kind in OFFLINE}


def test_every_kind_is_here(methods: Methods) -> None:
    """But sb3 and peer, which are tested so in test_sb3_method.py and test_peer_method.py."""
    assert methods.keys() | {"sb3", "peer"} == {"world_model", "proposal", *BASELINES, *OFFLINE}
    assert methods.keys() | {"sb3", "peer"} == {config.kind for config in get_args(MethodConfig)}
    assert all(method.kind == kind for kind, method in methods.items())


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_depend_on_neither_batch_nor_order(
    kind: str, manifest: Manifest, checkpoint: Checkpoint, methods: Methods
) -> None:
    def run(batch: int, order: Sequence[int] = range(50)) -> list[Outcome]:
        """Outcomes by problem."""
        policy = make_policy(methods[kind], checkpoint, 0)
        outcomes = [o for some in run_in_turn(policy, manifest, order, batch) for o in some]
        assert [o.problem for o in outcomes] == list(order)
        return sorted(outcomes, key=lambda o: o.problem)

    alone, shuffled = run(1), np.random.default_rng(0).permutation(50).tolist()
    for together in (run(16), run(50), run(16, shuffled)):
        assert [(o.problem, o.success, o.steps) for o in together] == [(o.problem, o.success, o.steps) for o in alone]
        np.testing.assert_allclose([o.final for o in together], [o.final for o in alone], atol=1e-5)
        np.testing.assert_allclose([o.closest for o in together], [o.closest for o in alone], atol=1e-5)
    solved = sum(o.success for o in alone)
    assert solved == 0 if kind == "zero" else 0 < solved < 50, "some must rest while others act"
