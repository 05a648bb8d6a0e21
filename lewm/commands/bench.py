"""`lewm bench`: one row of `BENCHES` per benchmark, its options and what it does."""

import argparse
import os
import sys
from pathlib import Path

from lewm.commands import bench_data
from lewm.commands.shared import Row, add_device, add_json, add_run, add_whats, load_run, run_what, write_rows


def add_plan(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench plan`."""
    sub.add_argument("--checkpoint", type=Path, help="a trained model")
    sub.add_argument("--config", default="two_room", help="without a checkpoint: fresh weights of this run's model")
    sub.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    sub.add_argument(
        "--plans",
        type=int,
        help="plans per row after warm-up (default 30; with --peer 3, with --scaling 10, with --model 5); the plain "
        "table begins no plan after 3 s of a row, unless it has fewer than three",
    )
    sub.add_argument("--planners", nargs="+", metavar="NAME", help="searches of the table (default: all)")
    sub.add_argument(
        "--batches", nargs="+", type=int, metavar="B", help="problems planned for together (default 1 10 50)"
    )
    kind = sub.add_mutually_exclusive_group()
    kind.add_argument("--peer", action="store_true", help="compare with stable-worldmodel, in a process of its own")
    kind.add_argument("--breakdown", action="store_true", help="where the time of a plan goes, part by part")
    kind.add_argument(
        "--scaling", action="store_true", help="as candidates, horizon, problems and tokens grow, with fresh weights"
    )
    kind.add_argument(
        "--model",
        metavar="NAME",
        help="a predictor of token grids with fresh weights (ac, dino_wm, rotary), each frame visited once beside the "
        "loop that runs the history again at each step",
    )
    sub.add_argument(
        "--tokens", type=int, metavar="K", help="with --model: tokens per frame, a square number (default 64)"
    )
    sub.add_argument("--plot", type=Path, metavar="PNG", help="with --scaling: picture to write")
    sub.add_argument(
        "--peer-python",
        type=Path,
        default=Path(sys.executable),
        metavar="PATH",
        help="interpreter that has stable-worldmodel and transformers (default this one)",
    )
    sub.add_argument(
        "--sizes",
        nargs="+",
        default=["1x10", "1x30", "50x1"],
        metavar="BxI",
        help="with --peer: problems x iterations of every row (default 1x10 1x30 50x1; published are 10 and 30)",
    )
    sub.add_argument("--compile", action="store_true", help="with --peer: our rollout compiled too (a minute each)")
    add_device(sub)
    add_json(sub)


def plan(args: argparse.Namespace) -> None:
    """Milliseconds per plan."""
    if args.plot is not None and not args.scaling:
        raise ValueError(f"--plot {args.plot}: only --scaling draws a picture; add it, or leave --plot out")
    if args.compile and not args.peer:
        raise ValueError("--compile is for --peer: add it, or leave --compile out")
    if args.tokens is not None and args.model is None:
        raise ValueError(f"--tokens {args.tokens} is for --model: add it, or leave --tokens out")
    for name in ("planners", "batches"):
        if getattr(args, name) is not None and (args.model or args.peer or args.breakdown or args.scaling):
            raise ValueError(f"--{name} is for the plain table; leave it out")
    if args.model is not None:
        token_plan(args)
        return
    if args.peer:
        peer_plan(args)
        return
    if args.breakdown:
        breakdown_plan(args)
        return
    if args.scaling:
        scaling_plan(args)
        return
    from lewm.bench.plan import bench_plan, table

    plans = 30 if args.plans is None else args.plans
    rows = bench_plan(args.checkpoint, args.config, args.threads, plans, args.device, args.planners, args.batches)
    write_rows(args.json, rows)
    print(table(rows))


def token_plan(args: argparse.Namespace) -> None:
    """Milliseconds per plan on a grid of tokens, cached and plain."""
    if args.checkpoint is not None:
        raise ValueError("--model plans with fresh weights; leave --checkpoint out")
    from lewm.bench import token_grids

    tokens, plans = 64 if args.tokens is None else args.tokens, 5 if args.plans is None else args.plans
    rows = token_grids.bench_token_grids(args.model, tokens, args.threads, plans, args.device)
    write_rows(args.json, rows)
    print(token_grids.table(rows))


def peer_plan(args: argparse.Namespace) -> None:
    """Milliseconds per plan beside a peer."""
    if args.checkpoint is not None:
        raise ValueError("--peer compares on LeWM's own architecture with random weights; leave --checkpoint out")
    from lewm.bench import peer_plan
    from lewm.pipeline import pick_device

    sizes = [peer_plan.parse_size(text) for text in args.sizes]
    plans, device = 3 if args.plans is None else args.plans, str(pick_device(args.device))
    rows = peer_plan.bench_peer(args.peer_python, sizes, args.threads, plans, device, args.compile)
    write_rows(args.json, rows)
    print(peer_plan.table(rows))


def breakdown_plan(args: argparse.Namespace) -> None:
    """Milliseconds of every part of a plan."""
    from lewm.bench import breakdown

    plans = 30 if args.plans is None else args.plans
    rows = breakdown.bench_breakdown(args.checkpoint, args.config, args.threads, plans, args.device)
    write_rows(args.json, rows)
    print(breakdown.table(rows))


def scaling_plan(args: argparse.Namespace) -> None:
    """Milliseconds per plan as it grows."""
    if args.checkpoint is not None:
        raise ValueError("--scaling changes the predictor, so it plans with fresh weights; leave --checkpoint out")
    from lewm.bench import scaling

    rows = scaling.bench_scaling(args.config, args.threads, 10 if args.plans is None else args.plans, args.device)
    write_rows(args.json, rows)
    print(scaling.table(rows))
    if args.plot is not None:
        scaling.plot_scaling(rows, args.plot)
        print(f"\nplot {args.plot}")


def add_train(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench train`."""
    sub.add_argument("--config", help="one run (default: two_room, and two_room_gpu at 4 clips per step)")
    sub.add_argument("--data", type=Path, metavar="STORE", help="recordings of that run (default: a few made for it)")
    sub.add_argument("--batch", type=int, help="with --config: clips per step (default the run's)")
    sub.add_argument("--steps", type=int, help="with --config: timed steps per round (default 15)")
    sub.add_argument("--rounds", type=int, default=3, help="how often ours and the others take turns (default 3)")
    sub.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="processes of the plain loader (default 4, or as many as there are cores)",
    )
    sub.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    add_device(sub)
    add_json(sub)


def train(args: argparse.Namespace) -> None:
    """Time and memory of a training step."""
    for name in ("data", "batch", "steps"):
        if args.config is None and getattr(args, name) is not None:
            raise ValueError(f"--{name} {getattr(args, name)} belongs to one run; name it with --config")
    from lewm.bench import train
    from lewm.pipeline import pick_device

    given = {name: value for name in ("batch", "steps") if (value := getattr(args, name)) is not None}
    cases = train.CASES if args.config is None else (train.Case(args.config, **given),)
    device = pick_device(args.device)
    rows = train.bench_train(cases, args.data, args.threads, args.workers, args.rounds, device)
    write_rows(args.json, rows)
    print(train.table(rows))


def add_control(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench control`."""
    sub.add_argument("--checkpoint", type=Path, required=True, help="a trained model")
    sub.add_argument("--threads", type=int, nargs="+", default=[1], help="torch threads, one or several (default 1)")
    sub.add_argument("--plans", type=int, default=50, help="plans per row after warm-up (default 50)")
    sub.add_argument("--rate", type=float, default=100.0, help="steps per second while executing (default 100)")
    add_device(sub)
    add_json(sub)


def control(args: argparse.Namespace) -> None:
    """Steps per second."""
    from lewm.bench.control_rate import bench_control, table

    rows = bench_control(args.checkpoint, args.threads, args.plans, args.rate, args.device)
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
    from lewm.bench.sized import continuous_planners
    from lewm.checkpoint import load
    from lewm.evaluate.manifest import load_manifest
    from lewm.pipeline import pick_device

    checkpoint = load(args.checkpoint, str(pick_device(args.device)))
    manifests = [load_manifest(path) for path in args.manifest]
    rows = front.bench_front(run, manifests, checkpoint, args.out, args.planners or continuous_planners())
    write_rows(args.json, rows)
    front.plot_front(rows, args.plot or args.out / "front.png")
    (args.out / "front.md").write_text(front.front_markdown(rows) + "\n")
    print(f"{front.front_table(rows)}\n\nplot {args.plot or args.out / 'front.png'}\ntable {args.out / 'front.md'}")


def add_door(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench door`."""
    sub.add_argument("--checkpoint", type=Path, required=True, help="folder that `lewm train door` wrote")
    sub.add_argument("--data", type=Path, required=True, help="the recordings it was trained on")
    sub.add_argument("--steps", type=int, default=2000, help="optimiser steps per predictor (default 2000)")
    sub.add_argument("--seed", type=int, default=0, help="of initial weights and data order (default 0)")
    add_json(sub)


def door(args: argparse.Namespace) -> None:
    """What a latent variable is worth."""
    from lewm.bench.door import measure, table

    rows = measure(args.checkpoint, args.data, args.steps, args.seed)
    write_rows(args.json, rows)
    print(table(rows))


def add_budget(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm bench budget`."""
    add_run(sub)
    sub.add_argument("--data", type=Path, metavar="STORE", help="recordings of that run (default: recorded into OUT)")
    sub.add_argument("--out", type=Path, help="folder of all trainings; a killed one is continued")
    sub.add_argument("--target", type=float, default=0.9, help="share of the goals to reach (default 0.9)")
    sub.add_argument(
        "--ladder",
        type=int,
        nargs="+",
        default=[50, 100, 200, 400, 800, 1600],
        metavar="STEPS",
        help="optimiser steps of the trainings, rising (default 50 100 200 400 800 1600)",
    )
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True, needs=("out",))


def budget(args: argparse.Namespace) -> None:
    """Minutes of training to a given success."""
    run = load_run(args)
    from lewm.bench.training_budget import bench_budget, table
    from lewm.data.store import Store
    from lewm.pipeline import pick_device, record

    store = Store.open(args.data) if args.data else record(run, args.out / "data", processes=os.cpu_count() or 1)
    rows = bench_budget(run, args.ladder, args.target, store, args.out, pick_device(args.device))
    write_rows(args.json, rows)
    print(table(rows))


BENCHES: tuple[Row, ...] = (
    (
        plan,
        add_plan,
        "milliseconds per plan",
        "Milliseconds per plan, plans per second and, where they are counted, joules over planners, budgets and batch "
        "sizes, for a checkpoint or for fresh weights of a run; on one core eight minutes, most of them at batch 50. "
        "With --peer: LeWM's published search by stable-worldmodel and by lewm, same weights and latents, in turns; "
        "half an hour on one core. With --breakdown: where the time goes, beside the speed of a large matrix product. "
        "With --scaling: how it grows. With --model: on a grid of tokens, cached beside plain.",
    ),
    (
        train,
        add_train,
        "time and memory of a training step",
        "Milliseconds, time spent waiting for data and peak memory of a training step at the run's batch, beside the "
        "same step with SIGReg written out, with a torch DataLoader of worker processes, and with both, in turns.",
    ),
    (
        control,
        add_control,
        "control rate of an agent",
        "Milliseconds and Hz of the steps that plan, of the steps in between, and of planning while executing at a "
        "given rate, with the planner and cost that the checkpoint's agent takes by default.",
    ),
    (
        objectives,
        add_objectives,
        "time and memory of every objective",
        "Forward and backward milliseconds and peak memory of every objective on random latents, as the batch, the "
        "latent width and the slices grow; SIGReg beside its formula written out.",
    ),
    (
        bench_data.data,
        bench_data.add_data,
        "reading, recording and the memory of stores",
        "Windows per second of one recording: in our store with every codec, from disk, RAM and GPU, in HDF5 as "
        "stable-worldmodel keeps it, in Lance and as LeRobot's video, in turns; some minutes. With --recording: frames "
        "per second by task, renderer and processes. With --memory: a store three times as large as a memory limit.",
    ),
    (
        door,
        add_door,
        "what a latent variable is worth",
        "Prediction error of a deterministic predictor and of two with a latent variable in task door, where chance "
        "redraws the door and elsewhere, on the frozen latents of one checkpoint.",
    ),
    (
        budget,
        add_budget,
        "minutes of training to a given success",
        "Whole trainings of more and more steps, each with its heads, until the run's first planner reaches the target "
        "on held-out goals. Recording is left out of the minutes. Any key of the run can be overridden.",
    ),
    (
        front,
        add_front,
        "success against milliseconds",
        "Every planner with each cost of a run over a ladder of budgets, on saved start and goal pairs, beside CEM 300 "
        "x 30 x 5 with latent L2 as the literature runs it. Takes tens of minutes; a killed run is continued.",
    ),
)


def add_bench(sub: argparse.ArgumentParser) -> None:
    """The benchmarks as sub-commands."""
    add_whats(sub, BENCHES)


def bench(args: argparse.Namespace) -> None:
    """Run the chosen benchmark."""
    run_what(args)
