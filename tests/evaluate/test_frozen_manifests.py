"""The manifests that come with the repository: what they hold, and that nobody has changed them."""

from pathlib import Path

import numpy as np
import pytest

import envs
from lewm.evaluate.fingerprint import fingerprint
from lewm.evaluate.leaderboard import find_results
from lewm.evaluate.manifest import load_manifest, stand
from lewm.evaluate.rules import RULES, files, goal_sets

FOLDER = Path(__file__).parent.parent.parent / "docs" / "results" / "manifests"
FROZEN = {
    "reacher/far_50": "99d98294ff8c",
    "reacher/far_75": "0ba478f65321",
    "reacher/shift": "9631c2a7961f",
    "reacher/standard": "782f6ef021fc",
    "reacher/strict": "f1351f1d73ef",
    "two_room/far_50": "7bfedaf7ab00",
    "two_room/far_75": "7de8df361ca9",
    "two_room/far_across": "3669814a2a52",
    "two_room/shift": "c4554f9e803f",
    "two_room/shift_agent": "9d79587331e4",
    "two_room/shift_agent_size": "64b3c9168862",
    "two_room/shift_blur": "1f823c9858b1",
    "two_room/shift_brightness": "d5ef75e600fd",
    "two_room/shift_distractors": "e7f7d02c05ef",
    "two_room/shift_floor": "75e7c19c41a9",
    "two_room/shift_noise": "a2af505af252",
    "two_room/shift_shift": "1dac39dea914",
    "two_room/shift_speed": "702c238ab51a",
    "two_room/shift_texture": "f858601af099",
    "two_room/shift_turn": "a8e1d898d809",
    "two_room/shift_wall": "1c5af516490a",
    "two_room/shift_warmth": "7546cc1b6694",
    "two_room/shift_zoom": "2909cf0ae18a",
    "two_room/standard": "49a9cb36dd0a",
    "two_room/strict": "cc985e206f93",
}
"""The first twelve digits of every fingerprint: results on other pairs would be other results."""


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_manifest_is_what_it_was(name: str) -> None:
    manifest = load_manifest(FOLDER / f"{name}.json.gz")
    assert fingerprint(manifest)[:12] == FROZEN[name]
    assert manifest.task == name.split("/")[0] and len(manifest.problems) == 200
    goals = {path.name.split(".")[0]: g for rule in RULES for g, path in named(rule)}
    assert manifest.goals == goals[name.split("/")[1]]
    for problem in manifest.problems[::20]:  # none is solved at the start
        env = stand(manifest, problem)
        assert not env.is_success(env.state, np.array(problem.goal_state))
        env.close()


def named(rule: str) -> list:
    goals = goal_sets(rule, 200)
    if rule == "shift":
        each = [g for factor in envs.make("two_room").factors for g in goal_sets(rule, 200, shift=[factor])]
        return [(goals[0], Path("shift.json.gz")), *zip(each, files(each, Path("shift.json.gz")), strict=True)]
    return list(zip(goals, files(goals, Path(f"{rule}.json.gz")), strict=True))


def test_every_file_is_listed_or_of_a_demo() -> None:
    found = {str(path.relative_to(FOLDER)).split(".")[0] for path in FOLDER.rglob("*.gz")}
    assert {name for name in found if "/demo_" not in name} == set(FROZEN)


def test_the_goals_behind_every_published_row_are_here() -> None:
    """But those of the door, whose rows are older than fingerprints; and no file is left of rows that are gone."""
    entries, _ = find_results([FOLDER.parent])
    used = {entry.row.manifest for entry in entries if entry.row.task != "door"}
    kept = {fingerprint(load_manifest(path)): path for path in FOLDER.rglob("*.gz")}
    assert used <= kept.keys()
    assert {path.name for print_, path in kept.items() if print_ not in used and path.name.startswith("demo_")} == set()
