"""Watch chosen problems again: what was seen, what was imagined, how the search went, how far the goal was.

Shapes: R replans, H horizon in blocks, F frames seen (one per block and the last), I iterations, D flattened latent.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

import envs
from lewm.checkpoint import Checkpoint
from lewm.data.codec import side_by_side
from lewm.data.stacking import channels_first, history_index
from lewm.evaluate.evaluate import Evaluated
from lewm.evaluate.manifest import stand
from lewm.evaluate.methods import PlanConfig, make_policy
from lewm.evaluate.runner import run_batch
from lewm.planning.agent import Agent, Replan
from lewm.planning.frame_bank import FrameBank
from lewm.planning.policy import AgentPolicy
from lewm.schema import SchemaError


@dataclass(frozen=True)
class Trace:
    """One problem, watched."""

    goals: str
    method: str
    problem: int
    """Index in the manifest."""
    success: bool
    steps: int
    """Environment steps until the goal counted as reached, or the budget."""
    reproduced: bool
    """Whether this run ended like the logged one; where not, the pictures show another run than the table."""
    goal_frame: np.ndarray
    """(Y, X, 3) uint8."""
    seen_FYXC: np.ndarray
    """Frames at the start of every block, and the last one."""
    seen_step_F: np.ndarray
    """Their environment steps."""
    planned_R: np.ndarray
    """Which of them a plan was made at."""
    imagined_RHYXC: np.ndarray
    """Nearest recorded frame to each latent that the executed plan predicted: after 1, 2, ... H blocks."""
    distance_T: np.ndarray
    """The task's distance to the goal after every environment step."""
    cost_R: np.ndarray
    """Cost of every plan, as the planner scored it."""
    spread_RI: np.ndarray
    """Search std per iteration, in units of the action box's std."""
    best_cost_RI: np.ndarray
    """Cheapest candidate per iteration."""
    latent_FD: np.ndarray
    """Latents of the frames seen."""
    imagined_latent_RHD: np.ndarray
    """Latents the executed plans predicted."""
    goal_latent_D: np.ndarray
    """Latent of the goal picture."""

    @property
    def seen_RYXC(self) -> np.ndarray:
        """The frame at every replan, and the last one: (R + 1, Y, X, 3)."""
        return self.seen_FYXC[[*self.planned_R, -1]]

    @property
    def latent_RD(self) -> np.ndarray:
        """The latent that every plan started from."""
        return self.latent_FD[self.planned_R]


