"""Small Gymnasium environments that need no other package: what the adapter has to cope with, one oddity each."""

from typing import Any

import gymnasium
import numpy as np


class Cart(gymnasium.Env[Any, Any]):
    """A damped cart on a ring: position in rad, speed; drawn as a bar. Ends every episode outside the right half."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,))
    action_space: gymnasium.Space[Any] = gymnasium.spaces.Box(np.float32([-1.0]), np.float32([3.0]))

    def __init__(self, render_mode: str | None = None, damping: float = 0.9) -> None:
        self.render_mode, self.damping = render_mode, damping

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.angle, self.speed, self.steps = float(self.np_random.uniform(-1.0, 1.0)), 0.0, 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.speed = self.damping * self.speed + 0.02 * float(np.ravel(action)[0])
        self.angle += self.speed
        return self._seen(), 0.0, bool(np.cos(self.angle) < 0.0), False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        image_YXC = np.full((40, 90, 3), 255, np.uint8)
        x = np.arange(90) - 45.0 - 40.0 * np.sin(self.angle)
        image_YXC[10:30] = (255 * np.clip(np.abs(x) / 6.0, 0.0, 1.0)).astype(np.uint8)[None, :, None]
        image_YXC[:10] = 128 if np.cos(self.angle) > 0 else 64
        return image_YXC[:, ::-1]

    def _seen(self) -> np.ndarray:
        return np.array([self.angle, self.speed])


class Choosing(Cart):
    """Three choices, counted from 5."""

    action_space = gymnasium.spaces.Discrete(3, start=5)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.chosen = action
        return super().step(action - 6)


class Hidden(Cart):
    """What a step does depends on how many there were."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.speed += 0.001 * self.steps
        return super().step(action)


class Unseeded(Cart):
    """Starts anywhere, whatever the seed."""

    count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        found = super().reset(seed=seed)
        Unseeded.count += 1
        self.angle += 0.01 * Unseeded.count
        return found


class GloballySeeded(Cart):
    """Draws its start from numpy's global generator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        found = super().reset(seed=seed)
        self.angle = float(np.random.uniform(-1.0, 1.0))  # noqa: NPY002
        return found


class Varied(Cart):
    """Draws its own damping with every start."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        found = super().reset(seed=seed)
        self.damping = float(self.np_random.uniform(0.5, 1.0))
        return found


class ReadOnly(Cart):
    """Has a `state`, but nobody may set it."""

    @property
    def state(self) -> np.ndarray:
        return self._seen()


class Kinds(Cart):
    """Keeps numbers of many types, and moves the first one."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        found = super().reset(seed=seed)
        self.single = np.array([0.25, 0.5], np.float32)
        self.pair, self.cell, self.listed = (0.1, 0.2), 3, [1.0]
        self.deep = type("Deep", (), {"zero": np.array(0.5)})()
        self.text, self.grid = "word", np.zeros((2, 2))
        return found


class Diverging(Cart):
    """Ends in a NaN."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        found = super().step(action)
        self.speed = float("nan") if self.steps > 12 else self.speed
        return found


class Grey(Cart):
    """Draws without colours."""

    def render(self) -> np.ndarray:  # type: ignore[override]
        return super().render()[..., 0]


class Timeless(Cart):
    """Does not say how long a step lasts."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012


class Broken(Cart):
    """Cannot be made."""

    def __init__(self, render_mode: str | None = None) -> None:
        raise AssertionError("no licence")


class Unbounded(Cart):
    """Takes actions of any size."""

    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))


class Several(Cart):
    """Takes several choices at once."""

    action_space = gymnasium.spaces.MultiDiscrete([2, 2])


CLASSES = (
    *(Cart, Choosing, Hidden, Unseeded, GloballySeeded, ReadOnly, Kinds, Diverging, Grey, Timeless, Broken),
    *(Unbounded, Several, Varied),
)
for _made in CLASSES:
    gymnasium.register(f"foreign/{_made.__name__}-v0", _made, max_episode_steps=10)
