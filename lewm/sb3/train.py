"""Learning to reach goals by acting, with stable-baselines3: from true states or from pictures alone.

What is on disk is all there is: every stretch of training begins by reading the last one's files, so a killed training
goes on as if nothing had happened.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from lewm.data.sb3_policy import predict, sb3_class
from lewm.progress import Stage
from lewm.sb3.config import FORMAT, UNBOUND, VERSION, Sb3Card, Sb3Config
from lewm.sb3.env import Sb3Env
from lewm.sb3.pixels import PictureReplay, PixelExtractor, replay_bytes
from lewm.sb3.views import make_view
from lewm.schema import read_json, write_json
from lewm.trainer_state import refuse_other_settings

ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "sac": {"learning_rate": 1e-3, "gamma": 0.95, "tau": 0.02, "batch_size": 256, "buffer_size": 100_000},
    "td3": {"learning_rate": 1e-3, "gamma": 0.95, "tau": 0.02, "batch_size": 256, "buffer_size": 100_000},
    "ppo": {"learning_rate": 1e-3, "gamma": 0.98, "n_steps": 128, "batch_size": 256, "n_epochs": 10},
}
"""Algorithm -> arguments of its class; they suit episodes of about a hundred steps."""
LAYERS = [128, 128]
"""Widths of the hidden layers of every network."""
PIXEL_BATCH = 64
"""Transitions per gradient step of SAC and TD3 on pixels: a picture costs a CPU hundreds of times what a state does."""
STEPS_PER_UPDATE = 2
"""Environment steps per gradient step of SAC and TD3: the tasks step a hundred times faster than networks learn."""
PPO_ENVS = 8
"""Episodes that PPO runs side by side; the others learn from one at a time."""
TD3_NOISE = 0.2
"""Standard deviation of the noise TD3 explores with."""


def train_sb3(config: Sb3Config, out: Path, quiet: bool = False, device: str = "cpu") -> Sb3Card:
    """Train, or go on with the training in `out`; writes `policy.zip` and `card.json` there and measures success.

    The same configuration gives the same policy on the same machine, killed in between or not. Asking for more steps
    later trains on. Networks on states are small, so they always stay on the CPU. Raises RuntimeError when `out` was
    trained with other settings, and ValueError when the pictures to be remembered take more than `config.memory_gb`.
    """
    config, device = config.resolved, device if config.observation == "pixels" else "cpu"
    with closing(_vector_env(config)) as env:
        _check_memory(config, env, quiet)
        _check_same(config, out)
        unit = env.num_envs * (ARGUMENTS["ppo"]["n_steps"] if config.algorithm == "ppo" else config.episode_steps)
        total, stretch = (-(-steps // unit) * unit for steps in (config.steps, config.checkpoint_every))
        done = _progress(out)
        with Stage(f"train {config.algorithm}", total, "steps", quiet) as stage:
            stage.skip_to(min(done, total))
            while done < total:
                _train_stretch(config, env, out, done, min(stretch, total - done), stage, device)
                done = _progress(out)
    partial = out / "policy.partial"
    shutil.copyfile(_state(out, done) / "model.zip", partial)
    partial.replace(out / "policy.zip")
    model = load_weights(config, out / "policy.zip")
    with closing(_env(config)) as env:
        wins, frame = measure_success(model, env, config), env.task.observation_space.shape
    card = Sb3Card(
        format=FORMAT,
        version=VERSION,
        algorithm=config.algorithm,
        config=config,
        frame=frame or (),
        steps=done,
        wall_s=round(float(read_json(_state(out, done) / "wall_s.json")), 1),
        episodes=config.evaluations,
        successes=wins,
        success=wins / config.evaluations,
        parameters=sum(p.numel() for p in model.policy.parameters()),
        device=device,
        versions={"lewm": __version__, "stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__},
    )
    write_json(asdict(card), out / "card.json")
    return card


def measure_success(model: Any, env: Sb3Env, config: Sb3Config) -> int:
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


def load_weights(config: Sb3Config, path: Path) -> Any:
    """The policy of a resolved configuration, to act with, on the CPU. Reads numbers only: nothing is unpickled."""
    with closing(_vector_env(config)) as env, torch.random.fork_rng(devices=[]):
        model = _fresh(config, env, "cpu", acts_only=True)
    try:
        model.set_parameters(path, device="cpu")
    except (RuntimeError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit the card.json beside it ({first}): train it again") from error
    return model


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


def _train_stretch(
    config: Sb3Config, env: DummyVecEnv, out: Path, done: int, steps: int, stage: Stage, device: str
) -> None:
    """Train from the files of `done` steps to those of `done + steps`, whole or not at all."""
    before = _state(out, done)
    begun, wall_s = time.monotonic(), 0.0
    if done == 0:
        model = _fresh(config, env, device)
    else:
        model = sb3_class(config.algorithm).load(before / "model.zip", env=env, device=device)
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


def _fresh(config: Sb3Config, env: DummyVecEnv, device: str, acts_only: bool = False) -> Any:
    """An untrained model of the configuration; one that only acts remembers nothing."""
    networks: dict[str, Any] = {"net_arch": LAYERS}
    arguments = {"policy_kwargs": networks, "device": device, **ARGUMENTS[config.algorithm]}
    replay: dict[str, Any] = {}
    if config.observation == "pixels":
        channels = env.get_attr("view")[0].shape[0]
        networks |= {"features_extractor_class": PixelExtractor, "features_extractor_kwargs": {"channels": channels}}
        replay = {"episode_steps": config.episode_steps, "channels": channels, "stride": config.stride}
    if config.algorithm != "ppo":
        arguments |= {"train_freq": (1, "episode"), "gradient_steps": max(1, config.episode_steps // STEPS_PER_UPDATE)}
        # HER cannot learn before the first episode has ended.
        arguments["learning_starts"] = max(2 * config.episode_steps, min(1000, config.steps // 10))
        if acts_only:
            arguments["buffer_size"] = config.episode_steps
        elif config.observation == "pixels":
            arguments |= {"buffer_size": _remembered(config), "batch_size": PIXEL_BATCH}
        if config.her or config.observation == "pixels":
            arguments["replay_buffer_class"] = PictureReplay if config.observation == "pixels" else HerReplayBuffer
            arguments["replay_buffer_kwargs"] = {"n_sampled_goal": 4 if config.her else 0, **replay}
    if config.algorithm == "td3":
        width = np.prod(env.action_space.shape or (), dtype=int)
        arguments["action_noise"] = NormalActionNoise(np.zeros(width), np.full(width, TD3_NOISE))
    return sb3_class(config.algorithm)("MultiInputPolicy", env, seed=None if acts_only else config.seed, **arguments)


def _remembered(config: Sb3Config) -> int:
    """Environment steps whose pictures are kept, whole episodes: all of them, up to the algorithm's memory."""
    episodes = min(ARGUMENTS[config.algorithm]["buffer_size"], config.steps) / config.episode_steps
    return max(1, int(np.ceil(episodes))) * config.episode_steps


