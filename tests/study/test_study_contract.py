"""Every study on every task with a tiny untrained model, and what the command writes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_rows import task_rows

import lewm.study
from lewm import cli, pipeline
from lewm.checkpoint import Checkpoint
from lewm.commands.study import ENTRIES
from lewm.config import RunConfig
from lewm.cost_to_go import CostToGo
from lewm.data.collect import CollectConfig
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows, WindowSpec
from lewm.schema import read_json, read_rows
from lewm.study import STUDIES
from lewm.study.bootstrap import Estimate
from lewm.study.probes import ProbesConfig
from lewm.study.ranking import RankingConfig
from lewm.study.rollout import RolloutConfig
from lewm.study.straightness import StraightnessConfig
from lewm.study.subject import Subject, make_subject, pick_windows
from lewm.study.surprise import SurpriseConfig
from lewm.train import build_model, model_facts
from planners import CEM

SMALL: dict[str, Any] = {
    "probes": ProbesConfig(frames=60, test_frames=30, steps=5),
    "surprise": SurpriseConfig(clips=4, before=1, after=1),
    "straightness": StraightnessConfig(),
    "ranking": RankingConfig(
        problems=6, goal="elsewhere", planner=CEM(candidates=6, iterations=2, elites=3, horizon=2)
    ),
    "rollout": RolloutConfig(horizon=2, clips=4),
}


def untrained(task: str, run: RunConfig, out: Path) -> Subject:
    """Fresh weights and a few recorded episodes, half of them held out."""
    collect = CollectConfig(episodes=4, steps=16, noise=0.5)
    run = replace(run, task=task, collect=collect, train=replace(run.train, held_out=0.5))
    store = pipeline.record(run, out / "data", processes=1, quiet=True)
    model = build_model(run.model, model_facts(store, run.model), 0).eval().requires_grad_(False)
    head = CostToGo(run.cost_to_go, model.latent_dim, model.tokens).eval().requires_grad_(False)
    return make_subject(Checkpoint(model, head, pipeline.origin(run, store), out), store)


@pytest.mark.parametrize("task", task_rows())
def test_every_study_works_on_every_task(task: str, tiny_run: RunConfig, tmp_path: Path) -> None:
    subject = untrained(task, tiny_run, tmp_path)
    for name, study in STUDIES.items():
        result = study.measure(subject, SMALL[name], quiet=True)
        assert result.rows and all(row.task == task for row in result.rows)
        text = study.table(result.rows)
        assert len(text.splitlines()) > 1 and "nan" not in text
        estimates = [v for row in result.rows for v in vars(row).values() if isinstance(v, Estimate)]
        assert estimates and all(e.n == 2 for e in estimates), name
        if name == "surprise":
            assert not any(row.reason.startswith("the task") for row in result.rows)
            assert sum(row.event.startswith("colour of") for row in result.rows) >= 1


def words(name: str, checkpoint: Path, store: Store, out: Path, *more: str) -> list[str]:
    given = ("--checkpoint", str(checkpoint), "--data", str(store.path), "--out", str(out), "--device", "cpu")
    return ["study", name, *given, *more]


OPTIONS = {
    "probes": ("--frames", "60", "--test-frames", "40", "--steps", "5"),
    "surprise": ("--clips", "6", "--before", "2", "--after", "1"),
    "straightness": ("--episodes", "2"),
    "ranking": ("--problems", "3", "--offset", "10", "--search", "8", "2", "4", "2", "--reduce", "sum"),
    "rollout": ("--horizon", "2", "--clips", "6"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_command_writes_a_plot_and_rows_that_can_be_read_back(
    name: str, tiny_checkpoint_path: Path, tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.json"
    cli.main(words(name, tiny_checkpoint_path, tiny_store, tmp_path, *OPTIONS[name], "--json", str(copy)))
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = read_json(tmp_path / f"{name}.json")
    assert rows == read_json(copy) and rows
    assert "NaN" not in json.dumps(rows)
    study = STUDIES[name]
    read = read_rows(study.row, tmp_path / f"{name}.json", "")
    out = capsys.readouterr().out
    assert study.table(read) in out
    assert f"plot {tmp_path / f'{name}.png'}" in out and "two_room" in json.dumps(rows)


def open_tiny(path: Path, store: Store) -> Subject:
    return lewm.study.subject.open_subject(path, store.path)


def test_all_runs_every_row_of_the_table(
    tiny_checkpoint_path: Path, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light = {name: STUDIES[name] for name in ("straightness", "rollout")}
    monkeypatch.setattr(lewm.study, "STUDIES", light)
    cli.main(words("all", tiny_checkpoint_path, tiny_store, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.{e}" for n in light for e in ("json", "png")}


def test_the_table_and_the_command_line_have_the_same_studies() -> None:
    assert list(STUDIES) == list(ENTRIES)
    for name, study in STUDIES.items():
        parsed = vars(cli.build_parser().parse_args(["study", name, "--checkpoint", "c", "--data", "d"]))
        defaults = {field: value for field, value in vars(study.config()).items() if field != "planner"}
        assert {field: parsed[field] for field in defaults} == defaults, name
    assert CEM(candidates=300, iterations=10, elites=30, horizon=5) == RankingConfig().planner


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (*STUDIES, "all"):
        with pytest.raises(SystemExit):
            cli.main(["study", name, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "training did not see, with 95 % bootstrap intervals" in text and "OUT/NAME.png" in text


def test_windows_are_picked_evenly_over_episodes(tiny_store: Store) -> None:
    windows = Windows(tiny_store, WindowSpec(3), None, "disk")
    for count, each, episodes in ((16, 2, 8), (5, 1, 5), (10**6, len(windows) // 8, 8)):
        episode, start = windows.locate(pick_windows(windows, count, np.random.default_rng(0)))
        _, sizes = np.unique(episode, return_counts=True)
        assert (len(sizes), set(sizes)) == (episodes, {each})
        assert len(set(zip(episode, start, strict=True))) == len(start)


def test_held_out_episodes_are_those_training_did_not_see(tiny_checkpoint_path: Path, tiny_store: Store) -> None:
    subject = open_tiny(tiny_checkpoint_path, tiny_store)
    train, held = split_episodes(8, 0.25, 0)
    assert (subject.train_ids == train).all() and (subject.held_ids == held).all() and not subject.notes


def test_what_does_not_belong_together_is_refused(tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    origin, facts = tiny_checkpoint.origin, tiny_checkpoint.model.facts
    with pytest.raises(ValueError, match=r"holds recordings of two_room, but .* was trained on reacher"):
        make_subject(replace(tiny_checkpoint, origin=replace(origin, task="reacher")), tiny_store)
    tiny_checkpoint.model.facts = replace(facts, size=64)
    with pytest.raises(ValueError, match=r"holds frames of shape \(32, 32, 3\); .* reads \(64, 64, 3\)"):
        make_subject(tiny_checkpoint, tiny_store)


def test_a_checkpoint_that_does_not_know_its_recordings_says_so(tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    """An imported one: a fifth is held out of the probes, and every table carries the caveat."""
    origin = replace(tiny_checkpoint.origin, held_out=0.0)
    subject = make_subject(replace(tiny_checkpoint, origin=origin), tiny_store)
    assert len(subject.held_ids) == 2 and "the model may know them" in subject.notes[0]
    result = STUDIES["straightness"].measure(subject, SMALL["straightness"], quiet=True)
    assert result.notes == subject.notes


@pytest.mark.parametrize(
    "name, option, value, expected",
    [
        ("probes", "steps", 0, "probes: steps is 0; it must be at least 1"),
        ("straightness", "episodes", 1, "episodes is 1; an interval needs at least 2"),
        ("ranking", "problems", 1, "problems is 1 and offset 25; there must be at least 2 problems"),
        ("rollout", "history", 0, "rollout: history is 0; it must be at least 1"),
    ],
)
def test_settings_are_checked(name: str, option: str, value: int, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        STUDIES[name].config(**{option: value})


def test_a_history_the_predictor_cannot_see_is_refused(tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    subject = make_subject(tiny_checkpoint, tiny_store)
    with pytest.raises(ValueError, match=r"history is 3; this model's predictor sees 1..1 frames"):
        STUDIES["rollout"].measure(subject, RolloutConfig(history=3), quiet=True)


def test_short_recordings_shorten_the_horizon(tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    """Eight blocks are recorded, so ten cannot be imagined."""
    subject = make_subject(tiny_checkpoint, tiny_store)
    rows = STUDIES["rollout"].measure(subject, RolloutConfig(horizon=10, clips=4), quiet=True).rows
    assert max(row.blocks for row in rows) == 8


def test_studies_leave_the_model_as_it_was(tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    before = {key: value.clone() for key, value in tiny_checkpoint.model.state_dict().items()}
    subject = make_subject(tiny_checkpoint, tiny_store)
    for name, study in STUDIES.items():
        study.measure(subject, SMALL[name], quiet=True)
    for key, value in tiny_checkpoint.model.state_dict().items():
        assert torch.equal(before[key], value)
    assert not tiny_checkpoint.model.training


def test_the_page_shows_every_study() -> None:
    page = Path(lewm.study.__file__).parents[2] / "docs" / "understanding.md"
    assert set(re.findall(r"^    lewm study (\w+)", page.read_text(), re.MULTILINE)) == {*STUDIES, "all"}
