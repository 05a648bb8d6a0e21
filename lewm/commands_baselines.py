"""`lewm train-baseline`: its options and what it does."""

import argparse
from pathlib import Path

from lewm.cli_shared import add_device, add_json

KINDS = ("gcbc", "gcivl", "gciql", "hilp", "inverse", "tdmpc2")


def add_train_baseline(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm train-baseline`."""
    sub.add_argument("kind", choices=KINDS, help="what is trained")
    sub.add_argument("--checkpoint", type=Path, help="folder that `lewm train` wrote: its encoder is used, frozen")
    sub.add_argument("--data", type=Path, help="store to train on; the checkpoint's held-out episodes stay out")
    sub.add_argument("--out", type=Path, help="folder of the baseline; a killed training in it is continued")
    sub.add_argument("--steps", type=int, help="optimiser steps (default: the baseline's own)")
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
            print(f"  --{name:<18} {text} Default {getattr(trainer.config, name)}.")
        raise SystemExit(0)
    changes = parse_overrides(args.overrides) | ({} if args.steps is None else {"steps": args.steps})
    config = settings(args.kind, changes)
    if args.out is None:
        raise SchemaError("command line: --out is missing; add it")
    card = trainer.train(config, Job(args.out, args.checkpoint, args.data, str(pick_device(args.device))))
    if args.json is not None:
        write_json(asdict(card), args.json)
    print(
        f"{card.kind}: {card.steps} steps on {card.episodes} episodes, {card.frames} frames, in {card.seconds:.0f} s\n"
        f"baseline {args.out}\n"
        f"evaluate it as the method {{kind: {card.kind}, path: {args.out}}}, with the same checkpoint"
    )
