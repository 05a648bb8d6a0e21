"""The manifests that come with the repository: what they hold, and that nobody has changed them."""

from pathlib import Path

import numpy as np
import pytest

from lewm.evaluate.fingerprint import fingerprint
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
    return list(zip(goals, files(goals, Path(f"{rule}.json.gz")), strict=True))


def test_every_file_is_listed() -> None:
    assert {str(path.relative_to(FOLDER)).split(".")[0] for path in FOLDER.rglob("*.gz")} == set(FROZEN)
