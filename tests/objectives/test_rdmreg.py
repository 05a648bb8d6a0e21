"""RDMReg against golden values, closed forms of its target, and one process against two."""

import math

import pytest
import torch
from torch.testing import assert_close

from lewm.distributed import average_gradients
from lewm.nets.heads import LINKS
from lewm.objectives.health import effective_rank
from lewm.objectives.rdmreg import (
    RdmRegConfig,
    objective,
    rectified_moments,
    sigma_gn,
    sigma_rgn,
    sliced_wasserstein,
    sparsity,
    target_samples,
)
from lewm.objectives.sigreg import random_slices

GAUSSIAN = RdmRegConfig(p=2, rectified=False)
ROW, COLUMN = torch.arange(12, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
X = torch.sin(0.7 * ROW + 1.3 * COLUMN + 0.1 * ROW * COLUMN)
Y = torch.cos(0.5 * ROW - 0.9 * COLUMN + 0.23 * ROW * COLUMN + 0.2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def score(latent_BTKD, config, seed=0):
    return objective(latent_BTKD, (latent_BTKD[:, 1:],), None, seeded(seed), config)


def regulariser(latent_BTKD, config, seed=0):
    return score(latent_BTKD, config, seed).terms["rdmreg"]


def test_golden():
    distance = sliced_wasserstein(X[None], Y[None], torch.eye(4, dtype=torch.float64))
    assert distance.shape == (1, 4)
    assert distance.mean().item() == pytest.approx(0.0419459505, abs=1e-9)


def test_golden_behind_a_rectifying_link():
    """numpy: ((sort(max(X, 0)) - sort(max(Y, 0))) ** 2).mean(), sorted per column; half of X is positive."""
    distance = sliced_wasserstein(LINKS["relu"](X)[None], LINKS["relu"](Y)[None], torch.eye(4, dtype=torch.float64))
    assert distance.mean().item() == pytest.approx(0.0218205049, abs=1e-9)
    assert sparsity(LINKS["relu"](X))[0].item() == 0.5


def test_by_hand():
    """On the axis (3/5, 4/5) the samples 0, 5, -5 and the targets -4, 6, 1 differ by 1, 1, 1 once sorted."""
    sample = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0]]])
    target = torch.tensor([[[0.0, -5.0], [10.0, 0.0], [-1.0, 2.0]]])
    assert_close(sliced_wasserstein(sample, target, torch.tensor([[0.6], [0.8]])), torch.tensor([[1.0]]))


def test_zero_on_a_permutation_of_the_target_and_the_gradient_is_linear_in_the_gap():
    target = torch.randn(1, 50, 1, generator=seeded(), dtype=torch.float64)
    sample = target[:, torch.randperm(50, generator=seeded(1))]
    axis = torch.ones(1, 1, dtype=torch.float64)
    assert sliced_wasserstein(sample, target, axis).item() == 0
    for shift in (0.5, 100.0):
        moved = (sample + shift).requires_grad_()
        sliced_wasserstein(moved, target, axis).sum().backward()
        assert_close(moved.grad, torch.full_like(moved, 2 * shift / 50))


@pytest.mark.parametrize("n, floor", [(32, 0.1538), (64, 0.0825), (128, 0.0436), (256, 0.0229)])
def test_gaussian_samples_score_the_published_floor(n, floor):
    latent = torch.randn(n, 16, 1, 24, generator=seeded(n))
    assert regulariser(latent, GAUSSIAN).item() == pytest.approx(floor, rel=0.06)


@pytest.mark.parametrize("n, floor", [(64, 0.0347), (128, 0.0191), (256, 0.0106)])
def test_rectified_laplace_samples_score_the_published_floor(n, floor):
    config = RdmRegConfig(slices=128)
    latent = target_samples(seeded(n), (n, 12, 1, 64), config)
    assert regulariser(latent, config, seed=5).item() == pytest.approx(floor, rel=0.08)


@pytest.mark.parametrize("p, rectified, expected", [(0.5, True, 0.5), (1, True, 0.5), (2, True, 0.5), (2, False, 1.0)])
def test_collapse_to_zero_scores_the_second_moment_of_the_target(p, rectified, expected):
    config = RdmRegConfig(p=p, rectified=rectified, slices=32)
    zero = torch.zeros(4096, 4, 1, 16, dtype=torch.float64)
    assert regulariser(zero, config).item() == pytest.approx(expected, rel=0.08)


def test_scales_of_the_target():
    assert sigma_gn(1) == pytest.approx(math.sqrt(0.5))
    assert sigma_gn(2) == pytest.approx(1.0)
    assert sigma_gn(0.5) == pytest.approx(0.3651, abs=1e-4)


