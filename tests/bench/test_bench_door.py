"""The measurement of the latent variable's worth: what it compares, on a store and a model of seconds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lewm import pipeline
from lewm.bench.door import VARIABLES, blocks, measure
from lewm.checkpoint import load
from lewm.cli import main
from lewm.config import RunConfig
from lewm.data.store import Store


@pytest.fixture(scope="module")
def door_run(tiny_run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    out = tmp_path_factory.mktemp("door")
    run = replace(tiny_run, task="door", train=replace(tiny_run.train, steps=2))
    run = replace(run, cost_to_go=replace(run.cost_to_go, steps=0))
    store = pipeline.record(run, out / "data", processes=1, quiet=True)
    return pipeline.fit(run, store, out, torch.device("cpu"), quiet=True), store


def test_every_predictor_is_judged_on_both_kinds_of_transitions(
    door_run: tuple[Path, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, store = door_run
    out = tmp_path / "rows.json"
    main(f"bench door --checkpoint {checkpoint} --data {store.path} --steps 5 --json {out}".split())
    rows = json.loads(out.read_text())
    assert [row["predictor"] for row in rows[::2]] == list(VARIABLES) and len(rows) == 2 * len(VARIABLES)
    assert len({(row["transitions"], row["n"]) for row in rows}) == 2
    assert all(row["nats"] == 0 for row in rows[:2]) and all(row["nats"] > 0 for row in rows[2:])
    assert capsys.readouterr().out.count("\n") == 1 + len(rows)


def test_a_redrawn_door_is_one_whose_coin_moved(door_run: tuple[Path, Store]) -> None:
    checkpoint, store = door_run
    found = blocks(load(checkpoint).model, store, torch.arange(store.num_episodes).numpy())
    door_B2 = found.state_B2S[:, :, 2]
    changed_B = door_B2[:, 0] != door_B2[:, 1]
    assert changed_B.any() and found.redrawn_B[changed_B].all()  # and about as many redraws left it as it was
    assert 0 < found.redrawn_B.float().mean() < 0.5


def test_other_tasks_are_refused(tiny_checkpoint_path: Path, tiny_store: Store) -> None:
    with pytest.raises(ValueError, match=r"was trained on task 'two_room'; this measures task door only"):
        measure(tiny_checkpoint_path, tiny_store.path, steps=1, seed=0)
