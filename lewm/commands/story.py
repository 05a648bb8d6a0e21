"""demo, collect, train, evaluate, report, import-model, doctor: their options and what they do."""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from lewm.commands.shared import add_device, add_json, add_run, cpu_count, load_run, write_rows


def add_demo(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm demo`."""
    add_run(sub, optional=True)
    sub.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything (default runs/demo)")
    sub.add_argument("--seed", type=int, help="seed of recording, training and evaluation (default: the run's own)")
    sub.add_argument("--processes", type=int, default=cpu_count(), help="recording processes (default: all cores)")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True)


def demo(args: argparse.Namespace) -> None:
    """Record, train, plan, evaluate, report."""
    run = load_run(args)
    from lewm import pipeline
    from lewm.checkpoint import load
    from lewm.evaluate.report import report_run
    from lewm.evaluate.significance import marked_table

    device = pipeline.pick_device(args.device)
    store = pipeline.record(run, args.out / "data", args.processes)
    path = pipeline.fit(run, store, args.out, device)
    evaluated = pipeline.measure(run, load(path, str(device)), store, args.out)
    write_rows(args.json, [e.row for e in evaluated])
    report = report_run(evaluated, path, store, args.out)
    print(marked_table([e.row for e in evaluated]))
    print(f"\nreport {report}\nresults {args.out / 'results.json'}\ncheckpoint {path}")


def add_collect(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm collect`."""
    add_run(sub)
    sub.add_argument("--out", type=Path, help="folder of the store; a killed recording is continued")
    sub.add_argument("--seed", type=int, help="seed (default: the run's own)")
    sub.add_argument("--processes", type=int, default=cpu_count(), help="processes; never changes the data")
    sub.set_defaults(takes_overrides=True, needs=("out",))


def collect(args: argparse.Namespace) -> None:
    """Record rollouts."""
    run = load_run(args)
    from lewm import pipeline
    from lewm.data.inspect import describe

    print(describe(pipeline.record(run, args.out, args.processes)))


def add_train(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm train`."""
    add_run(sub)
    sub.add_argument(
        "--data", type=Path, help="store to train on (default OUT/data, recorded first if it is not there)"
    )
    sub.add_argument("--out", type=Path, help="folder of the run; the model ends up in OUT/checkpoint")
    sub.add_argument("--seed", type=int, help="seed (default: the run's own)")
    sub.add_argument(
        "--processes", type=int, default=cpu_count(), help="recording processes, where data must be recorded"
    )
    only = sub.add_mutually_exclusive_group()
    only.add_argument("--cost-to-go-only", type=Path, metavar="CHECKPOINT", help="only fit a cost-to-go for this model")
    only.add_argument("--proposal-only", type=Path, metavar="CHECKPOINT", help="only fit a proposal for this model")
    add_device(sub)
    sub.set_defaults(takes_overrides=True, needs=("out",))


def train(args: argparse.Namespace) -> None:
    """Train a world model, its cost-to-go and its proposal."""
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
    elif args.proposal_only is not None:
        path = pipeline.refit_proposal(args.proposal_only, run.proposal, store, args.out, str(device))
    else:
        path = pipeline.fit(run, store, args.out, device)
    if distributed.rank() == 0:
        print(f"checkpoint {path}")
    distributed.finish()


def add_evaluate(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm evaluate`."""
    add_run(sub)
    sub.add_argument("--checkpoint", type=Path, help="folder that `lewm train` wrote")
    sub.add_argument("--data", type=Path, help="store whose held-out episodes give starts and goals")
    sub.add_argument("--manifest", type=Path, nargs="+", help="rerun exactly these start and goal pairs instead")
    sub.add_argument("--out", type=Path, help="folder for manifests, outcomes, results.json, report.html")
    sub.add_argument("--seed", type=int, help="seed (default: the run's own)")
    sub.add_argument("--against", metavar="METHOD", help="row that the others are tested against (default: the best)")
    sub.add_argument(
        "--shift",
        nargs="*",
        metavar="FACTOR",
        help="also the same pairs in changed worlds, one goal set for each word: a factor of variation of the task, "
        "picture, physics, or all at once (default: all)",
    )
    add_device(sub)
    add_json(sub)
    sub.set_defaults(
        takes_overrides=True,
        needs=("checkpoint", "out"),
    )


def evaluate(args: argparse.Namespace) -> None:
    """Measure success and planning time."""
    run = load_run(args)
    from lewm import pipeline
    from lewm.checkpoint import load
    from lewm.data.store import Store
    from lewm.evaluate.evaluate import with_baselines
    from lewm.evaluate.manifest import load_manifest, with_shifts
    from lewm.evaluate.report import report_run
    from lewm.evaluate.significance import marked_table

    names = [method.name for method in with_baselines(run.evaluate.methods)]
    if args.against is not None and args.against not in names:
        raise ValueError(f"--against {args.against} is no method of this run; its methods are {', '.join(names)}")
    checkpoint = load(args.checkpoint, str(pipeline.pick_device(args.device)))
    store = Store.open(args.data) if args.data is not None else None
    if args.shift is not None:
        if args.manifest:
            raise ValueError(
                "--shift draws worlds for pairs it draws itself: leave out --manifest, or write shifted manifests with "
                "`lewm manifest --rule shift`"
            )
        goals = with_shifts(run.evaluate.goals, args.shift or ["all"])
        run = replace(run, evaluate=replace(run.evaluate, goals=goals))
    if args.manifest:
        manifests = [load_manifest(path) for path in args.manifest]
        evaluated = pipeline.measure_manifests(run, checkpoint, manifests, args.out)
    elif store is not None:
        evaluated = pipeline.measure(run, checkpoint, store, args.out)
    else:
        raise ValueError(
            "evaluate needs goals: pass --data (recordings to draw held-out pairs from) or --manifest FILE"
        )
    write_rows(args.json, [e.row for e in evaluated])
    print(marked_table([e.row for e in evaluated], args.against))
    print(f"\nreport {report_run(evaluated, args.checkpoint, store, args.out, against=args.against)}")
    print(f"results {args.out / 'results.json'}")


def add_import_model(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm import-model`."""
    sub.add_argument("source", type=Path, help="folder with weights.pt and config.json, or the .pt file itself")
    sub.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    sub.add_argument(
        "--into",
        type=Path,
        metavar="CHECKPOINT",
        help="the source is a predictor of V-JEPA 2-AC (.safetensors or .pt) for this checkpoint of ours, which brings "
        "the encoder and has predictor ac in the same sizes",
    )
    sub.add_argument("--task", help="task it was trained for; any name, a lewm task's to act in it")
    for name, what in (
        ("low", "lower bound"),
        ("high", "upper bound"),
        ("mean", "mean in training"),
        ("std", "std in training"),
    ):
        sub.add_argument(f"--action-{name}", type=float, nargs="+", metavar="X", help=f"{what} of every action entry")
    sub.add_argument("--stats", type=Path, metavar="FILE", help="JSON with any of the above: action_mean, task, ...")
    sub.add_argument("--frame-skip", type=int, help="environment steps per block (default 5)")
    sub.add_argument("--control-dt", type=float, help="seconds per environment step (default 0.1)")


def import_model(args: argparse.Namespace) -> None:
    """Turn a peer's checkpoint into one of ours."""
    from lewm.import_model import DataFacts, data_facts, import_model, import_predictor

    given = {field.name: getattr(args, field.name) for field in fields(DataFacts)}
    if args.into is not None:
        if said := [name for name, value in (given | {"stats": args.stats}).items() if value is not None]:
            raise ValueError(
                f"--{said[0].replace('_', '-')} is what {args.into} already says; leave it out with --into"
            )
        print(f"checkpoint {import_predictor(args.source, args.into, args.out)}")
        return
    print(f"checkpoint {import_model(args.source, args.out, data_facts(given, args.stats))}")


def add_report(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm report`."""
    sub.add_argument("run_dir", type=Path, help="folder that `lewm evaluate` or `lewm demo` wrote")
    sub.add_argument("--out", type=Path, metavar="HTML", help="file to write (default RUN_DIR/report.html)")
    sub.add_argument("--markdown", action="store_true", help="print the table as Markdown instead")
    sub.add_argument("--summary", action="store_true", help="as --markdown, a row per method and a column per goal set")
    sub.add_argument("--against", metavar="METHOD", help="row that the others are tested against; best for the best")


def report(args: argparse.Namespace) -> None:
    """Write the report of a finished evaluation again."""
    against = None if args.against == "best" else args.against
    if args.summary:
        from lewm.evaluate.results import load_results
        from lewm.evaluate.significance import legend
        from lewm.evaluate.summary import summary

        print(summary(load_results(args.run_dir / "results.json"), against))
        print(f"\n**Bold**: the row that the others are tested against. {legend(against)}")
        return
    if args.markdown and args.against is not None:
        from lewm.evaluate.logged import load_logged
        from lewm.evaluate.significance import marked_markdown

        print(marked_markdown([logged.row for logged in load_logged(args.run_dir)], against))
        return
    if args.markdown:
        from lewm.evaluate.results import load_results, markdown

        print(markdown(load_results(args.run_dir / "results.json")))
        return
    from lewm.evaluate.report import rebuild_report

    print(f"report {rebuild_report(args.run_dir, args.out, against)}")


def add_doctor(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm doctor`."""
    add_json(sub)


def doctor(args: argparse.Namespace) -> None:
    """Check this machine."""
    from lewm.doctor import examine, table

    findings = examine()
    write_rows(args.json, findings)
    print(table(findings))
    if any(f.status == "broken" for f in findings):
        raise SystemExit(1)
