"""SIGReg: slices, time steps, the unbiased loss, the alarm about latents too large for the knots."""

import warnings

import pytest
import torch
from formula import normal, plain, plain_unbiased
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close

from lewm.objectives import PredictionConfig, SigRegConfig
from lewm.objectives.sigreg import LOOK_EVERY, PRESETS, SigReg, objective, random_slices, sigreg


def effective_rank(z_ND):
    p = torch.linalg.svdvals(z_ND - z_ND.mean(0)).square()
    p = p / p.sum()
    return torch.exp(-(p * p.log()).sum()).item()


def test_a_jittered_collapse_escapes_to_a_full_rank_gaussian():
    n, d = 128, 16
    config = SigRegConfig(slices=64)
    z = (1e-3 * normal(n, 1, 1, d, seed=2, dtype=torch.float32)).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([z], lr=0.5)
    first = sigreg(z, generator, config).item()
    for _ in range(400):
        optimizer.zero_grad()
        loss = sigreg(z, generator, config)
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(0.40205 * n, rel=0.01)
    assert loss.item() < 1.5
    flat = z.detach().view(n, d)
    assert effective_rank(flat) >= 0.8 * d
    assert flat.std(0).mean().item() == pytest.approx(1.0, abs=0.15)


def test_statistic_is_per_time_step_over_batch_and_tokens():
    """Mean over time and slices of the plain formula, each frame's clips and tokens being its samples."""
    latent = normal(6, 3, 2, 5)
    config = SigRegConfig(slices=11)
    slices = random_slices(torch.Generator().manual_seed(4), 5, 11).double()
    frames = [plain(latent[:, t].reshape(12, 5) @ slices).mean() for t in range(3)]
    assert_close(sigreg(latent, torch.Generator().manual_seed(4), config), torch.stack(frames).mean())
    pooled = plain(latent.reshape(36, 5) @ slices).mean()
    pooling = SigRegConfig(slices=11, pool_time=True)
    assert_close(sigreg(latent, torch.Generator().manual_seed(4), pooling), pooled)


def test_gradient_of_the_latents_equals_the_formula():
    latent = normal(8, 3, 2, 5).requires_grad_()
    sigreg(latent, torch.Generator().manual_seed(4), SigRegConfig(slices=11)).backward()
    copy = latent.detach().clone().requires_grad_()
    slices = random_slices(torch.Generator().manual_seed(4), 5, 11).double()
    torch.stack([plain(copy[:, t].reshape(16, 5) @ slices).mean() for t in range(3)]).mean().backward()
    assert_close(latent.grad, copy.grad, rtol=1e-10, atol=1e-13)


def test_slices_are_unit_and_follow_the_seed():
    first = random_slices(torch.Generator().manual_seed(1), 8, 100)
    assert first.shape == (8, 100)
    assert_close(first.norm(dim=0), torch.ones(100))
    assert torch.equal(first, random_slices(torch.Generator().manual_seed(1), 8, 100))
    assert not torch.equal(first, random_slices(torch.Generator().manual_seed(2), 8, 100))
    state = torch.get_rng_state()
    random_slices(torch.Generator().manual_seed(1), 8, 100)
    assert torch.equal(state, torch.get_rng_state())


def test_same_seed_same_value_and_new_slices_every_call():
    latent, config = normal(16, 2, 1, 8, dtype=torch.float32), SigRegConfig()
    generator = torch.Generator().manual_seed(7)
    values = [sigreg(latent, generator, config).item() for _ in range(2)]
    assert values[0] == sigreg(latent, torch.Generator().manual_seed(7), config).item()
    assert values[0] != values[1]


def test_autocast_does_not_round_the_statistic():
    latent, config = normal(64, 2, 1, 32, dtype=torch.float32), SigRegConfig()
    exact = sigreg(latent, torch.Generator().manual_seed(0), config)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigreg(latent, torch.Generator().manual_seed(0), config), exact)


def test_nan_is_not_swallowed():
    latent = normal(8, 2, 1, 4)
    latent[3, 1, 0, 2] = float("nan")
    assert sigreg(latent, torch.Generator().manual_seed(0), SigRegConfig()).isnan()


def test_total_by_hand():
    latent = normal(16, 4, 2, 8, dtype=torch.float32)
    predicted = latent[:, 1:] + 0.3 * normal(16, 3, 2, 8, seed=1, dtype=torch.float32)
    config = SigRegConfig(weight=0.3, prediction=PredictionConfig(weight=2.0))
    losses = objective(latent, (predicted,), None, torch.Generator().manual_seed(3), config)
    assert losses.weights == {"prediction": 2.0, "sigreg": 0.3}
    assert losses.terms["prediction"].item() == pytest.approx((predicted - latent[:, 1:]).square().mean().item())
    by_hand = 2.0 * losses.terms["prediction"].item() + 0.3 * losses.terms["sigreg"].item()
    assert losses.total.item() == pytest.approx(by_hand)


