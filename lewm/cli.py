"""The command line: the table of all commands, whose options and deeds are in `lewm.commands`, and the parser.

Exit codes: 0 done, 1 something went wrong, 2 the command was not understood, 130 stopped by Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from lewm import __version__, commands
from lewm.commands.shared import Row
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


COMMANDS: tuple[Row, ...] = (
    (
        commands.story.demo,
        commands.story.add_demo,
        "the whole story on one task",
        f"Record, train, plan, evaluate and report. {OVERRIDES}",
    ),
    (
        commands.story.collect,
        commands.story.add_collect,
        "record rollouts",
        f"Record rollouts with scripted policies into a store. {OVERRIDES}",
    ),
    (
        commands.expert.train_expert,
        commands.expert.add_train_expert,
        "a policy on states, for collect to record",
        "Train a stable-baselines3 policy to reach states of a task; a killed training goes on where it was saved.",
    ),
    (
        commands.data.import_,
        commands.data.add_import,
        "recordings in somebody else's format",
        "Turn a recording into a store, whole or not at all; frames, actions and states must add up.",
    ),
    (
        commands.data.export,
        commands.data.add_export,
        "a store in somebody else's format",
        "Write a store for other tools, whole or not at all.",
    ),
    (
        commands.data.merge,
        commands.data.add_merge,
        "several stores become one",
        "Copy the shards of stores of one task and layout into a new store; their policies stay told apart.",
    ),
    (
        commands.data.inspect,
        commands.data.add_inspect,
        "what is in a store",
        "Print what a store holds and write a contact sheet.",
    ),
    (
        commands.data.preview,
        commands.data.add_preview,
        "look at episodes",
        "Write a contact sheet and a video of chosen episodes, with step, action and state in numbers.",
    ),
    (
        commands.data.audit,
        commands.data.add_audit,
        "what is wrong with a recording",
        "Check a store before training on it; a finding is good, look or bad and says what to do. Exit code 1 for bad.",
    ),
    (
        commands.data.cache_features,
        commands.data.add_cache_features,
        "encode a store once with a frozen encoder",
        "Compute and store the features of every frame, so that training does not run the frozen encoder. States bytes "
        "per frame and in all, then goes on where a killed one stopped. Training finds them beside the store.",
    ),
    (
        commands.pretrain.pretrain,
        commands.pretrain.add_pretrain,
        "train an encoder alone, without labels or downloads",
        f"Masked prediction, reconstruction or distillation on a store, or on where a killed one stopped. {OVERRIDES}",
    ),
    (
        commands.story.train,
        commands.story.add_train,
        "train a world model and its cost-to-go",
        f"Train, or continue a training that was killed. Under torchrun it is data parallel. {OVERRIDES}",
    ),
    (
        commands.baselines.train_baseline,
        commands.baselines.add_train_baseline,
        "a goal-conditioned policy to compare planners with",
        "Train on the frozen latents of a checkpoint's encoder, or by acting in the task (sac, td3, ppo of "
        "stable-baselines3); a killed training is continued. Every setting that --keys lists is an option, such as "
        "--width 512 or --observation pixels.",
    ),
    (
        commands.plan.plan,
        commands.plan.add_plan,
        "one episode to a goal image",
        "Plan to a picture in a file; writes a side-by-side video (seen, goal, imagined) and a JSON trace.",
    ),
    (
        commands.evaluation.manifest,
        commands.evaluation.add_manifest,
        "start and goal pairs by a rule of difficulty",
        "Draw start and goal pairs from held-out episodes: standard (the literature's), strict (nearer, held), far, "
        "shift (in other worlds). The file holds the success test too, and every method obeys it.",
    ),
    (
        commands.story.evaluate,
        commands.story.add_evaluate,
        "success and planning time on held-out goals",
        f"Run every method of the configuration on every goal set; a killed evaluation is continued. {OVERRIDES}",
    ),
    (
        commands.story.import_model,
        commands.story.add_import_model,
        "a LeWM checkpoint of stable-worldmodel or le-wm, a predictor of V-JEPA 2-AC",
        "Turn their weights.pt and config.json into a checkpoint of ours. What they leave out (task, action bounds and "
        "statistics) comes from options or --stats. With --into: V-JEPA 2-AC's predictor into a checkpoint of ours.",
    ),
    (
        commands.story.report,
        commands.story.add_report,
        "write the HTML report again",
        "Rebuild report.html from a run's saved files.",
    ),
    (
        commands.bench.bench,
        commands.bench.add_bench,
        "speed: of a plan, of every objective, success against milliseconds",
        "Side by side, alternating, with threads pinned and stated. Each prints a table; --json FILE writes the rows.",
    ),
    (
        commands.study.study,
        commands.study.add_study,
        "what the model knows: probes, surprise, straightness, ranking, rollout",
        "Physical understanding of a trained model on held-out episodes. Each study prints a table and writes a plot "
        "and its rows.",
    ),
    (
        commands.compare.compare,
        commands.compare.add_compare,
        "objectives on the same recordings, or two results on the same goals",
        "Side by side; each prints a table.",
    ),
    (
        commands.evaluation.power,
        commands.evaluation.add_power,
        "how many goals tell two success rates apart",
        "Goals needed to find a difference, both methods on the same goals (paired) or each on its own (unpaired).",
    ),
    (
        commands.evaluation.leaderboard,
        commands.evaluation.add_leaderboard,
        "committed results as one page",
        "Result files as one HTML page and a Markdown table: one table per task and goal set, rows of one manifest.",
    ),
    (
        commands.story.doctor,
        commands.story.add_doctor,
        "what works on this machine",
        "Check torch, threads, GL, extras; say how to mend them.",
    ),
)
"""What runs, its options, one line of help, and what it does."""


class Parser(argparse.ArgumentParser):
    """A parser, and those of its sub-commands, that takes no short forms: --proposal is a key, not --proposal-only.

    It leaves itself in the arguments as `parser`, so that the sub-command's own says what is wrong with them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.set_defaults(parser=self)


def build_parser() -> Parser:
    """All commands and their options."""
    parser = Parser(
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


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the words ask for; those that only the command itself can tell are its `overrides`.

    Exits with 2 for what is not understood.
    """
    parser = build_parser()
    overrides, rest = split_overrides(words)
    args, unknown = parser.parse_known_args(rest)
    args.overrides = overrides + unknown
    if args.overrides and not args.takes_overrides:
        args.parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `lewm` script."""
    # Idle OpenMP threads that spin take the cores from those that work; it has to be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        args.handler(args)
    except BrokenPipeError:
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if args.debug:
            raise
        again = "run the same command again: it goes on where it can, and starts over where it cannot"
        print(f"lewm {args.command}: stopped; {again}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if args.debug:
            raise
        from lewm.schema import SchemaError

        print(f"lewm {args.command}: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, SchemaError) else 1) from None
