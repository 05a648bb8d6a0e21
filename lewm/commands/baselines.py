"""`lewm train-baseline`: its options and what it does."""

import argparse
from pathlib import Path

from lewm.commands.shared import add_device, add_json

KINDS = ("gcbc", "gcivl", "gciql", "hilp", "inverse", "tdmpc2", "sac", "td3", "ppo")


def add_train_baseline(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm train-baseline`."""
    sub.add_argument("kind", choices=KINDS, help="what is trained")
    sub.add_argument(
        "--checkpoint", type=Path, help="folder that `lewm train` wrote: its encoder is used (offline ones)"
    )
    sub.add_argument(
        "--data",
        type=Path,
        help="store to train on; the checkpoint's held-out episodes stay out. sac, td3 and ppo take only the task and "
        "its settings from it, or from --task and --settings",
    )
    sub.add_argument("--out", type=Path, help="folder of the baseline; a killed training in it is continued")
    sub.add_argument(
        "--steps", type=int, help="optimiser steps; sac, td3, ppo: environment steps (default: the baseline's)"
    )
    sub.add_argument("--keys", action="store_true", help="list the other settings of this baseline and stop")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True)


def train_baseline(args: argparse.Namespace) -> None:
    """Train a policy to compare planners with."""
    from dataclasses import asdict

    from lewm.baselines.trainers import TRAINERS, Job, settings
    from lewm.config import parse_overrides
    from lewm.pipeline import pick_device
    from lewm.schema import SchemaError, field_docs, write_json

    trainer = TRAINERS[args.kind]
    if args.keys:
        for name, text in field_docs(type(trainer.config)).items():
            if name in trainer.fixed:
                continue
            print(f"  --{name:<18} {text} Default {getattr(trainer.config, name)}.")
        raise SystemExit(0)
    changes = parse_overrides(args.overrides) | ({} if args.steps is None else {"steps": args.steps})
    config = settings(args.kind, changes)
    if args.out is None:
        raise SchemaError("command line: --out is missing; add it")
    card = trainer.train(config, Job(args.out, args.checkpoint, args.data, str(pick_device(args.device))))
    if args.json is not None:
        write_json(asdict(card), args.json)
    print(card.summary(args.out))
