"""Barlow Twins against golden values, closed forms and hand-computed cases."""

from dataclasses import asdict

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F
from torch.testing import assert_close

from lewm.objectives import PredictionConfig
from lewm.objectives.barlow import BarlowConfig, cross_correlation, distance_from_identity, objective, standardise
from lewm.objectives.health import effective_rank

VARIANTS = [BarlowConfig(), BarlowConfig(pool_time=True, off_diagonal=0.3, prediction=PredictionConfig("l1"))]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def golden_views():
    i, j = torch.arange(12.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return torch.sin(0.7 * i + 1.3 * j + 0.1 * i * j), torch.cos(0.5 * i - 0.9 * j + 0.23 * i * j + 0.2)


def compare(first_ND, second_ND):
    """Both terms for two samples."""
    diagonal, off_diagonal = distance_from_identity(cross_correlation(first_ND, second_ND))
    return diagonal.mean().item(), off_diagonal.mean().item()


def score(latent, *predicted, config=None):
    return objective(latent, predicted, None, torch.Generator(), config or BarlowConfig())


def test_golden_values():
    x, y = golden_views()
    diagonal, off_diagonal = compare(x, y)
    assert diagonal == pytest.approx(5.2535404384, abs=1e-9) and off_diagonal == pytest.approx(2.1948957, abs=1e-6)
    assert diagonal + 0.0051 * off_diagonal == pytest.approx(5.2647344074, abs=1e-8)


def test_terms_and_weights_of_the_golden_latents():
    """The second frame is predicted by the first; nothing but the frames from the second on is a target."""
    x, y = golden_views()
    losses = score(torch.stack([x, y], 1)[:, :, None], x[:, None, None])
    assert losses.weights == {"prediction": 1.0, "diagonal": 1.0, "off_diagonal": 0.0051}
    assert losses.terms["prediction"].item() == pytest.approx(0.9419451249, abs=1e-9)
    assert losses.total.item() == pytest.approx(5.2647344074 + 0.9419451249, abs=1e-8)
    config = BarlowConfig(weight=0.5, off_diagonal=0.2)
    assert score(torch.stack([x, y], 1)[:, :, None], x[:, None, None], config=config).weights == {
        "prediction": 1.0,
        "diagonal": 0.5,
        "off_diagonal": 0.1,
    }


def test_tiny_case_by_hand():
    """Two dimensions that are each other's negative, predicted the right way round and swapped."""
    z = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64) * 1000  # epsilon does not matter
    assert_close(cross_correlation(z, z), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double())
    assert compare(z, z) == pytest.approx((0.0, 2.0))
    assert compare(z, -z) == pytest.approx((8.0, 2.0))


def test_standardise_is_torch_batch_norm():
    x = 3 * normal(20, 5) + 2
    assert_close(standardise(x), F.batch_norm(x, None, None, training=True, eps=1e-5))


def test_collapse_scores_the_width_with_a_finite_gradient():
    for constant in (0.0, 0.3):
        latent, predicted = (torch.full((8, t, 2, 4), constant).requires_grad_() for t in (3, 2))
        losses = score(latent, predicted)
        assert losses.terms["diagonal"].item() == pytest.approx(4.0, abs=1e-6)
        assert losses.terms["off_diagonal"].item() == pytest.approx(0.0, abs=1e-9)
        losses.total.backward()
        assert latent.grad.isfinite().all() and predicted.grad.isfinite().all()


def test_identical_views():
    """On the diagonal d (epsilon / variance)^2, off it d (d - 1) / (n - 1)."""
    n, d = 32, 6
    x = normal(3000, n, d)
    diagonal, off_diagonal = compare(x, x)
    assert diagonal < 1e-7
    assert off_diagonal == pytest.approx(d * (d - 1) / (n - 1), rel=0.02)
    small = 1e-2 * x / x.var(-2, unbiased=False, keepdim=True).sqrt()
    assert compare(small, small)[0] == pytest.approx(d * (1 - 1e-4 / (1e-4 + 1e-5)) ** 2)


