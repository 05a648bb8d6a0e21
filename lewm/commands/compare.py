"""`lewm compare`: one row of `COMPARISONS` per comparison, its options and what it does."""

import argparse
from pathlib import Path

from lewm.commands.shared import Row, add_device, add_json, add_whats, run_what, write_rows


def add_objectives(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm compare objectives`."""
    sub.add_argument(
        "--tasks", nargs="+", default=["compare"], metavar="RUN", help="runs to compare on (default compare)"
    )
    sub.add_argument(
        "--objectives",
        nargs="+",
        metavar="NAME",
        help="rows of the table, and after a + add-ons of weight 1, as in sigreg+fovea (default: all rows)",
    )
    sub.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds (default 0)")
    sub.add_argument("--time-again", action="store_true", help="first time the steps of finished rows again, in turns")
    sub.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of all rows (default runs/compare)")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True)


def objectives(args: argparse.Namespace) -> None:
    """Train every objective on the same recordings."""
    from lewm import config
    from lewm.compare.objectives import compare_objectives, time_again
    from lewm.compare.objectives_table import table
    from lewm.objectives import OBJECTIVES
    from lewm.pipeline import pick_device

    runs = [config.load(name, args.overrides) for name in args.tasks]
    names, device = args.objectives or list(OBJECTIVES), pick_device(args.device)
    if args.time_again:
        time_again(runs, names, args.out, device)
    rows = compare_objectives(runs, names, args.seeds, args.out, device)
    write_rows(args.json, rows)
    text = table(rows)
    (args.out / "table.md").write_text(text + "\n")
    print(f"{text}\n\ntable {args.out / 'table.md'}")


def add_comparison(sub: argparse.ArgumentParser, kind: str) -> None:
    """Options of a comparison that is a file in configs/`kind`/."""
    sub.add_argument("comparison", help=f"one of configs/{kind}/ by name, such as two_room or reacher, or a YAML file")
    sub.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="rows of the comparison (default: all)")
    sub.add_argument("--time-again", action="store_true", help="take the milliseconds per plan of finished rows again")
    sub.add_argument("--out", type=Path, required=True, help="folder of all rows")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True)


def add_encoders(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm compare encoders`."""
    add_comparison(sub, "encoders")


def encoders(args: argparse.Namespace) -> None:
    """Frozen encoders and one trained end to end."""
    from lewm.compare.encoders import compare_encoders, load_config, table, time_again
    from lewm.pipeline import pick_device

    comparison, device = load_config(args.comparison), pick_device(args.device)
    if args.time_again:
        time_again(comparison, args.out, device, args.overrides)
    rows = compare_encoders(comparison, args.rows, args.out, device, args.overrides)
    write_rows(args.json, rows)
    print(f"{table(rows)}\n\ntable {args.out / 'table.md'}")


def add_baselines(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm compare baselines`."""
    add_comparison(sub, "baselines")
    sub.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: the comparison's)")
    sub.add_argument(
        "--manifests", type=Path, help="folder of the goals, NAME.json.gz (default docs/results/manifests/TASK)"
    )
    sub.add_argument(
        "--peer-python",
        type=Path,
        metavar="PATH",
        help="interpreter that has stable-worldmodel (default: leave it out)",
    )
    sub.add_argument("--only", choices=["train", "evaluate"], help="half of the work: train all, or evaluate what is")


def baselines(args: argparse.Namespace) -> None:
    """Planners and baselines on frozen manifests."""
    from dataclasses import replace

    from lewm.compare.baseline_rows import load_config
    from lewm.compare.baselines import STAGES, compare_baselines
    from lewm.compare.baselines_table import table
    from lewm.pipeline import pick_device

    comparison = load_config(args.comparison)
    if args.seeds:
        comparison = replace(comparison, seeds=tuple(args.seeds))
    stages, device = (args.only,) if args.only else STAGES, pick_device(args.device)
    found = compare_baselines(
        comparison,
        args.rows,
        args.out,
        device,
        args.manifests,
        args.overrides,
        stages,
        args.time_again,
        args.peer_python,
    )
    write_rows(args.json, found)
    if found:
        print(f"{table(found)}\n\ntable {args.out / 'table.md'}")


def add_runs(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm compare runs`."""
    sub.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folders that `lewm evaluate` wrote: A, then B")
    sub.add_argument(
        "--methods", nargs="+", default=[], metavar="NAME", help="method of both, or of A and of B (default: the first)"
    )
    sub.add_argument("--goals", metavar="NAME", help="only this goal set (default: all that both have)")
    sub.add_argument("--videos", type=int, default=4, metavar="K", help="most videos per goal set (default 4)")
    sub.add_argument(
        "--checkpoints", type=Path, nargs=2, metavar=("A", "B"), help="where the models are now, for the videos"
    )
    sub.add_argument("--out", type=Path, default=Path("runs/versus"), help="folder of the videos (default runs/versus)")
    sub.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    add_device(sub)
    add_json(sub)


def runs(args: argparse.Namespace) -> None:
    """Two results goal by goal."""
    from lewm.compare.runs import pair_up, text, versus, worth_watching

    if len(args.methods) > 2:
        raise ValueError(f"--methods has {len(args.methods)} names; give one for both runs, or one for each")
    if args.videos < 0:
        raise ValueError(f"--videos is {args.videos}; give 0 for none, or how many")
    run_a, run_b = args.runs
    methods = args.methods or [None]
    pairs = pair_up(run_a, run_b, methods[0], methods[-1], args.goals)
    rows = [versus(pair, run_a, run_b, args.seed) for pair in pairs]
    write_rows(args.json, rows)
    print("\n\n".join(text(row) for row in rows), flush=True)
    if args.videos == 0:
        return
    from lewm.compare.runs_video import write_videos
    from lewm.pipeline import pick_device

    device, checkpoints = str(pick_device(args.device)), tuple(args.checkpoints or (None, None))
    for pair, row in zip(pairs, rows):
        problems = worth_watching(row, args.videos)
        for line in write_videos(pair, (run_a, run_b), problems, args.out, device, checkpoints):
            print(line)


COMPARISONS: tuple[Row, ...] = (
    (
        objectives,
        add_objectives,
        "objectives on the same recordings",
        "Train every objective with the same network and budget, probe it, plan with it. Resumable. Any key of the run "
        "can be overridden by its dotted name, such as --train.steps 500.",
    ),
    (
        encoders,
        add_encoders,
        "frozen encoders and one trained end to end, on the same recordings",
        "Pretrain every encoder that asks for it, freeze it, train a predictor on its tokens, probe it, plan with it. "
        "Resumable. Any key of the run can be overridden for all rows by its dotted name, such as --train.steps 500.",
    ),
    (
        baselines,
        add_baselines,
        "planners and baselines on the frozen manifests of a task",
        "Train every baseline once per seed on the recordings and world model of a run, and evaluate all on the same "
        "goals. Resumable; what lewm train and lewm train-baseline finished in the folder is found. Any key of the run "
        "can be overridden by its dotted name, such as --train.steps 500.",
    ),
    (
        runs,
        add_runs,
        "two results on the same goals",
        "Two evaluated results on one manifest: how many goals both, one and neither reached, McNemar's test, the "
        "interval of the difference, and videos of goals that only one reached, both rolled out again.",
    ),
)


def add_compare(sub: argparse.ArgumentParser) -> None:
    """The comparisons as sub-commands."""
    add_whats(sub, COMPARISONS)


def compare(args: argparse.Namespace) -> None:
    """Run the chosen comparison."""
    run_what(args)
