"""The contract of a goal-image task: a Gymnasium environment whose state can be read, set, drawn and simulated."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.picture_factors import PICTURE_FACTORS, Finish
from envs.policies import Policy
from envs.variation import Colour, Factor, How, Value, check_how, check_values, choose

RENDERERS = ("painter", "camera")
MIN_SIZE, MAX_SIZE = 32, 512
RESET_OPTIONS = ("state", "goal_state", "variation")


class GoalEnv(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """A task whose observation is a picture and whose goal is the picture of another state.

    Observations are uint8 pixels (Y, X, 3), or (Y, X, 3 V) with V cameras; actions are float32 in [-1, 1]^a. The reward
    of a step is 1 when the state after it satisfies the goal, else 0, and no episode ends by itself. `render`,
    `goal_image`, `distance`, `is_success` and `simulate` are pure functions of the states they are given: none of them
    disturbs the environment.

    Shapes: S state entries, A action entries (one env step), N sequences, T env steps, Y X pixels.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's contract)
    state_names: ClassVar[tuple[str, ...]]
    """Names of the entries of a state vector."""
    angle_names: ClassVar[tuple[str, ...]] = ()
    """Which entries are angles, in radians, wrapped to [-pi, pi)."""
    action_names: ClassVar[tuple[str, ...]]
    """Names of the entries of an action."""
    policies: ClassVar[tuple[str, ...]]
    """Names that `make_policy` knows."""
    control_dt: ClassVar[float]
    """Seconds per env step."""
    success_distance: ClassVar[float]
    """A state satisfies a goal when their `distance` is smaller than this."""
    success_turn: ClassVar[float | None] = None
    """Where `distance` leaves an orientation out: how far off it may be, in rad, for those who count it too."""
    action_space: gymnasium.spaces.Box  # type: ignore[assignment]  # Gymnasium says Space[ActType], which has no bounds
    cameras: tuple[str, ...] = ("main",)
    """Names of the cameras; the pictures of several follow each other in the channels."""
    home_state: ClassVar[tuple[float, ...]]
    """The state before the first reset, and the one whose picture is the renderer's fingerprint."""
    factors: ClassVar[Mapping[str, Factor]] = PICTURE_FACTORS
    """What `vary` can change: the rows every task has, and the task's own."""

    def __init__(
        self,
        size: int = 64,
        renderer: Literal["painter", "camera"] = "painter",
        render_mode: Literal["rgb_array"] | None = "rgb_array",
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f"size is {size!r}, but must be an int from {MIN_SIZE} to {MAX_SIZE} (pixels per side).")
        if renderer not in RENDERERS:
            raise ValueError(f"renderer is {renderer!r}, but must be one of {', '.join(RENDERERS)}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}, but only 'rgb_array' exists: leave it out.")
        self.size = int(size)
        self.renderer = renderer
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (self.size, self.size, 3 * len(self.cameras)), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(self.action_names),), np.float32)
        self._goal_S: NDArray[np.float64] | None = None
        self._variation: dict[str, Value] = {}
        self._values = {name: factor.default for name, factor in self.factors.items()}
        self._finish: Finish | None = None
        self._each_reset: How | None = None

    # What a task supplies ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the true state (S,)."""
        raise NotImplementedError

    def set_state(self, state_S: ArrayLike) -> None:
        """Put the environment into a state. Raises ValueError for a wrong shape, a NaN or a state that cannot be."""
        raise NotImplementedError

    def advance(self, action_A: ArrayLike) -> None:
        """One step of physics without a picture; the action is clipped to the space."""
        raise NotImplementedError

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> NDArray[np.float64]:
        """The task's true distance between states; leading axes broadcast."""
        raise NotImplementedError

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> NDArray[np.float64]:
        """True dynamics: the states (N, T, S) after each of T env steps of N action sequences from one state."""
        raise NotImplementedError

    def make_policy(self, name: str, noise: float) -> Policy:
        """A scripted policy; `noise` is the standard deviation of the time-correlated disturbance on its actions."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make` needs, beside the task's name, to build this environment again."""
        return {"size": self.size, "renderer": self.renderer} | self._variation_setting()

    def _check_inside(self, state_S: NDArray[np.float64]) -> NDArray[np.float64]:
        """The state in canonical form (angles wrapped); raises ValueError when the task has no such state."""
        raise NotImplementedError

    def _draw_state(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random state to start from or to go to."""
        raise NotImplementedError

    def _picture(self, state_S: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) of a checked state."""
        raise NotImplementedError

    def _apply_variation(self) -> None:
        """Take on the values that `_number` and `_colour` give now; `render` does the shared picture factors."""

    # What every task shares -------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode from `options["state"]` to `options["goal_state"]`; what is not given is drawn at random.

        A drawn goal is never satisfied by the start. `options["variation"]` chooses the world: "default", "usual",
        "shifted", or a mapping from factors to values, "usual" or "shifted". It is drawn after start and goal, so these
        are the same in every world. Without it the world stays as it is.
        """
        options = options or {}
        for name in options:
            if name not in RESET_OPTIONS:
                raise ValueError(f"reset has no option {name!r}; the options are {', '.join(RESET_OPTIONS)}.")
        start_S = None if options.get("state") is None else self.check_state(options["state"])
        goal_S = None if options.get("goal_state") is None else self.check_state(options["goal_state"])
        how = options.get("variation", self._each_reset)
        if how is not None:
            check_how(self.factors, how)
        super().reset(seed=seed)
        if start_S is None:
            start_S = self._draw_state(self.np_random)
        while goal_S is None or (options.get("goal_state") is None and self.is_success(start_S, goal_S)):
            goal_S = self._draw_state(self.np_random)
        self._goal_S = goal_S
        if how is not None:
            self.vary(choose(self.factors, how, self.np_random))
        self.set_state(start_S)
        return self.render(), self._info()

    def vary(self, values: Mapping[str, object]) -> None:
        """Set the named factors, and all others to their default; the state stays.

        Pictures, `goal_image` and `simulate` included, are of this world from now on. Raises ValueError for an unknown
        factor, naming the closest one, and for a value that is not allowed.
        """
        before = self._variation
        self._set_variation(check_values(self.factors, values))
        try:
            self._apply_variation()
        except ValueError:
            self._set_variation(before)
            self._apply_variation()
            raise

    def vary_each_reset(self, how: How) -> None:
        """Choose the world so in every `reset` that does not say otherwise; becomes part of `settings`."""
        if not self.factors:
            raise ValueError(f"variation is {how!r}, but this task has no factors of variation: leave it out.")
        check_how(self.factors, how)
        self._each_reset = how

    @property
    def variation(self) -> dict[str, Value]:
        """The factors that are not at their default; `vary(env.variation)` makes another environment the same."""
        return dict(self._variation)

    def step(self, action: ArrayLike) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Advance by `control_dt` and look: (pixels, reward 0 or 1, False, False, info)."""
        if self._goal_S is None:
            raise RuntimeError("step needs a goal, and there is none yet: call reset() first.")
        self.advance(action)
        info = self._info()
        return self.render(), float(info["is_success"]), False, False, info

    def render(self) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) of the present state, contiguous and owned by the caller."""
        return self._finished(self._picture(self.state))

    def goal_image(self, state_S: ArrayLike) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) of another state, as `render` would show it."""
        return self._finished(self._picture(self.check_state(state_S)))

    def is_success(self, state_S: ArrayLike, goal_S: ArrayLike) -> NDArray[np.bool_]:
        """Whether a state satisfies a goal; leading axes broadcast."""
        return np.asarray(self.distance(state_S, goal_S) < self.success_distance)

    def turn(self, state_S: ArrayLike, goal_S: ArrayLike) -> NDArray[np.float64]:
        """The angle, in rad, between orientations that `distance` leaves out; 0 where it leaves out none."""
        return np.zeros(np.broadcast_shapes(self.as_states(state_S).shape[:-1], self.as_states(goal_S).shape[:-1]))

    def region(self, state_S: ArrayLike) -> NDArray[np.int64]:
        """Which part of the task a state is in, such as a room; one region unless the task has more."""
        return np.zeros(self.as_states(state_S).shape[:-1], np.int64)

    def renderer_fingerprint(self) -> str:
        """A sha256 that changes when the renderer would draw the home state differently."""
        pixels_YXC = self.goal_image(self.home_state)
        return hashlib.sha256(self._renderer_name().encode() + pixels_YXC.tobytes()).hexdigest()

    def check_state(self, state_S: ArrayLike) -> NDArray[np.float64]:
        """A float64 copy of one state in canonical form; raises ValueError for shape, NaN or an impossible state."""
        state = np.array(state_S, dtype=np.float64)
        if state.shape != (len(self.state_names),):
            raise ValueError(
                f"a state has shape {state.shape}, but must be ({len(self.state_names)},): "
                f"{', '.join(self.state_names)}."
            )
        if not np.isfinite(state).all():
            raise ValueError(f"a state is {state.tolist()}, but every entry must be finite.")
        return self._check_inside(state)

    def as_states(self, state_S: ArrayLike) -> NDArray[np.float64]:
        """States with any leading axes as float64; raises ValueError unless the last axis holds the state's entries."""
        states = np.asarray(state_S, dtype=np.float64)
        if states.ndim == 0 or states.shape[-1] != len(self.state_names):
            raise ValueError(
                f"states have shape {states.shape}, but the last axis must hold {len(self.state_names)} entries: "
                f"{', '.join(self.state_names)}."
            )
        return states

    def check_actions(self, action: ArrayLike, axes: Sequence[str]) -> NDArray[np.float64]:
        """Actions clipped to the space; raises ValueError unless they have the named leading axes and are finite."""
        actions = np.asarray(action, dtype=np.float64)
        width = len(self.action_names)
        if actions.ndim != len(axes) + 1 or actions.shape[-1] != width:
            wanted = "".join(f"{axis}, " for axis in axes) + f"{width}{'' if axes else ','}"
            raise ValueError(
                f"an action has shape {actions.shape}, but must be ({wanted}): {', '.join(self.action_names)}."
            )
        if not np.isfinite(actions).all():
            raise ValueError("an action has a NaN or infinite entry, but must be finite (it is clipped afterwards).")
        return np.minimum(np.maximum(actions, -1.0), 1.0)

    def _renderer_name(self) -> str:
        return self.renderer

    def _number(self, name: str) -> float:
        """The present value of a factor that is a number."""
        value = self._values[name]
        assert not isinstance(value, tuple)
        return float(value)

    def _colour(self, name: str) -> Colour:
        """The present value of a factor that is a colour."""
        value = self._values[name]
        assert isinstance(value, tuple)
        red, green, blue = value
        return int(red), int(green), int(blue)

    def _set_variation(self, values: dict[str, Value]) -> None:
        self._variation = values
        self._values = {name: factor.default for name, factor in self.factors.items()} | values
        floor = self._colour("floor") if "texture" in values else None
        finished = "texture" in values or any(name in values for name in PICTURE_FACTORS)
        self._finish = Finish(self._values, self.size, floor) if finished else None

    def _finished(self, image_YXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image_YXC if self._finish is None else self._finish(image_YXC)

    def _variation_setting(self) -> dict[str, Any]:
        return {} if self._each_reset is None else {"variation": self._each_reset}

    def _info(self) -> dict[str, Any]:
        assert self._goal_S is not None
        state_S = self.state
        return {
            "state": state_S,
            "goal_state": self._goal_S.copy(),
            "is_success": bool(self.is_success(state_S, self._goal_S)),
            "variation": self.variation,
        }


def wrap_angle(angle: ArrayLike) -> NDArray[np.float64]:
    """The angle in [-pi, pi), bit for bit unchanged when it is there already."""
    angle = np.asarray(angle, np.float64)
    return np.asarray(angle - 2 * np.pi * np.floor((angle + np.pi) / (2 * np.pi)))
