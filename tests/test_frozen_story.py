"""A frozen encoder from recordings to actions: trained on, saved by reference, fitted with heads, planned with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_encoders import WIDTH, save_encoder
from torch import Tensor

import envs
from lewm import config, pipeline
from lewm.baselines.oracle import OracleConfig
from lewm.checkpoint import load
from lewm.cli import main
from lewm.config import RunConfig
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.manifest import GoalSet
from lewm.evaluate.methods import PlanConfig
from lewm.heads_training import encode_store
from lewm.nets.frozen import FrozenConfig, FrozenEncoder, frozen_in
from lewm.nets.frozen.cache import cache_features, plan_features
from lewm.nets.predictors import AdaLNConfig, MLPConfig, RotaryConfig
from lewm.objectives import AddOnsConfig, PredictionOnlyConfig, SigRegConfig, build_objective
from lewm.objectives.prediction import PredictionConfig
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, GoalCost
from lewm.proposal import ProposalConfig
from lewm.readout import ReadoutConfig
from lewm.train import Trainer
from lewm.world_model import ModelConfig
from planners import CEM

CPU = torch.device("cpu")
PREDICTORS = {
    "mlp": (1, MLPConfig(width=16)),
    "rotary": (2, RotaryConfig(width=16, layers=1, heads=2)),
    "adaln": (2, AdaLNConfig(history=2, layers=1, heads=2, head_dim=8, mlp_hidden=16, projector_hidden=16)),
}
"""Grid and predictor."""


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder") / "dinov2")


def run_of(tiny_run: RunConfig, path: Path, predictor: str = "rotary", stack: int = 1) -> RunConfig:
    grid, predictor_config = PREDICTORS[predictor]
    model = ModelConfig(FrozenConfig(path=str(path), grid=grid), predictor_config, frame_stack=stack)
    heads = {"proposal": ProposalConfig(width=8, steps=4, batch=8), "readout": ReadoutConfig(("x", "y"))}
    few = {"cost_to_go": replace(tiny_run.cost_to_go, steps=4)}
    train = replace(tiny_run.train, steps=4, prediction="teacher_forcing")
    return replace(tiny_run, model=model, objective=PredictionOnlyConfig(), train=train, **heads, **few)


def cache(store: Store, run: RunConfig, dtype: str = "float32") -> None:
    assert isinstance(run.model.encoder, FrozenConfig)
    cache_features(plan_features(store, run.model.encoder, dtype), quiet=True)


def never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FrozenEncoder, pixels_BCYX: Tensor) -> Tensor:
        raise AssertionError("the frozen encoder ran")

    monkeypatch.setattr(FrozenEncoder, "features", refuse)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_from_recordings_to_actions(
    predictor: str, tiny_run: RunConfig, tiny_store: Store, encoder_path: Path, tmp_path: Path
) -> None:
    """With either cost, whose fast and plain form agree."""
    run = run_of(tiny_run, encoder_path, predictor)
    path = pipeline.fit(run, tiny_store, tmp_path, CPU, quiet=True)
    assert config.load(tmp_path / "config.yaml") == run
    checkpoint = load(path)
    assert checkpoint.model.latent_dim == WIDTH and checkpoint.readout is not None
    env = envs.make(run.task, **run.settings)
    pixels, info = env.reset(seed=0)
    goal = env.goal_image(info["goal_state"])
    for name in ("latent_l2", "cost_to_go"):
        cost = CostConfig({name: 1.0})
        agent = Agent(checkpoint, CEM(candidates=6, iterations=2, elites=2, horizon=2), cost, proposal="seed")
        agent.reset(goal)
        assert env.action_space.contains(agent.act(pixels))
        assert agent.last is not None and agent.goal_BKD is not None and agent.fast is not None
        seen, goal_BKD, head = agent.last.situation, agent.goal_BKD, checkpoint.cost_to_go
        action_BNHA = torch.randn(1, 8, 2, 10, generator=torch.Generator().manual_seed(0))
        fast, plain = (GoalCost(checkpoint.model, head, cost, seen, goal_BKD, f) for f in (agent.fast, None))
        torch.testing.assert_close(fast(action_BNHA), plain(action_BNHA), rtol=1e-4, atol=1e-5)
    env.close()


@pytest.mark.parametrize(("dtype", "tolerance", "stack"), [("float32", 1e-4, 2), ("float16", 5e-3, 1)])
def test_a_run_from_the_cache_agrees_and_never_runs_the_encoder(
    dtype: str,
    tolerance: float,
    stack: int,
    tiny_run: RunConfig,
    store: Store,
    encoder_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """World model, probes, cost-to-go, proposal; and the readout, which a random encoder leaves to the last digits."""
    run = run_of(tiny_run, encoder_path, stack=stack)
    run = replace(run, train=replace(run.train, probe_every=2))
    live = load(pipeline.fit(run, store, tmp_path / "live", CPU, quiet=True))
    cache(store, run, dtype)
    run = replace(run, train=replace(run.train, features="cached"))
    with monkeypatch.context() as patched:
        never_runs(patched)
        path = pipeline.fit(run, store, tmp_path / "cached", CPU, quiet=True)
    cached = load(path)
    assert cached.readout is not None
    for name in ("model", "cost_to_go", "proposal"):
        ours, theirs = (getattr(checkpoint, name).state_dict() for checkpoint in (cached, live))
        for key, value in theirs.items():
            torch.testing.assert_close(
                ours[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )
    from_cache = encode_store(live.model, store, np.arange(2), quiet=True)
    shutil.rmtree(store.path / "features")
    for found, wanted in zip(from_cache, encode_store(live.model, store, np.arange(2), quiet=True)):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_a_decoder_add_on_still_sees_pictures(
    tiny_run: RunConfig, store: Store, encoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny_run, encoder_path)
    cache(store, run)
    never_runs(monkeypatch)
    train = replace(run.train, add_ons=AddOnsConfig(decoder=1.0), features="cached")
    trainer = Trainer(run.model, run.objective, train, store, tmp_path, CPU)
    losses, _ = trainer.update(trainer.read_batch())
    assert losses.terms["decoder"] > 0 and losses.terms["prediction"] > 0


def test_a_killed_run_does_not_go_on_with_features_of_another_rounding(
    tiny_run: RunConfig, store: Store, encoder_path: Path, tmp_path: Path
) -> None:
    run = run_of(tiny_run, encoder_path)
    trainer = Trainer(run.model, run.objective, run.train, store, tmp_path, CPU)
    trainer.update(trainer.read_batch())
    trainer.save()
    cache(store, run, "float16")
    with pytest.raises(RuntimeError, match=r"data\.features is float16 here and None there"):
        Trainer(run.model, run.objective, run.train, store, tmp_path, CPU)


def test_trainer_state_and_checkpoint_name_the_encoder_and_do_not_hold_it(
    tiny_run: RunConfig, tiny_store: Store, encoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.chdir(encoder_path.parent)
    run = run_of(tiny_run, Path("dinov2"))
    path = pipeline.fit(run, tiny_store, tmp_path / "run", CPU, quiet=True)
    encoder_keys = [key for key in load_file(path / "model.safetensors") if key.startswith("model.encoder")]
    assert encoder_keys == ["model.encoder.weights_sha256"]
    state = torch.load(tmp_path / "run" / "train" / "trainer.pt", weights_only=True)
    assert [key for key in state["model"] if key.startswith("encoder")] == ["encoder.weights_sha256"]
    assert json.loads((path / "config.json").read_text())["model"]["encoder"]["path"] == str(encoder_path)
    frozen = frozen_in(load(path).model.encoder)
    assert frozen is not None and frozen.backbone.weights_sha256 in (path / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    pixels = torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert load(path).model.encode(pixels).shape == (2, 1, 4, WIDTH)


def test_other_weights_and_a_folder_that_moved_are_refused(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path
) -> None:
    folder = save_encoder("dinov2", tmp_path / "encoder")
    run = run_of(tiny_run, folder)
    path = pipeline.fit(run, tiny_store, tmp_path / "run", CPU, quiet=True)
    folder.rename(tmp_path / "kept")
    with pytest.raises(
        FileNotFoundError, match=r"was trained on a frozen encoder: .* set model\.encoder\.path in .*config"
    ):
        load(path)
    save_encoder("dinov2", folder, seed=1)
    with pytest.raises(
        ValueError, match=r"whose weights have SHA-256 [0-9a-f]{12}, those of .* give the encoder it was"
    ):
        load(path)
    with pytest.raises(ValueError, match="whose weights have SHA-256"):
        Trainer(run.model, run.objective, run.train, tiny_store, tmp_path / "run" / "train", CPU)
    save_encoder("ijepa", tmp_path / "another")
    header = json.loads((path / "config.json").read_text())
    header["model"]["encoder"]["path"] = str(tmp_path / "another")
    (path / "config.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="whose weights have SHA-256"):
        load(path)
    header["model"]["encoder"]["path"] = str(tmp_path / "kept")
    (path / "config.json").write_text(json.dumps(header))
    assert load(path).model.tokens == 4


def test_only_prediction_goes_with_a_frozen_encoder_and_only_a_frozen_encoder_with_it(
    tiny_run: RunConfig, tiny_store: Store, encoder_path: Path, tmp_path: Path
) -> None:
    run = run_of(tiny_run, encoder_path)
    with pytest.raises(
        ValueError, match="objective is sigreg, which shapes an encoder, and the encoder is frozen: use"
    ):
        pipeline.fit(replace(run, objective=SigRegConfig()), tiny_store, tmp_path / "a", CPU, quiet=True)
    with pytest.raises(
        ValueError, match="under which a trained encoder collapses: use encoder frozen, or one of sigreg"
    ):
        pipeline.fit(replace(tiny_run, objective=run.objective), tiny_store, tmp_path / "b", CPU, quiet=True)
    with pytest.raises(ValueError, match=r"prediction\.weight is 0, and there is no other term"):
        PredictionOnlyConfig(prediction=PredictionConfig(weight=0.0))


def test_the_loss_is_the_prediction_alone_and_falls(
    tiny_run: RunConfig, tiny_store: Store, encoder_path: Path, tmp_path: Path
) -> None:
    run = run_of(tiny_run, encoder_path)
    train = replace(run.train, steps=40, learning_rate=1e-2)
    trainer = Trainer(run.model, run.objective, train, tiny_store, tmp_path, CPU)
    batch = trainer.read_batch()
    latent_BTKD = trainer.model.encode_batch(batch)
    predicted = (latent_BTKD[:, :-1],)
    objective = build_objective(PredictionOnlyConfig(), trainer.model)
    losses = objective(latent_BTKD, predicted, batch, torch.Generator())
    by_hand = (latent_BTKD[:, 1:] - latent_BTKD[:, :-1]).square().mean()
    torch.testing.assert_close(losses.total, by_hand)
    first, *_, last = (trainer.update(batch)[0].total.item() for _ in range(40))
    assert last < 0.7 * first
    torch.testing.assert_close(trainer.model.encode_batch(batch), latent_BTKD, rtol=0, atol=0)


def test_the_commands(tiny_run: RunConfig, store: Store, encoder_path: Path, tmp_path: Path) -> None:
    """cache-features, train, evaluate and plan as a user types them."""
    goals = GoalSet("g", "ahead", offset=10, budget=20, count=2)
    planner = CEM(candidates=4, iterations=1, elites=2, horizon=2)
    methods = (PlanConfig("m", planner=planner, cost=CostConfig({"latent_l2": 1.0})), OracleConfig(planner=planner))
    run = replace(run_of(tiny_run, encoder_path), evaluate=EvaluateConfig((goals,), methods, timed_plans=1))
    (tmp_path / "run.yaml").write_text(config.dump(run))
    file, data, out = (str(tmp_path / name) for name in ("run.yaml", "data", "out"))
    main(["cache-features", data, "--encoder", str(encoder_path), "--grid", "2", "--device", "cpu"])
    main(["train", file, "--data", data, "--out", out, "--device", "cpu", "--train.features", "cached"])
    where = ["--checkpoint", str(tmp_path / "out" / "checkpoint"), "--device", "cpu"]
    main(["evaluate", file, "--data", data, "--out", out, *where])
    assert (tmp_path / "out" / "report.html").exists()
    Image.fromarray(store.pixels(0)[10]).save(tmp_path / "goal.png")
    plan = str(tmp_path / "plan")
    main(["plan", *where, "--goal", str(tmp_path / "goal.png"), "--budget", "5", "--out", plan])
    assert (tmp_path / "plan" / "episode.mp4").exists()
