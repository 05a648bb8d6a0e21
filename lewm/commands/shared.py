"""What several commands share: options, the run they work on, rows for a file."""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

Parser = Callable[[argparse.ArgumentParser], None]
Row = tuple[Callable[[argparse.Namespace], None], Parser, str, str]
"""What runs, its options, one line of help, and what it does."""


def add_whats(parser: argparse.ArgumentParser, rows: Iterable[Row]) -> None:
    """The rows as sub-commands, by the names of their functions; `run_what` runs the one that was chosen."""
    whats = parser.add_subparsers(dest="what", metavar="what", required=True)
    for handler, add_options, text, detail in rows:
        each = whats.add_parser(handler.__name__, help=text, description=detail)
        each.set_defaults(what_runs=handler)
        add_options(each)


def run_what(args: argparse.Namespace) -> None:
    """Run the row that `add_whats` put on the command line."""
    args.what_runs(args)


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


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_run(args: argparse.Namespace) -> Any:
    """The run a command works on; prints it and exits for --print-config and --keys."""
    from lewm import config
    from lewm.schema import SchemaError

    if args.keys:
        print(config.help_text())
        raise SystemExit(0)
    run = config.load(args.config, args.overrides)
    if getattr(args, "seed", None) is not None:
        run = config.with_seed(run, args.seed)
    if args.print_config:
        print(config.dump(run), end="")
        raise SystemExit(0)
    for name in args.needs:
        if getattr(args, name) is None:
            raise SchemaError(f"command line: --{name} is missing; add it")
    return run


def write_rows(path: Path | None, rows: Sequence[Any]) -> None:
    """Write measured rows where the user asked for them."""
    from lewm.schema import write_json

    if path is not None:
        write_json([asdict(row) for row in rows], path)