@dataclass(frozen=True)
class LatentMap:
    """The plane that recorded latents spread over most (PCA), and where they lie in it."""

    mean_D: np.ndarray
    axes_2D: np.ndarray
    share_2: np.ndarray
    """Share of the variance along each axis."""
    cloud_F2: np.ndarray
    """Recorded frames on the map."""

    @staticmethod
    def fit(bank: FrameBank, sample: int = 1000, shown: int = 500) -> "LatentMap":
        """PCA of at most `sample` frames of the bank; each axis points where its largest entry is positive."""
        latent_FD = bank.latent_FD[:: -(-len(bank.latent_FD) // sample)].double().cpu()
        mean_D = latent_FD.mean(0)
        _, singular, axes = torch.linalg.svd(latent_FD - mean_D, full_matrices=False)
        axes_2D = torch.zeros(2, latent_FD.shape[1], dtype=torch.float64)
        axes_2D[: len(axes)] = axes[:2]
        axes_2D *= torch.where(axes_2D.gather(1, axes_2D.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
        share = (singular.square() / singular.square().sum().clamp(min=1e-12))[:2]
        share_2 = torch.nn.functional.pad(share, (0, 2 - len(share)))
        cloud_F2 = (latent_FD - mean_D) @ axes_2D.T
        return LatentMap(mean_D.numpy(), axes_2D.numpy(), share_2.numpy(), cloud_F2[:shown].numpy())

    def project(self, latent: np.ndarray) -> np.ndarray:
        """Latents (..., D) to points (..., 2)."""
        return np.asarray((latent.astype(np.float64) - self.mean_D) @ self.axes_2D.T)


def pick(evaluated: Evaluated, count: int) -> list[int]:
    """Problems worth a look: failures first, the one that ended farthest away leading, then the slowest successes."""
    ranked = sorted(evaluated.outcomes, key=lambda o: (o.success, -o.steps if o.success else -o.final, o.problem))
    return [outcome.problem for outcome in ranked[:count]]


class _Watch:
    """Collects what an agent sees and plans while `run_batch` drives it; one row per problem."""

    def __init__(self, agent: Agent, bank: FrameBank, starts: np.ndarray, goals: np.ndarray) -> None:
        self.agent, self.bank, self.starts, self.goals = agent, bank, starts, goals
        self.frames: list[list[np.ndarray]] = [[] for _ in starts]
        self.distance: list[list[float]] = [[] for _ in starts]
        self.plans: list[list[tuple[Replan, int, np.ndarray, np.ndarray]]] = [[] for _ in starts]
        self.alive = np.ones(len(starts), bool)

    def __call__(self, step: int, tasks: Sequence[envs.GoalEnv], active: np.ndarray) -> None:
        if step == 0:
            self.frames = [[task.goal_image(start)] for task, start in zip(tasks, self.starts, strict=True)]
        if self.agent.last is not None and self.agent.last.step == step:
            self._keep_plan(self.agent.last)
        for row in np.flatnonzero(self.alive).tolist():
            self.frames[row].append(tasks[row].render())
            self.distance[row].append(float(tasks[row].distance(tasks[row].state, self.goals[row])))
        self.alive = active.copy()

    @torch.inference_mode()
    def _keep_plan(self, replan: Replan) -> None:
        situation, model = replan.situation, self.agent.model
        rolled = model.rollout(situation.latent_BTKD, situation.past_BTA, replan.plan.action_BHA[:, None])
        latent_BHD = model.pictured(rolled)[:, 0].flatten(-2).float()
        index_BH = self.bank.nearest(latent_BHD)
        for position, row in enumerate(replan.rows):
            self.plans[row].append((replan, position, latent_BHD[position].cpu().numpy(), index_BH[position]))

    @torch.inference_mode()
    def latents(self, row: int, steps: np.ndarray) -> np.ndarray:
        """latent_FD of the frames at `steps`; where a plan started, exactly the latent it started from."""
        config, device = self.agent.model.config, self.agent.model.device
        frames = torch.from_numpy(np.stack(self.frames[row]))
        index_FK = history_index(steps, 0, config.frame_stack, config.stack_stride)
        stacked = channels_first(frames[torch.from_numpy(index_FK)].unbind(1))
        encoded = self.agent.model.pictured(self.agent.model.encode_picture(stacked[:, None].to(device)))
        latent_FD: np.ndarray = encoded[:, 0].flatten(1).float().cpu().numpy()
        for replan, position, _, _ in self.plans[row]:
            seen = self.agent.model.pictured(replan.situation.latent_BTKD[position, -1]).flatten().float().cpu().numpy()
            latent_FD[np.searchsorted(steps, replan.step)] = seen
        return latent_FD


def trace_problems(
    evaluated: Evaluated, checkpoint: Checkpoint, indices: Sequence[int], bank: FrameBank
) -> list[Trace]:
    """Run the problems `indices` again, side by side, with the same method and noise, and watch.

    Raises ValueError for a method that does not plan with a world model: there is nothing imagined to show.
    """
    if not isinstance(evaluated.method, PlanConfig):
        raise ValueError(f"method {evaluated.method.name} does not plan with a world model; only those can be traced")
    if not indices:
        return []
    policy = make_policy(evaluated.method, checkpoint, evaluated.row.seed)
    assert isinstance(policy, AgentPolicy)
    agent, manifest = policy.agent, evaluated.manifest
    problems = [manifest.problems[i] for i in indices]
    starts, goals = np.array([p.start_state for p in problems]), np.array([p.goal_state for p in problems])
    watch = _Watch(agent, bank, starts, goals)
    outcomes = run_batch(policy, manifest, indices, watch)
    logged = {o.problem: o for o in evaluated.outcomes}
    traces = []
    assert agent.goal_BKD is not None
    for row, outcome in enumerate(outcomes):
        plans, task = watch.plans[row], stand(manifest, problems[row])
        steps_F = np.array([*range(0, outcome.steps, agent.skip), outcome.steps])
        before = logged[outcome.problem]
        traces.append(
            Trace(
                goals=manifest.goals.name,
                method=evaluated.method.name,
                problem=outcome.problem,
                success=outcome.success,
                steps=outcome.steps,
                reproduced=(before.success, before.steps) == (outcome.success, outcome.steps),
                goal_frame=side_by_side(task.goal_image(goals[row])),
                seen_FYXC=side_by_side(np.stack(watch.frames[row])[steps_F]),
                seen_step_F=steps_F,
                planned_R=np.searchsorted(steps_F, [replan.step for replan, *_ in plans]),
                imagined_RHYXC=bank.pixels_FYXC[np.stack([index_H for *_, index_H in plans])],
                distance_T=np.array(watch.distance[row]),
                cost_R=np.array([float(replan.plan.cost_B[at]) for replan, at, *_ in plans]),
                spread_RI=np.stack([replan.plan.spread_BI[at].cpu().numpy() for replan, at, *_ in plans]),
                best_cost_RI=np.stack([replan.plan.best_cost_BI[at].cpu().numpy() for replan, at, *_ in plans]),
                latent_FD=watch.latents(row, steps_F),
                imagined_latent_RHD=np.stack([latent_HD for _, _, latent_HD, _ in plans]),
                goal_latent_D=agent.model.pictured(agent.goal_BKD[row]).flatten().float().cpu().numpy(),
            )
        )
        task.close()
    return traces


def _scalars(trace: Trace) -> dict[str, str | int | bool]:
    return {f.name: v for f in fields(Trace) if not isinstance(v := getattr(trace, f.name), np.ndarray)}


def _arrays(record: Trace | LatentMap, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + f.name: v for f in fields(record) if isinstance(v := getattr(record, f.name), np.ndarray)}


def save_traces(traces: Sequence[Trace], latent_map: LatentMap | None, folder: Path) -> None:
    """Write one compressed npz per goal set and method, and the map they are drawn on; older traces are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.npz"):
        old.unlink()
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(f"{trace.goals}.{trace.method}", []).append(trace)
    files: dict[str, dict[str, Any]] = {"latent_map": _arrays(latent_map)} if latent_map is not None else {}
    for name, group in groups.items():
        files[name] = {"traces": np.array(json.dumps([_scalars(trace) for trace in group]))}
        for number, trace in enumerate(group):
            files[name] |= _arrays(trace, f"{number}.")
    for name, arrays in files.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays)


def load_traces(folder: Path) -> tuple[list[Trace], LatentMap | None]:
    """Read what `save_traces` wrote; nothing when the folder is not there. A damaged file is named in a ValueError."""
    traces: list[Trace] = []
    latent_map = None
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                if path.stem == "latent_map":
                    latent_map = LatentMap(**file)
                    continue
                for number, scalars in enumerate(json.loads(str(file["traces"]))):
                    prefix = f"{number}."
                    arrays = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
                    traces.append(Trace(**scalars, **arrays))
        except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
            raise SchemaError(
                f"{path} is damaged or of another version ({error}): delete it, or run `lewm evaluate` again"
            ) from error
    return traces, latent_map