@pytest.mark.parametrize("p, mu", [(0.5, -1.0), (1, 0.0), (1, -2.0), (2, 0.0), (2, 1.5), (3, -0.5)])
def test_sigma_rgn_gives_the_rectified_target_variance_one(p, mu):
    _, mean, square = rectified_moments(p, mu, sigma_rgn(p, mu))
    assert square - mean**2 == pytest.approx(1.0, abs=1e-12)
    target = target_samples(seeded(), (400_000,), RdmRegConfig(p=p, mu=mu, sigma="rgn"))
    assert target.var().item() == pytest.approx(1.0, abs=0.08)


def test_sigma_rgn_of_a_centred_gaussian():
    """Half a Gaussian has variance 1/2 - 1/(2 pi)."""
    assert sigma_rgn(2.0, 0.0) == pytest.approx((0.5 - 0.5 / math.pi) ** -0.5, rel=1e-12)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("mu", [-1.0, 0.0, 0.7])
def test_samples_have_the_moments_of_the_closed_form(p, mu):
    sigma, count = sigma_gn(p), 400_000
    raw = target_samples(seeded(), (count,), RdmRegConfig(p=p, mu=mu, rectified=False))
    assert raw.mean().item() == pytest.approx(mu, abs=0.01)
    assert raw.var().item() == pytest.approx(1.0, rel=0.05)
    target = target_samples(seeded(), (count,), RdmRegConfig(p=p, mu=mu))
    assert_close(target, raw.clamp(min=0))
    active, mean, square = rectified_moments(p, mu, sigma)
    assert (target > 0).double().mean().item() == pytest.approx(active, abs=0.004)
    assert target.mean().item() == pytest.approx(mean, abs=0.01)
    assert target.square().mean().item() == pytest.approx(square, rel=0.06)


@pytest.mark.parametrize("mu, active", [(-1.0, 0.1216), (-2.0, 0.0296), (0.0, 0.5)])
def test_the_mean_decides_the_share_of_active_entries(mu, active):
    assert rectified_moments(1, mu, sigma_gn(1))[0] == pytest.approx(active, abs=1e-4)
    gaussian = 0.5 * math.erfc(-mu / math.sqrt(2))
    assert rectified_moments(2, mu, sigma_gn(2))[0] == pytest.approx(gaussian, rel=1e-9)
    config = RdmRegConfig(mu=mu, slices=4)
    metrics = score(target_samples(seeded(), (256, 2, 1, 64), config), config, seed=1).metrics
    for key in ("l0", "target_l0"):
        assert metrics[key].item() == pytest.approx(active, abs=0.01)


@pytest.mark.parametrize("p, mu", [(0.5, 0.0), (1, 0.0), (1, -1.0), (2, 0.0), (2, -0.5)])
def test_sparsity_of_ideal_data_is_that_of_the_closed_form(p, mu):
    """Wide samples of the target: l0 is P(x > 0), l1 tends to E[x]^2 / E[x^2]; 1 / 4 for rectified Laplace entries."""
    active, mean, square = rectified_moments(p, mu, sigma_gn(p))
    config = RdmRegConfig(p=p, mu=mu, slices=2)
    metrics = score(target_samples(seeded(3), (16, 2, 1, 16_384), config), config, seed=4).metrics
    for prefix in ("", "target_"):
        assert metrics[prefix + "l0"].item() == pytest.approx(active, abs=0.004)
        assert metrics[prefix + "l1"].item() == pytest.approx(mean**2 / square, rel=0.02)
    if (p, mu) in ((1, 0.0), (2, 0.0)):
        assert mean**2 / square == pytest.approx(1 / 4 if p == 1 else 1 / math.pi)


def test_behind_relu_gradients_pass_through_positive_entries_only():
    raw = torch.randn(32, 3, 1, 8, generator=seeded(), dtype=torch.float64).requires_grad_()
    for link, below in (("relu", False), ("rep_relu", True), ("identity", True)):
        (grad,) = torch.autograd.grad(regulariser(LINKS[link](raw), RdmRegConfig(slices=64)), raw)
        assert (grad[raw > 0] != 0).all()
        assert (grad[raw < 0] != 0).any() == below


@pytest.mark.parametrize("link", ["relu", "rep_relu"])
def test_rep_relu_brings_dead_entries_back_and_makes_them_as_sparse_as_the_target(link):
    """12.16 % active entries for mu = -1, from none at all; behind ReLU they stay dead."""
    config = RdmRegConfig(mu=-1.0, slices=64)
    raw = (-0.3 + 1e-2 * torch.randn(256, 1, 1, 8, generator=seeded())).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.03)
    assert score(LINKS[link](raw).expand(-1, 2, -1, -1), config).metrics["l0"] == 0
    for step in range(250):
        optimizer.zero_grad()
        latent = LINKS[link](raw)
        losses = objective(latent.expand(-1, 2, -1, -1), (latent,), None, seeded(step), config)
        losses.total.backward()
        optimizer.step()
    if link == "relu":
        assert losses.metrics["l0"] == 0
        return
    assert losses.metrics["l0"].item() == pytest.approx(0.1216, abs=0.02)
    assert effective_rank(latent.detach().flatten(0, 2)) > 0.8 * 8
    ideal = target_samples(seeded(), (4096,), config)
    assert latent.std().item() == pytest.approx(ideal.std().item(), rel=0.2)


