"""`lewm study`: what a world model knows of its world; the options of every study and what the command writes."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lewm.commands.shared import add_device, add_json, write_rows

Options = Callable[[argparse.ArgumentParser], None]


def add_probes(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm study probes`."""
    sub.add_argument("--frames", type=int, default=20_000, help="training frames probes are fitted on (default 20000)")
    sub.add_argument("--test-frames", type=int, default=5_000, help="held-out frames they are scored on (default 5000)")
    sub.add_argument("--steps", type=int, default=2_000, help="steps of an MLP, of 512 frames each (default 2000)")


def add_surprise(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm study surprise`."""
    sub.add_argument("--clips", type=int, default=200, help="held-out clips (default 200)")
    sub.add_argument("--before", type=int, default=4, help="blocks before the event (default 4)")
    sub.add_argument("--after", type=int, default=4, help="blocks after the one in which it is seen (default 4)")


def add_straightness(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm study straightness`."""
    sub.add_argument("--episodes", type=int, default=200, help="most held-out episodes (default 200)")


def add_ranking(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm study ranking`."""
    sub.add_argument("--problems", type=int, default=30, help="held-out start and goal pairs (default 30)")
    sub.add_argument(
        "--goal", choices=["ahead", "across", "elsewhere"], default="ahead", help="kind of goal (default ahead)"
    )
    sub.add_argument("--offset", type=int, default=25, help="env steps to the goal; for across at most (default 25)")
    sub.add_argument("--costs", nargs="+", metavar="COST", help="default latent_l2, and cost_to_go where there is one")
    sub.add_argument(
        "--reduce",
        choices=["terminal", "sum", "min", "discounted"],
        default="terminal",
        help="how the frames of a plan make one cost, the true one alike (default terminal)",
    )
    sub.add_argument(
        "--search",
        type=int,
        nargs=4,
        default=[300, 10, 30, 5],
        metavar=("N", "I", "E", "H"),
        help="CEM's candidates, iterations, elites and horizon in blocks (default 300 10 30 5)",
    )


def add_rollout(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm study rollout`."""
    sub.add_argument("--horizon", type=int, default=10, help="blocks imagined (default 10, or what fits an episode)")
    sub.add_argument("--history", type=int, default=1, help="frames the predictor is given first (default 1)")
    sub.add_argument("--clips", type=int, default=500, help="held-out clips (default 500)")


@dataclass(frozen=True)
class Entry:
    """A study on the command line."""

    add_options: Options
    help: str
    detail: str


ENTRIES: dict[str, Entry] = {
    "probes": Entry(
        add_probes,
        "R2 of linear and MLP probes of positions, angles, velocities",
        "How much of every state factor can be read out of a latent, linearly and by an MLP, beside the same network "
        "without training and beside the picture itself.",
    ),
    "surprise": Entry(
        add_surprise,
        "violation of expectation: teleport, frozen picture, changed colours",
        "Alter held-out clips at one frame and see whether the prediction error shows it: the curve around the event, "
        "and the AUROC against the same clips unaltered. What a task cannot do is said.",
    ),
    "straightness": Entry(
        add_straightness,
        "how straight episodes run through latent space",
        "Mean cosine between successive displacements, beside pixels, the true state and the untrained network.",
    ),
    "ranking": Entry(
        add_ranking,
        "does the planner's cost order plans as the simulator does",
        "Spearman's rank correlation of the cost with the true distance, for random, mid-search and elite plans of a "
        "CEM. Where it is low among elites, more search does not help.",
    ),
    "rollout": Entry(
        add_rollout,
        "error of the imagined future by horizon",
        "In units of the latents' variance and, decoded by a linear probe, in the state's own units, beside a model "
        "that expects no change.",
    ),
}
"""Name -> options and help; what it measures is in `lewm.study.STUDIES`."""

ALL = "all"


def add_study(sub: argparse.ArgumentParser) -> None:
    """The studies as sub-commands."""
    names = sub.add_subparsers(dest="name", metavar="name", required=True)
    for name, entry in ENTRIES.items():
        each = names.add_parser(name, help=entry.help, description=f"{entry.detail} {WRITES}")
        _shared(each, name)
        entry.add_options(each)
    every = names.add_parser(ALL, help="all of them", description=f"All studies with their default options. {WRITES}")
    _shared(every, ALL)


WRITES = "Everything is measured on episodes the training did not see, with 95 % bootstrap intervals over them. Writes "
WRITES += "OUT/NAME.png and OUT/NAME.json."


def _shared(sub: argparse.ArgumentParser, name: str) -> None:
    sub.add_argument("--checkpoint", type=Path, required=True, help="folder that `lewm train` wrote")
    sub.add_argument("--data", type=Path, required=True, help="the recordings it was trained on")
    sub.add_argument("--out", type=Path, default=Path("runs/study"), help="folder to write to (default runs/study)")
    sub.add_argument("--seed", type=int, default=0, help="of every draw and of the intervals (default 0)")
    add_device(sub)
    if name != ALL:
        add_json(sub)


def study(args: argparse.Namespace) -> None:
    """Run one study, or all of them."""
    from lewm.pipeline import pick_device
    from lewm.study import STUDIES
    from lewm.study.subject import open_subject

    subject = open_subject(args.checkpoint, args.data, str(pick_device(args.device)))
    for name in STUDIES if args.name == ALL else (args.name,):
        chosen = STUDIES[name]
        config = chosen.config(seed=args.seed) if args.name == ALL else _config(chosen.config, args)
        result = chosen.measure(subject, config)
        write_rows(args.out / f"{name}.json", result.rows)
        write_rows(getattr(args, "json", None), result.rows)
        chosen.plot(result, args.out / f"{name}.png")
        notes = [f"note: {note}" for note in result.notes]
        print("\n".join([chosen.table(result.rows), *notes, f"plot {args.out / f'{name}.png'}", ""]))


def _config(cls: type, args: argparse.Namespace) -> Any:
    """A study's settings from the options of the same names."""
    given = {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
    if hasattr(args, "search"):
        from planners import CEM

        candidates, iterations, elites, horizon = args.search
        given["planner"] = CEM(horizon=horizon, candidates=candidates, iterations=iterations, elites=elites)
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
