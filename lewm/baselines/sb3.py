"""A policy of stable-baselines3 on an evaluation's goals: one that `lewm train-baseline` trained, or somebody's zip.

It decides at every environment step. On pixels it sees what a planner sees, the present frame and the goal's picture;
on states it is told where it and its goal really are, and the tables say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import envs
from lewm.data.sb3_policy import StateFeatures, predict, unpickle_sb3
from lewm.planning.policy import Start, plays
from lewm.sb3.config import Algorithm, Sb3Card, read_card
from lewm.sb3.views import KEYS, PixelView


@dataclass(frozen=True)
class Sb3Method:
    """A policy that learned by acting."""

    path: str
    """Folder that `lewm train-baseline` (sac, td3, ppo) or `lewm train-expert` wrote, or a zip of stable-baselines3."""
    name: str = "sb3"
    """Name in tables."""
    kind: Literal["sb3"] = "sb3"
    """Which kind of method this is."""
    trusted: bool = False
    """Whether a zip may be loaded: it holds pickles, which run their maker's code. Folders are read without any."""
    algorithm: Algorithm | None = None
    """What trained a zip; null takes what `card.json` beside it says."""

    def __post_init__(self) -> None:
        if self.is_zip and not self.trusted:
            raise ValueError(
                f"method {self.name}: {self.path} is a zip of stable-baselines3, which holds pickles: loading it runs "
                "whatever code its maker put there; if you trust its maker, add trusted: true"
            )
        if self.algorithm is not None and not self.is_zip:
            raise ValueError(f"method {self.name}: the card in {self.path} tells the algorithm; leave it out")

    @property
    def is_zip(self) -> bool:
        """Whether the path names a file of stable-baselines3, not a folder of ours."""
        return self.path.endswith(".zip")

    @property
    def files(self) -> list[Path]:
        """What its outcomes depend on."""
        path = Path(self.path)
        return [path] if self.is_zip else [path / "policy.zip", path / "card.json"]


def sb3_card(method: Sb3Method) -> Sb3Card | None:
    """What is known of a policy's training; None for a zip."""
    return None if method.is_zip else read_card(Path(method.path))


def sb3_algorithm(method: Sb3Method) -> str:
    """What trained the policy, for the tables."""
    card = sb3_card(method)
    return card.algorithm if card else method.algorithm or "zip"


class Sb3MethodPolicy:
    """Takes the mean action, one problem at a time, so that nothing is drawn and no neighbour changes a bit of it."""

    def __init__(self, config: Sb3Method, seed: int) -> None:
        self.config, self.card = config, sb3_card(config)
        if self.card is None:
            self.model = unpickle_sb3(Path(config.path), config.algorithm)
        else:
            from lewm.sb3.train import load_weights

            self.model = load_weights(self.card.config, Path(config.path) / "policy.zip")
        space = self.model.observation_space
        self.shapes = {key: entry.shape for key, entry in getattr(space, "spaces", {}).items()}
        self.needs_frame = len(self.shapes.get("observation", ())) == 3
        self.knows_state = not self.needs_frame

    def start(self, starts: Sequence[Start]) -> None:
        """Look at the goals and the recorded past. Raises ValueError for a task the policy was not trained for."""
        self._check(starts[0].task)
        self.tasks = [start.task for start in starts]
        self.goals = [start.goal_state for start in starts]
        if self.needs_frame:
            self.views = [self._view(task) for task in self.tasks]
            self.goal_pictures = [view.unknown(s.task.goal_image(s.goal_state)) for view, s in zip(self.views, starts)]
            for view, start in zip(self.views, starts, strict=True):
                for state in start.past_states[max(0, len(start.past_states) - view.depth) :]:
                    view.look(view.goal(state))

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """The next action of every problem."""
        action_Ba = np.zeros((len(self.tasks), *self.tasks[0].action_space.shape), np.float32)
        for row in np.flatnonzero(active):
            action_Ba[row] = predict(self.model, self._observation(int(row), pixels), None)
        return action_Ba

    def _observation(self, row: int, pixels: np.ndarray | None) -> dict[str, np.ndarray]:
        task = self.tasks[row]
        if not self.needs_frame:
            return StateFeatures.of(task).observation(task.state, self.goals[row])
        assert pixels is not None
        achieved_F = self.views[row].unknown(pixels[row])
        return dict(zip(KEYS, (self.views[row].look(achieved_F), achieved_F, self.goal_pictures[row]), strict=True))

    def _view(self, task: envs.GoalEnv) -> PixelView:
        """Pictures as the policy was trained on them; of a zip its shapes tell."""
        if self.card is not None:
            config = self.card.config
            return PixelView(task, config.size, config.frames, config.stride)
        channels, side, _ = self.shapes["observation"]
        return PixelView(task, side, max(1, channels // (task.observation_space.shape or (0, 0, 3))[2]), 1)

    def _check(self, task: envs.GoalEnv) -> None:
        where = f"method {self.config.name}: {self.config.path}"
        if self.card is not None:
            config, drawn = self.card.config, tuple(task.observation_space.shape or ())
            if not plays(task, config.task, config.settings):
                raise ValueError(f"{where} was trained on {config.task}, and these goals are of another task")
            if self.needs_frame and drawn != self.card.frame:
                raise ValueError(
                    f"{where} was trained on pictures of shape {self.card.frame}, and these are {drawn}: evaluate it "
                    "on goals of its own task settings, or train it on these"
                )
        view = (
            self._view(task).space if self.needs_frame else StateFeatures.of(task).observation(task.state, task.state)
        )
        wanted = {key: view[key].shape for key in KEYS}
        if self.shapes != wanted or self.model.action_space != task.action_space:
            raise ValueError(
                f"{where} sees {self.shapes or self.model.observation_space.shape} and acts in "
                f"{self.model.action_space}, the task gives {wanted} and takes {task.action_space}: train on the "
                "observations of `lewm train-baseline`"
            )
