"""`lewm train-expert`: its options and what it does."""

import argparse
from pathlib import Path

from lewm.commands.data import mapping

ALGORITHMS = ("sac", "td3", "ppo")


def add_train_expert(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm train-expert`."""
    sub.add_argument("task", help="task name, or gym: and a Gymnasium id")
    sub.add_argument("--out", type=Path, required=True, help="folder for policy.zip and card.json; continued if there")
    sub.add_argument("--settings", type=mapping, default={}, metavar="YAML", help="of the task, as '{door_y: 0.5}'")
    sub.add_argument("--algorithm", choices=ALGORITHMS, default="sac", help="of stable-baselines3 (default sac)")
    sub.add_argument("--steps", type=int, default=20_000, help="environment steps (default 20000); more trains on")
    sub.add_argument(
        "--her",
        action=argparse.BooleanOptionalAction,
        help="learn from goals reached later as well (default for sac, td3)",
    )
    sub.add_argument(
        "--reward", choices=["sparse", "dense"], help="0 at the goal else -1 (default with her), or -distance"
    )
    sub.add_argument("--episode-steps", type=int, default=100, metavar="N", help="steps per episode (default 100)")
    sub.add_argument("--checkpoint-every", type=int, default=5_000, metavar="N", help="steps a kill loses at most")
    sub.add_argument("--evaluations", type=int, default=100, metavar="N", help="episodes success is measured on (100)")
    sub.add_argument("--seed", type=int, default=0, help="seed (default 0)")


def train_expert(args: argparse.Namespace) -> None:
    """Train a policy on states for `lewm collect` to record."""
    from lewm.evaluate.statistics import wilson
    from lewm.sb3.config import Sb3Config
    from lewm.sb3.train import train_sb3

    given = {name: getattr(args, name) for name in Sb3Config.__dataclass_fields__ if hasattr(args, name)}
    card = train_sb3(Sb3Config(**given), args.out)
    low, high = wilson(card.successes, card.episodes)
    print(
        f"success {card.successes}/{card.episodes} = {100 * card.success:.0f} % "
        f"[{100 * low:.0f}, {100 * high:.0f}] within {card.config.episode_steps} steps, random starts and goals\n"
        f"trained {card.steps} steps in {card.wall_s:.0f} s\n"
        f"policy  {args.out / 'policy.zip'}\n"
        f"record it with --collect.policies '{{trained: {{policy: sb3, path: {args.out / 'policy.zip'}}}}}'"
    )
