"""What every result is measured against. Adding a baseline is one file and one row of `BASELINES`."""

from collections.abc import Callable, Mapping
from typing import Any

from lewm.baselines.oracle import OracleConfig, OraclePolicy
from lewm.baselines.peer import PeerMethod, PeerPolicy
from lewm.baselines.random import RandomConfig, RandomPolicy
from lewm.baselines.replay import ReplayConfig, ReplayPolicy
from lewm.baselines.sb3 import Sb3Method, Sb3MethodPolicy
from lewm.baselines.zero import ZeroConfig, ZeroPolicy
from lewm.planning.policy import Policy

BaselineConfig = RandomConfig | OracleConfig | ReplayConfig | ZeroConfig | Sb3Method | PeerMethod

BASELINES: Mapping[str, Callable[[Any, int], Policy]] = {
    "random": RandomPolicy,
    "oracle": OraclePolicy,
    "replay": ReplayPolicy,
    "zero": ZeroPolicy,
    "sb3": Sb3MethodPolicy,
    "peer": PeerPolicy,
}
"""Kind of method to (config, seed) -> policy."""
