"""Tokens of a frozen encoder that are centred and scaled by the recordings, live, cached, saved and continued."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import frames, model_of, save_encoder
from torch import Tensor

from lewm.checkpoint import load
from lewm.config import RunConfig
from lewm.data.store import Store
from lewm.nets.frozen import FrozenConfig, frozen_in
from lewm.nets.frozen.cache import cache_features, plan_features
from lewm.nets.predictors import ACConfig, RotaryConfig
from lewm.objectives import PredictionOnlyConfig
from lewm.pipeline import fit
from lewm.train import Trainer
from lewm.world_model import ModelConfig

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run: RunConfig, tmp_path: Path) -> RunConfig:
    path = save_encoder("dinov2", tmp_path / "encoder")
    encoder = FrozenConfig(path=str(path), grid=2, standardise=True)
    predictor = RotaryConfig(width=16, layers=1, heads=2)
    train = replace(tiny_run.train, steps=4, prediction="teacher_forcing")
    heads = replace(tiny_run, cost_to_go=replace(tiny_run.cost_to_go, steps=4))
    return replace(heads, model=ModelConfig(encoder, predictor), objective=PredictionOnlyConfig(), train=train)


def trainer_of(run: RunConfig, store: Store, out: Path) -> Trainer:
    out.mkdir(exist_ok=True)
    return Trainer(run.model, run.objective, run.train, store, out, CPU)


def tokens_of(trainer: Trainer) -> Tensor:
    with torch.no_grad():
        return trainer.model.encode_batch(trainer.windows.batch(np.arange(len(trainer.windows)))).flatten(0, 1)


def test_every_place_has_mean_0_and_all_together_spread_1(run: RunConfig, store: Store, tmp_path: Path) -> None:
    token_BKD = tokens_of(trainer_of(run, store, tmp_path / "a"))
    torch.testing.assert_close(token_BKD.mean(0), torch.zeros_like(token_BKD[0]), atol=0.1, rtol=0)
    assert token_BKD.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)
    # One scale for all: entries that vary more than others go on doing so.
    assert token_BKD.std(0).max() > 1.5 * token_BKD.std(0).min()


def test_nothing_else_is_changed(run: RunConfig, store: Store, tmp_path: Path) -> None:
    """A shift of every place and one scale: differences of plain tokens, divided by one number."""
    plain_run = replace(run, model=replace(run.model, encoder=replace(run.model.encoder, standardise=False)))
    plain = tokens_of(trainer_of(plain_run, store, tmp_path / "plain"))
    found = tokens_of(trainer_of(run, store, tmp_path / "found"))
    scale = (plain - plain[:1]).norm() / (found - found[:1]).norm()
    torch.testing.assert_close((found - found[:1]) * scale, plain - plain[:1], atol=1e-5, rtol=1e-4)


def test_cached_features_stay_as_they_are_and_give_the_same(run: RunConfig, store: Store, tmp_path: Path) -> None:
    live = tokens_of(trainer_of(run, store, tmp_path / "live"))
    assert isinstance(run.model.encoder, FrozenConfig)
    cache_features(plan_features(store, replace(run.model.encoder, standardise=False), "float32"), quiet=True)
    cached = trainer_of(replace(run, train=replace(run.train, features="cached")), store, tmp_path / "cached")
    torch.testing.assert_close(tokens_of(cached), live, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_brings_them(run: RunConfig, store: Store, tmp_path: Path) -> None:
    """Also a training that goes on, though the recordings would be measured otherwise then."""
    path = fit(run, store, tmp_path / "run", CPU, quiet=True)
    trainer = trainer_of(run, store, tmp_path / "run" / "train")
    assert trainer.step == run.train.steps
    pixels_BTCYX = trainer.held_windows.batch(np.arange(2)).pixels_BTCYX
    with torch.no_grad():
        loaded, going_on = load(path).model.encode(pixels_BTCYX), trainer.model.encode(pixels_BTCYX)
    assert torch.equal(loaded, going_on) and loaded.isfinite().all() and loaded.std() > 0.3


def test_it_learns_from_the_first_step_what_it_learns_from_a_restart(
    run: RunConfig, store: Store, tmp_path: Path
) -> None:
    whole = fit(run, store, tmp_path / "whole", CPU, quiet=True)
    parts = trainer_of(run, store, tmp_path / "train")
    for _ in range(2):
        parts.update(parts.read_batch())
    parts.save()
    again = trainer_of(run, store, tmp_path / "train")
    while again.step < run.train.steps:
        again.update(again.read_batch())
    for name, value in load(whole).model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_tokens_that_were_never_measured_are_no_numbers(run: RunConfig) -> None:
    assert isinstance(run.model.encoder, FrozenConfig)
    model = model_of(Path(run.model.encoder.path), standardise=True)
    assert model.encode(frames()[:, None]).isnan().all()


def test_frames_that_are_all_alike_are_refused(run: RunConfig) -> None:
    assert isinstance(run.model.encoder, FrozenConfig)
    model = model_of(Path(run.model.encoder.path), standardise=True)
    frozen = frozen_in(model.encoder)
    assert frozen is not None
    same_BKD = torch.full((8, 4, frozen.latent_dim), 0.3)
    with pytest.raises(ValueError, match=r"gives the same tokens for all 16 frames looked at; set it to false"):
        frozen.standardise([same_BKD, same_BKD])


def test_a_predictor_that_layer_norms_is_refused(run: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"standardise and model\.predictor\.normalise are both true"):
        replace(run.model, predictor=ACConfig(width=16, layers=1, heads=2))
    assert replace(run.model, predictor=ACConfig(width=16, layers=1, heads=2, normalise=False)).encoder.standardise
