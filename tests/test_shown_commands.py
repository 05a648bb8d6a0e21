"""Every command that the README, docs/, the headers of configs/ and the help show is understood, down to its keys."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from lewm import cli, config
from lewm.baselines import trainers
from lewm.commands.shared import load_run
from lewm.compare import baseline_rows, encoders
from lewm.pretrain import config as pretraining

ROOT = Path(__file__).parent.parent
FOUND = [
    path
    for name in ("README.md", "docs/*.md", "docs/results/README.md", "configs/**/*.yaml")
    for path in ROOT.glob(name)
]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(FOUND)}
PAGES["lewm --help"] = textwrap.indent(cli.EPILOG, "  ")
TO_RUN = ("docs/reproduce.md", "docs/results/README.md")
"""Pages whose tables say what to type; elsewhere a command in backticks may be a mention, cut short."""
STAND_INS = {"run.yaml": "two_room", "bead.yaml": "two_room", "NAME": "probes"}
"""Words for what the reader writes or chooses."""
CUT_SHORT = r"arguments are required|expected (at least )?one argument|is missing; add it"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where configs/door.yaml is a path."""
    monkeypatch.chdir(ROOT)


def words_of(shown: str) -> list[list[str]]:
    """The words after `lewm` of each command in a line, without what comes before and the remark behind."""
    commands = re.findall(r"(?:^|\s)lewm (.*?)(?: && |  |$)", re.sub(r"\s*\\\n#?\s*", " ", shown))
    return [[STAND_INS.get(word, word) for word in shlex.split(each, comments=True)] for each in commands]


def whole_commands(text: str) -> list[str]:
    """Indented lines of a page, and header lines of a configuration."""
    return re.findall(r"^(?: {4}|#   )((?:\w+=\S+ )*lewm (?:[^\n\\]|\\\n)*)", text, re.MULTILINE)


def mentions(text: str) -> list[str]:
    """What stands in backticks, outside of code blocks."""
    spans = re.findall(r"`([^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [" ".join(span.split()) for span in spans if re.search(r"(?:^|\s)lewm [a-z]", span)]


def read(words: list[str]) -> None:
    """All that a command does with its words before it works."""
    args = cli.parse(words)
    if {"config", "print_config"} <= vars(args).keys():
        load_run(args)
    elif args.command == "pretrain":
        pretraining.load(args.run, args.overrides)
    elif args.command == "train-baseline":
        trainers.settings(args.kind, config.parse_overrides(args.overrides))
    elif args.takes_overrides:
        loads = {"objectives": config.load, "encoders": encoders.load_config, "baselines": baseline_rows.load_config}
        for name in getattr(args, "tasks", None) or [args.comparison]:
            run = loads[args.what](name)
            config.load(name if args.what == "objectives" else run.run, args.overrides)


def mistake(words: list[str], capsys: Capture) -> str:
    """Why a command would not run; empty where it would."""
    try:
        read(words)
    except SystemExit as stop:
        return capsys.readouterr().err if stop.code else ""
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def mistake_in_mention(words: list[str], capsys: Capture) -> str:
    """The same, but that required words may be left out; then the options must be in the command's help."""
    wrong = mistake(words, capsys)
    if not re.search(CUT_SHORT, wrong):
        return wrong
    overrides, rest = cli.split_overrides(words)
    first = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    capsys.readouterr()
    if wrong := mistake([*rest[:first], "--help"], capsys):
        return wrong
    known = re.findall(r"--[\w-]+", capsys.readouterr().out)
    unknown = [word for word in rest if word.startswith("--") and word not in known]
    try:
        config.load("two_room", overrides)
    except ValueError as error:
        return str(error)
    return f"no option {' '.join(unknown)}" if unknown else ""


def mistakes(page: str, capsys: Capture) -> Iterator[str]:
    text = PAGES[page]
    rows = "\n".join(re.findall(r"^\|.*", text, re.MULTILINE)) if page in TO_RUN else ""
    typed = [*whole_commands(text), *mentions(rows)]
    assert typed or mentions(text), "no command is found"
    for why, lines in ((mistake, typed), (mistake_in_mention, mentions(text))):
        for words in (words for line in lines for words in words_of(line)):
            if wrong := why(words, capsys):
                yield f"lewm {shlex.join(words)}: {wrong}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page: str, capsys: Capture) -> None:
    assert list(mistakes(page, capsys)) == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("inspect runs/a --brief", "unrecognized arguments: --brief"),
        ("trian two_room --out x", "invalid choice: 'trian'"),
        ("train two_rooms --out x", "no configuration two_rooms"),
        ("train two_room", "--out is missing"),
        ("train two_room --out x --train.stepz 5", "train.stepz is unknown"),
        ("evaluate two_room --out x --checkpoint c left over", "'left' is not an option"),
        ("pretrain mae --data d --out x --train.stepz 5", "train.stepz is unknown"),
        ("train-baseline gcbc --out x --widht 3", "widht is unknown"),
        ("compare objectives --train.stepz 5", "train.stepz is unknown"),
        ("compare baselines two_rooms --out x", "two_rooms"),
    ],
)
def test_a_wrong_command_is_not(line: str, why: str, capsys: Capture) -> None:
    assert why in mistake(line.split(), capsys)


@pytest.mark.parametrize("line", ["plan --gaol a.png", "bench plan --pear", "train --train.stepz 5", "bench fly"])
def test_a_wrong_mention_is_not(line: str, capsys: Capture) -> None:
    assert mistake_in_mention(line.split(), capsys)


def test_remarks_and_what_comes_before_are_left_out() -> None:
    line = (
        "A=1 lewm demo && python -m lewm train two_room \\\n#     --objective '{name: prediction}'   # the peers' way"
    )
    assert words_of(line) == [["demo"], ["train", "two_room", "--objective", "{name: prediction}"]]


def test_the_readme_shows_every_command() -> None:
    text = PAGES["README.md"]
    shown = {words[0] for line in [*whole_commands(text), *mentions(text)] for words in words_of(line)}
    assert shown == {handler.__name__.rstrip("_").replace("_", "-") for handler, *_ in cli.COMMANDS}
