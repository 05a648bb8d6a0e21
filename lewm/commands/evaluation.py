"""`lewm manifest`, `lewm power`, `lewm leaderboard`: their options and what they do."""

import argparse
import sys
from pathlib import Path

from lewm.commands.shared import add_json, write_rows

RESULTS = Path("docs/results")
RULES = ("standard", "strict", "far", "shift")


def add_manifest(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm manifest`."""
    sub.add_argument("task", help="task of the recordings, such as two_room")
    sub.add_argument("--data", type=Path, required=True, help="store whose held-out episodes give starts and goals")
    sub.add_argument("--checkpoint", type=Path, help="model that says which episodes it has not seen")
    sub.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="without --checkpoint: share held out (0.1), 1 for all",
    )
    sub.add_argument("--split-seed", type=int, metavar="N", help="without --checkpoint: training seed (0)")
    sub.add_argument("--rule", choices=RULES, default="standard", help="how difficult (default standard)")
    sub.add_argument("--n", type=int, default=200, help="pairs per distance (default 200)")
    sub.add_argument("--seed", type=int, default=0, help="decides the pairs and the worlds (default 0)")
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file (.json, .json.gz); several distances: one each",
    )
    sub.add_argument(
        "--distances", nargs="+", default=[], metavar="D", help="steps ahead, across, elsewhere (default: the rule's)"
    )
    sub.add_argument("--budget", type=int, metavar="STEPS", help="steps allowed (default: twice the distance)")
    sub.add_argument("--tolerance", type=float, metavar="X", help="share of the task's success distance (the rule's)")
    sub.add_argument("--hold", type=int, metavar="K", help="steps in a row the goal must be met (the rule's)")
    sub.add_argument("--factors", nargs="+", default=[], metavar="F", help="factors shifted: names, picture, physics")
    sub.add_argument(
        "--each-factor",
        action="store_true",
        help="with --rule shift: a manifest for each of these factors alone, or of all",
    )


def manifest(args: argparse.Namespace) -> None:
    """Draw start and goal pairs."""
    from lewm.data.store import Store
    from lewm.evaluate import rules

    if args.checkpoint is not None and (args.held_out is not None or args.split_seed is not None):
        raise ValueError("--checkpoint says which episodes are held out; leave out --held-out and --split-seed")
    store = Store.open(args.data)
    rules.check_task(args.task, store)
    if args.each_factor and args.rule != "shift":
        raise ValueError(f"--each-factor shifts worlds, but the rule is {args.rule}: add --rule shift")
    shifts = [args.factors]
    if args.each_factor:
        shifts = [[name] for name in args.factors or rules.factors_of(store)]
    how = (args.rule, args.n, args.distances, args.budget, args.tolerance, args.hold)
    wanted = [goals for shift in shifts for goals in rules.goal_sets(*how, shift)]
    goals = rules.within_reach(wanted, store)
    if len(goals) < len(wanted):
        if args.distances:
            raise ValueError(f"--distances has across, but these recordings of {args.task} never leave one region")
        print("no goals across regions: the recordings never leave one", file=sys.stderr)
    if args.checkpoint is not None:
        from lewm.checkpoint import load, split_of

        _, episodes = split_of(load(args.checkpoint), store)
    else:
        held_out = 0.1 if args.held_out is None else args.held_out
        episodes = rules.unseen(store, held_out, args.split_seed or 0)
    manifests = rules.draw(goals, store, episodes, args.seed)
    print(rules.write(manifests, rules.files(goals, args.out)))


def add_power(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm power`."""
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--rates", type=float, nargs=2, metavar=("A", "B"), help="two success rates, such as 0.8 0.9")
    what.add_argument("--difference", type=float, metavar="D", help="a difference, at several rates, such as 0.05")
    sub.add_argument(
        "--agreement", type=float, metavar="X", help="share of goals on which both succeed or both fail (several)"
    )
    sub.add_argument("--power", type=float, default=0.8, help="probability of finding the difference (default 0.8)")
    sub.add_argument("--alpha", type=float, default=0.05, help="two-sided level of the test (default 0.05)")
    sub.add_argument("--n", type=int, metavar="GOALS", help="also say how likely so many shared goals find it")
    add_json(sub)


def power(args: argparse.Namespace) -> None:
    """Goals needed to tell two rates apart."""
    from lewm.evaluate import power

    pairs = power.rates_at(args.difference) if args.difference is not None else [tuple(args.rates)]
    rows = power.power_rows(pairs, args.agreement, args.power, args.alpha, args.n)
    write_rows(args.json, rows)
    print(power.table(rows, args.power, args.alpha, args.n))


def add_leaderboard(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm leaderboard`."""
    sub.add_argument(
        "results",
        type=Path,
        nargs="*",
        metavar="PATH",
        help="result files, and folders to look for them in (default all of docs/results, as with --split)",
    )
    sub.add_argument("--out", type=Path, default=Path("runs/leaderboard.html"), metavar="HTML", help="page to write")
    sub.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    sub.add_argument(
        "--split", action="store_true", help="one table per manifest where there are several; else refused"
    )
    sub.add_argument(
        "--pages",
        type=Path,
        nargs="+",
        default=[],
        metavar="MD",
        help="also write the tables of these pages anew, each <!-- NAME --> from docs/results/**/NAME.json",
    )


def leaderboard(args: argparse.Namespace) -> None:
    """Committed results as one page."""
    from lewm import pages
    from lewm.evaluate import leaderboard

    entries, left_out = leaderboard.find_results(args.results or [RESULTS])
    for path in left_out:
        print(f"{path}: no rows of an evaluation, left out", file=sys.stderr)
    tables = leaderboard.tables(entries, args.split or not args.results)
    text = leaderboard.markdown(tables)
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text + "\n")
    print(f"{text}\n\nleaderboard {leaderboard.write_page(tables, args.out)}")
    for page in pages.fill(args.pages, RESULTS):
        print(f"tables {page}")
