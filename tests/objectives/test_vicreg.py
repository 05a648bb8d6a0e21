"""VICReg against golden values, closed forms and hand-computed cases."""

import math
from dataclasses import asdict

import pytest
import torch
from pydantic import TypeAdapter
from torch.testing import assert_close

from lewm.objectives import PredictionConfig
from lewm.objectives.health import effective_rank
from lewm.objectives.statistics import centre, covariance, samples
from lewm.objectives.vicreg import VicRegConfig, covariance_energy, objective, variance_hinge

VARIANTS = [
    VicRegConfig(),
    VicRegConfig(frames="pooled", divide_by="pairs"),
    VicRegConfig(frames="first", halve_std=False, prediction=PredictionConfig("l1", stop_gradient=True)),
]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def golden_views():
    i, j = torch.arange(12.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return torch.sin(0.7 * i + 1.3 * j + 0.1 * i * j), torch.cos(0.5 * i - 0.9 * j + 0.23 * i * j + 0.2)


def moments(sample_ND):
    centred, _, n = centre(sample_ND[None], "test")
    return covariance(centred, n)[0]


def score(latent, predicted, config=None):
    return objective(latent, (predicted,), None, torch.Generator(), config or VicRegConfig())


def terms_of_latent(latent, config=None):
    losses = score(latent, latent[:, 1:], config)
    return losses.terms["variance"].item(), losses.terms["covariance"].item()


def test_golden_values_of_two_views():
    """Every view adds its share of the variance (halved) and of the covariance, as in the published code."""
    views = golden_views()
    std = sum(variance_hinge(moments(view).diagonal()) / 2 for view in views).item()
    cov = sum(covariance_energy(moments(view)) for view in views).item()
    sim = (views[0] - views[1]).square().mean().item()
    assert std == pytest.approx(0.2756965696, abs=1e-9) and cov == pytest.approx(0.4228743256, abs=1e-9)
    assert 25 * sim + 25 * std + cov == pytest.approx(30.8639166872, abs=1e-8)
    assert 25 * sim + 25 * 2 * std + cov == pytest.approx(37.7563309266, abs=1e-8)


def test_terms_and_weights_of_the_golden_latents():
    """The same numbers through the objective: both views are frames of one clip, the first predicts the second."""
    x, y = golden_views()
    latent = torch.stack([x, y], 1)[:, :, None]
    losses = score(latent, latent[:, :1])
    assert losses.terms["prediction"].item() == pytest.approx(0.9419451249, abs=1e-9)
    assert losses.terms["variance"].item() == pytest.approx(0.2756965696 / 2, abs=1e-9)  # averaged over time
    assert losses.terms["covariance"].item() == pytest.approx(0.4228743256 / 2, abs=1e-9)
    assert losses.weights == {"prediction": 25.0, "variance": 25.0, "covariance": 1.0}
    whole = score(latent, latent[:, :1], VicRegConfig(halve_std=False, divide_by="pairs"))
    assert whole.terms["variance"].item() == pytest.approx(0.2756965696, abs=1e-9)
    assert whole.terms["covariance"].item() == pytest.approx(0.4228743256 / 2 / 3, abs=1e-9)


def test_tiny_case_by_hand():
    """Samples (0, 0), (2, 0), (0, 0), (2, 0.4): variances 4/3 and 0.04, covariance 0.4 / 3."""
    latent = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [2.0, 0.4]], dtype=torch.float64)
    variance, cov = terms_of_latent(latent[:, None, None].repeat(1, 2, 1, 1), VicRegConfig(halve_std=False))
    assert variance == pytest.approx((0 + 1 - math.sqrt(0.04 + 1e-4)) / 2)
    assert cov == pytest.approx(2 * (0.4 / 3) ** 2 / 2)


@pytest.mark.parametrize("n, d", [(16, 8), (128, 4)])
def test_expected_covariance_of_gaussian_samples(n, d):
    """(D - 1) / (n - 1) divided by the width, 1 / (n - 1) divided by the pairs."""
    centred, _, count = centre(normal(4000, n, d), "test")
    matrices = covariance(centred, count)
    for divide_by, expected in (("width", (d - 1) / (n - 1)), ("pairs", 1 / (n - 1))):
        assert covariance_energy(matrices, divide_by).mean().item() == pytest.approx(expected, rel=0.02)


