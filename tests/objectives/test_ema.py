"""The teacher and the objective `ema`; data parallelism of all three methods that keep a teacher."""

import math

import pytest
import torch
from taught import clips, imagine, learner, part, score
from torch.testing import assert_close

from lewm.distributed import average_gradients
from lewm.objectives.cjepa import CJepa, CJepaConfig
from lewm.objectives.data2vec import Data2Vec, Data2VecConfig
from lewm.objectives.ema import Ema, EmaConfig
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.teacher import (
    Teacher,
    TeacherConfig,
    momentum_at,
    normalised,
    regression_loss,
    spread_over_batch,
)
from lewm.train import TrainConfig, make_optimizer

L1, L2 = PredictionConfig("l1"), PredictionConfig("l2")


def golden():
    i, j = torch.arange(12.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    x = torch.sin(0.7 * i + 1.3 * j + 0.1 * i * j)
    return x, torch.cos(0.5 * i - 0.9 * j + 0.23 * i * j + 0.2)


def as_target(y_ND):
    """A clip whose second frame is y."""
    return torch.stack([torch.zeros_like(y_ND), y_ND], 1)[:, :, None]


def stir(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


@pytest.mark.parametrize(
    "distance, beta, normalise, expected",
    [
        (L2, 1.0, False, 0.9419451249),
        (L1, 0.0, False, 0.7825028994),
        (L1, 1.0, False, 0.4195867628),
        (L1, 2.0, False, 0.2354862812),
        (L1, 0.0, True, 1.0196560432),
        (L1, 1.0, True, 0.6146237580),
        (PredictionConfig("cosine"), 0.0, False, 1.9116696818 / 2),  # BYOL's 2 - 2 cos, one side
    ],
)
def test_golden_values(distance, beta, normalise, expected):
    x, y = golden()
    target = as_target(y)
    loss = regression_loss(normalised(target) if normalise else target, (x[:, None, None],), distance, beta)
    assert loss.item() == pytest.approx(expected, abs=1e-5 if normalise else 1e-9)


def test_smooth_l1_lies_between_l1_and_the_squared_error():
    x, y = golden()
    target, guess = as_target(y), x[:, None, None].clone().requires_grad_()
    assert regression_loss(target, (guess,), L1, 1e-9).item() == pytest.approx((x - y).abs().mean().item(), abs=1e-8)
    assert regression_loss(target, (guess,), L1, 50.0).item() == pytest.approx((x - y).square().mean().item() / 100)
    regression_loss(target, (guess,), L1, 0.3).backward()
    assert guess.grad.abs().max().item() == pytest.approx(1 / x.numel())
    assert guess.grad.abs().max() <= 1 / x.numel() * (1 + 1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_prediction_that_does_not_fit_is_named(beta):
    target = torch.zeros(3, 2, 1, 4)
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 1, 1, 4\)"):
        regression_loss(target, (torch.zeros(2, 1, 1, 4),), L1, beta)
    with pytest.raises(ValueError, match="no prediction to score"):
        regression_loss(target, (), L1, beta)


def test_normalised_targets_have_mean_0_and_variance_1_per_token():
    model, batch = learner(), clips()
    target = Ema(EmaConfig(normalise_target=True), model).targets(batch)
    assert_close(target.mean(-1), torch.zeros(6, 3, 1), rtol=0, atol=1e-6)
    assert_close(target.var(-1, correction=0), torch.ones(6, 3, 1), rtol=0, atol=1e-3)
    raw = Ema(EmaConfig(), model).targets(batch)
    assert_close(target, normalised(raw))
    assert not torch.allclose(raw.var(-1), torch.ones(6, 3, 1), atol=0.1)


def test_momentum_at_every_published_schedule():
    for published in (0.99925, 0.9998):
        assert momentum_at(TeacherConfig("constant", published), 0.7) == published
    jepa, byol = TeacherConfig("linear", 0.996, 1.0), TeacherConfig("cosine", 0.99, 1.0)
    assert [momentum_at(jepa, p) for p in (0.0, 0.25, 1.0)] == pytest.approx([0.996, 0.997, 1.0])
    for k in (0, 3, 7, 10):
        assert momentum_at(byol, k / 10) == pytest.approx(1 - (1 - 0.99) * (math.cos(math.pi * k / 10) + 1) / 2)
    assert momentum_at(TeacherConfig("linear", 0.9, 0.99), 1.0) == pytest.approx(0.99)


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9, 1.0])
def test_k_updates_towards_fixed_parameters(m):
    """theta_k = theta + m^k (theta_0 - theta); at m = 0 exactly the model, at m = 1 exactly where it was."""
    model = learner(torch.float64)
    teacher = Teacher(model, TeacherConfig("constant", m))
    start = [p.clone() for p in teacher.parameters()]
    stir(model)
    for k in range(4):
        teacher.follow(model.encoder, (k + 1) / 4)
    for now, first, theta in zip(teacher.parameters(), start, model.encoder.parameters(), strict=True):
        assert not torch.equal(first, theta)
        assert_close(now, theta + m**4 * (first - theta), rtol=0 if m in (0, 1) else 1e-12, atol=0)


