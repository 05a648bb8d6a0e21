"""Runs: files and overrides in, one checked RunConfig out, and back."""

from pathlib import Path

import pytest

from lewm import config
from lewm.config import RunConfig, dump, find, help_text, load, parse_overrides, shipped, with_seed
from lewm.nets.predictors import RotaryConfig
from lewm.schema import SchemaError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(shipped()))
def test_dump_of_a_load_is_the_same_run(name: str, tmp_path: Path) -> None:
    run = load(name)
    path = write(tmp_path, dump(run))
    assert load(path) == run
    assert dump(load(path)) == path.read_text()


def test_dump_round_trips_a_run_of_python_objects(tiny_run: RunConfig, tmp_path: Path) -> None:
    assert load(write(tmp_path, dump(tiny_run))) == tiny_run


def test_a_run_is_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("two_room") == shipped()["two_room"]
    path = write(tmp_path, "task: two_room")
    assert find(path) == find(str(path)) == path
    with pytest.raises(FileNotFoundError, match=r"no configuration nowhere: give a YAML file, or one of .*reacher, "):
        find("nowhere")


def test_shipped_runs_of_a_wheel_lie_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lewm" / "configs").mkdir(parents=True)
    (tmp_path / "lewm" / "configs" / "mine.yaml").write_text("task: two_room")
    monkeypatch.setattr(config, "__file__", str(tmp_path / "lewm" / "config.py"))
    assert list(shipped()) == ["mine"]
    assert load("mine").task == "two_room"


def test_overrides_by_dotted_name() -> None:
    words = ["--train.steps", "7", "--cost-to-go.steps=9", "--evaluate.goals.1.count", "3", "--settings.size=32"]
    run = load("two_room", [*words, "--train.learning_rate", "1e-2", "--model.encoder.channels", "[8, 16]"])
    assert (run.train.steps, run.cost_to_go.steps, run.settings["size"]) == (7, 9, 32)
    assert [g.count for g in run.evaluate.goals] == [200, 3]
    assert run.train.learning_rate == 0.01
    assert run.model.encoder.channels == (8, 16)
    rest = load("two_room")
    assert (run.collect, run.objective, run.evaluate.methods) == (rest.collect, rest.objective, rest.evaluate.methods)


def test_overrides_reach_sections_the_file_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path, "task: two_room")
    run = load(path, ["--train.steps", "7", "--model.predictor", "{name: rotary, context: 4}", "--settings.size", "32"])
    assert run.train.steps == 7
    assert run.model.predictor == RotaryConfig(context=4)
    assert run.settings == {"size": 32}


def test_the_last_of_equal_overrides_wins() -> None:
    assert parse_overrides(["--a.b", "1", "--a.b=2"]) == {"a.b": 2}
    assert parse_overrides(["--a", "-1", "--b=x=y", "--c=", "--d", "[1, two]"]) == {
        "a": -1,
        "b": "x=y",
        "c": None,
        "d": [1, "two"],
    }


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--train.stepz", "5"], "train.stepz is unknown; did you mean train.steps?"),
        (["--trian.steps", "5"], "trian is unknown; did you mean train?"),
        (["--train.steps", "many"], "train.steps is 'many'; "),
        (["--train.steps", "0"], "train.steps is 0; it must be at least 1"),
        (["--evaluate.goals.0.goal", "ahed"], "evaluate.goals.0.goal is 'ahed'; "),
        (["--evaluate.goals.9.count", "5"], "--evaluate.goals.9.count: '9' must be an index below 2"),
        (["--evaluate.goals.last.count", "5"], "'last' must be an index below 2"),
        (["--train.steps.more", "5"], "--train.steps.more: train.steps has no settings of its own"),
        (["--evaluate.methods.0.planner.elites", "99"], "elites is 99; it must lie in 1..32"),
        (["--train.steps"], "--train.steps has no value; write --train.steps VALUE"),
        (["train.steps", "5"], "'train.steps' is not an option"),
        (["--model.encoder.channels", "[16"], "--model.encoder.channels"),
        (["--model.predictor.name", "mpl"], "model.predictor.name is 'mpl'; did you mean mlp?"),
    ],
)
def test_a_bad_override_is_one_sentence(words: list[str], expected: str) -> None:
    with pytest.raises(SchemaError) as caught:
        load("two_room", words)
    assert str(caught.value).startswith("command line: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("task: two_room\ntrain: {step: 5}", "run.yaml: train.step is unknown; did you mean train.steps?"),
        ("train: {steps: 5}", "run.yaml: task is missing; add it"),
        ("task: two_room\ntrain: {steps: [5]}", "run.yaml: train.steps is [5]; "),
        ("task: two_room\ntrain: {held_out: 1.0}", "run.yaml: train: train.held_out is 1.0; it must lie between 0 and"),
        ("task: [", "run.yaml is not YAML: "),
        ("", "run.yaml must hold a mapping of settings, not None"),
        ("- task", "run.yaml must hold a mapping of settings, not ['task']"),
        ("task: two_room\nevaluate: {goals: {name: a}}", "run.yaml: evaluate.goals must be a list"),
        (
            "task: two_room\nevaluate: {goals: [{name: a}, {name: a}]}",
            "run.yaml: evaluate: evaluate.goals: two are called 'a'; give each its own name",
        ),
    ],
)
def test_a_bad_file_is_named_even_when_there_are_overrides(text: str, expected: str, tmp_path: Path) -> None:
    for words in ([], ["--train.steps", "3"]):
        with pytest.raises(SchemaError) as caught:
            load(write(tmp_path, text), words)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--model.frame_skip", "0"],
        ["--model.frame_stack", "0"],
        ["--cost_to_go.batch", "0"],
        ["--cost_to_go.width", "0"],
        ["--cost_to_go.steps", "-1"],
        ["--evaluate.batch", "0"],
        ["--evaluate.timed_plans", "0"],
        ["--evaluate.methods.2.hold", "0"],
        ["--evaluate.methods.3.frame_skip", "0"],
        ["--evaluate.methods.0.history", "0"],
        ["--evaluate.goals.0.offset", "60"],
    ],
)
def test_values_nothing_can_run_with_are_refused_before_any_work(words: list[str]) -> None:
    """The last one asks for goals that the recording itself does not reach within the budget."""
    with pytest.raises(SchemaError, match=words[0].rsplit(".", 1)[1]):
        load("two_room", words)


def test_with_seed_reaches_every_stage_and_nothing_else() -> None:
    run, other = load("two_room"), with_seed(load("two_room"), 5)
    assert (other.collect.seed, other.train.seed, other.evaluate.seed) == (5, 5, 5)
    assert with_seed(other, 0) == run


def test_every_key_has_help() -> None:
    lines = help_text().splitlines()
    assert any(line.split()[:1] == ["--train.steps"] for line in lines)
    assert any(line.split()[:1] == ["--evaluate.methods.planner.elites"] for line in lines)
    tags = ("name", "kind")
    bare = [words[0] for line in lines if len(words := line.split()) == 1]
    assert [key for key in bare if key.rsplit(".", 1)[-1] not in tags] == []
