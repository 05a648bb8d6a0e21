"""The command line. Each command is a parser, a short function, and imports made only when it runs.

Exit codes: 0 done, 1 something went wrong, 2 the command was not understood.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lewm import __version__

EPILOG = """\
a first session:
  lewm demo                                            everything below in one go, on TwoRoom
  lewm collect two_room --out runs/a/data              record rollouts
  lewm inspect runs/a/data                             what was recorded
  lewm train two_room --data runs/a/data --out runs/a  world model and cost-to-go -> runs/a/checkpoint
  lewm evaluate two_room --data runs/a/data --checkpoint runs/a/checkpoint --out runs/a
  lewm plan --checkpoint runs/a/checkpoint --goal goal.png
"""


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


def write_json(path: Path | None, rows: Sequence[Any]) -> None:
    """Write measured rows where the user asked for them."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def demo(args: argparse.Namespace) -> None:
    """Record, train, plan, evaluate, report."""
    run = load_run(args)
    from lewm import pipeline
    from lewm.checkpoint import load
    from lewm.evaluate.report import report_run
    from lewm.evaluate.results import table

    device = pipeline.pick_device(args.device)
    store = pipeline.record(run, args.out / "data", args.processes)
    path = pipeline.fit(run, store, args.out, device)
    evaluated = pipeline.measure(run, load(path, str(device)), store, args.out)
    rows = [e.row for e in evaluated]
    write_json(args.json, rows)
    report = report_run(evaluated, path, store, args.out)
    print(table(rows))
    print(f"\nreport {report}\nresults {args.out / 'results.json'}\ncheckpoint {path}")


def collect(args: argparse.Namespace) -> None:
    """Record rollouts."""
    run = load_run(args)
    from lewm import pipeline
    from lewm.data.inspect import describe

    print(describe(pipeline.record(run, args.out, args.processes)))


def inspect(args: argparse.Namespace) -> None:
    """Say what is in a store."""
    from lewm.data.inspect import contact_sheet, describe
    from lewm.data.store import Store

    store = Store.open(args.data, verify=args.verify)
    print(describe(store))
    sheet = args.out if args.out is not None else args.data / "contact_sheet.png"
    contact_sheet(store, sheet)
    print(f"contact sheet {sheet}")


def train(args: argparse.Namespace) -> None:
    """Train a world model and its cost-to-go."""
    run = load_run(args)
    from lewm import distributed, pipeline
    from lewm.data.store import Store

    device = pipeline.pick_device(args.device)
    distributed.init_from_env(device)
    data = args.data if args.data is not None else args.out / "data"
    if not (data / "meta.json").exists() and args.data is None:
        if distributed.world_size() > 1:
            raise ValueError(f"{data} holds no recordings: record them first, with `lewm collect` and one process")
        store = pipeline.record(run, data, args.processes)
    else:
        store = Store.open(data)
    if args.cost_to_go_only is not None:
        path = pipeline.refit_cost_to_go(args.cost_to_go_only, run.cost_to_go, store, args.out, str(device))
    else:
        path = pipeline.fit(run, store, args.out, device)
    if distributed.rank() == 0:
        print(f"checkpoint {path}")
    distributed.finish()


def evaluate(args: argparse.Namespace) -> None:
    """Measure success and planning time."""
    run = load_run(args)
    from lewm import pipeline
    from lewm.checkpoint import load
    from lewm.data.store import Store
    from lewm.evaluate.manifest import load_manifest
    from lewm.evaluate.report import report_run
    from lewm.evaluate.results import table

    checkpoint = load(args.checkpoint, str(pipeline.pick_device(args.device)))
    store = Store.open(args.data) if args.data is not None else None
    if args.manifest:
        manifests = [load_manifest(path) for path in args.manifest]
        evaluated = pipeline.measure_manifests(run, checkpoint, manifests, args.out)
    elif store is not None:
        evaluated = pipeline.measure(run, checkpoint, store, args.out)
    else:
        raise ValueError(
            "evaluate needs goals: pass --data (recordings to draw held-out pairs from) or --manifest FILE"
        )
    rows = [e.row for e in evaluated]
    write_json(args.json, rows)
    print(table(rows))
    print(f"\nreport {report_run(evaluated, args.checkpoint, store, args.out)}")
    print(f"results {args.out / 'results.json'}")


