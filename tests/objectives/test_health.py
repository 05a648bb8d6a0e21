"""The four criteria on latents whose health is known."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch.testing import assert_close

from lewm.objectives.health import (
    CRITERIA,
    Statistic,
    effective_rank,
    ideal_spread,
    information,
    jepa_health,
    predictability,
)

SPREAD = ("effective_rank", "condition_number", "std_mean", "std_min", "std_max")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(rows, d, scale):
    """`rows` centred samples whose covariance is exactly diag(scale^2)."""
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(rows, 1, dtype=torch.float64), normal(rows, d)], 1))
    return basis[:, 1 : d + 1] * math.sqrt(rows - 1) * torch.tensor(scale, dtype=torch.float64)


def test_the_criteria_have_the_names_of_the_paper():
    assert CRITERIA == (
        "information in the context",
        "information in the target",
        "predictability",
        "little information in z",
    )
    z = normal(8, 3, 1, 4)
    health = jepa_health(z, (z[:, 1:],))
    assert tuple(name.replace("_", " ") for name in vars(health)) == CRITERIA
    with pytest.raises(FrozenInstanceError):
        health.predictability = Statistic(1.0, 1.0)
    scalars = health.scalars()
    expected = {"predictability", "little information in z"}
    expected |= {f"{c}/{s}" for c in CRITERIA[:2] for s in SPREAD}
    assert scalars.keys() == expected | {f"{name}/ideal" for name in expected}
    assert scalars["predictability"] == 1 and scalars["predictability/ideal"] == 1
    assert scalars["information in the context/std_mean"] == health.information_in_the_context.std_mean.value


@pytest.mark.parametrize("n, d", [(12, 4), (64, 16), (64, 64), (20, 48), (2, 3), (300, 1)])
def test_ideal_data_scores_its_ideal_values(n, d):
    """Medians of 200 Gaussian data sets, three of whose standard errors are well inside the tolerance."""
    sets = [information(normal(n, 1, 1, d, seed=seed)) for seed in range(60 if d > 20 else 200)]
    tolerance = {"effective_rank": 0.02, "condition_number": 0.3, "std_mean": 0.02, "std_min": 0.1, "std_max": 0.06}
    if min(n - 1, d) == 1:  # one direction or one dimension: few numbers, much noise
        tolerance |= {"std_mean": 0.15, "std_min": 1.0, "std_max": 0.5}
    if n == d:
        tolerance["condition_number"] = 1.5
    for name in SPREAD:
        found = sorted(getattr(one, name).value for one in sets)[len(sets) // 2]
        ideal = getattr(sets[0], name).ideal
        assert found == pytest.approx(ideal, rel=tolerance[name]), name


def test_ideal_std_is_the_closed_form_and_the_limits_are_right():
    """E[s] = sqrt(2 / (n-1)) Gamma(n/2) / Gamma((n-1)/2); the condition number tends to Marchenko and Pastur's."""
    assert ideal_spread(2, 3)[2] == pytest.approx(math.sqrt(2 / math.pi))
    assert ideal_spread(5, 3)[2] == pytest.approx(0.9399856, abs=1e-6)
    gamma = math.sqrt(64 / 4095)
    assert ideal_spread(4096, 64)[1] == pytest.approx(((1 + gamma) / (1 - gamma)) ** 2, rel=0.05)
    huge = ideal_spread(10**7, 8)
    assert huge == pytest.approx((8, 1, 1, 1, 1), rel=0.01)
    assert ideal_spread(64, 16) == ideal_spread(64, 16)
    ideal_spread.cache_clear()
    state = torch.get_rng_state()
    first = ideal_spread(64, 16)
    ideal_spread.cache_clear()
    assert first == ideal_spread(64, 16) and torch.equal(state, torch.get_rng_state())


