"""Who acts in a recording: the task's scripted policies, a trained stable-baselines3 policy, or another recording."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lewm.data.meta import PolicyMeta
from lewm.data.sb3_policy import Sb3Policy, load_sb3
from lewm.data.store import Store
from lewm.schema import SchemaError, build

if TYPE_CHECKING:
    from envs.goal_env import GoalEnv
    from envs.policies import Policy

MEMORY = 5.0
"""Steps that the noise on a trained or replayed policy lasts, as on the scripted ones."""


@dataclass(frozen=True)
class ScriptedExpert:
    """One of the task's own policies."""

    policy: str
    """Its name."""
    weight: float = 1.0
    """Share of the episodes, before the weights are normalised."""
    noise: float | None = None
    """Noise in the policy's own scale; null takes the recording's."""

    def __post_init__(self) -> None:
        check_share(self.weight, self.noise)


@dataclass(frozen=True)
class Sb3Expert:
    """A stable-baselines3 policy on states, such as `lewm train-expert` makes, which goes to goals drawn by the task.

    Its file holds pickles: loading it runs whatever code its maker put there, so name only files you trust.
    """

    policy: Literal["sb3"]
    """What kind of policy this is."""
    path: str
    """The zip file, relative to the working directory. It can run code when loaded: name only files you trust."""
    algorithm: Literal["sac", "td3", "ppo"] | None = None
    """What trained it; null takes what `card.json` beside it says."""
    deterministic: bool = True
    """Whether the mean action is taken, or one drawn as in training."""
    goal_steps: int = 100
    """Environment steps after which a goal that was not reached is given up for a new one."""
    weight: float = 1.0
    """Share of the episodes, before the weights are normalised."""
    noise: float | None = None
    """Standard deviation of the correlated noise on its actions; null takes the recording's."""

    def __post_init__(self) -> None:
        check_share(self.weight, self.noise)
        if self.goal_steps < 1:
            raise ValueError(f"goal_steps is {self.goal_steps}, it must be at least 1")


@dataclass(frozen=True)
class ReplayExpert:
    """The actions of a recorded store of the same task: episode e repeats its episode e mod n, start state included."""

    policy: Literal["replay"]
    """What kind of policy this is."""
    path: str
    """Folder of the store, relative to the working directory."""
    weight: float = 1.0
    """Share of the episodes, before the weights are normalised."""
    noise: float | None = None
    """Standard deviation of the correlated noise on its actions; null takes the recording's."""

    def __post_init__(self) -> None:
        check_share(self.weight, self.noise)


ExpertConfig = ScriptedExpert | Sb3Expert | ReplayExpert


@dataclass(frozen=True)
class RecordedStart:
    """Where a replayed episode began."""

    seed: int
    """Seed its task was reset with."""
    state_S: NDArray[np.float32]
    """Its first state."""


@dataclass(frozen=True)
class Performer:
    """A policy that is ready to act in one environment."""

    meta: PolicyMeta
    """What the store remembers of it."""
    begin: Callable[[int], "tuple[Policy, RecordedStart | None]"]
    """Episode number -> a fresh policy for it, and where it begins; None where the task draws the start."""


def check_share(weight: float, noise: float | None) -> None:
    """Raise ValueError unless the weight is positive and the noise, where given, not negative; both finite."""
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight is {weight}: give at least one name with a weight above 0, and leave out the others")
    if noise is not None and not 0 <= noise < float("inf"):
        raise ValueError(f"noise is {noise}, it must be 0 or more")


def parse_policies(entries: Mapping[str, float | dict[str, Any]]) -> dict[str, ExpertConfig]:
    """`{expert: 1.0, weak: {policy: expert, noise: 0.8, weight: 0.5}}` as checked configurations by label.

    A number is the weight of the policy of that name. Raises ValueError naming the entry, and the closest valid key.
    """
    if not entries:
        raise ValueError(f"policies is {dict(entries)}: give at least one name with a weight above 0")
    experts: dict[str, ExpertConfig] = {}
    for label, entry in entries.items():
        data: dict[str, Any] = {"policy": label} | (entry if isinstance(entry, dict) else {"weight": entry})
        kind = EXPERTS.get(str(data["policy"]))
        config: type[ExpertConfig] = kind.config if kind else ScriptedExpert
        try:
            experts[label] = build(config, data, f"policies.{label}")
        except SchemaError as error:
            raise ValueError(str(error)) from error
    return experts


