"""data2vec: what the targets are, what reads them, and what an encoder has to show."""

import pytest
import torch
from taught import clips, imagine, learner, score
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from toy_models import FACTS

from lewm.nets.encoders import ConvConfig, ViTConfig
from lewm.nets.predictors import MLPConfig
from lewm.objectives.data2vec import Data2Vec, Data2VecConfig, level_targets, top_level_dims
from lewm.objectives.ema import Ema, EmaConfig
from lewm.objectives.prediction import prediction_loss
from lewm.objectives.teacher import TeacherConfig
from lewm.world_model import ModelConfig, WorldModel


def world(encoder):
    torch.manual_seed(0)
    return WorldModel(ModelConfig(encoder, MLPConfig(width=16), 2), FACTS)


def vit(layers=4):
    return world(ViTConfig(latent_dim=8, patch=16, layers=layers, heads=2, width=8, mlp_ratio=2, projector_hidden=16))


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:])


def test_levels_of_one_width_are_normalised_and_averaged():
    a, b = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[30.0, -10.0]]]])
    (mean,) = level_targets([a, b], False)
    assert_close(mean, torch.tensor([[[[1.0, -1.0]]]]), rtol=0, atol=1e-4)  # a large level counts as a small one does
    c = torch.randn(3, 2, 1, 6, generator=torch.Generator().manual_seed(0))
    d = 100 * c.flip(-1) + 7
    (mean,) = level_targets([c, d], False)
    assert_close(mean, (layer_norm(c) + layer_norm(d)) / 2)
    (again,) = level_targets([c, d], True)
    assert_close(again, layer_norm(mean))
    assert mean.var(-1, correction=0).mean() < 0.95 and (again.var(-1, correction=0) - 1).abs().max() < 1e-3


def test_levels_of_different_widths_stay_apart():
    narrow, wide = torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 9)
    for target, level in zip(level_targets([narrow, wide], True), (narrow, wide), strict=True):
        assert_close(target, layer_norm(level))


def test_one_level_is_the_target_of_ijepa():
    """With nothing between the last block and the latent, the target is that of `ema` with normalised targets."""
    model, batch = vit(), clips()
    model.encoder.projector = nn.Identity()
    (target,) = Data2Vec(Data2VecConfig(top=1), model).targets(batch)
    expected = Ema(EmaConfig(normalise_target=True), model).targets(batch)
    assert_close(target, expected, rtol=1e-3, atol=1e-3)  # two layer norms, each with its epsilon
    (mean,) = Data2Vec(Data2VecConfig(top=3), model).targets(batch)
    assert not torch.allclose(mean, expected, atol=0.05)


def test_loss_by_hand_with_one_width():
    model, batch = vit(), clips()
    objective = Data2Vec(Data2VecConfig(top=2, beta=0.5, normalise_mean=False, weight=0.3), model)
    latent, predicted = imagine(model, batch)
    losses = score(objective, latent, predicted, batch)
    frames = torch.addcmul(model.pixel_shift, batch.pixels_BTCYX.flatten(0, 1).float(), model.pixel_scale)
    levels = model.encoder.levels(frames)
    target = ((layer_norm(levels[-1]) + layer_norm(levels[-2])) / 2).unflatten(0, (6, 3))[:, 1:]
    (head,) = objective.heads
    by_hand = torch.stack([F.smooth_l1_loss(head(guess), target, beta=0.5) for guess in predicted]).mean()
    assert_close(losses.terms["data2vec"], by_hand)
    assert_close(losses.terms["prediction"], prediction_loss(latent, predicted, objective.config.prediction))
    assert losses.weights == {"prediction": 1.0, "data2vec": 0.3}
    assert set(losses.metrics) == {"target_std", "prediction_std"}


def test_each_width_has_its_head_and_counts_the_same():
    model, batch = world(ConvConfig(latent_dim=4, channels=(2, 4, 6))).train(), clips()
    objective = Data2Vec(Data2VecConfig(top=3), model)
    assert [head.out_features for head in objective.heads] == [32, 64, 96]
    latent, predicted = imagine(model, batch)
    losses = score(objective, latent, predicted, batch)
    parts = [
        torch.stack([F.smooth_l1_loss(head(guess), target[:, 1:], beta=2.0) for guess in predicted]).mean()
        for head, target in zip(objective.heads, objective.targets(batch), strict=True)
    ]
    assert_close(losses.terms["data2vec"], torch.stack(parts).mean())


def test_heads_learn_and_the_teacher_does_not():
    model, batch = learner(), clips()
    objective = Data2Vec(Data2VecConfig(), model)
    score(objective, *imagine(model, batch), batch).total.backward()
    assert all(p.requires_grad == key.startswith("heads") for key, p in objective.named_parameters())
    assert all((p.grad is not None) == key.startswith("heads") for key, p in objective.named_parameters())
    assert all(p.grad.abs().sum() > 0 for p in objective.heads.parameters())


def test_the_teacher_follows_the_encoder():
    model, batch = learner(), clips()
    objective = Data2Vec(Data2VecConfig(teacher=TeacherConfig("constant", 0.0)), model)
    fresh = objective.targets(batch)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-0.5)
    objective.after_step(model, 0.5)
    copied = dict(objective.teacher.model.encoder.encoder.named_parameters())
    assert all(torch.equal(p, copied[key]) for key, p in model.encoder.named_parameters())
    moved = objective.targets(batch)
    assert not torch.allclose(moved[0], fresh[0])
    assert torch.equal(moved[0], Data2Vec(Data2VecConfig(), model).targets(batch)[0])


def test_the_upper_half_of_the_levels_is_the_default():
    assert top_level_dims(vit(4).encoder, None) == (8, 8)
    assert top_level_dims(vit(1).encoder, None) == (8,)
    assert top_level_dims(world(ConvConfig(channels=(2, 4, 6))).encoder, 2) == (64, 96)


def test_collapsed_latents_give_finite_gradients():
    model, batch = learner(), clips(2, 2)
    latent, predicted = (torch.zeros_like(x).requires_grad_() for x in (torch.ones(2, 2, 1, 4), torch.ones(2, 1, 1, 4)))
    losses = score(Data2Vec(Data2VecConfig(), model), latent, (predicted,), batch)
    losses.total.backward()
    assert losses.total.isfinite() and predicted.grad.isfinite().all()


def test_bfloat16_is_within_two_percent():
    model, batch = learner(), clips(16)
    objective = Data2Vec(Data2VecConfig(), model)
    latent, predicted = imagine(model, batch)
    exact = score(objective, latent, predicted, batch).terms
    rounded = score(objective, latent.bfloat16(), tuple(p.bfloat16() for p in predicted), batch).terms
    for key, term in exact.items():
        assert rounded[key].dtype == torch.float32 and rounded[key].item() == pytest.approx(term.item(), rel=0.02)


def test_faults_are_named():
    with pytest.raises(ValueError, match="top is 0; it must be 1 or more"):
        Data2VecConfig(top=0)
    with pytest.raises(ValueError, match="beta is -1"):
        Data2VecConfig(beta=-1)
    with pytest.raises(ValueError, match="top is 5, but the encoder has 4 levels"):
        Data2Vec(Data2VecConfig(top=5), vit(4))
    with pytest.raises(ValueError, match=r"Linear does not show its levels.*or use objective ema"):
        top_level_dims(nn.Linear(2, 2), 1)