def test_reference_batch_keeps_the_balance_of_the_gradients():
    """A clip's SIGReg gradient over its prediction gradient is the same when every clip comes four times."""
    latent = normal(16, 3, 2, 8)
    predicted = latent[:, 1:] + 0.3 * normal(16, 2, 2, 8, seed=1)
    ratios, weights = [], []
    for copies in (1, 4):
        z, p = latent.repeat(copies, 1, 1, 1).requires_grad_(), predicted.repeat(copies, 1, 1, 1)
        losses = objective(z, (p,), None, torch.Generator().manual_seed(3), SigRegConfig(reference_batch=64))
        slopes = [torch.autograd.grad(losses.weights[k] * v, z, retain_graph=True)[0] for k, v in losses.terms.items()]
        ratios.append(slopes[1][0].norm() / slopes[0][0].norm())
        weights.append(losses.weights["sigreg"])
    assert_close(ratios[0], ratios[1], rtol=1e-6, atol=0)
    assert weights == pytest.approx([0.4, 0.1])


# The unbiased statistic, as a loss and as a metric.


def losses_of(latent, seed=3, **settings):
    return objective(latent, (latent[:, 1:],), None, torch.Generator().manual_seed(seed), SigRegConfig(**settings))


def test_the_unbiased_statistic_is_logged_for_every_run_and_trained_on_if_asked_for():
    latent = normal(12, 3, 2, 5).requires_grad_()
    slices = random_slices(torch.Generator().manual_seed(3), 5, 11).double()
    frames = [latent[:, t].reshape(24, 5) @ slices for t in range(3)]
    biased, unbiased = (torch.stack([f(x).mean() for x in frames]).mean() for f in (plain, plain_unbiased))
    for asked, term in ((False, biased), (True, unbiased)):
        losses = losses_of(latent, slices=11, unbiased=asked)
        assert_close(losses.terms["sigreg"], term)
        assert_close(losses.metrics["sigreg_unbiased"], unbiased.detach())
        assert losses.metrics["sigreg_unbiased_ideal"].item() == 0
        assert not any(metric.requires_grad for metric in losses.metrics.values())
        ours, theirs = (
            torch.autograd.grad(loss, latent, retain_graph=True)[0] for loss in (losses.terms["sigreg"], term)
        )
        assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert_close(sigreg(latent, torch.Generator().manual_seed(3), SigRegConfig(slices=11, unbiased=asked)), term)


def test_the_ideal_of_the_metric_is_its_mean_on_gaussian_latents():
    found = [losses_of(normal(32, 4, 1, 16, seed=i), seed=i).metrics["sigreg_unbiased"] for i in range(60)]
    values = torch.stack(found)
    assert abs(values.mean()) < 4 * values.std() / 60**0.5 < 0.1
    assert losses_of(2 * normal(32, 4, 1, 16)).metrics["sigreg_unbiased"] > 1


def test_trained_on_the_unbiased_statistic_a_deviation_ends_at_one():
    """One free scale of small Gaussian batches; the biased statistic stops near 1 - 1 / n = 0.874."""
    ends = []
    for unbiased in (False, True):
        scale = torch.tensor(0.7, requires_grad=True)
        optimizer = torch.optim.SGD([scale], lr=0.01)
        config, generator = SigRegConfig(slices=8, unbiased=unbiased), torch.Generator().manual_seed(0)
        for i in range(150):
            optimizer.zero_grad()
            sigreg(scale * normal(8, 100, 1, 4, seed=i, dtype=torch.float32), generator, config).backward()
            optimizer.step()
        ends.append(scale.item())
    assert ends == pytest.approx([0.874, 1.0], abs=0.02)


# Latents too large for the knots.

PERIOD = 2 * torch.pi * 16 / 3


def watched(latent, steps=LOOK_EVERY, of=10_000, **settings):
    """What training does with an objective, without a model."""
    method = SigReg(SigRegConfig(slices=4, **settings), None)
    for step in range(steps):
        losses = method(latent, (latent[:, 1:],), None, torch.Generator().manual_seed(step))
        method.after_step(None, (step + 1) / of)
    return losses


