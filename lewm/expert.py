"""Training an expert: stable-baselines3 learns to reach states of a task, so that `lewm collect` has somebody to watch.

The policy sees the true state and a goal state; no picture is drawn. What is on disk is all there is: every stretch of
training begins by reading the last one's files, so a killed training goes on as if nothing had happened.
"""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

import envs
from lewm import __version__
from lewm.data.sb3_policy import load_sb3, predict, sb3_class
from lewm.data.state_goal_env import Reward, StateGoalEnv
from lewm.evaluate.statistics import wilson
from lewm.progress import Stage
from lewm.schema import read_json, write_json

ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "sac": {"learning_rate": 1e-3, "gamma": 0.95, "tau": 0.02, "batch_size": 256, "buffer_size": 100_000},
    "td3": {"learning_rate": 1e-3, "gamma": 0.95, "tau": 0.02, "batch_size": 256, "buffer_size": 100_000},
    "ppo": {"learning_rate": 1e-3, "gamma": 0.98, "n_steps": 128, "batch_size": 256, "n_epochs": 10},
}
"""Algorithm -> arguments of its class; they suit episodes of about a hundred steps."""
LAYERS = [128, 128]
"""Widths of the hidden layers of every network."""
STEPS_PER_UPDATE = 2
"""Environment steps per gradient step of SAC and TD3: the tasks step a hundred times faster than networks learn."""
PPO_ENVS = 8
"""Episodes that PPO runs side by side; the others learn from one at a time."""
TD3_NOISE = 0.2
"""Standard deviation of the noise TD3 explores with."""


