"""One episode to a goal picture in a file: what `lewm plan` does."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import envs
from lewm.data.codec import one_behind_another, side_by_side
from lewm.planning.action_limits import AS_RECORDED, ActionLimits
from lewm.planning.agent import Agent
from lewm.planning.frame_bank import FrameBank
from lewm.planning.informed_start import ProposalUse
from lewm.planning.observation import measured_in
from lewm.planning.subgoals import SubGoalAgent, SubGoals
from lewm.video import write_panels


def read_goal(path: Path, size: int, cameras: int = 1) -> np.ndarray:
    """A colour picture of exactly (size, size) as uint8 RGB; with several cameras (size, size, 3 cameras), from a
    picture that shows them side by side.

    Raises FileNotFoundError or ValueError saying what the file is and what the model needs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"goal picture {path} does not exist")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"goal picture {path} cannot be read as an image: save it as PNG or JPEG")
    if image.ndim == 2 or image.shape[2] == 1:
        raise ValueError(f"goal picture {path} is greyscale; the model sees colour: save it with three channels")
    if image.shape[2] == 4:
        raise ValueError(f"goal picture {path} has an alpha channel; save it as plain RGB")
    if image.shape[:2] != (size, cameras * size):
        high, wide = image.shape[:2]
        views = f", its {cameras} cameras side by side" if cameras > 1 else ""
        raise ValueError(
            f"goal picture {path} is {wide} x {high} pixels; this model sees {cameras * size} x {size}{views}: make it "
            "that size"
        )
    return one_behind_another(np.ascontiguousarray(image[..., ::-1]), cameras)


@torch.inference_mode()
def imagine(agent: Agent, bank: FrameBank) -> np.ndarray:
    """What the last plan expects to see after each of its blocks: the nearest frames of the bank, (H, Y, X, 3)."""
    assert agent.last is not None
    situation, action_BHA = agent.last.situation, agent.last.plan.action_BHA
    latent_HKD = agent.model.rollout(situation.latent_BTKD, situation.past_BTA, action_BHA[:, None])[0, 0]
    return bank.pixels_FYXC[bank.nearest(agent.model.pictured(latent_HKD).flatten(1))]


@dataclass(frozen=True)
class EpisodeConfig:
    """One episode to a goal picture."""

    checkpoint: Path
    """Folder of the model."""
    goals: tuple[Path, ...]
    """Goal picture, or several to be reached in this order."""
    task: str | None = None
    """Task to act in; None is the one the model was trained on."""
    planner: str | None = None
    """Name of a planner; None is the agent's choice for the cost."""
    cost: str | None = None
    """Name of a cost; None is cost_to_go where the model has one, else latent_l2."""
    start: tuple[float, ...] | None = None
    """Start state; None draws one from the seed."""
    goal_state: tuple[float, ...] | None = None
    """State behind the picture, to score success; None leaves the outcome unknown."""
    budget: int = 100
    """Environment steps."""
    seed: int = 0
    """Start state and search noise."""
    device: str = "cpu"
    """Where torch computes."""
    budget_ms: float | None = None
    """Most milliseconds per plan; None takes the planner as it is."""
    proposal: ProposalUse = "none"
    """What the model's learned first guess of a plan is used for."""
    actions: ActionLimits = AS_RECORDED
    """Bounds, spread and handling of single action entries."""
    subgoals: SubGoals | None = None
    """When the next of several pictures becomes the goal."""

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget is {self.budget}; give at least one environment step")
        if not self.goals:
            raise ValueError("no goal picture is given; give at least one")
        if len(self.goals) > 1 and self.subgoals is None:
            raise ValueError(
                f"{len(self.goals)} goal pictures are given, but not when to go on to the next: add --subgoal-steps or "
                "--subgoal-reached"
            )
        if len(self.goals) == 1 and self.subgoals is not None:
            raise ValueError("sub-goals need at least two goal pictures, and one is given; add more to --goal")


@dataclass(frozen=True)
class Episode:
    """What happened."""

    rows: list[tuple[np.ndarray, ...]]
    """Seen, goal and imagined picture of every step."""
    steps: list[dict[str, Any]]
    """Action, state, plan cost and time of every step, as plain data."""
    success: bool | None
    """None when the goal's state is not known."""


