"""One episode to a goal picture in a file: what `lewm plan` does."""

import json
from pathlib import Path

import cv2
import numpy as np

import envs
from lewm.planning.agent import Agent
from lewm.video import write_panels


def read_goal(path: Path, size: int) -> np.ndarray:
    """A colour picture of exactly (size, size) as uint8 RGB.

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
    if image.shape[:2] != (size, size):
        high, wide = image.shape[:2]
        raise ValueError(
            f"goal picture {path} is {wide} x {high} pixels; this model sees {size} x {size}: make it that size"
        )
    return np.ascontiguousarray(image[..., ::-1])


def run_episode(
    checkpoint: Path,
    goal: Path,
    out: Path,
    task: str | None,
    planner: str,
    cost: str | None,
    budget: int,
    seed: int,
    device: str,
    start: tuple[float, ...] | None,
    goal_state: tuple[float, ...] | None,
) -> str:
    """Plan to the picture, write `episode.mp4` (seen, goal, imagined) and `trace.json` to `out`; returns a summary.

    With `goal_state` the episode ends at the task's own success; without it, nothing but the picture is known and the
    episode runs through its budget.
    """
    agent = Agent.load(checkpoint, planner, cost, seed=seed, device=device if device != "auto" else "cpu")
    origin = agent.checkpoint.origin
    picture = read_goal(goal, agent.size)
    env = envs.make(task or origin.task, **(origin.settings if task in (None, origin.task) else {"size": agent.size}))
    pixels, _ = env.reset(seed=seed, options=None if start is None else {"state": np.array(start)})
    if origin.renderer_fingerprint and env.renderer_fingerprint() != origin.renderer_fingerprint:
        print("lewm plan: this machine's pictures differ from those the model was trained on; expect less")
    agent.reset(picture)
    seen, imagined, steps = [], [], []
    success = False
    for step in range(budget):
        action = agent.act(pixels)
        if agent.last is not None and agent.last.step == step:
            imagined = imagine(agent, env)
        position = min(len(imagined) - 1, (step % (agent.skip * agent.replan_every)) // agent.skip)
        seen.append((pixels, imagined[position]))
        env.advance(action)
        pixels = env.render()
        reached = goal_state is not None and bool(env.is_success(env.state, np.array(goal_state)))
        assert agent.last is not None
        steps.append(
            {
                "step": step,
                "action": [round(float(a), 6) for a in action],
                "state": [round(float(s), 6) for s in env.state],
                "plan_cost": float(agent.last.plan.cost_B[0]),
                "planned": agent.last.step == step,
                "plan_ms": agent.last.plan_ms + agent.last.encode_ms if agent.last.step == step else None,
                "success": reached if goal_state is not None else None,
            }
        )
        if reached:
            success = True
            break
    out.mkdir(parents=True, exist_ok=True)
    write_panels(out / "episode.mp4", [(frame, picture, dream) for frame, dream in seen], ("seen", "goal", "imagined"))
    outcome = "unknown (no --goal-state)" if goal_state is None else ("reached" if success else "not reached")
    facts = {"checkpoint": str(checkpoint), "goal": str(goal), "task": origin.task, "outcome": outcome, "steps": steps}
    (out / "trace.json").write_text(json.dumps(facts, indent=1) + "\n")
    timed = [s["plan_ms"] for s in steps[1:] if s["plan_ms"] is not None]
    median = f"{np.median(timed):.1f} ms per plan" if timed else "one plan"
    return f"goal {outcome} after {len(steps)} steps, {median}\nvideo {out / 'episode.mp4'}\ntrace {out / 'trace.json'}"
