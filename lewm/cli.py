"""The command line: the parser of every command; what the commands do is in `lewm.commands`.

Exit codes: 0 done, 1 something went wrong, 2 the command was not understood.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lewm import (
    __version__,
    commands,
    commands_baselines,
    commands_bench,
    commands_compare,
    commands_data,
    commands_evaluation,
    commands_expert,
    commands_plan,
    commands_pretrain,
    commands_study,
)
from lewm.cli_shared import Row, add_device, add_json, add_run
from lewm.memory import keep_freed_memory

EPILOG = """\
a first session:
  lewm demo                                            everything below in one go, on TwoRoom
  lewm collect two_room --out runs/a/data              record rollouts
  lewm inspect runs/a/data                             what was recorded
  lewm train two_room --data runs/a/data --out runs/a  world model and cost-to-go -> runs/a/checkpoint
  lewm evaluate two_room --data runs/a/data --checkpoint runs/a/checkpoint --out runs/a
  lewm plan --checkpoint runs/a/checkpoint --goal goal.png
"""


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


OVERRIDES = "Any key of the run can be overridden by its dotted name, such as --train.steps 500; --keys lists them."


def add_demo(sub: argparse.ArgumentParser) -> None:
    """The whole story."""
    add_run(sub, optional=True)
    sub.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything (default runs/demo)")
    sub.add_argument("--seed", type=int, help="seed of recording, training and evaluation (default: the run's own)")
    sub.add_argument("--processes", type=int, default=cpu_count(), help="recording processes (default: all cores)")
    add_device(sub)
    add_json(sub)
    sub.set_defaults(takes_overrides=True)


def add_collect(sub: argparse.ArgumentParser) -> None:
    """Recording."""
    add_run(sub)
    sub.add_argument("--out", type=Path, help="folder of the store; a killed recording is continued")
    sub.add_argument("--seed", type=int, help="seed (default: the run's own)")
    sub.add_argument("--processes", type=int, default=cpu_count(), help="processes; never changes the data")
    sub.set_defaults(takes_overrides=True, needs=("out",))


def add_train(sub: argparse.ArgumentParser) -> None:
    """Training."""
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


def add_evaluate(sub: argparse.ArgumentParser) -> None:
    """Measuring."""
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


def add_import_model(sub: argparse.ArgumentParser) -> None:
    """A peer's checkpoint."""
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


def add_report(sub: argparse.ArgumentParser) -> None:
    """The report again."""
    sub.add_argument("run_dir", type=Path, help="folder that `lewm evaluate` or `lewm demo` wrote")
    sub.add_argument("--out", type=Path, metavar="HTML", help="file to write (default RUN_DIR/report.html)")
    sub.add_argument("--markdown", action="store_true", help="print the table as Markdown instead")
    sub.add_argument("--summary", action="store_true", help="as --markdown, a row per method and a column per goal set")
    sub.add_argument("--against", metavar="METHOD", help="row that the others are tested against; best for the best")


def add_doctor(sub: argparse.ArgumentParser) -> None:
    """The machine."""
    add_json(sub)