def test_independent_gaussian_views():
    n, d = 32, 6
    diagonal, off_diagonal = compare(normal(3000, n, d), normal(3000, n, d, seed=1))
    assert diagonal == pytest.approx(d * (1 + 1 / (n - 1)), rel=0.02)
    assert off_diagonal == pytest.approx(d * (d - 1) / (n - 1), rel=0.02)


def test_symmetries():
    x, y = normal(64, 5), normal(64, 5) + 0.5 * normal(64, 5, seed=1)
    before = compare(x, y)
    scale, shift = torch.rand(5, generator=torch.Generator().manual_seed(2)).double() + 0.5, normal(5, seed=3)
    assert compare(y, x) == pytest.approx(before)
    assert compare(100 * x * scale + shift, y) == pytest.approx(before, rel=1e-3)
    assert compare(x, 100 * y * scale + shift) == pytest.approx(before, rel=1e-3)
    turn = torch.linalg.qr(normal(5, 5, seed=4)).Q
    assert compare(x @ turn, y @ turn)[0] != pytest.approx(before[0], rel=1e-3)


def test_statistics_are_per_time_step_and_averaged_over_time_and_ways_of_predicting():
    latent, one, two = normal(8, 3, 2, 4), normal(8, 2, 2, 4, seed=1), normal(8, 2, 2, 4, seed=2)
    target = latent[:, 1:]
    frames = [compare(p[:, t].reshape(16, 4), target[:, t].reshape(16, 4)) for p in (one, two) for t in range(2)]
    pooled = [compare(p.reshape(32, 4), target.reshape(32, 4)) for p in (one, two)]
    for groups, config in ((frames, BarlowConfig()), (pooled, BarlowConfig(pool_time=True))):
        losses = score(latent, one, two, config=config)
        for k, name in enumerate(("diagonal", "off_diagonal")):
            assert losses.terms[name].item() == pytest.approx(sum(g[k] for g in groups) / len(groups))


def test_prediction_gives_the_predictor_its_units_and_leaves_the_latents_theirs():
    """The correlations have no gradient along the scale of either side; the prediction only one into the predictor."""
    latent = normal(64, 2, 1, 4).requires_grad_()
    predicted = (3 * latent[:, :1].detach() + 0.1 * normal(64, 1, 1, 4, seed=1)).requires_grad_()
    losses = score(latent, predicted)
    grads = torch.autograd.grad(losses.total - losses.terms["prediction"], (latent, predicted), retain_graph=True)
    assert all(g.norm() > 1e-3 for g in grads)
    for leaf, grad in zip((latent, predicted), grads, strict=True):
        assert abs((leaf * grad).sum()) < 1e-4 * leaf.norm() * grad.norm()
    pull = torch.autograd.grad(losses.terms["prediction"], (latent, predicted), allow_unused=True)
    assert pull[0] is None and (pull[1] * predicted).sum() > 0.1


def test_metrics_show_agreement_and_scale():
    latent = normal(256, 2, 1, 4)
    metrics = score(latent, 2 * latent[:, 1:]).metrics
    assert metrics["correlation"].item() == pytest.approx(1.0, abs=1e-4)
    assert metrics["correlation_min"].item() == pytest.approx(1.0, abs=1e-4)
    assert metrics["predicted_std"].item() == pytest.approx(2 * metrics["latent_std"].item())
    assert metrics["latent_std"].item() == pytest.approx(latent[:, 1, 0].std(0).mean().item())
    assert not any(metric.requires_grad for metric in metrics.values())


