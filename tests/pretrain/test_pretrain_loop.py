"""A whole pretraining: killed and continued, refused, written to a folder, and a world model trained on it."""

import json
import os
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from parallel import OnTwoRanks
from pretrain_toys import BLOCKS, CONFIGS, PREDICTOR, QUICK
from safetensors.torch import load_file, save_file

from lewm import cli, distributed
from lewm.checkpoint import load, save_checkpoint
from lewm.config import RunConfig, dump
from lewm.config import load as load_run_config
from lewm.data.store import Store
from lewm.nets.encoders import FrozenConfig, build_encoder
from lewm.nets.predictors import RotaryConfig
from lewm.nets.pretrained import load_pretrained_encoder
from lewm.nets.token_vit import TokenViTConfig
from lewm.objectives.prediction_only import PredictionOnlyConfig
from lewm.pipeline import origin
from lewm.pretrain import IJepaConfig, Setup
from lewm.pretrain.base import ClipShape
from lewm.pretrain.config import PretrainConfig, PretrainRun, shipped
from lewm.pretrain.config import load as load_run
from lewm.pretrain.loop import Pretrainer, learning_rate, prepare, pretrain, weight_decay
from lewm.train import Trainer, train
from lewm.train_log import TrainingDiverged
from lewm.training_loop import Interrupted
from lewm.world_model import ModelConfig

CPU = torch.device("cpu")
TRAIN = PretrainConfig(
    steps=6,
    batch=8,
    frame_skip=2,
    log_every=2,
    probe_every=4,
    probe_frames=16,
    probe_grid=2,
    checkpoint_every=2,
    held_out=0.25,
)
ENCODER = TokenViTConfig(patch=8, width=24, depth=2, heads=2, mlp_ratio=2)
RUN = PretrainRun(IJepaConfig(masks=BLOCKS, predictor=PREDICTOR, teacher=QUICK), ENCODER, TRAIN)