def report(args: argparse.Namespace) -> None:
    """Write the report of a finished evaluation again."""
    from lewm.evaluate.report import rebuild_report

    print(f"report {rebuild_report(args.run_dir, args.out)}")


def plan(args: argparse.Namespace) -> None:
    """Run one episode to a goal image."""
    from lewm.pipeline import pick_device
    from lewm.planning.episode import EpisodeConfig, run_episode

    config = EpisodeConfig(
        checkpoint=args.checkpoint,
        goal=args.goal,
        task=args.task,
        planner=args.planner,
        cost=args.cost,
        start=args.start,
        goal_state=args.goal_state,
        budget=args.budget,
        seed=args.seed,
        device=str(pick_device(args.device)),
    )
    print(run_episode(config, args.out))


def bench(args: argparse.Namespace) -> None:
    """Measure planning speed."""
    from lewm.bench.plan import bench_plan, table

    rows = bench_plan(args.checkpoint, args.config, args.threads, args.plans, args.device)
    write_json(args.json, rows)
    print(table(rows))


def doctor(args: argparse.Namespace) -> None:
    """Check this machine."""
    from lewm.doctor import examine, table

    findings = examine()
    write_json(args.json, findings)
    print(table(findings))
    if any(f.status == "broken" for f in findings):
        raise SystemExit(1)


