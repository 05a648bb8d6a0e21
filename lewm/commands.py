"""What each command of the command line does; imports are made only when a command runs."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any


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
    print(marked_table(evaluated))
    print(f"\nreport {report}\nresults {args.out / 'results.json'}\ncheckpoint {path}")


def collect(args: argparse.Namespace) -> None:
    """Record rollouts."""
    run = load_run(args)
    from lewm import pipeline
    from lewm.data.inspect import describe

    print(describe(pipeline.record(run, args.out, args.processes)))


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
    print(marked_table(evaluated, args.against))
    print(f"\nreport {report_run(evaluated, args.checkpoint, store, args.out, against=args.against)}")
    print(f"results {args.out / 'results.json'}")


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


def report(args: argparse.Namespace) -> None:
    """Write the report of a finished evaluation again."""
    against = None if args.against == "best" else args.against
    if args.summary:
        from lewm.evaluate.results import load_results, summary

        print(summary(load_results(args.run_dir / "results.json")))
        return
    if args.markdown and args.against is not None:
        from lewm.evaluate.logged import load_logged
        from lewm.evaluate.significance import marked_markdown

        print(marked_markdown(load_logged(args.run_dir), against))
        return
    if args.markdown:
        from lewm.evaluate.results import load_results, markdown

        print(markdown(load_results(args.run_dir / "results.json")))
        return
    from lewm.evaluate.report import rebuild_report

    print(f"report {rebuild_report(args.run_dir, args.out, against)}")


def doctor(args: argparse.Namespace) -> None:
    """Check this machine."""
    from lewm.doctor import examine, table

    findings = examine()
    write_rows(args.json, findings)
    print(table(findings))
    if any(f.status == "broken" for f in findings):
        raise SystemExit(1)