def run_it(store: Store, out: Path, run: PretrainRun = RUN) -> dict[str, torch.Tensor]:
    return load_file(pretrain(run, store, out, CPU, quiet=True) / "model.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


@pytest.fixture(scope="module")
def encoder_folder(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(RUN, tiny_store, tmp_path_factory.mktemp("pretrained"), CPU, quiet=True)


@pytest.mark.parametrize("name", ["ijepa", "vjepa21"])
def test_a_run_stopped_by_sigterm_continues_to_the_same_weights(
    name: str, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(RUN, method=CONFIGS[name])
    whole = run_it(tiny_store, tmp_path / "whole", run)
    original = Pretrainer.update

    def update_then_signal(self: Pretrainer, batch: Any) -> Any:
        result = original(self, batch)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "update", update_then_signal)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            run_it(tiny_store, tmp_path / "cut", run)
    assert_same(run_it(tiny_store, tmp_path / "cut", run), whole)


def test_what_a_run_writes(encoder_folder: Path, tiny_store: Store) -> None:
    out = encoder_folder.parent
    assert {p.name for p in encoder_folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (out / "features.png").stat().st_size > 0 and (out / "trainer.pt").is_file()
    header = json.loads((encoder_folder / "config.json").read_text())
    assert (header["method"], header["task"], header["pretrained"]["size"]) == ("ijepa", "two_room", 32)
    assert header["training"]["train"]["steps"] == 6
    card = (encoder_folder / "README.md").read_text().replace("\\\n", "")
    command = next(line for line in card.splitlines() if line.startswith("    lewm train RUN"))
    words = shlex.split(command)[2:]
    assert words[:5] == ["RUN", "--data", "STORE", "--out", "OUT"]
    run = load_run_config("two_room", words[5:])
    assert run.model.encoder == FrozenConfig(path="THIS_FOLDER", grid=4) and run.objective == PredictionOnlyConfig()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["loss/prediction"] == [2, 4, 6] and steps["metric/target_std"] == [2, 4, 6]
    for tag in ("probe_r2/grid/x", "probe_r2/pooled/y", "tokens/std", "tokens/effective_rank", "pooled/effective_rank"):
        assert steps[tag] == [0, 4, 6], tag  # random weights, on the way, at the end
    assert [event.step for event in events.Images("features/held_out")] == [0, 4, 6]


def test_a_finished_run_is_kept(encoder_folder: Path, tiny_store: Store) -> None:
    before = (encoder_folder / "config.json").stat().st_mtime_ns
    assert pretrain(RUN, tiny_store, encoder_folder.parent, CPU, quiet=True) == encoder_folder
    assert (encoder_folder / "config.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused(encoder_folder: Path, tiny_store: Store) -> None:
    run = replace(RUN, train=replace(TRAIN, learning_rate=0.5))
    with pytest.raises(RuntimeError, match=r"train.learning_rate is 0.5 here and 0.001 there"):
        pretrain(run, tiny_store, encoder_folder.parent, CPU, quiet=True)


def test_a_diverging_loss_names_step_clips_and_last_good_state(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Pretrainer.update

    def poison(self: Pretrainer, batch: Any) -> Any:
        if self.step == 3:
            with torch.no_grad():
                next(self.method.parameters()).fill_(torch.nan)
        return original(self, batch)

    monkeypatch.setattr(Pretrainer, "update", poison)
    with pytest.raises(TrainingDiverged, match=r"nan at step 3 \(clips \[.*trainer.pt"):
        run_it(tiny_store, tmp_path)


def test_recordings_that_patches_do_not_divide_are_refused(tiny_store: Store, tmp_path: Path) -> None:
    for run in (replace(RUN, encoder=replace(ENCODER, patch=12)), replace(RUN, train=replace(TRAIN, probe_grid=3))):
        with pytest.raises(ValueError, match=r"frames are 32 x 32; encoder.patch .* must divide"):
            Pretrainer(run, tiny_store, tmp_path, CPU)
    with pytest.raises(ValueError, match="no episode is long enough"):
        Pretrainer(
            replace(RUN, method=CONFIGS["vjepa"], train=replace(TRAIN, frame_skip=30)), tiny_store, tmp_path, CPU
        )


def test_schedules() -> None:
    cosine = PretrainConfig(steps=100, learning_rate=1.0, warmup=0.1, final_weight_decay=0.4)
    rates = [learning_rate(cosine, step) for step in (0, 9, 10, 55, 99)]
    assert rates[:4] == pytest.approx([0.1, 1.0, 1.0, 0.5]) and rates[4] < 0.001
    assert [weight_decay(cosine, step) for step in (0, 50)] == pytest.approx([0.04, 0.22])
    assert weight_decay(cosine, 99) == pytest.approx(0.4, abs=1e-3)
    constant = replace(cosine, schedule="constant", cooldown=0.2)
    assert [learning_rate(constant, step) for step in (4, 40, 80, 90)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_weight_decay_follows_its_schedule_on_matrices_only(tiny_store: Store, tmp_path: Path) -> None:
    trainer = Pretrainer(replace(RUN, train=replace(TRAIN, final_weight_decay=0.4)), tiny_store, tmp_path, CPU)
    trainer.step = 3
    trainer.update(trainer.read_batch())
    matrices, vectors = trainer.optimizer.param_groups
    assert matrices["weight_decay"] == pytest.approx(0.22) and vectors["weight_decay"] == 0
    assert all(p.ndim > 1 for p in matrices["params"]) and all(p.ndim == 1 for p in vectors["params"])


def test_clips_are_normalised_cut_and_averaged_down() -> None:
    setup = Setup(ENCODER, 3, 4, (0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    pixels = torch.randint(0, 255, (2, 3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = prepare(pixels, ClipShape(2, 2), setup)
    assert small.shape == (2, 2, 3, 2, 2)
    by_hand = (pixels[1, 1, 2, 2:, :2].double().mean() / 255 - 0.3) / 0.5
    assert small[1, 1, 2, 1, 0].item() == pytest.approx(by_hand.item(), rel=1e-5)


def one_update(rank: int, run: PretrainRun, store_path: Path, folder: Path) -> dict[str, Any]:
    """Gradients of one step from the same start, averaged over processes."""
    trainer = Pretrainer(run, Store.open(store_path), folder / str(rank), CPU)
    losses, _ = trainer.update(trainer.read_batch())
    total = distributed.sum_over_ranks(losses.total.detach()) / distributed.world_size()
    return {"total": total, "grads": {n: p.grad for n, p in trainer.method.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("name", ["cjepa", "vjepa21", "data2vec", "mae"])
def test_two_processes_take_the_step_of_one(
    name: str, tiny_store: Store, tmp_path: Path, on_two_ranks: OnTwoRanks
) -> None:
    """Masks are drawn as one process would, and statistics taken over all: half a batch each is the whole batch."""
    run = replace(RUN, method=CONFIGS[name], train=replace(TRAIN, clip=1e9))
    alone = one_update(0, run, tiny_store.path, tmp_path / "alone")
    for ours in on_two_ranks(one_update, run, tiny_store.path, tmp_path / "parallel"):
        torch.testing.assert_close(ours["total"], alone["total"], rtol=1e-4, atol=1e-6)
        for key, value in alone["grads"].items():
            torch.testing.assert_close(ours["grads"][key], value, rtol=1e-3, atol=1e-5)


def test_the_folder_gives_back_the_kept_encoder(encoder_folder: Path, tiny_store: Store) -> None:
    trainer = Pretrainer(RUN, tiny_store, encoder_folder.parent, CPU)
    loaded = load_pretrained_encoder(encoder_folder)
    _, frames = trainer.frames(trainer.held_ids, 5)
    tokens = loaded(frames.picture_NCYX)
    assert tokens.shape == (5, 16, 24) and (loaded.width, loaded.side) == (24, 4)
    kept = trainer.method.kept()(frames.picture_NCYX[:, None])
    torch.testing.assert_close(tokens, torch.nn.functional.layer_norm(kept, (24,)))
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(5, 16), rtol=0, atol=1e-2)


def test_a_loaded_encoder_cannot_be_trained(encoder_folder: Path) -> None:
    loaded = load_pretrained_encoder(encoder_folder)
    loaded.train()
    assert not any(module.training for module in loaded.modules())
    pixels = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert not loaded(pixels).requires_grad and not any(p.requires_grad for p in loaded.parameters())


WORLD = ModelConfig(FrozenConfig(grid=2), RotaryConfig(width=16, layers=1, heads=2, mlp_ratio=2))
ONLY_PREDICTION = PredictionOnlyConfig()


def world(path: Path) -> ModelConfig:
    return replace(WORLD, encoder=FrozenConfig(path=str(path), grid=2))


def test_a_world_model_learns_on_frozen_tokens(
    encoder_folder: Path, tiny_run: RunConfig, tiny_store: Store, tmp_path: Path
) -> None:
    trainer = Trainer(world(encoder_folder), ONLY_PREDICTION, tiny_run.train, tiny_store, tmp_path / "a", CPU)
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained and not trained & {id(p) for p in trainer.model.encoder.parameters()}
    model = train(world(encoder_folder), ONLY_PREDICTION, tiny_run.train, tiny_store, tmp_path / "b", CPU, quiet=True)
    assert_same(model.encoder.backbone.net.vit.state_dict(), load_file(encoder_folder / "model.safetensors"))
    assert (model.tokens, model.latent_dim) == (4, 24)
    fresh = trainer.model.predictor.state_dict()
    assert any(not torch.equal(value, fresh[key]) for key, value in model.predictor.state_dict().items())


def test_a_checkpoint_names_its_pretrained_encoder_and_refuses_another(
    encoder_folder: Path, tiny_run: RunConfig, tiny_store: Store, tmp_path: Path
) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(encoder_folder, copy)
    model = train(world(copy), ONLY_PREDICTION, tiny_run.train, tiny_store, tmp_path / "t", CPU, quiet=True)
    save_checkpoint(tmp_path / "checkpoint", model, None, origin(tiny_run, tiny_store), {})
    loaded = load(tmp_path / "checkpoint").model
    pixels = torch.from_numpy(np.moveaxis(tiny_store.pixels(0, slice(0, 3)), -1, -3))[None]
    torch.testing.assert_close(loaded.encode(pixels), model.encode(pixels))
    tensors = load_file(copy / "model.safetensors")
    first = min(tensors)
    save_file(tensors | {first: tensors[first] + 1}, copy / "model.safetensors")
    with pytest.raises(ValueError, match="give the encoder it was trained on"):
        load(tmp_path / "checkpoint")


def test_pictures_reach_the_encoder_normalised_by_its_own_recordings(
    encoder_folder: Path, tiny_store: Store, tmp_path: Path
) -> None:
    from lewm.train import build_model, model_facts

    facts = model_facts(tiny_store, WORLD)
    darker = replace(facts, pixel_mean=(0.1, 0.1, 0.1), pixel_std=(0.9, 0.9, 0.9))  # as of another store
    pixels = torch.from_numpy(np.moveaxis(tiny_store.pixels(0, slice(0, 3)), -1, -3))[None]
    one, other = (build_model(world(encoder_folder), some, 0).encode(pixels) for some in (facts, darker))
    torch.testing.assert_close(one, other)


def test_stacked_frames_are_encoded_one_by_one(encoder_folder: Path) -> None:
    config = FrozenConfig(path=str(encoder_folder), grid=2)
    single, stacked = build_encoder(config, 3, 32), build_encoder(config, 6, 32)
    pixels = torch.randn(2, 6, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = stacked(pixels)
    assert (stacked.tokens, stacked.latent_dim) == (4, 48) and tokens.shape == (2, 4, 48)
    torch.testing.assert_close(tokens, torch.cat([single(pixels[:, :3]), single(pixels[:, 3:])], -1))


@pytest.mark.parametrize(
    "config, channels, message",
    [
        (FrozenConfig(grid=5), 3, r"encoder.grid is 5; .* gives 4 x 4 tokens"),
        (FrozenConfig(size=64), 3, r"only sees 32 pixels: leave it out"),
        (FrozenConfig(), 4, r"sees pictures of 3 channels, and frames have 4"),
    ],
)
def test_what_it_cannot_give_is_refused(
    config: FrozenConfig, channels: int, message: str, encoder_folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(replace(config, path=str(encoder_folder)), channels, 32)


def test_a_damaged_folder_is_named(encoder_folder: Path, tmp_path: Path) -> None:
    def damaged(change) -> Path:
        for file in encoder_folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        change()
        return tmp_path

    def edit(**changes: Any) -> None:
        header = json.loads((tmp_path / "config.json").read_text())
        header["pretrained"]["encoder"] |= changes.pop("encoder", {})
        (tmp_path / "config.json").write_text(json.dumps(header | changes))

    cases: list[tuple[Any, type[Exception], str]] = [
        ((tmp_path / "config.json").unlink, FileNotFoundError, "config.json is missing: .* is not an encoder folder"),
        ((tmp_path / "model.safetensors").unlink, FileNotFoundError, "model.safetensors is missing"),
        (lambda: (tmp_path / "config.json").write_text("{"), ValueError, "config.json is not JSON"),
        (lambda: (tmp_path / "model.safetensors").write_bytes(b"x"), ValueError, "cannot be read"),
        (lambda: edit(format="other"), ValueError, "format must be 'lewm-encoder'"),
        (lambda: edit(version=9), ValueError, "format version 9 is not 1"),
        (lambda: edit(encoder={"depth": 3}), ValueError, r"tensor blocks.2.* is missing"),
        (lambda: edit(encoder={"depth": 1}), ValueError, r"tensor blocks.1.* is not part of the encoder"),
        (lambda: edit(encoder={"mlp_ratio": 4}), ValueError, "has shape .*; config.json describes"),
        (lambda: edit(colour="blue"), ValueError, "colour is unknown"),
    ]
    for change, kind, message in cases:
        with pytest.raises(kind, match=message):
            load_pretrained_encoder(damaged(change))


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_run_trains_and_says_how_to_start_it(name: str, tmp_path: Path, tiny_run: RunConfig) -> None:
    from lewm import pipeline

    run = load_run(name)
    lines = [line for line in shipped()[name].read_text().splitlines() if line.startswith("#")]
    assert any(f"lewm pretrain {name} " in line for line in lines)
    collect = replace(tiny_run.collect, episodes=3, shard_episodes=3)
    store = pipeline.record(replace(tiny_run, collect=collect, settings={"size": 64}), tmp_path / "data", 1, True)
    small = replace(run.train, steps=1, batch=2, probe_frames=8, held_out=0.3)
    folder = pretrain(replace(run, train=small), store, tmp_path / "out", CPU, quiet=True)
    assert load_pretrained_encoder(folder)(torch.zeros(1, 3, 64, 64)).shape == (1, 64, run.encoder.width)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        cli.main(["pretrain", *words])
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_command(tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(dump(RUN))
    words = ["--data", str(tiny_store.path), "--out", str(tmp_path / "out"), "--device", "cpu", "--train.steps", "2"]
    code, out, err = command(capsys, str(tmp_path / "run.yaml"), *words)
    assert code == 0, err
    assert out == f"encoder {tmp_path / 'out' / 'encoder'}\n" and "pretrain" in err
    assert load_run(tmp_path / "out" / "config.yaml") == replace(RUN, train=replace(TRAIN, steps=2))
    code, _, err = command(capsys, str(tmp_path / "run.yaml"), *words, "--train.learning_rate", "0.5")
    assert code == 1 and "choose another --out" in err
    assert load_run(tmp_path / "out" / "config.yaml").train.learning_rate == TRAIN.learning_rate


def test_looking_at_a_run_needs_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, "mae", "--method.masked", "0.5", "--print-config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["method"]["masked"] == 0.5 and yaml.safe_load(out)["method"]["name"] == "mae"
    code, out, err = command(capsys, "distill", "--method.path", "teacher", "--print-config")
    assert (code, err) == (0, "") and yaml.safe_load(out)["method"]["path"] == "teacher"
    code, out, _ = command(capsys, "mae", "--keys")
    assert code == 0 and "--method.masks.min_context" in out and "--train.probe_grid" in out
    assert all(len(line.split()) > 1 for line in out.splitlines())  # every key has its help


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["jepa"], 1, "no method or pretraining run jepa: give one of ijepa,"),
        (["distill"], 2, "method.path is missing; add it"),
        (["mae", "--method.maskd", "0.5"], 2, "method.maskd is unknown; did you mean method.masked?"),
        (["mae", "--train.steps", "0"], 2, "train.steps is 0; it must be at least 1"),
        (["mae", "--out", "x"], 2, "--data is missing; add it"),
        (["mae", "--data", "/nowhere", "--out", "x"], 1, "/nowhere is not a lewm store"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = command(capsys, *words)
    assert (got, out) == (code, "") and err.startswith("lewm pretrain: ") and message in err and err.count("\n") == 1
