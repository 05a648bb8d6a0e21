"""Environments known by name: which attributes hold their state, and what counts as reaching a goal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

SCATTER = 50

Rule = dict[str, Any]
"""One part of a success rule as plain data: {"entries": [...], "tolerance": 0.05, "norm": "max" or "euclidean"}."""


@dataclass(frozen=True)
class Attributes:
    """Where an environment without a MuJoCo model keeps its state."""

    attributes: tuple[str, ...]
    """Dotted names below `env.unwrapped`, in the order of writing; each holds a number or a flat array of numbers."""
    names: tuple[str, ...] = ()
    """Names of the entries; left out, they are the attributes' own, numbered where one holds several."""
    angles: tuple[str, ...] = ()
    """Entries that are angles in rad: they are wrapped to [-pi, pi)."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Attributes put back to these values before every step and picture, such as counters and the last action drawn."""

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "attributes": list(self.attributes),
            "names": list(self.names),
            "angles": list(self.angles),
            "constants": dict(self.constants),
        }


@dataclass(frozen=True)
class Known:
    """What is known of one environment, or of a family."""

    success: dict[str, tuple[Rule, ...]]
    """Name of a rule -> its parts, all of which must hold; the first rule is the default."""
    state: Attributes | None = None
    """None for a MuJoCo model."""
    control_dt: float | None = None
    """Seconds per step, where neither a MuJoCo model nor `render_fps` says it."""
    hide: tuple[str, ...] = ()
    """Its own target: bodies, geoms and sites of the MuJoCo model that are not drawn."""
    scatter: int = SCATTER
    """Random steps after its own reset by which a drawn state is scattered at most."""


def within(tolerance: float, *entries: str, norm: str = "max") -> Rule:
    """One part of a rule."""
    return {"entries": list(entries), "tolerance": tolerance, "norm": norm}


def near(tolerance: float, *entries: str) -> Rule:
    """One part of a rule: Euclidean."""
    return within(tolerance, *entries, norm="euclidean")


KNOWN: dict[str, Known] = {
    "Reacher-v*": Known({"joints": (within(0.05, "qpos:joint0", "qpos:joint1"),)}, hide=("target",)),
    "Pusher-v*": Known({"object": (near(0.05, "qpos:obj_slidex", "qpos:obj_slidey"),)}, hide=("goal",)),
    "PointMaze_*": Known({"position": (near(0.45, "qpos:ball_x", "qpos:ball_y"),)}, hide=("target",)),
    "AntMaze_*": Known({"position": (near(0.45, "qpos:root:x", "qpos:root:y"),)}, hide=("target",)),
    "pointmaze-*": Known({"position": (near(1.0, "qpos:ballx", "qpos:bally"),)}, hide=("target",)),
    "antmaze-*": Known({"position": (near(0.5, "qpos:root:x", "qpos:root:y"),)}, hide=("target",)),
    "dm_control/reacher-*": Known({"joints": (within(0.05, "qpos:shoulder", "qpos:wrist"),)}, hide=("target",)),
    "CartPole-v*": Known(
        {"pose": (within(0.1, "position"), within(0.05, "angle"))},
        Attributes(
            ("state",),
            ("position", "velocity", "angle", "angular_velocity"),
            angles=("angle",),
            constants={"steps_beyond_terminated": None},
        ),
        control_dt=0.02,
        scatter=15,  # the pole falls
    ),
    "Pendulum-v*": Known(
        {"angle": (within(0.1, "angle"),)},
        Attributes(("state",), ("angle", "angular_velocity"), angles=("angle",), constants={"last_u": None}),
        control_dt=0.05,
    ),
    "MountainCar*-v*": Known(
        {"position": (within(0.05, "position"),)},
        Attributes(("state",), ("position", "velocity")),
    ),
    "Acrobot-v*": Known(
        {"pose": (within(0.1, "angle1", "angle2"),)},
        Attributes(("state",), ("angle1", "angle2", "velocity1", "velocity2"), angles=("angle1", "angle2")),
        control_dt=0.2,
    ),
    "gym_pusht/PushT-v*": Known(
        {
            "pose": (
                near(20.0, "agent_x", "agent_y", "block_x", "block_y"),
                within(math.pi / 9, "block_angle"),
            )
        },
        Attributes(
            (
                "agent.position",
                "agent.velocity",
                "block.angle",  # before the position: turning moves a block whose centre of mass is off its origin
                "block.position",
                "block.velocity",
                "block.angular_velocity",
            ),
            (
                *("agent_x", "agent_y", "agent_vx", "agent_vy"),
                *("block_angle", "block_x", "block_y", "block_vx", "block_vy", "block_spin"),
            ),
            angles=("block_angle",),
            constants={"_last_action": None},
        ),
    ),
    "swm/TwoRoom-v*": Known(
        {"position": (near(16.0, "x", "y"),)},
        Attributes(("agent_position",), ("x", "y")),
    ),
}
"""Pattern of ids -> what is known. Rules are the literature's where their quantities are state entries."""


def known(id: str) -> Known | None:
    """The row of an id, with or without the module in front of it."""
    name = id.rsplit(":", 1)[-1]
    return next((row for pattern, row in KNOWN.items() if fnmatchcase(name, pattern)), None)