def test_aliased_projections_are_counted():
    latent = torch.zeros(8, 2, 1, 1, dtype=torch.float64)
    latent[0, 0], latent[1, 0], latent[2, 1] = 0.51 * PERIOD, 0.49 * PERIOD, -3 * PERIOD
    assert losses_of(latent).metrics["sigreg_aliased"].item() == 2 / 16
    assert losses_of(latent, pool_time=True).metrics["sigreg_aliased"].item() == 2 / 16


def test_large_latents_are_warned_about_once():
    latent = 40 * normal(8, 2, 1, 4, dtype=torch.float32)
    message = (
        r"a share of 0\.\d+ of SIGReg's projections is beyond 16\.8 .* repeat every 33\.5\).*knots \(lewm_paper\)$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        watched(latent, 3 * LOOK_EVERY)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"beyond 5\.0 .*knots \(lejepa, lewm_paper, bcs, survey\)"):
        watched(latent, preset="lejepa_paper")


def test_the_warning_comes_with_a_look_and_at_the_end_of_a_short_run():
    latent = 40 * normal(8, 2, 1, 4, dtype=torch.float32)
    watched(latent, LOOK_EVERY - 1)  # warnings are errors here
    with pytest.warns(UserWarning, match="SIGReg's projections"):
        watched(latent, 2, of=2)


def test_the_host_waits_for_the_device_only_when_it_looks():
    """A fake tensor has no value to read: reading one raises."""
    with FakeTensorMode():
        latent = torch.randn(8, 3, 1, 4)
        watched(latent, LOOK_EVERY - 1)
        with pytest.raises(DataDependentOutputException):
            watched(latent, LOOK_EVERY)


@pytest.mark.parametrize("preset", PRESETS)
def test_healthy_latents_are_not_warned_about(preset):
    """Nor is a single Gaussian sample beyond half of the narrowest period, 5.03: they happen."""
    losses = watched(normal(64, 2, 1, 8, dtype=torch.float32), preset=preset)
    assert losses.metrics["sigreg_aliased"].item() == 0
    rare = normal(4096, 10, 1, 1, dtype=torch.float32).clamp(-5, 5)
    rare[0, 0] = 5.1
    losses = watched(rare, 2, of=2, preset=preset)
    assert (losses.metrics["sigreg_aliased"].item() > 0) == (preset == "lejepa_paper")


# Over processes.

RANKED = [SigRegConfig(slices=5), SigRegConfig(slices=5, unbiased=True), SigRegConfig(preset="bcs", unbiased=True)]


def ranked_latent():
    latent = normal(6, 3, 2, 4)
    latent[0] *= 30  # aliased, in the first half only
    return latent


def step(config, latent):
    latent = latent.clone().requires_grad_()
    losses = objective(latent, (latent[:, 1:],), None, torch.Generator().manual_seed(0), config)
    losses.terms["sigreg"].backward()
    return losses.terms["sigreg"].detach(), losses.metrics, latent.grad


def half_step(rank, latent):
    return [step(config, latent.chunk(2)[rank]) for config in RANKED]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    latent = ranked_latent()
    for config, *halves in zip(RANKED, *on_two_ranks(half_step, latent), strict=True):
        term, metrics, grad = step(config, latent)
        for half in halves:
            assert_close(half[0], term, rtol=1e-9, atol=0)
            assert_close(half[1], metrics, rtol=1e-9, atol=0)
        assert metrics["sigreg_aliased"] > 0
        both = torch.cat([half[2] for half in halves]) / 2  # training averages over ranks
        assert_close(both, grad, rtol=1e-9, atol=1e-12)
        assert abs(step(config, latent[:3])[0] - term) > 1e-3


def warned_on(rank):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched(40 * normal(8, 2, 1, 4), 2, of=2)
    return [str(warning.message) for warning in caught]


def test_one_process_of_two_warns(on_two_ranks):
    first, second = on_two_ranks(warned_on)
    assert len(first) == 1 and "SIGReg" in first[0] and not second


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="SIGReg needs 2 or more samples per statistic, not 1; raise the batch size"):
        sigreg(normal(1, 4, 1, 8), torch.Generator().manual_seed(0), SigRegConfig())
    assert sigreg(normal(1, 4, 1, 8), torch.Generator().manual_seed(0), SigRegConfig(pool_time=True)).isfinite()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": -0.1}, "weight is -0.1; it must be 0 or more"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"preset": "lejepa_code"}, "preset is 'lejepa_code'; it must be one of lejepa, lejepa_paper"),
        ({"slices": 0}, "slices is 0; it must be 1 or more"),
        ({"reference_batch": 0}, "reference_batch is 0"),
        ({"reference_batch": 64, "preset": "bcs"}, "preset bcs does not grow with the batch"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SigRegConfig(**settings)
