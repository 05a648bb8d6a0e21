"""Recording: scripted policies act in a task, whole shards go to disk, the same data for any number of processes."""

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.data.codec import Codec
from lewm.data.experts import Performer, make_performers, parse_policies
from lewm.data.meta import Provenance, ShardMeta, StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode, StoreWriter, shard_name, write_shard
from lewm.processes import Processes

if TYPE_CHECKING:
    from gymnasium.spaces import Box

    from envs.goal_env import GoalEnv

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CollectConfig:
    """What to record."""

    episodes: int = 500
    """Number of episodes."""
    steps: int = 80
    """Environment steps per episode."""
    policies: dict[str, float | dict[str, Any]] = field(default_factory=lambda: {"expert": 1.0})
    """Policy name -> weight: each episode draws one policy with this probability (weights are normalised). A mapping
    says more: {weight: 0.3, noise: 0.5}, with `policy` under a label of your own: {weak: {policy: expert, noise: 1}}.
    Every task also has {policy: sb3, path: ZIP} (a trained policy; the file can run code: trust its maker) and
    {policy: replay, path: STORE} (the actions of another recording from its start states)."""
    noise: float = 0.3
    """Noise of the policies that give none, in the policy's own scale; 0 is none."""
    seed: int = 0
    """Seed of everything; episode e draws from (seed, e) alone."""
    codec: Codec = "raw"
    """How frames are stored: raw is fastest to read, png and webp are lossless, jpeg is lossy."""
    shard_episodes: int = 50
    """Episodes per shard: what a killed recording loses at most, per process."""

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "shard_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        parse_policies(self.policies)
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise is {self.noise}, it must be 0 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, it must be 0 or more")


def collect(
    config: CollectConfig,
    task: str,
    settings: dict[str, Any],
    out: str | Path,
    processes: int = 1,
    progress: Progress | None = None,
) -> Store:
    """Record `config.episodes` episodes of `task` into the store at `out`, or go on with a recording begun there.

    Episode e depends on (config.seed, e) only, so neither `processes` nor an interruption changes the data. `progress`
    is called with (episodes done, episodes in all). Raises ValueError when `out` was recorded with other settings.
    """
    import envs

    if processes < 1:
        raise ValueError(f"processes is {processes}, it must be at least 1")
    with closing(envs.make(task, **settings)) as env:
        meta = _describe(config, task, env)
    with StoreWriter(out, meta) as writer:
        jobs = [job for job in _plan(config) if job[0] not in writer.done]
        recorded = sum(shard.episodes for shard in writer.meta.shards)
        if progress:
            progress(recorded, config.episodes)
        for shard in _run(config, writer, jobs, processes, _counter(progress, recorded, config.episodes)):
            writer.commit(shard)
    return Store.open(out)


def performers_of(env: "GoalEnv", config: CollectConfig) -> list[Performer]:
    """The policies of a recording, ready to act in `env`."""
    return make_performers(env, parse_policies(config.policies), config.noise, config.steps)


def record_episode(env: "GoalEnv", config: CollectConfig, number: int, performers: Sequence[Performer]) -> Episode:
    """Record episode `number`: reset, choice of policy and its noise all come from SeedSequence((seed, number)).

    A replayed episode takes the recorded seed, and the recorded start state where that seed does not give it.
    """
    reset, choice, noise = np.random.SeedSequence((config.seed, number)).spawn(3)
    seed = int(reset.generate_state(1)[0])
    weights = np.array([performer.meta.weight for performer in performers])
    which = int(np.random.default_rng(choice).choice(len(performers), p=weights / weights.sum()))
    policy, start = performers[which].begin(number)
    seed = seed if start is None else start.seed
    frame, _ = env.reset(seed=seed)
    # Only the seed gives the start in full precision, without which a replay drifts from the recording.
    if start is not None and not np.array_equal(env.state.astype(np.float32), start.state_S):
        env.set_state(start.state_S)
        frame = env.render()
    space = _action_space(env)
    pixels = np.empty((config.steps + 1, *frame.shape), np.uint8)
    actions = np.empty((config.steps, *space.shape), np.float32)
    states = [env.state]
    pixels[0] = frame
    policy.reset(np.random.default_rng(noise), env.state)
    for t in range(config.steps):
        # What is recorded is what the task executes: clipped, in float32.
        actions[t] = np.clip(policy.act(env.state), space.low, space.high)
        env.advance(actions[t])
        pixels[t + 1] = env.render()
        states.append(env.state)
    return Episode(pixels, actions, np.array(states, np.float32), seed, which)