@dataclass(frozen=True)
class ExpertConfig:
    """What is trained, and how."""

    task: str
    """Task name, as in `envs.TASKS`, or gym: and a Gymnasium id."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the task."""
    algorithm: Literal["sac", "td3", "ppo"] = "sac"
    """Soft actor-critic, twin delayed DDPG, or proximal policy optimisation."""
    steps: int = 20_000
    """Environment steps, rounded up to whole episodes (PPO: whole rollouts)."""
    her: bool | None = None
    """Whether four of five transitions are learned from with a goal reached later; null: for sac and td3."""
    reward: Reward | None = None
    """sparse: 0 at the goal, else -1. dense: minus the distance. Null: sparse with her, dense without."""
    episode_steps: int = 100
    """Environment steps per episode; an episode does not end at its goal."""
    checkpoint_every: int = 5_000
    """Environment steps between two savings: what a kill loses at most."""
    evaluations: int = 100
    """Episodes the success is measured on."""
    seed: int = 0
    """Seed of networks, exploration, starts and goals."""

    def __post_init__(self) -> None:
        for name in ("steps", "episode_steps", "checkpoint_every", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, it must be 0 or more")
        if self.her and self.algorithm == "ppo":
            raise ValueError("ppo forgets every rollout, so it cannot learn from other goals: leave --her out")

    @property
    def resolved(self) -> "ExpertConfig":
        """The same with nothing left to the algorithm."""
        her = self.algorithm != "ppo" if self.her is None else self.her
        return replace(self, her=her, reward=self.reward or ("sparse" if her else "dense"))


@dataclass(frozen=True)
class Card:
    """What `card.json` says about the policy beside it."""

    task: str
    settings: dict[str, Any]
    algorithm: str
    her: bool
    reward: str
    episode_steps: int
    seed: int
    steps: int
    """Environment steps it was trained for."""
    episodes: int
    """Episodes of the evaluation, with random starts and goals."""
    successes: int
    """How many of them hit their goal within `episode_steps`."""
    success: float
    low: float
    """Lower end of the 95 % Wilson interval."""
    high: float
    """Upper end."""
    wall_s: float
    """Seconds of training."""
    versions: dict[str, str]


def train_expert(config: ExpertConfig, out: Path, quiet: bool = False) -> Card:
    """Train, or go on with the training in `out`; writes `policy.zip` and `card.json` there and measures success.

    The same configuration gives the same policy on the same machine, killed in between or not. Asking for more steps
    later trains on. Raises ValueError when `out` was trained with other settings.
    """
    config = config.resolved
    _check_same(config, out)
    with closing(_vector_env(config)) as env:
        unit = env.num_envs * (ARGUMENTS["ppo"]["n_steps"] if config.algorithm == "ppo" else config.episode_steps)
        total, stretch = (-(-steps // unit) * unit for steps in (config.steps, config.checkpoint_every))
        done = _progress(out)
        with Stage(f"train {config.algorithm}", total, "steps", quiet) as stage:
            stage.skip_to(min(done, total))
            while done < total:
                _train_stretch(config, env, out, done, min(stretch, total - done), stage)
                done = _progress(out)
    partial = out / "policy.partial"
    shutil.copyfile(_state(out, done) / "model.zip", partial)
    partial.replace(out / "policy.zip")
    with closing(_env(config)) as env:
        wins = measure_success(load_sb3(out / "policy.zip", config.algorithm, env.task), env, config)
    card = _card(config, done, wins, float(read_json(_state(out, done) / "wall_s.json")))
    write_json(asdict(card), out / "card.json")
    return card


def measure_success(model: Any, env: StateGoalEnv, config: ExpertConfig) -> int:
    """In how many of `config.evaluations` random episodes the mean action hits the goal within `episode_steps`."""
    wins = 0
    for number in range(config.evaluations):
        seed = np.random.SeedSequence((config.seed, number)).generate_state(1)
        observation, info = env.reset(seed=int(seed[0]))
        truncated = False
        while not (truncated or info["is_success"]):
            observation, _, _, truncated, info = env.step(predict(model, observation, None))
        wins += bool(info["is_success"])
    return wins


class _Report(BaseCallback):
    """Moves the progress line."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def _on_step(self) -> bool:
        ends = self.model.ep_success_buffer
        notes = {"at_goal": float(np.mean(ends))} if ends else {}
        self._stage.update(self.training_env.num_envs, **notes)
        return True


def _train_stretch(config: ExpertConfig, env: DummyVecEnv, out: Path, done: int, steps: int, stage: Stage) -> None:
    """Train from the files of `done` steps to those of `done + steps`, whole or not at all."""
    before = _state(out, done)
    begun, wall_s = time.monotonic(), 0.0
    if done == 0:
        model = _fresh(config, env)
    else:
        model = sb3_class(config.algorithm).load(before / "model.zip", env=env, device="cpu")
        wall_s = float(read_json(before / "wall_s.json"))
        if (before / "memory.pkl").exists():
            model.load_replay_buffer(before / "memory.pkl")
    # Their generators are not in the files: seeding each stretch anew makes going on the same as never having stopped.
    model.set_random_seed(int(np.random.SeedSequence((config.seed, done)).generate_state(1)[0] // 2))
    model.set_logger(configure(str(out / "tensorboard"), ["tensorboard"]))
    model.learn(steps, callback=_Report(stage), reset_num_timesteps=False)
    model.logger.close()
    after = _state(out, done + steps)
    partial = after.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save(partial / "model.zip")
    if config.algorithm != "ppo":
        model.save_replay_buffer(partial / "memory.pkl")
    write_json(wall_s + time.monotonic() - begun, partial / "wall_s.json")
    partial.rename(after)
    shutil.rmtree(before, ignore_errors=True)


def _fresh(config: ExpertConfig, env: DummyVecEnv) -> Any:
    """An untrained model of the configuration."""
    arguments = {"policy_kwargs": {"net_arch": LAYERS}, "device": "cpu", **ARGUMENTS[config.algorithm]}
    if config.algorithm != "ppo":
        arguments |= {"train_freq": (1, "episode"), "gradient_steps": max(1, config.episode_steps // STEPS_PER_UPDATE)}
        # HER cannot learn before the first episode has ended.
        arguments["learning_starts"] = max(2 * config.episode_steps, min(1000, config.steps // 10))
    if config.algorithm == "td3":
        width = np.prod(env.action_space.shape or (), dtype=int)
        arguments["action_noise"] = NormalActionNoise(np.zeros(width), np.full(width, TD3_NOISE))
    if config.her:
        arguments |= {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 4}}
    return sb3_class(config.algorithm)("MultiInputPolicy", env, seed=config.seed, **arguments)


def _env(config: ExpertConfig) -> StateGoalEnv:
    assert config.reward is not None
    return StateGoalEnv(envs.make(config.task, **config.settings), config.reward, config.episode_steps)


def _vector_env(config: ExpertConfig) -> DummyVecEnv:
    count = PPO_ENVS if config.algorithm == "ppo" else 1
    return DummyVecEnv([lambda: Monitor(_env(config)) for _ in range(count)])


def _state(out: Path, done: int) -> Path:
    """Where the training stands after `done` steps."""
    return out / "state" / f"{done:09d}"


def _progress(out: Path) -> int:
    """Steps that are done and saved."""
    return max((int(path.name) for path in (out / "state").glob("*") if path.name.isdigit()), default=0)


def _check_same(config: ExpertConfig, out: Path) -> None:
    """Note the settings in `out`, or raise ValueError where others are noted that would give another policy."""
    path = out / "expert.json"
    now = json.loads(json.dumps(asdict(config)))
    if path.exists():
        for key, before in read_json(path).items():
            if key not in ("steps", "evaluations") and before != now[key]:
                raise ValueError(
                    f"{out} was trained with {key} = {before!r}, now it is {now[key]!r}: choose another --out"
                )
    write_json(now, path)


def _card(config: ExpertConfig, steps: int, wins: int, wall_s: float) -> Card:
    low, high = wilson(wins, config.evaluations)
    return Card(
        task=config.task,
        settings=config.settings,
        algorithm=config.algorithm,
        her=bool(config.her),
        reward=str(config.reward),
        episode_steps=config.episode_steps,
        seed=config.seed,
        steps=steps,
        episodes=config.evaluations,
        successes=wins,
        success=wins / config.evaluations,
        low=low,
        high=high,
        wall_s=round(wall_s, 1),
        versions={"lewm": __version__, "stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__},
    )
