"""What stable-baselines3 is asked to learn, and the card of what it learned. Imports none of it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lewm.schema import SchemaError, build, read_json

FORMAT = "lewm-sb3"
VERSION = 1

UNBOUND = ("steps", "evaluations", "memory_gb")
"""Settings that may change while a training goes on: they never change what was learned so far."""

Algorithm = Literal["sac", "td3", "ppo"]
Reward = Literal["sparse", "dense"]


@dataclass(frozen=True)
class Sb3Config:
    """What is trained, and how."""

    task: str = ""
    """Task name, as in `envs.TASKS`, or gym: and a Gymnasium id; empty takes that of the recordings (--data)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the task."""
    algorithm: Algorithm = "sac"
    """Soft actor-critic, twin delayed DDPG, or proximal policy optimisation."""
    observation: Literal["state", "pixels"] = "state"
    """What the networks see. state: the true state and the goal's. pixels: the picture and the goal's, nothing else."""
    size: int | None = None
    """Picture side the networks see, with pixels: larger ones are averaged down to it. Null: as the task draws them."""
    frames: int = 1
    """Pictures seen at once, with pixels: the present one and those before it, which tell velocities."""
    stride: int = 1
    """Environment steps between these pictures."""
    steps: int = 20_000
    """Environment steps, rounded up to whole episodes (PPO: whole rollouts); more later trains on."""
    her: bool | None = None
    """Whether four of five transitions are learned from with a goal reached later; null: for sac and td3."""
    reward: Reward | None = None
    """sparse: 0 at the goal, else -1. dense: minus the distance. Null: sparse with her, dense without."""
    episode_steps: int = 100
    """Environment steps per episode; an episode does not end at its goal."""
    checkpoint_every: int = 5_000
    """Environment steps between two savings: what a kill loses at most."""
    memory_gb: float = 2.0
    """Most gigabytes of pictures that sac and td3 may remember; a training that needs more is refused."""
    evaluations: int = 100
    """Episodes the success is measured on."""
    seed: int = 0
    """Seed of networks, exploration, starts and goals."""

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "steps", "episode_steps", "checkpoint_every", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, it must be 0 or more")
        if not self.memory_gb > 0:
            raise ValueError(f"memory_gb is {self.memory_gb}, it must be positive")
        if self.size is not None and self.size < 16:
            raise ValueError(f"size is {self.size}, it must be at least 16 pixels, or null")
        if self.her and self.algorithm == "ppo":
            raise ValueError("ppo forgets every rollout, so it cannot learn from other goals: leave her out")
        if self.observation == "state":
            for name, unused in (("size", None), ("frames", 1), ("stride", 1)):
                if getattr(self, name) != unused:
                    raise ValueError(f"{name} is {getattr(self, name)}, but states have no pictures: leave it out")

    @property
    def resolved(self) -> "Sb3Config":
        """The same with nothing left to the algorithm."""
        her = self.algorithm != "ppo" if self.her is None else self.her
        return replace(self, her=her, reward=self.reward or ("sparse" if her else "dense"))


@dataclass(frozen=True)
class Sb3Card:
    """What `card.json` says about the policy beside it."""

    format: str
    version: int
    algorithm: Algorithm
    config: Sb3Config
    """How it was trained; nothing is left to the algorithm."""
    frame: tuple[int, ...]
    """Shape of the task's pictures, (Y, X, C)."""
    steps: int
    """Environment steps it was trained for."""
    wall_s: float
    """Seconds of training; stretches before a kill count as far as they were kept."""
    episodes: int
    """Episodes of the evaluation, with random starts and goals."""
    successes: int
    """How many of them hit their goal within `episode_steps`."""
    success: float
    parameters: int
    """Trained numbers."""
    device: str
    """Where it was trained."""
    versions: dict[str, str]
    """Of lewm, stable-baselines3 and torch."""

    def summary(self, out: Path) -> str:
        """What the command says when it is done."""
        return (
            f"{self.algorithm} on {self.config.observation}: {self.steps} environment steps in {self.wall_s:.0f} s; "
            f"{self.successes} of {self.episodes} random goals reached within {self.config.episode_steps} steps\n"
            f"baseline {out}\n"
            f"evaluate it as the method {{kind: sb3, name: {self.algorithm}, path: {out}}}"
        )


def read_card(folder: Path) -> Sb3Card:
    """The card of a folder that `lewm train-baseline` or `lewm train-expert` wrote.

    Raises FileNotFoundError for a missing part and SchemaError for a card of another kind.
    """
    path = folder / "card.json"
    for file in (path, folder / "policy.zip"):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: {folder} is no trained policy; pass the --out of `lewm train-baseline sac`, td3 "
                "or ppo, or a stable-baselines3 zip"
            )
    raw = read_json(path)
    if not isinstance(raw, dict) or (raw.get("format"), raw.get("version")) != (FORMAT, VERSION):
        raise SchemaError(f"{path}: this is not a {FORMAT} of version {VERSION}; train it again")
    return build(Sb3Card, raw, str(path))
