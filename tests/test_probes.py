"""Probes on data whose answer is known."""

import math

import pytest
import torch
from toy_models import SIZE, toy_model

from lewm.data.windows import Batch
from lewm.probes import effective_rank, fit_linear, fit_mlp, linear_probe_r2, probe_model, r2_score, state_targets


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_of_known_matrices() -> None:
    orthogonal = torch.linalg.qr(draw(64, 6) - draw(64, 6).mean(0)).Q
    centred = torch.linalg.qr(torch.cat([torch.ones(64, 1), orthogonal], 1)).Q[:, 1:]
    assert effective_rank(centred).item() == pytest.approx(6, rel=1e-4)
    assert effective_rank(centred[:, :2] @ draw(2, 6)).item() == pytest.approx(2, abs=0.9)
    assert effective_rank(centred[:, :1] @ draw(1, 6) + 5).item() == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.full((64, 6), 3.0)).item() == pytest.approx(1)
    halves = centred * torch.tensor([1.0, 1.0, 0.5, 0.5, 0.0, 0.0])
    shares = [1 / 3, 1 / 3, 1 / 6, 1 / 6]
    assert effective_rank(halves).item() == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares)), rel=1e-3)


def test_effective_rank_ignores_scale_and_mean() -> None:
    sample = draw(100, 5)
    assert effective_rank(1000 * sample + 7).item() == pytest.approx(effective_rank(sample).item(), rel=1e-3)


def test_probe_finds_what_is_linear_and_only_that() -> None:
    latent, noise = draw(2000, 6), draw(2000, 1, seed=1)
    linear = latent @ draw(6, 1, seed=2) + 3
    signal = linear - 3
    half = signal / signal.std() + noise
    target = torch.cat([linear, half, noise, latent[:, :1] * latent[:, 1:2]], 1)
    r2 = linear_probe_r2(latent[:1000], target[:1000], latent[1000:], target[1000:])
    assert r2[0] == pytest.approx(1, abs=1e-3)
    assert r2[1] == pytest.approx(0.5, abs=0.06)
    assert r2[2] == pytest.approx(0, abs=0.03)
    assert r2[3] == pytest.approx(0, abs=0.05)


def test_probe_is_scored_on_held_out_samples() -> None:
    """More features than samples fit anything; the score must not say so."""
    latent, target = draw(80, 60), draw(80, 1, seed=1)
    assert linear_probe_r2(latent[:40], target[:40], latent[40:], target[40:])[0] < 0
    assert linear_probe_r2(latent[:40], target[:40], latent[:40], target[:40])[0] > 0.9


def test_probe_of_a_constant_target_is_nan_and_spares_the_others() -> None:
    latent = draw(100, 3)
    target = torch.stack([torch.full((100,), 0.3), latent[:, 0]], 1)
    r2 = linear_probe_r2(latent, target, latent, target)
    assert r2[0].isnan() and r2[1] == pytest.approx(1, abs=1e-2)


def test_probe_survives_dead_dimensions_and_any_scale() -> None:
    latent = torch.cat([1e-4 * draw(200, 2), torch.zeros(200, 1), 1e4 * draw(200, 1, seed=3)], 1)
    target = torch.stack([1e4 * latent[:, 0], latent[:, 3]], 1)
    r2 = linear_probe_r2(latent[:100], target[:100], latent[100:], target[100:])
    assert torch.allclose(r2, torch.ones(2), atol=1e-2)


def test_angles_are_probed_as_cosine_and_sine() -> None:
    state = torch.tensor([[0.0, 2.0], [math.pi / 2, 3.0]])
    targets, labels = state_targets(state, ("joint", "speed"), ("joint",))
    assert labels == ["cos joint", "sin joint", "speed"]
    torch.testing.assert_close(targets, torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]]), atol=1e-6, rtol=0)


def toy_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (16, 4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return Batch(pixels, draw(16, 3, 4, seed=seed), draw(16, 4, 2, seed=seed + 1), torch.arange(16))


def test_health_of_a_model() -> None:
    model = toy_model().train()
    fit, test = toy_batch(0), toy_batch(5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    health = probe_model(model, fit, test, ("x", "y"), ())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(health.probe_r2) == ["x", "y"]
    model.eval()
    latent = model.encode(test.pixels_BTCYX)
    torch.testing.assert_close(health.std_D, latent.flatten(0, 1).flatten(1).std(0))
    assert health.effective_rank == pytest.approx(effective_rank(latent.flatten(0, 1).flatten(1)).item())
    assert health.rollout_error_T.shape == (3,)
    one = model.predict(latent[:, :1], test.action_BTA[:, :1])[:, 0]
    expected = (one - latent[:, 1]).square().mean() / latent.flatten(0, 1).var(0).mean()
    torch.testing.assert_close(health.rollout_error_T[0], expected)


def test_a_feature_that_hardly_changed_does_not_throw_the_probe_off() -> None:
    """One sample in 500 moved it while fitting; where it moves all the time, the floor keeps its weight small."""
    fit, test = 0.1 * draw(500, 2), 0.1 * draw(500, 2, seed=1)
    fit[:, 1], test[:, 1] = 0, draw(500, seed=3)
    fit[7, 1] = 1e-4
    target, true = fit[:, :1] + 0.01 * draw(500, 1, seed=2), test[:, :1]
    weight, bias = fit_linear(fit, target, floor=0.05)
    assert r2_score(test @ weight + bias, true)[0] > 0.95
    weight, bias = fit_linear(fit, target)
    assert r2_score(test @ weight + bias, true)[0] < 0


def test_an_mlp_fitted_in_batches_finds_what_is_bent() -> None:
    latent = draw(3000, 3)
    target = (latent[:, :1] * latent[:, 1:2]).tanh()
    found = fit_mlp(latent[:2000], target[:2000], steps=400, batch=256)(latent[2000:])
    assert r2_score(found, target[2000:])[0] > 0.9


def test_features_wider_than_the_samples_are_regressed_alike() -> None:
    """The tokens of a frozen encoder: the same ridge regression as by the normal equations, and no D x D system."""
    generator = torch.Generator().manual_seed(0)
    feature_ND, target_NS = (torch.randn(12, width, generator=generator) for width in (30, 2))
    weight_DS, bias_S = fit_linear(feature_ND, target_NS, ridge=0.1)
    mean_D, std_D = feature_ND.double().mean(0), feature_ND.double().std(0)
    padded = torch.cat([(feature_ND - mean_D) / std_D, torch.ones(12, 1)], 1)
    normal = padded.T @ padded / 12 + 0.1 * torch.eye(31, dtype=torch.float64)
    solved = torch.linalg.solve(normal, padded.T @ target_NS.double() / 12)
    torch.testing.assert_close(weight_DS, (solved[:-1] / std_D[:, None]).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        bias_S, (solved[-1] - mean_D @ (solved[:-1] / std_D[:, None])).float(), rtol=1e-4, atol=1e-6
    )
