"""Options that several commands share."""

import argparse
from pathlib import Path


def add_run(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """The configuration argument; overrides such as --train.steps 500 may follow it."""
    parser.add_argument(
        "config",
        nargs="?" if optional else None,
        default="two_room" if optional else None,
        help="a YAML file or the name of a shipped run (two_room, reacher, ...)"
        + (", default two_room" if optional else ""),
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved run and stop")
    parser.add_argument("--keys", action="store_true", help="list every key that can be overridden and stop")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where torch computes."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto: CUDA where there is one)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """A copy of what was measured."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
