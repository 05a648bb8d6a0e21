"""`lewm bench data`: its options, and which of its three measurements they ask for."""

import argparse
from dataclasses import replace

from lewm.commands.shared import add_device, add_json, write_rows


def add_data(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench data`."""
    kind = sub.add_mutually_exclusive_group()
    kind.add_argument("--recording", action="store_true", help="frames per second of recording, by task and renderer")
    kind.add_argument("--memory", action="store_true", help="read a store three times as large as a memory limit")
    sub.add_argument("--sizes", type=int, nargs="+", metavar="N", help="picture sizes in pixels (default 64 224)")
    sub.add_argument("--batch", type=int, metavar="B", help="windows per batch (default 64)")
    sub.add_argument("--rounds", type=int, metavar="N", help="how often the stores take turns (default 5)")
    sub.add_argument("--threads", type=int, default=1, help="torch threads while reading (default 1)")
    sub.add_argument("--tasks", nargs="+", metavar="TASK", help="with --recording: which (default all)")
    sub.add_argument("--processes", type=int, nargs="+", metavar="N", help="with --recording: how many (default 1 2)")
    sub.add_argument("--limit-mb", type=int, metavar="MB", help="with --memory: the limit (default 200)")
    sub.add_argument("--quick", action="store_true", help="small: seconds instead of minutes")
    add_device(sub)
    add_json(sub)


DATA_OPTIONS = {
    "sizes": ("reading", "recording"),
    "batch": ("reading",),
    "rounds": ("reading",),
    "tasks": ("recording",),
    "processes": ("recording",),
    "limit_mb": ("memory",),
}
"""Option of `lewm bench data` -> what it is for."""


def data(args: argparse.Namespace) -> None:
    """Windows per second, recording speed, or memory."""
    kind = "recording" if args.recording else "memory" if args.memory else "reading"
    given = {name: getattr(args, name) for name in DATA_OPTIONS if getattr(args, name) is not None}
    for name in given:
        if kind not in DATA_OPTIONS[name]:
            raise ValueError(f"--{name.replace('_', '-')} does nothing for {kind}; leave it out")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if kind == "recording":
        from lewm.bench import data_recording

        amount = replace(data_recording.QUICK if args.quick else data_recording.FULL, **given)
        recorded = data_recording.bench_recording(amount)
        write_rows(args.json, recorded)
        print(data_recording.table(recorded))
    elif kind == "memory":
        from lewm.bench import data_memory

        read = data_memory.bench_memory(given.get("limit_mb", 64 if args.quick else 200))
        write_rows(args.json, read)
        print(data_memory.table(read))
    else:
        from lewm.bench import data
        from lewm.pipeline import pick_device

        rows = data.bench_data(
            replace(data.QUICK if args.quick else data.FULL, **given), args.threads, pick_device(args.device)
        )
        write_rows(args.json, rows)
        print(data.table(rows))