def test_statistics_by_hand():
    found = information(orthogonal(50, 3, [1.0, 2.0, 4.0])[:, None, None])
    share = torch.tensor([1.0, 2.0, 4.0]) / 7
    assert found.effective_rank.value == pytest.approx(torch.exp(-(share * share.log()).sum()).item(), rel=1e-6)
    assert found.condition_number.value == pytest.approx(16)
    assert_close(found.std_D, torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    assert (found.std_min.value, found.std_max.value) == pytest.approx((1, 4))
    assert found.std_mean.value == pytest.approx(7 / 3)


def test_statistics_are_those_of_a_time_step_averaged_over_time():
    """Clips that differ in pace only: over all frames together the spread would be larger."""
    first, second = orthogonal(20, 2, [1.0, 1.0]), 3 * orthogonal(20, 2, [1.0, 2.0]) + 100
    found = information(torch.stack([first, second], 1)[:, :, None])
    assert_close(found.std_D, torch.tensor([2.0, 3.5], dtype=torch.float64))
    assert found.condition_number.value == pytest.approx((1 + 4) / 2)
    tokens = information(torch.stack([first, second], 1).view(10, 2, 2, 2).transpose(1, 2))
    assert tokens.effective_rank.ideal == found.effective_rank.ideal  # clips x tokens are the samples


@pytest.mark.parametrize("constant", [0.0, 0.1, -1000.0])
def test_collapse_is_seen(constant):
    z = torch.full((16, 3, 1, 8), constant)
    health = jepa_health(z, (z[:, 1:],))
    for found in (health.information_in_the_context, health.information_in_the_target):
        assert found.effective_rank.value == pytest.approx(1, abs=1e-3)
        assert found.std_max.value < 1e-6 and found.condition_number.value == math.inf
        assert found.effective_rank.ideal > 6 and found.std_mean.ideal > 0.9
    assert health.predictability.value == 1  # perfectly predicted, which is why it takes all criteria


def test_a_shrunken_latent_keeps_its_rank_and_shows_in_its_std():
    z = normal(64, 2, 1, 8)
    full, tiny = information(z), information(1e-4 * z)
    assert tiny.effective_rank.value == pytest.approx(full.effective_rank.value)
    assert tiny.condition_number.value == pytest.approx(full.condition_number.value)
    assert tiny.std_mean.value == pytest.approx(1e-4 * full.std_mean.value)


def test_dimensional_collapse_is_seen():
    z = normal(256, 2, 1, 3) @ normal(3, 16, seed=1)
    found = information(z)
    assert found.effective_rank.value <= 3 and found.effective_rank.ideal > 15
    assert found.condition_number.value == math.inf
    assert information(z.float()).condition_number.value > 1e8


def test_context_is_all_but_the_last_frame_and_target_all_but_the_first():
    z = normal(32, 3, 1, 4)
    z[:, 2] *= 10
    health = jepa_health(z, (z[:, 1:],))
    assert_close(health.information_in_the_context.std_D, information(z[:, :2]).std_D)
    assert_close(health.information_in_the_target.std_D, information(z[:, 1:]).std_D)
    assert health.information_in_the_target.std_mean.value > 3 * health.information_in_the_context.std_mean.value


def test_predictability_of_perfect_mean_independent_and_noisy_predictions():
    z = 3 * normal(400, 4, 1, 6) + 7
    target = z[:, 1:]
    assert predictability(target, (target,)) == 1
    mean = target.mean((0, 2), keepdim=True).expand_as(target)
    assert predictability(target, (mean,)) == pytest.approx(0, abs=1e-12)
    assert predictability(target, (3 * normal(400, 3, 1, 6, seed=1) + 7,)) == pytest.approx(-1, abs=0.12)
    noisy = target + 3 * math.sqrt(0.1) * normal(400, 3, 1, 6, seed=2)
    assert predictability(target, (noisy,)) == pytest.approx(0.9, abs=0.01)
    assert predictability(target, (target, mean)) == pytest.approx(0.5)
    assert predictability(100 * target, (100 * noisy,)) == pytest.approx(predictability(target, (noisy,)))


def test_a_wrong_prediction_of_a_constant_is_infinitely_bad():
    assert predictability(torch.zeros(4, 2, 1, 3), (torch.ones(4, 2, 1, 3),)) == -math.inf


def test_information_in_z_is_zero_without_a_latent_variable():
    z = normal(8, 3, 1, 4)
    assert jepa_health(z, (z[:, 1:],)).little_information_in_z == Statistic(0.0, 0.0)
    assert jepa_health(z, (z[:, 1:],), information_in_z=0.7).little_information_in_z == Statistic(0.7, 0.0)


def test_effective_rank_limits():
    assert effective_rank(torch.ones(10, 5)).item() == pytest.approx(1)
    assert effective_rank(orthogonal(30, 5, [1.0] * 5)).item() == pytest.approx(5)
    assert effective_rank(normal(3, 20, 4)).shape == (3,)


def test_gradients_and_precision_of_the_latents_do_not_matter():
    z = normal(64, 3, 1, 8).float().requires_grad_()
    exact, rounded = (
        jepa_health(z, (z[:, :-1],)).scalars(),
        jepa_health(z.bfloat16(), (z[:, :-1].bfloat16(),)).scalars(),
    )
    assert rounded == pytest.approx(exact, rel=0.02)


def test_faults_are_named():
    z = normal(4, 3, 1, 5)
    with pytest.raises(ValueError, match="health needs 2 or more clips or tokens, not 1; measure a larger batch"):
        jepa_health(z[:1], (z[:1, 1:],))
    with pytest.raises(ValueError, match="health of 1 frames and 1 predictions cannot be measured"):
        jepa_health(z[:, :1], (z[:, :0],))
    with pytest.raises(ValueError, match="health of 3 frames and 0 predictions"):
        jepa_health(z, ())
    with pytest.raises(ValueError, match=r"prediction has shape \(4, 3, 1, 5\), but its frames have \(4, 2, 1, 5\)"):
        jepa_health(z, (z,))
    with pytest.raises(ValueError, match="information_in_z is nan nats"):
        jepa_health(z, (z[:, 1:],), math.nan)
    z[2, 1, 0, 0] = math.nan
    with pytest.raises(ValueError, match="health of a latent that is not finite"):
        jepa_health(z, (z[:, 1:],))
