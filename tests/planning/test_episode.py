"""`lewm plan`: a real goal picture in, a video and a trace out; pictures that do not fit get one sentence."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import envs
from lewm.cli import main
from lewm.planning.episode import read_goal

START, GOAL = (0.2, 0.7), (0.3, 0.6)


def save(path: Path, rgb: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]) if rgb.ndim == 3 else rgb)
    return path


@pytest.fixture
def picture() -> np.ndarray:
    return envs.make("two_room", size=32).goal_image(np.array(GOAL))


def test_a_goal_picture_is_read_as_it_was_drawn(picture: np.ndarray, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_goal(save(tmp_path / "goal.png", picture), 32), picture)
    assert np.abs(read_goal(save(tmp_path / "goal.jpg", picture), 32).astype(int) - picture).mean() < 12


def bad_pictures(folder: Path, rgb: np.ndarray) -> dict[str, Path]:
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    cut = save(folder / "whole.png", rgb).read_bytes()[:60]
    (folder / "cut.png").write_bytes(cut)
    return {
        "grey": save(folder / "grey.png", rgb[..., 0]),
        "alpha": save(folder / "alpha.png", np.dstack([np.full((32, 32, 1), 255, np.uint8), rgb])),
        "large": save(folder / "large.png", np.repeat(rgb, 2, 1)),
        "deep": save(folder / "deep.png", rgb.astype(np.uint16) * 257),
        "text": folder / "text.png",
        "empty": folder / "empty.png",
        "cut": folder / "cut.png",
        "missing": folder / "nowhere.png",
    }


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("grey", "is greyscale; the model sees colour: save it with three channels"),
        ("alpha", "has an alpha channel; save it as plain RGB"),
        ("large", "is 64 x 32 pixels; this model sees 32 x 32: make it that size"),
        ("deep", "uint16"),
        ("text", "cannot be read as an image: save it as PNG or JPEG"),
        ("empty", "cannot be read as an image: save it as PNG or JPEG"),
        ("cut", "cannot be read as an image: save it as PNG or JPEG"),
        ("missing", "does not exist"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_in_a_sentence(
    kind: str,
    expected: str,
    picture: np.ndarray,
    tiny_checkpoint_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = bad_pictures(tmp_path, picture)[kind]
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--checkpoint", str(tiny_checkpoint_path), "--goal", str(path), "--out", str(out)])
    assert stopped.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lewm plan: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert not out.exists()


def plan(checkpoint: Path, goal: Path, out: Path, *options: str) -> dict:
    start = ",".join(map(str, START))
    main(["plan", "--checkpoint", str(checkpoint), "--goal", str(goal), "--out", str(out), "--start", start, *options])
    return json.loads((out / "trace.json").read_text())


def test_an_episode_to_a_real_picture(
    picture: np.ndarray, tiny_checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    goal = save(tmp_path / "goal.png", picture)
    trace = plan(tiny_checkpoint_path, goal, tmp_path / "out", "--budget", "12", "--seed", "3")
    assert (tmp_path / "out" / "episode.mp4").stat().st_size > 1000
    assert trace["task"] == "two_room" and trace["outcome"].startswith("not scored")
    steps = trace["steps"]
    assert [s["step"] for s in steps] == list(range(12))
    assert [s["step"] for s in steps if s["plan_ms"] is not None] == [0, 5, 10]
    env = envs.make("two_room", size=32)
    env.set_state(np.array(START))
    for step in steps:
        env.advance(np.array(step["action"]))
        np.testing.assert_allclose(step["state"], env.state, atol=1e-5)
    assert "after 12 steps" in capsys.readouterr().out
    again = plan(tiny_checkpoint_path, goal, tmp_path / "again", "--budget", "12", "--seed", "3")
    assert [s["action"] for s in again["steps"]] == [s["action"] for s in steps]


def test_limits_of_action_entries_are_kept(picture: np.ndarray, tiny_checkpoint_path: Path, tmp_path: Path) -> None:
    goal = save(tmp_path / "goal.png", picture)
    limits = "{low: [-0.2, -1], high: [0.1, 1], held: [1], dead_zone: [0, 0.4]}"
    trace = plan(tiny_checkpoint_path, goal, tmp_path / "out", "--budget", "10", "--actions", limits)
    action = np.array([step["action"] for step in trace["steps"]])
    assert (action[:, 0] >= -0.2).all() and (action[:, 0] <= 0.1).all() and np.ptp(action[:, 0]) > 0
    blocks = action[:, 1].reshape(-1, 5)
    assert (blocks == blocks[:, :1]).all() and ((blocks == 0) | (np.abs(blocks) >= 0.4)).all()


@pytest.mark.parametrize(
    "limits, expected",
    [("{hold: [1]}", "actions.hold is unknown; did you mean actions.held"), ("[1, 2]", "actions must be a mapping")],
)
def test_limits_that_are_none_are_refused_in_a_sentence(
    limits: str, expected: str, tiny_checkpoint_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--checkpoint", str(tiny_checkpoint_path), "--goal", "goal.png", "--actions", limits])
    assert stopped.value.code == 2 and expected in capsys.readouterr().err


def test_a_goal_state_ends_the_episode_at_success(
    picture: np.ndarray, tiny_checkpoint_path: Path, tmp_path: Path
) -> None:
    goal = save(tmp_path / "goal.png", picture)
    near = f"{START[0] + 0.01},{START[1]}"
    trace = plan(tiny_checkpoint_path, goal, tmp_path / "near", "--budget", "9", "--goal-state", near)
    assert trace["outcome"] == "reached" and len(trace["steps"]) == 1 and trace["steps"][0]["success"]
    trace = plan(tiny_checkpoint_path, goal, tmp_path / "far", "--budget", "3", "--goal-state", "0.9,0.1")
    assert trace["outcome"] == "not reached" and [s["success"] for s in trace["steps"]] == [False] * 3


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--start", "0.2"], "state"),
        (["--start", "0.5,0.9"], "inside a wall"),
        (["--goal-state", "0.2,0.3,0.4"], "state"),
        (["--planner", "cme"], "no planner is called 'cme'"),
        (["--cost", "l3"], "no distance is called 'l3'"),
        (["--task", "tworoom"], "unknown task 'tworoom'"),
        (["--budget", "0"], "budget"),
        (["--device", "tpu9"], "tpu9"),
        (["--actions", "{low: [-0.1]}"], "actions.low has 1 numbers; this model's actions have 2"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(
    options: list[str],
    expected: str,
    picture: np.ndarray,
    tiny_checkpoint_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    goal = save(tmp_path / "goal.png", picture)
    words = ["plan", "--checkpoint", str(tiny_checkpoint_path), "--goal", str(goal), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main([*words, *options])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("lewm plan: ") and expected in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