Job = tuple[str, int, int]  # shard name, first episode, episode after the last


def _plan(config: CollectConfig) -> list[Job]:
    starts = range(0, config.episodes, config.shard_episodes)
    return [(shard_name(i), s, min(s + config.shard_episodes, config.episodes)) for i, s in enumerate(starts)]


def _run(
    config: CollectConfig, writer: StoreWriter, jobs: list[Job], processes: int, count: Callable[[int], None]
) -> Iterator[ShardMeta]:
    meta = writer.meta
    if processes == 1 or len(jobs) <= 1:
        for name, first, stop in jobs:
            yield _record_shard(config, meta, (name, first, stop), writer.temporary(name), count)
        return
    died = (
        f"a recording process of {writer.path} died (killed, or out of memory): run the same command again, it goes on "
        "with the missing shards"
    )
    with Processes(min(processes, len(jobs))) as pool:
        for shard in pool.run(_record_shard, [(config, meta, job, writer.temporary(job[0])) for job in jobs], died):
            yield shard
            count(shard.episodes)


def _record_shard(
    config: CollectConfig, meta: StoreMeta, job: Job, folder: Path, count: Callable[[int], None] | None = None
) -> ShardMeta:
    import envs

    name, first, stop = job
    with closing(envs.make(meta.task, **meta.settings)) as env:
        return write_shard(folder, meta, _record(env, config, first, stop, count), name)


def _record(
    env: "GoalEnv", config: CollectConfig, first: int, stop: int, count: Callable[[int], None] | None
) -> Iterator[Episode]:
    performers = performers_of(env, config)
    for number in range(first, stop):
        yield record_episode(env, config, number, performers)
        if count:
            count(1)


def _counter(progress: Progress | None, recorded: int, total: int) -> Callable[[int], None]:
    def count(episodes: int) -> None:
        nonlocal recorded
        recorded += episodes
        if progress:
            progress(recorded, total)

    return count


def _describe(config: CollectConfig, task: str, env: "GoalEnv") -> StoreMeta:
    space = _action_space(env)
    y, x, c = np.shape(env.render())
    provenance = Provenance(
        policies=tuple(performer.meta for performer in performers_of(env, config)),
        seed=config.seed,
        episodes=config.episodes,
        steps=config.steps,
        shard_episodes=config.shard_episodes,
        versions=package_versions(),
        renderer=env.renderer_fingerprint(),
        git_revision=git_revision(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return StoreMeta(
        task=task,
        settings=json.loads(json.dumps(env.settings)),
        frame=(y, x, c),
        codec=config.codec,
        action_dim=space.shape[0],
        action_low=tuple(map(float, space.low)),
        action_high=tuple(map(float, space.high)),
        state_names=tuple(env.state_names),
        angle_names=tuple(env.angle_names),
        control_dt=float(env.control_dt),
        provenance=provenance,
        cameras=tuple(env.cameras),
    )


def _action_space(env: "GoalEnv") -> "Box":
    from gymnasium.spaces import Box

    if not isinstance(env.action_space, Box) or len(env.action_space.shape) != 1:
        raise ValueError(f"action space {env.action_space} is not a flat Box: only such tasks can be recorded")
    return env.action_space


def package_versions() -> dict[str, str]:
    """Versions of what recordings depend on, as far as installed."""
    found = {}
    for package in ("lewm", "numpy", "gymnasium", "mujoco", "opencv-python-headless"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_revision() -> str | None:
    """Revision of the repository this package runs from, `+changes` when edited; None for an installed copy."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