COMMANDS: tuple[Row, ...] = (
    (commands.demo, add_demo, "the whole story on one task", f"Record, train, plan, evaluate and report. {OVERRIDES}"),
    (
        commands.collect,
        add_collect,
        "record rollouts",
        f"Record rollouts with scripted policies into a store. {OVERRIDES}",
    ),
    (
        commands_expert.train_expert,
        commands_expert.add_train_expert,
        "a policy on states, for collect to record",
        "Train a stable-baselines3 policy to reach states of a task; a killed training goes on where it was saved.",
    ),
    (
        commands_data.import_,
        commands_data.add_import,
        "recordings in somebody else's format",
        "Turn a recording into a store, whole or not at all; frames, actions and states must add up.",
    ),
    (
        commands_data.export,
        commands_data.add_export,
        "a store in somebody else's format",
        "Write a store for other tools, whole or not at all.",
    ),
    (
        commands_data.merge,
        commands_data.add_merge,
        "several stores become one",
        "Copy the shards of stores of one task and layout into a new store; their policies stay told apart.",
    ),
    (
        commands_data.inspect,
        commands_data.add_inspect,
        "what is in a store",
        "Print what a store holds and write a contact sheet.",
    ),
    (
        commands_data.preview,
        commands_data.add_preview,
        "look at episodes",
        "Write a contact sheet and a video of chosen episodes, with step, action and state in numbers.",
    ),
    (
        commands_data.audit,
        commands_data.add_audit,
        "what is wrong with a recording",
        "Check a store before training on it; a finding is good, look or bad and says what to do. Exit code 1 for bad.",
    ),
    (
        commands_data.cache_features,
        commands_data.add_cache_features,
        "encode a store once with a frozen encoder",
        "Compute and store the features of every frame, so that training does not run the frozen encoder. States bytes "
        "per frame and in all, then goes on where a killed one stopped. Training finds them beside the store.",
    ),
    (
        commands_pretrain.pretrain,
        commands_pretrain.add_pretrain,
        "train an encoder alone, without labels or downloads",
        f"Masked prediction, reconstruction or distillation on a store, or on where a killed one stopped. {OVERRIDES}",
    ),
    (
        commands.train,
        add_train,
        "train a world model and its cost-to-go",
        f"Train, or continue a training that was killed. Under torchrun it is data parallel. {OVERRIDES}",
    ),
    (
        commands_baselines.train_baseline,
        commands_baselines.add_train_baseline,
        "a goal-conditioned policy to compare planners with",
        "Train on the frozen latents of a checkpoint's encoder, or by acting in the task (sac, td3, ppo of "
        "stable-baselines3); a killed training is continued. Every setting that --keys lists is an option, such as "
        "--width 512 or --observation pixels.",
    ),
    (
        commands_plan.plan,
        commands_plan.add_plan,
        "one episode to a goal image",
        "Plan to a picture in a file; writes a side-by-side video (seen, goal, imagined) and a JSON trace.",
    ),
    (
        commands_evaluation.manifest,
        commands_evaluation.add_manifest,
        "start and goal pairs by a rule of difficulty",
        "Draw start and goal pairs from held-out episodes: standard (the literature's), strict (nearer, held), far, "
        "shift (in other worlds). The file holds the success test too, and every method obeys it.",
    ),
    (
        commands.evaluate,
        add_evaluate,
        "success and planning time on held-out goals",
        f"Run every method of the configuration on every goal set; a killed evaluation is continued. {OVERRIDES}",
    ),
    (
        commands.import_model,
        add_import_model,
        "a LeWM checkpoint of stable-worldmodel or le-wm, a predictor of V-JEPA 2-AC",
        "Turn their weights.pt and config.json into a checkpoint of ours. What they leave out (task, action bounds and "
        "statistics) comes from options or --stats. With --into: V-JEPA 2-AC's predictor into a checkpoint of ours.",
    ),
    (commands.report, add_report, "write the HTML report again", "Rebuild report.html from a run's saved files."),
    (
        commands_bench.bench,
        commands_bench.add_bench,
        "speed: of a plan, of every objective, success against milliseconds",
        "Side by side, alternating, with threads pinned and stated. Each prints a table; --json FILE writes the rows.",
    ),
    (
        commands_study.study,
        commands_study.add_study,
        "what the model knows: probes, surprise, straightness, ranking, rollout",
        "Physical understanding of a trained model on held-out episodes. Each study prints a table and writes a plot "
        "and its rows.",
    ),
    (
        commands_compare.compare,
        commands_compare.add_compare,
        "objectives on the same recordings, or two results on the same goals",
        "Side by side; each prints a table.",
    ),
    (
        commands_evaluation.power,
        commands_evaluation.add_power,
        "how many goals tell two success rates apart",
        "Goals needed to find a difference, both methods on the same goals (paired) or each on its own (unpaired).",
    ),
    (
        commands_evaluation.leaderboard,
        commands_evaluation.add_leaderboard,
        "committed results as one page",
        "Result files as one HTML page and a Markdown table: one table per task and goal set, rows of one manifest.",
    ),
    (
        commands.doctor,
        add_doctor,
        "what works on this machine",
        "Check torch, threads, GL, extras; say how to mend them.",
    ),
)
"""What runs, its options, one line of help, and what it does."""


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
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for handler, add_options, text, detail in COMMANDS:
        sub = subparsers.add_parser(handler.__name__.rstrip("_").replace("_", "-"), help=text, description=detail)
        sub.set_defaults(handler=handler, takes_overrides=False, needs=())
        add_options(sub)
    import shtab

    shtab.add_argument_to(parser, ["--print-completion"], help="print shell completion (bash, zsh, tcsh)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `lewm` script."""
    # Idle OpenMP threads that spin take the cores from those that work; it has to be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
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