def test_bfloat16_is_within_two_percent_and_autocast_rounds_nothing():
    latent = normal(64, 3, 2, 8, dtype=torch.float32)
    predicted = latent[:, 1:] + 0.3 * normal(64, 2, 2, 8, seed=1, dtype=torch.float32)
    exact, rounded = score(latent, predicted), score(latent.bfloat16(), predicted.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        cast = score(latent, predicted)
    for name, term in exact.terms.items():
        assert rounded.terms[name].dtype == torch.float32
        assert rounded.terms[name].item() == pytest.approx(term.item(), rel=0.02)
        assert torch.equal(cast.terms[name], term)


def test_gradcheck():
    latent = normal(4, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: score(z, z[:, :1] ** 2, config=BarlowConfig(prediction=PredictionConfig())).total, latent
    )


def test_the_order_of_the_batch_does_not_matter():
    latent, predicted = normal(16, 3, 2, 4), normal(16, 2, 2, 4, seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert_close(score(latent[order], predicted[order]).total, score(latent, predicted).total)


@pytest.mark.parametrize("start", ["jitter", "line"])
def test_a_collapse_is_left_with_full_rank(start):
    """Free embeddings, the identity as predictor: from N(0, 1e-3^2), and from a line with a little more of it."""
    n, d = 64, 16
    line = normal(n, 1, 1, 1, seed=5) * normal(d, seed=6) if start == "line" else 0.0
    z = (1e-3 * normal(n, 2, 1, d, seed=2) + line).float().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        losses = score(z, z[:, :1])
        losses.total.backward()
        optimizer.step()
    latent = z.detach()[:, 1, 0]
    assert effective_rank(latent) >= 0.8 * d
    assert losses.terms["diagonal"].item() < 0.05 * d
    assert latent.std(0).min().item() > 0.05  # not shrunk to where epsilon holds it


def test_the_smallest_batch_and_the_one_below_it():
    latent, predicted = normal(2, 2, 1, 4).requires_grad_(), normal(2, 1, 1, 4, seed=1).requires_grad_()
    losses = score(latent, predicted)
    losses.total.backward()
    assert losses.total.isfinite() and latent.grad.isfinite().all() and predicted.grad.isfinite().all()
    one = normal(1, 4, 1, 4)
    with pytest.raises(ValueError, match="Barlow Twins needs 2 or more samples per statistic, not 1; raise the batch"):
        score(one, one[:, 1:])
    assert score(one, one[:, 1:], config=BarlowConfig(pool_time=True)).total.isfinite()


def test_nan_is_not_swallowed():
    latent, predicted = normal(8, 2, 1, 4), normal(8, 1, 1, 4)
    predicted[3, 0, 0, 2] = float("nan")
    assert score(latent, predicted).total.isnan()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": -1.0}, "weight is -1.0; it must be 0 or more"),
        ({"off_diagonal": float("nan")}, "off_diagonal is nan"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be above 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BarlowConfig(**settings)


def test_a_config_survives_being_written_and_read():
    for config in VARIANTS:
        assert TypeAdapter(BarlowConfig).validate_python(asdict(config)) == config


def step(config, latent, predicted):
    latent, predicted = latent.clone().requires_grad_(), predicted.clone().requires_grad_()
    losses = score(latent, predicted, config=config)
    losses.total.backward()
    return losses.total.detach(), losses.metrics, latent.grad, predicted.grad


def half_step(rank, latent, predicted):
    return [step(config, latent.chunk(2)[rank], predicted.chunk(2)[rank]) for config in VARIANTS]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    latent, predicted = normal(6, 3, 2, 4), normal(6, 2, 2, 4, seed=1)
    halves = on_two_ranks(half_step, latent, predicted)
    for config, first, second in zip(VARIANTS, *halves, strict=True):
        total, metrics, *grads = step(config, latent, predicted)
        assert_close((first[0] + second[0]) / 2, total, rtol=1e-9, atol=0)
        assert_close(first[1], metrics, rtol=1e-9, atol=0)
        for one, other, whole in zip(first[2:], second[2:], grads, strict=True):
            assert_close(torch.cat([one, other]) / 2, whole, rtol=1e-9, atol=1e-12)  # training averages over ranks
        assert abs(step(config, latent[:3], predicted[:3])[0] - total) > 1e-3
