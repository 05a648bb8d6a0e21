"""From the command to a row of the results: training, the folder, its faults, resuming, acting, the outcome log."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import toy_checkpoint, toy_model

import envs
from lewm.baselines.goal_data import GoalTransitions
from lewm.baselines.offline import (
    OFFLINE,
    OfflineMethod,
    encoder_fingerprint,
    load_offline,
    offline_agent,
    searches,
    train_offline,
)
from lewm.baselines.trainers import TRAINERS, settings
from lewm.checkpoint import Checkpoint, load, save_checkpoint
from lewm.cli import main
from lewm.commands.baselines import KINDS
from lewm.config import RunConfig, dump
from lewm.config import load as load_run
from lewm.data.store import Store
from lewm.evaluate import evaluate as module
from lewm.evaluate.evaluate import EvaluateConfig, evaluate, held_out_manifests
from lewm.evaluate.manifest import GoalSet
from lewm.evaluate.methods import MethodConfig, labels, make_policy, weight_files
from lewm.heads_training import Fit
from lewm.planning.policy import Start
from lewm.schema import build

TINY = {"width": 8, "layers": 1, "steps": 3, "batch": 8}
GOALS = GoalSet("near", offset=8, budget=10, count=4)


def method(kind: str, path: Path) -> OfflineMethod:
    """As a run's YAML says it."""
    data = {"methods": [{"kind": kind, "path": str(path)}]}
    found = build(EvaluateConfig, data, "test").methods[0]
    assert isinstance(found, OfflineMethod)
    return found


@pytest.fixture(scope="module")
def folders(tiny_store: Store, tiny_checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every baseline, trained for three steps."""
    out = tmp_path_factory.mktemp("offline")
    for kind in OFFLINE:
        train_offline(kind, settings(kind, TINY), load(tiny_checkpoint_path), tiny_store, out / kind, quiet=True)
    return {kind: out / kind for kind in OFFLINE}


def test_the_tables_agree() -> None:
    """The command lists its kinds without importing torch."""
    assert tuple(TRAINERS) == KINDS and set(OFFLINE) <= set(TRAINERS)
    for kind in OFFLINE:
        one = method(kind, Path("x"))
        assert one.name == kind and (searches(one) or labels(one).planner == kind)
        assert (OFFLINE[kind].plan is not None) == hasattr(one, "planner")


@pytest.mark.parametrize("kind", OFFLINE)
def test_round_trip(kind: str, folders: dict[str, Path], tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    networks, card = load_offline(folders[kind], kind, tiny_checkpoint)
    assert (card.kind, card.steps, card.blocks, card.task) == (kind, 3, 24, "two_room")
    assert (card.episodes, card.frames) == (6, 6 * 41) and card.seconds >= 0
    assert card.parameters == sum(p.numel() for p in networks.parameters())
    assert {path.name for path in folders[kind].iterdir()} == {"baseline.json", "model.safetensors", "train"}
    config = settings(kind, TINY)
    again, _ = OFFLINE[kind].fit(config, fit_of(tiny_checkpoint, tiny_store, folders[kind] / "train"))
    assert networks.state_dict().keys() == again.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(networks.state_dict()[name], value), name


def fit_of(checkpoint: Checkpoint, store: Store, out: Path) -> Fit:
    return Fit(checkpoint.model, store, out, checkpoint.origin.held_out, checkpoint.origin.seed, True)


@pytest.mark.parametrize("kind", OFFLINE)
def test_no_neighbour_changes_an_action(kind: str, folders: dict[str, Path], tiny_checkpoint: Checkpoint) -> None:
    """One problem against three, over two blocks and a step; frames differ from problem to problem."""
    rng = np.random.default_rng(0)
    goals, frames = rng.integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    together, alone = (offline_agent(tiny_checkpoint, method(kind, folders[kind]), seed=0) for _ in range(2))
    together.reset(goals)
    alone.reset(goals[1:2], episodes=[1])
    taken = np.stack([together.act(frames) for _ in range(11)])
    np.testing.assert_allclose(np.stack([alone.act(frames[1:2]) for _ in range(11)])[:, 0], taken[:, 1], atol=1e-5)
    assert np.abs(taken).max() <= 1 and np.ptp(taken, axis=1).max() > 0
    resting = offline_agent(tiny_checkpoint, method(kind, folders[kind]), seed=0)
    resting.reset(goals)
    action = resting.act(frames, np.array([False, True, False]))
    np.testing.assert_allclose(action[1], taken[0, 1], atol=1e-5)
    assert not action[[0, 2]].any()


@pytest.mark.parametrize("kind", ["gcivl", "tdmpc2"])
def test_an_interrupted_training_continues_to_the_same_networks(
    kind: str, tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have target networks to keep; the seconds of both stretches are counted."""
    config = settings(kind, TINY | {"steps": 12})
    whole, batch, calls, clock = tmp_path / "whole", GoalTransitions.batch, [0], iter(range(0, 10_000, 30))
    train_offline(kind, config, tiny_checkpoint, tiny_store, whole, quiet=True)

    def read_then_die(self: GoalTransitions, *arguments: torch.Tensor) -> object:
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        return batch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GoalTransitions, "batch", read_then_die)
        patch.setattr("lewm.heads_training.time.monotonic", lambda: next(clock))
        with pytest.raises(KeyboardInterrupt):
            train_offline(kind, config, tiny_checkpoint, tiny_store, tmp_path / "cut", quiet=True)
    state = torch.load(tmp_path / "cut" / "train" / f"{kind}.pt", weights_only=True)
    assert state["step"] == 5 and state["seconds"] > 100
    assert not (tmp_path / "cut" / "baseline.json").exists()
    card = train_offline(kind, config, tiny_checkpoint, tiny_store, tmp_path / "cut", quiet=True)
    assert card.seconds > 100
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError, match=rf"{kind}\.pt was fitted with another config: choose another --out"):
        train_offline(kind, replace(config, steps=13), tiny_checkpoint, tiny_store, whole, quiet=True)
    with pytest.raises(ValueError, match=rf"holds the baseline {kind}: choose another --out"):
        train_offline("gcbc", settings("gcbc", TINY), tiny_checkpoint, tiny_store, whole, quiet=True)


