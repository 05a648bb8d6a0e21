"""No neighbour changes an outcome: every method kind, on strict goals in shifted worlds, 1, 16 and 50 at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_models import toy_checkpoint, toy_model

from lewm.baselines import BASELINES, OracleConfig, RandomConfig, ReplayConfig, ZeroConfig
from lewm.checkpoint import Checkpoint
from lewm.data.store import Store
from lewm.evaluate.manifest import GoalSet, Manifest, make_manifest
from lewm.evaluate.methods import InverseModelConfig, MethodConfig, PlanConfig, make_policy
from lewm.evaluate.runner import Outcome, run_batch
from lewm.proposal import Proposal, ProposalConfig
from planners import CEM

SEARCH = CEM(candidates=6, iterations=2, elites=2, horizon=2)
METHODS: dict[str, MethodConfig] = {
    "world_model": PlanConfig(planner=SEARCH),
    "proposal": InverseModelConfig(),
    "random": RandomConfig(),
    "oracle": OracleConfig(planner=SEARCH),
    "replay": ReplayConfig(),
    "zero": ZeroConfig(),
}
GOALS = GoalSet(
    "g", offset=6, budget=10, count=50, tolerance=0.8, hold=2, orientation=True, shift=("floor", "agent", "speed")
)


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


def test_every_kind_is_here() -> None:
    """But sb3 and peer, which are tested so in test_sb3_method.py and test_peer_method.py."""
    assert METHODS.keys() | {"sb3", "peer"} == {"world_model", "proposal", *BASELINES}
    assert all(method.kind == kind for kind, method in METHODS.items())


@pytest.mark.parametrize("kind", METHODS)
def test_outcomes_do_not_depend_on_the_batch(kind: str, manifest: Manifest, checkpoint: Checkpoint) -> None:
    def run(batch: int) -> list[Outcome]:
        policy = make_policy(METHODS[kind], checkpoint, 0)
        firsts = range(0, len(manifest.problems), batch)
        return [
            o
            for first in firsts
            for o in run_batch(policy, manifest, range(len(manifest.problems))[first : first + batch])
        ]

    alone, some, all_at_once = run(1), run(16), run(50)
    for together in (some, all_at_once):
        assert [(o.problem, o.success, o.steps) for o in together] == [(o.problem, o.success, o.steps) for o in alone]
        np.testing.assert_allclose([o.final for o in together], [o.final for o in alone], atol=1e-5)
        np.testing.assert_allclose([o.closest for o in together], [o.closest for o in alone], atol=1e-5)
    solved = sum(o.success for o in alone)
    assert solved == 0 if kind == "zero" else solved < 50
    assert solved > 0 or kind not in ("oracle", "replay")