def numbers(text: str) -> tuple[float, ...]:
    """`0.2,0.3` as (0.2, 0.3)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.2,0.3") from error


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Dotted options with their values, and the rest: argparse would take the 5 of `demo --train.steps 5` for a run."""
    overrides: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        dotted = word.startswith("--") and "." in word.partition("=")[0]
        (overrides if dotted else rest).append(word)
        if dotted and "=" not in word and left:
            overrides.append(left.pop(0))
    return overrides, rest


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="lewm",
        description="World-model planning for control: recorded rollouts in, a planner that reaches a goal image out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lewm {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, detail: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=detail, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(handler=run, takes_overrides=False, needs=())
        return sub

    overrides = "Any key of the run can be overridden by its dotted name, such as --train.steps 500; --keys lists them."
    sub = command("demo", demo, "the whole story on one task", f"Record, train, plan, evaluate and report. {overrides}")
    add_run(sub, optional=True)
    sub.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything (default runs/demo)")
    sub.add_argument("--seed", type=int, help="seed of recording, training and evaluation (default: the run's own)")
    sub.add_argument("--processes", type=int, default=cpu_count(), help="recording processes (default: all cores)")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True)

    sub = command(
        "collect", collect, "record rollouts", f"Record rollouts with scripted policies into a store. {overrides}"
    )
    add_run(sub)
    sub.add_argument("--out", type=Path, help="folder of the store; a killed recording is continued")
    sub.add_argument("--seed", type=int, help="seed (default: the run's own)")
    sub.add_argument("--processes", type=int, default=cpu_count(), help="processes; never changes the data")
    sub.set_defaults(takes_overrides=True, needs=("out",))

    sub = command("inspect", inspect, "what is in a store", "Print what a store holds and write a contact sheet.")
    sub.add_argument("data", type=Path, help="folder of the store")
    sub.add_argument("--out", type=Path, metavar="PNG", help="contact sheet (default DATA/contact_sheet.png)")
    sub.add_argument("--verify", action="store_true", help="read every value, not only sizes")

    sub = command(
        "train",
        train,
        "train a world model and its cost-to-go",
        f"Train, or continue a training that was killed. Under torchrun it is data parallel. {overrides}",
    )
    add_run(sub)
    sub.add_argument(
        "--data", type=Path, help="store to train on (default OUT/data, recorded first if it is not there)"
    )
    sub.add_argument("--out", type=Path, help="folder of the run; the model ends up in OUT/checkpoint")
    sub.add_argument("--seed", type=int, help="seed (default: the run's own)")
    sub.add_argument(
        "--processes", type=int, default=cpu_count(), help="recording processes, where data must be recorded"
    )
    sub.add_argument("--cost-to-go-only", type=Path, metavar="CHECKPOINT", help="only fit a cost-to-go for this model")
    add_device(sub)
    sub.set_defaults(takes_overrides=True, needs=("out",))

    sub = command(
        "plan",
        plan,
        "one episode to a goal image",
        "Plan to a picture in a file; writes a side-by-side video (seen, goal, imagined) and a JSON trace.",
    )
    sub.add_argument("--checkpoint", type=Path, required=True, help="folder that `lewm train` wrote")
    sub.add_argument("--goal", type=Path, required=True, help="goal picture, colour, as large as the model's frames")
    sub.add_argument("--task", help="task to act in (default: the one the model was trained on)")
    sub.add_argument("--start", type=numbers, metavar="X,Y,..", help="start state (default: drawn from --seed)")
    sub.add_argument("--goal-state", type=numbers, metavar="X,Y,..", help="state behind the picture, to score success")
    sub.add_argument("--planner", help="cem, mppi (default: the agent's choice for the cost)")
    sub.add_argument("--cost", help="cost_to_go, latent_l2 (default: cost_to_go where the model has one)")
    sub.add_argument("--budget", type=int, default=100, help="environment steps (default 100)")
    sub.add_argument("--seed", type=int, default=0, help="start state and search noise (default 0)")
    sub.add_argument("--out", type=Path, default=Path("runs/plan"), help="folder for episode.mp4 and trace.json")
    add_device(sub)

    sub = command(
        "evaluate",
        evaluate,
        "success and planning time on held-out goals",
        f"Run every method of the configuration on every goal set; a killed evaluation is continued. {overrides}",
    )
    add_run(sub)
    sub.add_argument("--checkpoint", type=Path, help="folder that `lewm train` wrote")
    sub.add_argument("--data", type=Path, help="store whose held-out episodes give starts and goals")
    sub.add_argument("--manifest", type=Path, nargs="+", help="rerun exactly these start and goal pairs instead")
    sub.add_argument("--out", type=Path, help="folder for manifests, outcomes, results.json, report.html")
    sub.add_argument("--seed", type=int, help="seed (default: the run's own)")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(
        takes_overrides=True,
        needs=(
            "checkpoint",
            "out",
        ),
    )

    sub = command("report", report, "write the HTML report again", "Rebuild report.html from a run's saved files.")
    sub.add_argument("run_dir", type=Path, help="folder that `lewm evaluate` or `lewm demo` wrote")
    sub.add_argument("--out", type=Path, metavar="HTML", help="file to write (default RUN/report.html)")

    sub = command(
        "bench",
        bench,
        "planning speed",
        "Milliseconds per plan over planners, budgets and batch sizes, for a checkpoint or for fresh weights of a run.",
    )
    sub.add_argument("what", choices=["plan"], help="plan: milliseconds per plan")
    sub.add_argument("--checkpoint", type=Path, help="a trained model")
    sub.add_argument("--config", default="two_room", help="without a checkpoint: fresh weights of this run's model")
    sub.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    sub.add_argument("--plans", type=int, default=30, help="plans per row after warm-up (default 30)")
    add_device(sub)
    add_json(sub)

    sub = command(
        "doctor", doctor, "what works on this machine", "Check torch, threads, GL, extras; say how to mend them."
    )
    add_json(sub)

    import shtab

    shtab.add_argument_to(parser, ["--print-completion"], help="print shell completion (bash, zsh, tcsh)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `lewm` script."""
    # Idle OpenMP threads that spin take the cores from those that work; it has to be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    overrides, words = split_overrides(sys.argv[1:] if argv is None else argv)
    args, unknown = parser.parse_known_args(words)
    args.overrides = overrides + unknown
    if args.overrides and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    try:
        args.handler(args)
    except BrokenPipeError:
        raise SystemExit(1) from None
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if args.debug:
            raise
        from lewm.schema import SchemaError

        print(f"lewm {args.command}: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, SchemaError) else 1) from None