def test_expected_hinge_of_gaussian_samples():
    """About 1 / sqrt(4 pi (n - 1)), 0.0250 for n = 128; 0.0261 by simulation."""
    centred, _, n = centre(normal(4000, 128, 8), "test")
    hinge = variance_hinge(covariance(centred, n).diagonal(dim1=-2, dim2=-1)).mean().item()
    assert hinge == pytest.approx(0.0261, abs=5e-4)


def test_collapse_scores_099_with_gradient_exactly_zero():
    latent = torch.full((8, 3, 2, 4), 0.75, requires_grad=True)
    losses = score(latent, latent[:, 1:].detach(), VicRegConfig(halve_std=False))
    assert losses.terms["variance"].item() == pytest.approx(0.99)
    assert losses.terms["covariance"].item() == 0.0
    losses.total.backward()
    assert latent.grad.abs().max() == 0


def test_wide_latents_have_no_variance_term_and_a_shift_changes_nothing():
    latent = normal(32, 3, 2, 4)
    assert terms_of_latent(3 * latent)[0] == 0.0
    assert terms_of_latent(0.5 * latent)[0] > 0.1
    assert terms_of_latent(latent + 5.0) == pytest.approx(terms_of_latent(latent), rel=1e-9)


def test_a_rotation_keeps_all_covariances_but_moves_them_off_the_diagonal():
    latent = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [2.0, 0.0], [-2.0, 0.0]]).double() * math.sqrt(3 / 4)
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / math.sqrt(2)
    before, after = moments(latent), moments(latent @ turn)
    assert_close(before, torch.diag(torch.tensor([4.0, 0.0])).double())
    assert_close(before.square().sum(), after.square().sum())
    assert covariance_energy(before).item() == 0.0
    assert covariance_energy(after).item() == pytest.approx(2 * 2.0**2 / 2)
    assert variance_hinge(before.diagonal()).item() == pytest.approx(0.99 / 2)
    assert variance_hinge(after.diagonal()).item() == 0.0


def test_one_dimension_has_no_covariance_term():
    for divide_by in ("width", "pairs"):
        assert terms_of_latent(normal(8, 2, 1, 1), VicRegConfig(divide_by=divide_by))[1] == 0.0


def test_which_frames_are_samples():
    latent = normal(6, 3, 2, 4) * torch.tensor([0.2, 0.5, 0.9]).double()[:, None, None] + normal(3, 1, 4, seed=1)
    by_hand = {
        "each": [latent[:, t].reshape(12, 4) for t in range(3)],
        "pooled": [latent.reshape(36, 4)],
        "first": [latent[:, 0].reshape(12, 4)],
    }
    for frames, groups in by_hand.items():
        variance, cov = terms_of_latent(latent, VicRegConfig(frames=frames))
        matrices = [torch.cov(group.T) for group in groups]
        hinges = [(1 - (m.diagonal() + 1e-4).sqrt()).clamp(min=0).mean() / 2 for m in matrices]
        off = [(m.square().sum() - m.diagonal().square().sum()) / 4 for m in matrices]
        assert variance == pytest.approx(torch.stack(hinges).mean().item())
        assert cov == pytest.approx(torch.stack(off).mean().item())


def test_metrics_show_the_dead_dimension():
    latent = normal(64, 2, 1, 4) * torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    metrics = score(latent, latent[:, 1:]).metrics
    assert metrics["latent_std_min"].item() == 0.0
    assert metrics["latent_std"].item() == pytest.approx(0.75, abs=0.05)


def test_a_mean_far_away_costs_no_digits():
    latent = normal(64, 2, 1, 4, dtype=torch.float32)
    assert terms_of_latent(latent + 1000.0) == pytest.approx(terms_of_latent(latent), rel=1e-3)


