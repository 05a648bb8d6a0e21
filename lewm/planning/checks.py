"""What a planner and a cost ask for that a checkpoint or an agent may lack, said before the first episode."""

from lewm.checkpoint import Checkpoint
from lewm.planning.costs import CostConfig
from planners import PLANNERS, Planner


def check_planner(planner: Planner, cost: CostConfig) -> None:
    """Raise ValueError for a planner that needs what no agent with this cost can give it."""
    name, plain = type(planner).__name__, ", ".join(key for key, each in PLANNERS.items() if not each.needs)
    if "choices" in planner.needs:
        raise ValueError(f"planner {name} searches discrete actions, and a world model's are continuous: use {plain}")
    if "violation" in planner.needs and cost.max_change is None:
        raise ValueError(
            f"planner {name} keeps limits, and the cost sets none: give CostConfig (in a run, the method's cost) a "
            f"max_change, or use {plain}"
        )
    if "states" in planner.needs and cost.risk is not None:
        raise ValueError(
            f"planner {name} searches over the states of one future, and cost.risk is {cost.risk.kind}, which samples "
            f"several: leave it out, or use {plain}"
        )


def check_cost(cost: CostConfig, checkpoint: Checkpoint) -> None:
    """Raise ValueError for a cost that needs what the checkpoint does not have."""
    if "proprio" in cost.terms and checkpoint.readout is None:
        raise ValueError(f"cost proprio: {checkpoint.path} reads out no state entries; train one with readout.entries")
    if "measured" in cost.terms and not checkpoint.model.facts.proprio:
        raise ValueError(f"cost measured: {checkpoint.path} measures nothing; train a model with model.proprio")
    if "cost_to_go" in cost.terms and checkpoint.cost_to_go is None:
        raise ValueError(f"cost cost_to_go: {checkpoint.path} has no cost-to-go head; use latent_l2 or train one")
    if cost.risk is not None and checkpoint.model.variable is None:
        raise ValueError(
            f"cost.risk is {cost.risk.kind}, but the model of {checkpoint.path} has no latent variable, so every "
            "plan has one future: leave cost.risk out, or train with model.variable"
        )
