"""`lewm plan`: its options and what it does."""

import argparse
from pathlib import Path

from lewm.commands.shared import add_device


def numbers(text: str) -> tuple[float, ...]:
    """`0.2,0.3` as (0.2, 0.3)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.2,0.3") from error


def add_plan(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm plan`."""
    sub.add_argument("--checkpoint", type=Path, required=True, help="folder that `lewm train` wrote")
    sub.add_argument(
        "--goal",
        type=Path,
        required=True,
        nargs="+",
        metavar="PICTURE",
        help="goal picture, colour, as large as the model's frames; or several to be reached in this order",
    )
    sub.add_argument(
        "--subgoal-steps",
        type=int,
        nargs="+",
        metavar="N",
        help="environment steps for each goal picture but the last, multiples of the steps between plans",
    )
    sub.add_argument(
        "--subgoal-reached",
        type=float,
        metavar="DISTANCE",
        help="go on to the next goal picture once the present frame costs this much or less",
    )
    sub.add_argument("--task", help="task to act in (default: the one the model was trained on)")
    sub.add_argument("--start", type=numbers, metavar="X,Y,..", help="start state (default: drawn from --seed)")
    sub.add_argument("--goal-state", type=numbers, metavar="X,Y,..", help="state behind the picture, to score success")
    sub.add_argument("--planner", help="cem, icem, mppi, gradient, ... (default: the agent's choice for the cost)")
    sub.add_argument("--cost", help="cost_to_go, latent_l2, ... (default: cost_to_go where the model has one)")
    sub.add_argument(
        "--proposal",
        choices=["none", "seed", "prior"],
        default="none",
        help="the model's learned first guess: not used, a candidate, or the search's first Gaussian (default none)",
    )
    sub.add_argument(
        "--actions",
        default="{}",
        metavar="YAML",
        help="limits by action entry: bounds (low, high) and spread (std) of the search, entries that keep one value "
        "through a block (held), values executed as zero (dead_zone), such as '{low: [-0.1, -1], high: [0.1, 1], "
        "held: [1], dead_zone: [0, 0.25]}' for an arm's step and a gripper",
    )
    sub.add_argument("--budget", type=int, default=100, help="environment steps (default 100)")
    sub.add_argument("--budget-ms", type=float, metavar="MS", help="most milliseconds per plan; sizes the search")
    sub.add_argument("--seed", type=int, default=0, help="start state and search noise (default 0)")
    sub.add_argument("--out", type=Path, default=Path("runs/plan"), help="folder for episode.mp4 and trace.json")
    add_device(sub)


def plan(args: argparse.Namespace) -> None:
    """Run one episode to a goal image."""
    from lewm.config import parse_overrides
    from lewm.pipeline import pick_device
    from lewm.planning.action_limits import ActionLimits
    from lewm.planning.episode import EpisodeConfig, run_episode
    from lewm.planning.subgoals import SubGoals
    from lewm.schema import build

    limits = parse_overrides(["--actions", args.actions])
    subgoals = None
    if args.subgoal_steps is not None or args.subgoal_reached is not None:
        subgoals = SubGoals(None if args.subgoal_steps is None else tuple(args.subgoal_steps), args.subgoal_reached)
    config = EpisodeConfig(
        checkpoint=args.checkpoint,
        goals=tuple(args.goal),
        subgoals=subgoals,
        task=args.task,
        planner=args.planner,
        cost=args.cost,
        start=args.start,
        goal_state=args.goal_state,
        budget=args.budget,
        seed=args.seed,
        device=str(pick_device(args.device)),
        budget_ms=args.budget_ms,
        proposal=args.proposal,
        actions=build(ActionLimits, limits["actions"], "command line", "actions"),
    )
    print(run_episode(config, args.out))