def test_the_teacher_is_the_encoder_alone_and_never_trained():
    model, batch = learner(), clips()
    objective = Ema(EmaConfig(), model)
    assert [key for key, _ in objective.named_parameters()] == [
        f"teacher.model.encoder.{key}" for key, _ in model.encoder.named_parameters()
    ]
    assert not any(p.requires_grad for p in objective.parameters())
    trained = torch.nn.ModuleList([model, objective])
    groups = make_optimizer(trained, TrainConfig()).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    latent, predicted = imagine(model, batch)
    score(objective, latent, predicted, batch).total.backward()
    assert all(p.grad is None for p in objective.parameters())
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())  # copying froze the copy only


def test_latents_that_are_predicted_get_no_gradient():
    model, batch = learner(), clips()
    latent, predicted = imagine(model, batch)
    latent, predicted = latent.detach().requires_grad_(), tuple(p.detach().requires_grad_() for p in predicted)
    score(Ema(EmaConfig(), model), latent, predicted, batch).total.backward()
    assert latent.grad is None and all(p.grad.abs().sum() > 0 for p in predicted)


def test_momentum_0_is_the_stop_gradient_bit_for_bit():
    plain, taught, batch = learner(), learner(), clips()
    config = EmaConfig(prediction=PredictionConfig("l2"), teacher=TeacherConfig("constant", 0.0))
    objective = Ema(config, taught)
    for step in range(3):
        losses = []
        for model in (plain, taught):
            latent, predicted = imagine(model, batch)
            if model is plain:
                losses.append(prediction_loss(latent, predicted, PredictionConfig("l2", stop_gradient=True)))
            else:
                losses.append(score(objective, latent, predicted, batch).total)
            model.zero_grad()
            losses[-1].backward()
            torch.optim.SGD(model.parameters(), 0.05).step()
        objective.after_step(taught, (step + 1) / 3)
        assert torch.equal(*losses)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), taught.parameters(), strict=True))


def test_running_statistics_are_the_teachers_own():
    model, batch = learner(), clips()
    objective = Ema(EmaConfig(teacher=TeacherConfig("constant", 1.0)), model)
    stir(model)
    for _ in range(2):
        latent, predicted = imagine(model, batch)
        score(objective, latent, predicted, batch)
    before = {key: b.clone() for key, b in objective.named_buffers()}
    objective.after_step(model, 0.5)
    assert all(torch.equal(before[key], b) for key, b in objective.named_buffers())
    mine, theirs = objective.teacher.model.encoder.layers[1], model.encoder.layers[1]
    assert mine.num_batches_tracked == theirs.num_batches_tracked == 2
    assert not torch.allclose(mine.running_mean, theirs.running_mean)


def test_a_saved_teacher_comes_back():
    model, batch = learner(), clips()
    objective = Ema(EmaConfig(), model)
    stir(model)
    score(objective, *imagine(model, batch), batch)
    objective.after_step(model, 0.25)
    state = {key: value.clone() for key, value in objective.state_dict().items()}
    resumed = Ema(EmaConfig(), learner())
    first = resumed.targets(batch)
    resumed = Ema(EmaConfig(), learner())
    resumed.load_state_dict(state)
    for one in (objective, resumed):
        one.after_step(model, 0.5)
    assert torch.equal(resumed.targets(batch), objective.targets(batch))
    assert not torch.allclose(first, objective.targets(batch))


