"""World-model planning for control: recorded rollouts in, a planner that reaches a goal image out.

agent = lewm.Agent.load("runs/demo/checkpoint")
agent.reset(goal_pixels)
action = agent.act(pixels)
"""

import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("lewm")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0.0.0"

if TYPE_CHECKING:
    from lewm.checkpoint import Checkpoint, load
    from lewm.planning.agent import Agent
    from lewm.planning.costs import CostConfig
    from lewm.world_model import WorldModel

_PUBLIC = {
    "Agent": "lewm.planning.agent",
    "Checkpoint": "lewm.checkpoint",
    "CostConfig": "lewm.planning.costs",
    "WorldModel": "lewm.world_model",
    "load": "lewm.checkpoint",
}
"""Public names and where they live; imported on first use, so that `lewm --help` does not wait for torch."""

__all__ = ["Agent", "Checkpoint", "CostConfig", "WorldModel", "load"]


def _refuse_foreign_neighbours() -> None:
    """`envs` and `planners` are common names: say so when another package of that name hides ours."""
    ours = Path(__file__).resolve().parent.parent
    for name in ("envs", "planners"):
        spec = importlib.util.find_spec(name)
        where = Path(spec.origin).resolve() if spec and spec.origin else None
        if where is None or where.parent.parent != ours:
            raise ImportError(
                f"lewm needs its own package {name!r} from {ours}, but Python finds {where or 'none'}: "
                f"uninstall or rename the other one, or run from another folder"
            )


_refuse_foreign_neighbours()


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'lewm' has no attribute {name!r}")
