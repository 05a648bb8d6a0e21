"""`lewm bench`: one row of `BENCHES` per benchmark, its options and what it does."""

import argparse
from collections.abc import Callable
from pathlib import Path

from lewm.cli_shared import add_device, add_json, add_run
from lewm.commands import load_run, write_rows


def add_plan(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench plan`."""
    sub.add_argument("--checkpoint", type=Path, help="a trained model")
    sub.add_argument("--config", default="two_room", help="without a checkpoint: fresh weights of this run's model")
    sub.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    sub.add_argument("--plans", type=int, default=30, help="plans per row after warm-up (default 30)")
    add_device(sub)
    add_json(sub)


def plan(args: argparse.Namespace) -> None:
    """Milliseconds per plan."""
    from lewm.bench.plan import bench_plan, table

    rows = bench_plan(args.checkpoint, args.config, args.threads, args.plans, args.device)
    write_rows(args.json, rows)
    print(table(rows))


def add_objectives(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench objectives`."""
    sub.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    sub.add_argument("--repeats", type=int, default=7, help="timed steps per row (default 7)")
    sub.add_argument("--quick", action="store_true", help="small sizes only: seconds instead of about two minutes")
    add_device(sub)
    add_json(sub)


def objectives(args: argparse.Namespace) -> None:
    """Time and memory of every objective."""
    from lewm.bench import objectives
    from lewm.pipeline import pick_device

    grid = objectives.QUICK if args.quick else objectives.FULL
    rows = objectives.bench_objectives(grid, args.threads, args.repeats, pick_device(args.device))
    write_rows(args.json, rows)
    print(objectives.table(rows))


def add_front(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench front`."""
    add_run(sub)
    sub.add_argument("--checkpoint", type=Path, help="folder that `lewm train` wrote")
    sub.add_argument("--manifest", type=Path, nargs="+", help="start and goal pairs, as `lewm evaluate` saved them")
    sub.add_argument("--out", type=Path, help="folder for the outcomes; a killed run is continued")
    sub.add_argument("--planners", nargs="+", help="planners to run (default: all that need nothing special)")
    sub.add_argument("--plot", type=Path, metavar="PNG", help="picture to write (default OUT/front.png)")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True, needs=("checkpoint", "manifest", "out"))


def front(args: argparse.Namespace) -> None:
    """Success against milliseconds."""
    run = load_run(args)
    from lewm.bench import front
    from lewm.checkpoint import load
    from lewm.evaluate.manifest import load_manifest
    from lewm.pipeline import pick_device

    checkpoint = load(args.checkpoint, str(pick_device(args.device)))
    manifests = [load_manifest(path) for path in args.manifest]
    rows = front.bench_front(run, manifests, checkpoint, args.out, args.planners or front.continuous_planners())
    write_rows(args.json, rows)
    front.plot_front(rows, args.plot or args.out / "front.png")
    print(f"{front.front_table(rows)}\n\nplot {args.plot or args.out / 'front.png'}")


BENCHES: tuple[
    tuple[Callable[[argparse.Namespace], None], Callable[[argparse.ArgumentParser], None], str, str], ...
] = (
    (
        plan,
        add_plan,
        "milliseconds per plan",
        "Milliseconds per plan over planners, budgets and batch sizes, for a checkpoint or for fresh weights of a run.",
    ),
    (
        objectives,
        add_objectives,
        "time and memory of every objective",
        "Forward and backward milliseconds and peak memory of every objective on random latents, as the batch, the "
        "latent width and the slices grow; SIGReg beside its formula written out.",
    ),
    (
        front,
        add_front,
        "success against milliseconds",
        "Every planner with each cost of a run over a ladder of budgets, on saved start and goal pairs, beside CEM 300 "
        "x 30 x 5 with latent L2 as the literature runs it. Takes tens of minutes; a killed run is continued.",
    ),
)
"""What runs, its options, one line of help, and what it does."""


def add_bench(sub: argparse.ArgumentParser) -> None:
    """The benchmarks as sub-commands."""
    whats = sub.add_subparsers(dest="what", metavar="what", required=True)
    for handler, add_options, text, detail in BENCHES:
        each = whats.add_parser(handler.__name__, help=text, description=detail)
        each.set_defaults(bench=handler)
        add_options(each)


def bench(args: argparse.Namespace) -> None:
    """Run the chosen benchmark."""
    args.bench(args)