def test_sparsity_by_hand():
    l0, l1 = sparsity(torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert l0.item() == pytest.approx(5 / 12) and l1.item() == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert sparsity(torch.randn(1000, 256, generator=seeded()))[1].item() == pytest.approx(2 / math.pi, rel=0.01)


def test_one_statistic_per_time_step_over_clips_and_tokens():
    latent = torch.randn(12, 3, 2, 8, generator=seeded(), dtype=torch.float64)
    config = RdmRegConfig(slices=32)
    generator = seeded(0)
    slices = random_slices(generator, 8, 32).double()
    target = target_samples(generator, (3, 24, 8), config)
    by_hand = torch.stack(
        [sliced_wasserstein(latent[:, t].reshape(1, 24, 8), target[t : t + 1], slices).mean() for t in range(3)]
    )
    assert_close(regulariser(latent, config), by_hand.mean())


def test_the_generator_draws_new_slices_and_targets_every_step():
    latent = torch.randn(16, 2, 1, 4, generator=seeded())
    assert regulariser(latent, GAUSSIAN, seed=1) == regulariser(latent, GAUSSIAN, seed=1)
    assert regulariser(latent, GAUSSIAN, seed=1) != regulariser(latent, GAUSSIAN, seed=2)


def test_bfloat16_is_within_two_percent_and_autocast_changes_nothing():
    latent = torch.randn(64, 3, 1, 16, generator=seeded())
    exact = regulariser(latent, RdmRegConfig())
    assert regulariser(latent.bfloat16(), RdmRegConfig()).item() == pytest.approx(exact.item(), rel=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(regulariser(latent, RdmRegConfig()), exact)


@pytest.mark.parametrize("config", [RdmRegConfig(slices=64), RdmRegConfig(p=2, rectified=False, slices=64)])
def test_a_collapsed_batch_recovers(config):
    latent = (1e-3 * torch.randn(128, 1, 1, 8, generator=seeded())).requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=0.03)
    for step in range(200):
        optimizer.zero_grad()
        objective(latent.expand(-1, 2, -1, -1), (latent,), None, seeded(step), config).total.backward()
        optimizer.step()
    assert effective_rank(latent.detach().flatten(0, 2)) > 0.8 * 8
    ideal = target_samples(seeded(), (4096,), config)
    assert latent.mean().item() == pytest.approx(ideal.mean().item(), abs=0.1)
    assert latent.std().item() == pytest.approx(ideal.std().item(), rel=0.15)
    assert sparsity(latent.detach())[0] == 1  # without a rectifying link nothing is exactly zero


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="2 or more samples per time step, not 1; raise the batch size"):
        score(torch.zeros(1, 2, 1, 4), RdmRegConfig())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"weight": -1.0}, "weight is -1.0"),
        ({"p": 0.0}, "p is 0.0"),
        ({"mu": math.nan}, "mu is nan"),
        ({"sigma": "gauss"}, "sigma is 'gauss'"),
        ({"sigma": "rgn", "rectified": False}, "rectified is false"),
        ({"slices": 0}, "slices is 0"),
    ],
)
def test_a_bad_config_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RdmRegConfig(**wrong)


RANKED = [RdmRegConfig(slices=5), RdmRegConfig(slices=1), RdmRegConfig(p=2, rectified=False, slices=16)]


def step(config, x_BTC):
    net = torch.nn.Linear(6, 8).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=seeded())
    latent = net(x_BTC).unflatten(-1, (2, 4))
    losses = objective(latent, (latent[:, :-1],), None, seeded(9), config)
    losses.total.backward()
    average_gradients(net)
    return losses.detach(), [p.grad for p in net.parameters()]


def half_step(rank, x_BTC):
    results = [step(config, x_BTC.chunk(2)[rank]) for config in RANKED]
    return [(losses.terms, losses.metrics, grads) for losses, grads in results]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    x_BTC = torch.randn(12, 3, 6, generator=seeded(1), dtype=torch.float64)
    halves = on_two_ranks(half_step, x_BTC)
    for config, *both in zip(RANKED, *halves, strict=True):
        losses, grads = step(config, x_BTC)
        for terms, metrics, ranked in both:
            assert_close(terms["rdmreg"], losses.terms["rdmreg"], rtol=1e-9, atol=0)
            assert_close(metrics, losses.metrics, rtol=1e-9, atol=0)
            assert_close(ranked, grads, rtol=1e-9, atol=1e-12)