def test_another_encoder_is_refused_and_another_predictor_is_not(
    folders: dict[str, Path], tiny_checkpoint: Checkpoint
) -> None:
    before = encoder_fingerprint(tiny_checkpoint.model)
    next(tiny_checkpoint.model.predictor.parameters()).add_(1)
    assert encoder_fingerprint(tiny_checkpoint.model) == before
    load_offline(folders["gcbc"], "gcbc", tiny_checkpoint)
    next(tiny_checkpoint.model.encoder.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"was trained on the latents of another encoder than that of .*anew"):
        load_offline(folders["gcbc"], "gcbc", tiny_checkpoint)


def test_a_folder_that_does_not_fit_is_refused(
    folders: dict[str, Path], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/baseline\.json is missing: .*lewm train-baseline hilp"):
        load_offline(tmp_path / "nowhere", "hilp", tiny_checkpoint)
    with pytest.raises(ValueError, match="holds the baseline gcbc, not hilp: correct the method's kind or its path"):
        load_offline(folders["gcbc"], "hilp", tiny_checkpoint)
    elsewhere = replace(tiny_checkpoint, origin=replace(tiny_checkpoint.origin, task="reacher"))
    with pytest.raises(ValueError, match=r"was trained on two_room, but .* on reacher"):
        load_offline(folders["gcbc"], "gcbc", elsewhere)
    copied = shutil.copytree(folders["gcbc"], tmp_path / "copied")
    card = json.loads((copied / "baseline.json").read_text())
    card["config"]["width"] = 9
    (copied / "baseline.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit its baseline\.json"):
        load_offline(copied, "gcbc", tiny_checkpoint)
    (copied / "baseline.json").write_text("{}")
    with pytest.raises(ValueError, match=r"this is not a lewm-baseline of version 1; train it again"):
        load_offline(copied, "gcbc", tiny_checkpoint)


def test_recordings_that_do_not_fit_are_refused(tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = settings("gcbc", TINY)
    elsewhere = replace(tiny_checkpoint, origin=replace(tiny_checkpoint.origin, task="reacher"))
    with pytest.raises(ValueError, match=r"holds recordings of two_room, but .* was trained on reacher: pass"):
        train_offline("gcbc", config, elsewhere, tiny_store, tmp_path / "o")
    facts = replace(tiny_checkpoint.model.facts, size=64)
    larger = toy_checkpoint(toy_model())
    larger.model.facts = facts
    with pytest.raises(ValueError, match=r"frames of shape \(32, 32, 3\); toy reads \(64, 64, 3\)"):
        train_offline("gcbc", config, larger, tiny_store, tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def evaluated(
    folders: dict[str, Path], tiny_store: Store, tiny_checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[module.Evaluated], EvaluateConfig, Path]:
    out, methods = tmp_path_factory.mktemp("evaluation"), tuple(method(kind, folders[kind]) for kind in OFFLINE)
    config = EvaluateConfig(goals=(GOALS,), methods=methods, timed_plans=2)
    checkpoint = load(tiny_checkpoint_path)
    manifests = held_out_manifests(config, tiny_store, checkpoint, out)
    return evaluate(config, manifests, checkpoint, out, quiet=True), config, out


def test_rows_beside_those_of_planners(evaluated: tuple[list[module.Evaluated], EvaluateConfig, Path]) -> None:
    rows = [e.row for e in evaluated[0]]
    assert [row.method for row in rows] == [*OFFLINE, "random", "oracle"]
    for row, one in zip(rows, evaluated[1].methods, strict=False):
        size = row.planner, row.candidates, row.iterations, row.horizon, row.n
        assert size == (("mppi", 512, 6, 3, 4) if searches(one) else (row.method, 1, 1, 1, 4))
        assert 0 < row.encode_ms_p50 < row.plan_ms_p95 and row.low <= row.success <= row.high


def test_outcomes_belong_to_the_weights(
    evaluated: tuple[list[module.Evaluated], EvaluateConfig, Path],
    folders: dict[str, Path],
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    """Other numbers in the baseline's folder, or in the checkpoint's, are another key."""
    manifest = evaluated[0][0].manifest
    copied = shutil.copytree(folders["gcbc"], tmp_path / "gcbc")
    acts = method("gcbc", copied)
    assert weight_files(acts, tiny_checkpoint) == [
        tiny_checkpoint.path / "model.safetensors",
        copied / "model.safetensors",
    ]
    before = module.outcome_key(acts, manifest, tiny_checkpoint, 0)
    shutil.copy(folders["gcivl"] / "model.safetensors", copied / "model.safetensors")
    assert module.outcome_key(acts, manifest, tiny_checkpoint, 0) != before
    shutil.copy(folders["gcbc"] / "model.safetensors", copied / "model.safetensors")
    assert module.outcome_key(acts, manifest, tiny_checkpoint, 0) == before
    head = tiny_checkpoint.cost_to_go
    assert head is not None
    head.net[-1].bias += 1
    save_checkpoint(tmp_path / "c", tiny_checkpoint.model, head, tiny_checkpoint.origin, {})
    assert module.outcome_key(acts, manifest, load(tmp_path / "c"), 0) != before


def test_a_missing_baseline_is_found_before_anything_runs(
    evaluated: tuple[list[module.Evaluated], EvaluateConfig, Path], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = replace(evaluated[1], methods=(*evaluated[1].methods[:1], method("hilp", tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match=r"nowhere/baseline\.json is missing"):
        evaluate(config, [evaluated[0][0].manifest], tiny_checkpoint, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="method gcbc plans with a world model: pass --checkpoint"):
        make_policy(evaluated[1].methods[0], None, 0)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and what the command says."""
    try:
        main(list(words))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.err if code else captured.out


def test_from_the_command_line(
    tiny_run: RunConfig,
    tiny_store: Store,
    tiny_checkpoint_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ["train-baseline", "gcbc", "--data", str(tiny_store.path), "--checkpoint", str(tiny_checkpoint_path)]
    out = tmp_path / "gcbc"
    code, said = command(
        capsys, *start, "--out", str(out), "--device", "cpu", "--steps", "2", "--width", "8", "--json", str(out) + ".js"
    )
    assert code == 0 and said.startswith("gcbc: 2 steps on 6 episodes, 246 frames, in ")
    card = json.loads(Path(str(out) + ".js").read_text())
    assert (card["steps"], card["config"]["width"], card["frames"]) == (2, 8, 246)
    run = replace(tiny_run, evaluate=EvaluateConfig(goals=(GOALS,), methods=(method("gcbc", out),), timed_plans=1))
    (tmp_path / "run.yaml").write_text(dump(run))
    assert load_run(tmp_path / "run.yaml") == run
    words = ["evaluate", str(tmp_path / "run.yaml"), "--checkpoint", str(tiny_checkpoint_path), "--device", "cpu"]
    code, said = command(capsys, *words, "--data", str(tiny_store.path), "--out", str(tmp_path / "e"))
    assert code == 0 and "gcbc 1x1x1" in said and (tmp_path / "e" / "report.html").is_file()


def test_mistakes_at_the_command_line_are_one_sentence(
    tmp_path: Path, tiny_checkpoint_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["train-baseline", "gcbc"]
    code, said = command(capsys, *start, "--keys")
    assert code == 0 and "--nearness" in said and "Hidden units per layer" in said and "Default 256." in said
    for words, expected in (
        (["--out", str(tmp_path / "o")], "pass --checkpoint"),
        (["--out", str(tmp_path / "o"), "--checkpoint", str(tiny_checkpoint_path)], "pass --data"),
        ([], "--out is missing; add it"),
        (["--widht", "3"], "widht is unknown; did you mean width?"),
        (["--steps", "0"], "gcbc.steps is 0; it must be at least 1"),
    ):
        code, said = command(capsys, *start, *words)
        assert code in (1, 2) and expected in said and said.count("\n") == 1, said
    assert command(capsys, "train-baseline", "gcbx")[0] == 2
    assert not (tmp_path / "o").exists()


def test_a_policy_looks_at_one_picture_per_block(folders: dict[str, Path], tiny_checkpoint: Checkpoint) -> None:
    env = envs.make("two_room", size=32)
    methods: list[MethodConfig] = [method(kind, folders[kind]) for kind in OFFLINE]
    for one in methods:
        policy = make_policy(one, tiny_checkpoint, 0)
        policy.start([Start(0, env, np.array([0.8, 0.2]), np.zeros((0, 2)))])
        looked = []
        for _ in range(11):
            looked.append(policy.needs_frame)
            policy.act(env.render()[None] if looked[-1] else None, np.ones(1, bool))
        assert looked == [step % 5 == 0 for step in range(11)]