def test_spread_is_the_mean_deviation_over_clips_and_tokens():
    latent = torch.randn(5, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([latent[:, t].reshape(10, 4).std(0).mean() for t in range(3)]).mean()
    assert_close(spread_over_batch(latent), by_hand)
    assert spread_over_batch(torch.ones(5, 3, 2, 4)).item() == 0
    with pytest.raises(ValueError, match="needs 2 or more samples per statistic, not 1"):
        spread_over_batch(torch.ones(1, 3, 1, 4))


def collapsed():
    model = learner()
    with torch.no_grad():
        model.encoder.out.weight.zero_()
    return model


def test_a_collapse_is_in_the_metrics_and_ends_the_training_if_asked():
    batch = clips()
    for on_collapse in ("log", "error"):
        model = collapsed()
        objective = Ema(EmaConfig(teacher=TeacherConfig(on_collapse=on_collapse, grace=0.5)), model)
        metrics = score(objective, *imagine(model, batch), batch).metrics
        assert metrics["target_std"].item() < 1e-6 and not metrics["target_std"].requires_grad
        objective.after_step(model, 0.5)  # in the grace period
        if on_collapse == "log":
            objective.after_step(model, 0.6)
            continue
        with pytest.raises(RuntimeError, match=r"collapsed: target_std is .*, below 0\.1 \(teacher\.min_target_std\)"):
            objective.after_step(model, 0.6)


def test_a_healthy_latent_passes_the_guard():
    model, batch = learner(), clips()
    objective = Ema(EmaConfig(normalise_target=True, teacher=TeacherConfig(on_collapse="error")), model)
    latent, predicted = imagine(model, batch)
    metrics = score(objective, latent, predicted, batch).metrics
    expected = [spread_over_batch(guess) for guess in predicted]
    assert_close(metrics["prediction_std"], torch.stack(expected).mean().detach())
    assert_close(metrics["target_std"], spread_over_batch(objective.targets(batch)[:, 1:]))
    objective.after_step(model, 0.9)


def test_bfloat16_is_within_two_percent():
    model, batch = learner(), clips(16)
    objective = Ema(EmaConfig(), model)
    latent, predicted = imagine(model, batch)
    exact = score(objective, latent, predicted, batch).total
    rounded = score(objective, latent.bfloat16(), tuple(p.bfloat16() for p in predicted), batch).total
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"teacher.momentum is 1.2; it must lie in \[0, 1\]"):
        TeacherConfig(momentum=1.2)
    with pytest.raises(ValueError, match=r"teacher.min_target_std is -1"):
        TeacherConfig(min_target_std=-1)
    with pytest.raises(ValueError, match=r"beta is -0.5"):
        EmaConfig(beta=-0.5)
    model, batch = learner(), clips()
    with pytest.raises(ValueError, match="pass the batch with its pixels"):
        score(Ema(EmaConfig(), model), *imagine(model, batch), None)


# Data parallelism: two optimiser steps by one process with all clips and by two with half of them each.

MOVING = TeacherConfig("constant", 0.5)
METHODS = [
    lambda model: Ema(EmaConfig(teacher=MOVING), model),
    lambda model: Ema(EmaConfig(prediction=PredictionConfig("l2"), normalise_target=True, teacher=MOVING), model),
    lambda model: Data2Vec(Data2VecConfig(top=2, teacher=MOVING), model),
    lambda model: CJepa(CJepaConfig(weight=0.1, teacher=MOVING), model),
]


def train_two_steps(build, batch):
    """Losses and gradients of both steps, the teacher's state after them, its metrics."""
    model = learner(torch.float64)
    torch.manual_seed(0)
    objective = build(model).double()
    trained = torch.nn.ModuleList([model, objective])
    losses, grads = [], []
    for step in range(2):
        trained.zero_grad()
        scored = score(objective, *imagine(model, batch), batch)
        scored.total.backward()
        average_gradients(trained)
        losses.append(scored.total.detach())
        grads += [p.grad.clone() for p in trained.parameters() if p.requires_grad]
        torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], 0.05).step()
        objective.after_step(model, (step + 1) / 2)
    return torch.stack(losses), grads, objective.state_dict(), scored.metrics


def half_of_two_steps(rank):
    half = part(clips(8), slice(4 * rank, 4 * rank + 4))
    return [train_two_steps(build, half) for build in METHODS]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    halves = on_two_ranks(half_of_two_steps)
    close = {"rtol": 1e-9, "atol": 1e-11}
    for build, first, second in zip(METHODS, *halves, strict=True):
        losses, grads, state, metrics = train_two_steps(build, clips(8))
        assert_close((first[0] + second[0]) / 2, losses, **close)
        for one, other, whole in zip(first[1], second[1], grads, strict=True):
            assert torch.equal(one, other)
            assert_close(one, whole, **close)
        assert first[2].keys() == second[2].keys() == state.keys()
        for key, whole in state.items():  # the teacher, its running statistics included, is the same on every rank
            assert torch.equal(first[2][key], second[2][key]), key
            assert_close(first[2][key], whole, **close)
        for key, whole in metrics.items():
            assert_close(first[3][key], whole, **close)
        half = train_two_steps(build, part(clips(8), slice(0, 4)))
        assert (half[0] - losses).abs().max() > 1e-5  # half the batch alone is another loss