def _check_memory(config: Sb3Config, env: DummyVecEnv, quiet: bool) -> None:
    """Say how large the memory of pictures becomes, or raise ValueError where it is larger than allowed."""
    if config.observation != "pixels" or config.algorithm == "ppo":
        return
    (view,), steps = env.get_attr("view"), _remembered(config)
    gigabytes = replay_bytes(view.space, steps, config.episode_steps) / 1e9
    line = f"{steps} steps with pictures of {view.shape[1]} pixels take {gigabytes:.2g} GB of memory"
    if gigabytes > config.memory_gb:
        raise ValueError(
            f"{line}, and memory_gb allows {config.memory_gb:g}: lower size or steps, or raise memory_gb if this "
            "machine has it"
        )
    if not quiet:
        print(f"{config.algorithm}: {line}, and as much on disk while training", file=sys.stderr)


def _env(config: Sb3Config) -> Sb3Env:
    assert config.reward is not None
    task = envs.make(config.task, **config.settings)
    return Sb3Env(task, make_view(task, config), config.reward, config.episode_steps)


def _vector_env(config: Sb3Config) -> DummyVecEnv:
    count = PPO_ENVS if config.algorithm == "ppo" else 1
    return DummyVecEnv([lambda: Monitor(_env(config)) for _ in range(count)])


def _state(out: Path, done: int) -> Path:
    """Where the training stands after `done` steps."""
    return out / "state" / f"{done:09d}"


def _progress(out: Path) -> int:
    """Steps that are done and saved."""
    return max((int(path.name) for path in (out / "state").glob("*") if path.name.isdigit()), default=0)


def _check_same(config: Sb3Config, out: Path) -> None:
    """Note the settings in `out`, or raise RuntimeError where others are noted that would give another policy."""
    path = out / "training.json"
    now = json.loads(json.dumps(asdict(config)))
    if path.exists():
        ours, theirs = (
            {key: value for key, value in said.items() if key not in UNBOUND} for said in (now, read_json(path))
        )
        refuse_other_settings(out, ours, theirs, "a training with other settings", "not set")
    write_json(now, path)