def test_bfloat16_is_within_two_percent_and_autocast_rounds_nothing():
    latent, predicted = normal(64, 3, 2, 8, dtype=torch.float32), normal(64, 2, 2, 8, seed=1, dtype=torch.float32)
    exact, rounded = score(latent, predicted), score(latent.bfloat16(), predicted.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        cast = score(latent, predicted)
    for name, term in exact.terms.items():
        assert rounded.terms[name].dtype == torch.float32
        assert rounded.terms[name].item() == pytest.approx(term.item(), rel=0.02)
        assert torch.equal(cast.terms[name], term)


def test_gradcheck():
    latent = (0.5 * normal(3, 2, 2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: score(z, z[:, :1] ** 2).total, latent)


def test_the_order_of_the_batch_does_not_matter():
    latent, predicted = normal(16, 3, 2, 4), normal(16, 2, 2, 4, seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert_close(score(latent[order], predicted[order]).total, score(latent, predicted).total)


@pytest.mark.parametrize("start", ["jitter", "line"])
def test_a_collapse_is_left_with_full_rank_and_spread(start):
    """Free embeddings, the identity as predictor: from N(0, 1e-3^2), and from a line with that much jitter."""
    n, d = 64, 16
    line = normal(n, 1, 1, 1, seed=5) * normal(d, seed=6) if start == "line" else 0.0
    z = (1e-3 * normal(n, 2, 1, d, seed=2) + line).float().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        score(z, z[:, :1]).total.backward()
        optimizer.step()
    latent = z.detach().flatten(0, 2)
    assert effective_rank(latent) >= 0.8 * d
    assert latent.std(0).min().item() > 0.9  # the hinge asks for 1 or more


def test_the_smallest_batch_and_the_one_below_it():
    latent = normal(2, 2, 1, 4).requires_grad_()
    losses = score(latent, latent[:, :1])
    losses.total.backward()
    assert losses.total.isfinite() and latent.grad.isfinite().all()
    one = normal(1, 4, 1, 4)
    with pytest.raises(ValueError, match="VICReg needs 2 or more samples per statistic, not 1; raise the batch size"):
        score(one, one[:, 1:])
    assert score(one, one[:, 1:], VicRegConfig(frames="pooled")).total.isfinite()


def test_nan_is_not_swallowed():
    latent = normal(8, 2, 1, 4)
    latent[3, 0, 0, 2] = float("nan")
    assert score(latent, latent[:, 1:]).total.isnan()


@pytest.mark.parametrize("settings", [{"variance": -1.0}, {"covariance": float("nan")}])
def test_bad_settings_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"{name} is .*; it must be 0 or more"):
        VicRegConfig(**settings)


def test_a_config_survives_being_written_and_read():
    for config in VARIANTS:
        assert TypeAdapter(VicRegConfig).validate_python(asdict(config)) == config


def test_samples_keep_float64_and_lift_half():
    assert samples(normal(2, 3, 4, 5)).shape == (3, 8, 5) and samples(normal(2, 3, 4, 5), True).shape == (1, 24, 5)
    assert samples(normal(2, 3, 4, 5)).dtype == torch.float64
    assert samples(normal(2, 3, 4, 5).bfloat16()).dtype == torch.float32


def step(config, latent, predicted):
    latent, predicted = latent.clone().requires_grad_(), predicted.clone().requires_grad_()
    total = score(latent, predicted, config).total
    total.backward()
    return total.detach(), latent.grad, predicted.grad


def half_step(rank, latent, predicted):
    return [step(config, latent.chunk(2)[rank], predicted.chunk(2)[rank]) for config in VARIANTS]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    latent, predicted = normal(6, 3, 2, 4) * 0.7, normal(6, 2, 2, 4, seed=1)
    halves = on_two_ranks(half_step, latent, predicted)
    for config, first, second in zip(VARIANTS, *halves, strict=True):
        total, *grads = step(config, latent, predicted)
        assert_close((first[0] + second[0]) / 2, total, rtol=1e-9, atol=0)
        for one, other, whole in zip(first[1:], second[1:], grads, strict=True):
            assert_close(torch.cat([one, other]) / 2, whole, rtol=1e-9, atol=1e-12)  # training averages over ranks
        assert abs(step(config, latent[:3], predicted[:3])[0] - total) > 1e-3