def make_performers(env: "GoalEnv", experts: Mapping[str, ExpertConfig], noise: float, steps: int) -> list[Performer]:
    """Every policy of a recording, ready to act in `env` for episodes of `steps`; `noise` where an entry gives none.

    Raises ValueError or FileNotFoundError, before anything is recorded, for a policy that does not fit the task.
    """
    performers = []
    for label, expert in experts.items():
        std = noise if expert.noise is None else expert.noise
        if isinstance(expert, ScriptedExpert):
            performers.append(_scripted(env, label, expert, std))
        else:
            performers.append(EXPERTS[expert.policy].make(env, label, expert, std, steps))
    return performers


def _scripted(env: "GoalEnv", label: str, expert: ScriptedExpert, noise: float) -> Performer:
    from envs.policies import closest

    name = expert.policy
    if name not in env.policies:
        raise ValueError(
            f"unknown policy {name!r}{closest(name, [*env.policies, *EXPERTS])}; this task's policies are "
            f"{', '.join(env.policies)}, and {' and '.join(EXPERTS)} act in every task; a label of your own needs "
            "`policy: NAME` beside its weight"
        )
    env.make_policy(name, noise)  # what the task refuses, it refuses now
    recorded_as = label if label == name else f"{label} ({name})"
    meta = PolicyMeta(recorded_as, float(expert.weight), noise)
    return Performer(meta, lambda number: (env.make_policy(name, noise), None))


def _sb3(env: "GoalEnv", label: str, expert: Sb3Expert, noise: float, steps: int) -> Performer:
    path = Path(expert.path)
    model = load_sb3(path, expert.algorithm, env)

    def begin(number: int) -> "tuple[Policy, None]":
        policy = Sb3Policy(env, model, expert.deterministic, expert.goal_steps)
        return disturbed(policy, env, noise), None

    name = f"{label} (sb3 {path.name} {fingerprint(path)})"
    return Performer(PolicyMeta(name, float(expert.weight), noise), begin)


def _replay(env: "GoalEnv", label: str, expert: ReplayExpert, noise: float, steps: int) -> Performer:
    store = Store.open(expert.path)
    meta = store.meta
    if tuple(env.state_names) != meta.state_names or len(env.action_names) != meta.action_dim:
        raise ValueError(
            f"policies.{label}: {store.path} has states ({', '.join(meta.state_names)}) and {meta.action_dim} action "
            f"entries, the task has ({', '.join(env.state_names)}) and {len(env.action_names)}: replay a recording of "
            "this task"
        )
    shortest = int(store.episodes["length"].min())
    if shortest < steps:
        raise ValueError(
            f"policies.{label}: {store.path} has an episode of {shortest} steps, too few to replay {steps}: lower "
            f"steps to {shortest} or less"
        )

    def begin(number: int) -> "tuple[Policy, RecordedStart]":
        episode = number % store.num_episodes
        start = RecordedStart(int(store.episodes["seed"][episode]), store.states(episode)[0])
        return disturbed(Replay(store.actions(episode)), env, noise), start

    name = f"{label} (replay {store.path.resolve().name} {fingerprint(store.path / 'meta.json')})"
    return Performer(PolicyMeta(name, float(expert.weight), noise), begin)


@dataclass(frozen=True)
class _Kind:
    config: type[Sb3Expert] | type[ReplayExpert]
    make: Callable[["GoalEnv", str, Any, float, int], Performer]


EXPERTS: Mapping[str, _Kind] = {"sb3": _Kind(Sb3Expert, _sb3), "replay": _Kind(ReplayExpert, _replay)}
"""Policies that every task has, beside its scripted ones."""


def disturbed(policy: "Policy", env: "GoalEnv", noise: float) -> "Policy":
    """The policy with correlated noise of a standard deviation on its actions, or as it is for noise 0."""
    from envs.policies import Noisy

    return Noisy(policy, len(env.action_names), noise, MEMORY) if noise > 0 else policy


def fingerprint(file: Path) -> str:
    """The first 12 digits of a file's sha256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


class Replay:
    """Takes recorded actions (T, a) one after the other, whatever the state."""

    def __init__(self, action_TA: NDArray[np.float32]) -> None:
        self._action_TA = action_TA

    def reset(self, rng: np.random.Generator, state_S: NDArray[np.float64]) -> None:
        """Begin with the first action."""
        self._step = 0

    def act(self, state_S: NDArray[np.float64]) -> NDArray[np.float32]:
        """The next recorded action."""
        self._step += 1
        return self._action_TA[self._step - 1]