def drive(agent: SubGoalAgent, env: envs.GoalEnv, pictures: Sequence[np.ndarray], config: EpisodeConfig) -> Episode:
    """Act until the last goal is reached or the budget is spent; the env stands at its start.

    With `goal_state` the episode ends at the task's own success; without it nothing but the picture is known and the
    episode runs through its budget.
    """
    bank = FrameBank.from_task(envs.make(agent.checkpoint.origin.task, **agent.checkpoint.origin.settings), agent.model)
    goal_proprio = None if config.goal_state is None else measured_in(agent.model, [np.array(config.goal_state)])
    if config.subgoals is None:
        agent.reset(pictures[0], goal_proprio=goal_proprio)
    else:
        agent.begin(pictures, config.subgoals)
    rows: list[tuple[np.ndarray, ...]] = []
    steps: list[dict[str, Any]] = []
    reached = None if config.goal_state is None else False
    for step in range(config.budget):
        pixels = env.render()
        action = agent.act(pixels, proprio=measured_in(agent.model, [env.state]))
        assert agent.last is not None
        planned = agent.last.step == step
        if planned:
            imagined = imagine(agent, bank)
        block = (step - agent.last.step) // agent.skip
        current = 0 if config.subgoals is None else int(agent.at_B[0])
        rows.append((side_by_side(pixels), side_by_side(pictures[current]), imagined[block]))
        env.advance(action)
        if config.goal_state is not None:
            reached = bool(env.is_success(env.state, np.array(config.goal_state)))
        steps.append(
            {
                "step": step,
                "action": [round(float(a), 6) for a in action],
                "state": [round(float(s), 6) for s in env.state],
                "plan_cost": float(agent.last.plan.cost_B[0]),
                "plan_ms": agent.last.plan_ms + agent.last.encode_ms if planned else None,
                "success": reached,
            }
        )
        if config.subgoals is not None:
            steps[-1]["goal"] = current
        if reached:
            break
    return Episode(rows, steps, reached)


def run_episode(config: EpisodeConfig, out: Path) -> str:
    """Plan to the picture, write `episode.mp4` (seen, goal, imagined) and `trace.json` to `out`; returns a summary."""
    agent = SubGoalAgent.load(
        config.checkpoint,
        config.planner,
        config.cost,
        seed=config.seed,
        device=config.device,
        budget_ms=config.budget_ms,
        proposal=config.proposal,
        actions=config.actions,
    )
    origin = agent.checkpoint.origin
    pictures = [read_goal(goal, agent.size, agent.model.facts.channels // 3) for goal in config.goals]
    own = config.task in (None, origin.task)
    env = envs.make(config.task or origin.task, **(origin.settings if own else {"size": agent.size}))
    env.reset(seed=config.seed, options=None if config.start is None else {"state": np.array(config.start)})
    if env.action_space.shape != (agent.model.facts.action_dim,):
        raise ValueError(
            f"task {config.task} has {env.action_space.shape[0]} actions; the model was trained with "
            f"{agent.model.facts.action_dim} ({origin.task})"
        )
    if own and env.renderer_fingerprint() != origin.renderer_fingerprint:
        print(
            "lewm plan: this machine draws other pictures than the model was trained on; expect less", file=sys.stderr
        )
    episode = drive(agent, env, pictures, config)
    out.mkdir(parents=True, exist_ok=True)
    write_panels(out / "episode.mp4", episode.rows, ("seen", "goal", "imagined"))
    outcome = {None: "not scored (no --goal-state)", True: "reached", False: "not reached"}[episode.success]
    facts = {
        "checkpoint": str(config.checkpoint),
        "goal": " ".join(map(str, config.goals)),
        "task": config.task or origin.task,
        "outcome": outcome,
    }
    (out / "trace.json").write_text(json.dumps(facts | {"steps": episode.steps}, indent=1) + "\n")
    times = [s["plan_ms"] for s in episode.steps[1:] if s["plan_ms"] is not None]
    median = f"{np.median(times):.1f} ms per plan" if times else "one plan"
    budget = "" if agent.budget is None else f"{agent.budget.line}\n"
    return (
        f"{budget}goal {outcome} after {len(episode.steps)} steps, {median}\n"
        f"video {out / 'episode.mp4'}\ntrace {out / 'trace.json'}"
    )
