"""Rollouts of a clip that start anew every few steps: by hand, for every objective, with and without a variable."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_models import toy_model

from lewm.config import RunConfig
from lewm.data.store import Store
from lewm.nets.predictors import ACConfig, PredictorConfig, RotaryConfig
from lewm.nets.variable import DiscreteConfig, GaussianConfig
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.pieces import in_pieces, roll_in_pieces
from lewm.train import TrainConfig, Trainer, explained, predictions
from lewm.world_model import WorldModel

AC = ACConfig(context=8, width=16, layers=1, heads=2, mlp_ratio=1)
CPU = torch.device("cpu")


def clip(model: WorldModel, frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(3, frames, 1, model.latent_dim, generator=generator)
    return latent, torch.randn(3, frames - 1, model.action_dim, generator=generator)


@pytest.mark.parametrize("predictor", [AC, RotaryConfig(context=8, width=8, layers=1, heads=2)], ids=["ac", "rotary"])
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_every_frame_is_predicted_from_the_encoded_frames_of_its_piece(
    predictor: PredictorConfig, history: int, steps: int
) -> None:
    """Frame by frame, with nothing but `predict`; the last piece is shorter where the steps do not divide the clip."""
    model = toy_model(predictor)
    latent, action = clip(model, 8)
    found = roll_in_pieces(model, latent, action, history, steps)
    expected = [model.predict(latent[:, :t], action[:, :t])[:, -1] for t in range(1, history)]
    for first in range(0, 8 - history, steps):
        frames = latent[:, first : first + history]
        for now in range(first + history, min(first + history + steps, 8)):
            expected.append(model.predict(frames, action[:, first:now])[:, -1])
            frames = torch.cat([frames, expected[-1][:, None]], 1)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-5, atol=1e-5)


def test_one_step_is_what_history_frames_foretell() -> None:
    model = toy_model(AC)
    latent, action = clip(model, 5)
    found = roll_in_pieces(model, latent, action, 1, 1)
    expected = torch.cat([model.predict(latent[:, t : t + 1], action[:, t : t + 1]) for t in range(4)], 1)
    torch.testing.assert_close(found, expected)


def test_the_loss_of_vjepa_2_ac() -> None:
    """On a clip of three frames: L1 of teacher forcing and of one two-step rollout from the first frame, halved."""
    model = toy_model(AC)
    latent, action = clip(model, 3)
    config = TrainConfig(prediction="both", rollout_steps=2, frames=3)
    loss = prediction_loss(latent, predictions(model, latent, action, config), PredictionConfig("l1"))
    forced = model.predict(latent[:, :2], action)
    second = model.predict(torch.cat([latent[:, :1], forced[:, :1]], 1), action)[:, 1]
    rollout = torch.stack([forced[:, 0], second], 1)
    expected = (forced - latent[:, 1:]).abs().mean() + (rollout - latent[:, 1:]).abs().mean()
    torch.testing.assert_close(loss, expected / 2)


def test_gradients_pass_the_steps_of_a_piece_and_not_its_end() -> None:
    model = toy_model(AC)
    latent, action = clip(model, 5)
    leaf = action.clone().requires_grad_()
    roll_in_pieces(model, latent, leaf, 1, 2)[:, 3].sum().backward()
    reached = leaf.grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == [False, False, True, True]


def test_pieces_are_cut_and_joined_in_order() -> None:
    x = torch.arange(2 * 7).view(2, 7)
    seen: list[list[list[int]]] = []

    def note(piece: Tensor) -> tuple[Tensor]:
        seen.append(piece.tolist())
        return (piece[:, 2:],)

    (joined,) = in_pieces(note, [x], [], 2, 3)
    assert torch.equal(joined, x[:, 2:])
    assert seen == [[[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]], [[3, 4, 5, 6], [10, 11, 12, 13]]]


@pytest.mark.parametrize("variable", [DiscreteConfig(codes=3), GaussianConfig()], ids=["discrete", "gaussian"])
@pytest.mark.parametrize("history", [1, 2])
def test_a_variable_is_inferred_in_pieces_too(
    variable: DiscreteConfig | GaussianConfig, history: int, tiny_run: RunConfig, tiny_store: Store, tmp_path: Path
) -> None:
    run = replace(tiny_run, model=replace(tiny_run.model, variable=variable))
    config = replace(run.train, prediction="rollout", frames=5, history=history, rollout_steps=2)
    trainer = Trainer(run.model, run.objective, config, tiny_store, tmp_path, CPU)
    model, batch = trainer.model.eval(), trainer.read_batch()
    latent = model.encode(batch.pixels_BTCYX)
    (found,) = explained(model, latent, batch.action_BTA, config, torch.Generator().manual_seed(1))
    assert found.scored_BTKD.shape == latent[:, 1:].shape and found.nats_BT.shape == (*latent.shape[:1], 4)
    whole = explained(
        model, latent, batch.action_BTA, replace(config, rollout_steps=None), torch.Generator().manual_seed(1)
    )[0]
    first = history - 1 + 2
    torch.testing.assert_close(found.predicted_BTKD[:, :first], whole.predicted_BTKD[:, :first])
    assert (found.predicted_BTKD[:, first] - whole.predicted_BTKD[:, first]).abs().max() > 1e-5


def test_every_objective_trains_on_it(tiny_run: RunConfig, tiny_store: Store, tmp_path: Path) -> None:
    """Predictions keep their place beside the frames, which is all that objectives ask of them."""
    from lewm.objectives import OBJECTIVES, ObjectiveConfig
    from lewm.schema import build

    config = replace(tiny_run.train, prediction="both", frames=4, rollout_steps=2)
    for name in OBJECTIVES:
        members = {member().name: member for member in ObjectiveConfig.__args__}
        objective = build(members[name], {"name": name}, "test")
        trainer = Trainer(tiny_run.model, objective, config, tiny_store, tmp_path / name, CPU)
        losses, norm = trainer.update(trainer.read_batch())
        assert losses.total.isfinite() and norm > 0, name


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.rollout_steps is 0; it must be at least 1, or null"):
        TrainConfig(rollout_steps=0)
    with pytest.raises(ValueError, match=r"rollout_steps is 2, but train\.prediction is teacher_forcing"):
        TrainConfig(rollout_steps=2, prediction="teacher_forcing")
