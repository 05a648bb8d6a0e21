import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel import OnTwoRanks

from lewm import distributed
from lewm.config import RunConfig, dump
from lewm.data.store import Store
from lewm.train import TrainConfig, Trainer, learning_rate, predictions, train
from lewm.train_log import TrainingDiverged
from lewm.training_loop import Interrupted

CPU = torch.device("cpu")


def run_training(run: RunConfig, store: Store, out: Path, **changes: object) -> dict[str, torch.Tensor]:
    config = replace(run.train, **changes)
    return train(run.model, run.objective, config, store, out, CPU, quiet=True).state_dict()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_learning_rate_schedules() -> None:
    one_cycle = TrainConfig(steps=100, learning_rate=1.0, schedule="one_cycle")
    assert learning_rate(one_cycle, 0) == pytest.approx(0.04)
    assert learning_rate(one_cycle, 30) == pytest.approx(1.0)
    assert learning_rate(one_cycle, 99) < 0.001
    cosine = TrainConfig(steps=100, learning_rate=1.0, schedule="cosine", warmup=0.1)
    assert learning_rate(cosine, 0) == pytest.approx(0.1)
    assert learning_rate(cosine, 10) == pytest.approx(1.0)
    assert learning_rate(cosine, 55) == pytest.approx(0.5)


@pytest.mark.parametrize("prediction", ["rollout", "teacher_forcing", "both"])
@pytest.mark.parametrize("history", [1, 2])
def test_predictions_align_with_the_next_frames(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, prediction: str, history: int
) -> None:
    config = replace(tiny_run.train, prediction=prediction, history=history, frames=4)
    trainer = Trainer(tiny_run.model, tiny_run.objective, config, tiny_store, tmp_path, CPU)
    batch = trainer.read_batch()
    model = trainer.model.eval()
    latent = model.encode(batch.pixels_BTCYX)
    modes = predictions(model, latent, batch.action_BTA, config)
    assert len(modes) == (2 if prediction == "both" else 1)
    assert all(mode.shape == latent[:, 1:].shape for mode in modes)
    first = model.predict(latent[:, :1], batch.action_BTA[:, :1])
    for mode in modes:
        torch.testing.assert_close(mode[:, :1], first)
    if prediction == "rollout" and history == 1:
        second = model.predict(first, batch.action_BTA[:, 1:2])
        torch.testing.assert_close(modes[0][:, 1:2], second)


def test_same_seed_same_weights(tiny_run: RunConfig, tiny_store: Store, tmp_path: Path) -> None:
    assert_same(run_training(tiny_run, tiny_store, tmp_path / "a"), run_training(tiny_run, tiny_store, tmp_path / "b"))


def test_a_run_stopped_by_sigterm_continues_to_the_same_weights(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_training(tiny_run, tiny_store, tmp_path / "whole")
    original = Trainer.update

    def update_then_signal(self: Trainer, batch: object) -> object:
        result = original(self, batch)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update_then_signal)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            run_training(tiny_run, tiny_store, tmp_path / "cut")
    assert torch.load(tmp_path / "cut" / "trainer.pt", weights_only=True)["step"] == 3
    assert_same(run_training(tiny_run, tiny_store, tmp_path / "cut"), whole)


def test_a_killed_process_continues_to_the_same_weights(tiny_run: RunConfig, tiny_store: Store, tmp_path: Path) -> None:
    """SIGKILL at an arbitrary moment of a real `lewm train`, then the same command again."""
    run = replace(tiny_run, train=replace(tiny_run.train, steps=400, checkpoint_every=5, log_every=20))
    (tmp_path / "run.yaml").write_text(dump(run))
    command = [sys.executable, "-m", "lewm", "train", str(tmp_path / "run.yaml"), "--data", str(tiny_store.path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", str(tmp_path / "cut")], env=environment, stderr=subprocess.DEVNULL)
    state = tmp_path / "cut" / "train" / "trainer.pt"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    killed_at = torch.load(state, weights_only=True)["step"]
    assert 0 < killed_at < 400
    for out in ("cut", "whole"):
        subprocess.run([*command, "--out", str(tmp_path / out)], env=environment, check=True, capture_output=True)
    for name in ("model.safetensors",):
        cut = (tmp_path / "cut" / "checkpoint" / name).read_bytes()
        assert cut == (tmp_path / "whole" / "checkpoint" / name).read_bytes()


def test_another_configuration_is_refused(tiny_run: RunConfig, tiny_store: Store, tmp_path: Path) -> None:
    run_training(tiny_run, tiny_store, tmp_path)
    with pytest.raises(RuntimeError, match=r"train.learning_rate is 0.5 here and 0.001 there"):
        run_training(tiny_run, tiny_store, tmp_path, learning_rate=0.5)


def test_a_diverging_loss_names_step_clips_and_last_good_state(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.update

    def poison(self: Trainer, batch: object) -> object:
        if self.step == 3:
            with torch.no_grad():
                next(self.model.parameters()).fill_(torch.nan)
        return original(self, batch)

    monkeypatch.setattr(Trainer, "update", poison)
    with pytest.raises(TrainingDiverged, match=r"nan at step 3 \(clips \[.*trainer.pt"):
        run_training(tiny_run, tiny_store, tmp_path)
    saved = torch.load(tmp_path / "trainer.pt", weights_only=True)
    assert saved["step"] == 2
    assert all(value.isfinite().all() for value in saved["model"].values() if value.is_floating_point())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="frames is 1; it must exceed"):
        TrainConfig(frames=1)
    with pytest.raises(ValueError, match="steps is 0"):
        TrainConfig(steps=0)


def one_update(rank: int, run: RunConfig, store_path: Path, folder: Path) -> dict[str, Any]:
    """One step from the same start: gradients, losses over all processes and buffers."""
    trainer = Trainer(run.model, run.objective, run.train, Store.open(store_path), folder / str(rank), CPU)
    trainer.model.double()
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    losses, _ = trainer.update(trainer.read_batch())
    prediction = distributed.sum_over_ranks(losses.terms["prediction"].detach()) / distributed.world_size()
    grads = {n: p.grad for n, p in trainer.model.named_parameters()}
    terms = {"prediction": prediction, "sigreg": losses.terms["sigreg"].detach()}
    return terms | {"grads": grads, "buffers": dict(trainer.model.named_buffers())}


def test_two_processes_take_the_step_of_one(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, on_two_ranks: OnTwoRanks
) -> None:
    """Gradients, losses and BatchNorm statistics of half a batch each equal those of the whole batch."""
    run = replace(tiny_run, train=replace(tiny_run.train, clip=1e9))
    alone = one_update(0, run, tiny_store.path, tmp_path / "alone")
    for ours in on_two_ranks(one_update, run, tiny_store.path, tmp_path / "parallel"):
        for term in ("prediction", "sigreg"):
            torch.testing.assert_close(ours[term], alone[term], rtol=1e-5, atol=1e-8)
        for part in ("grads", "buffers"):
            for key, value in alone[part].items():
                torch.testing.assert_close(ours[part][key], value, rtol=1e-5, atol=1e-7)
