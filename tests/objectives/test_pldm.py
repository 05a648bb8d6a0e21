"""The seven terms of PLDM against the formulas written out, and what each of them alone can see."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from pydantic import TypeAdapter
from torch.testing import assert_close
from toy_models import SIZE, toy_model

from lewm.data.windows import Batch
from lewm.objectives.addons import time_similarity
from lewm.objectives.health import effective_rank
from lewm.objectives.pldm import PLDM, PRESETS, PLDMConfig, time_covariance, time_variance

TERMS = ("variance", "covariance", "time_similarity", "time_variance", "time_covariance", "inverse_dynamics")
EVERY = PLDMConfig(hidden=8, **dict.fromkeys(TERMS, 1.0))


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def toy_batch(B, T):
    action = torch.rand(B, T - 1, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
    pixels = torch.zeros(B, T, 3, SIZE, SIZE, dtype=torch.uint8)
    return Batch(pixels, action, torch.zeros(B, T, 1), torch.arange(B))


def score(latent, config=EVERY, predicted=None):
    objective = PLDM(config, toy_model()).to(latent.dtype if latent.is_floating_point() else None)
    return objective(latent, (latent[:, :-1] if predicted is None else predicted,), toy_batch(*latent.shape[:2]), None)


def std_cov(sample_ND):
    """PLDM's hinge and covariance of N samples, as its code has them: unbiased, divided by D (D - 1)."""
    covariance = torch.cov(sample_ND.T)
    off = covariance - covariance.diag().diag()
    D = sample_ND.shape[1]
    return torch.relu(1 - (covariance.diag() + 1e-4).sqrt()).mean(), off.square().sum() / (D * (D - 1))


def test_published_coefficients():
    assert PLDMConfig().preset == "wall"
    expected = {
        "wall": (3.9843, 6.9238, 0.74242, 0.24535, 0, 1.072),
        "diverse_maze": (35.026, 11.925, 0.10193, 2.9199, 0, 5.3964),
        "swm": (18, 12, 0.2, 0.7, 0, 0),
    }
    assert {name: tuple(asdict(preset).values()) for name, preset in PRESETS.items()} == expected
    for preset, values in expected.items():
        losses = score(normal(6, 4, 1, 4), PLDMConfig(preset=preset, hidden=8))
        nonzero = {name: value for name, value in zip(TERMS, values) if value}
        assert losses.weights == {"prediction": 1.0} | nonzero


def test_a_given_coefficient_takes_the_presets_place():
    config = PLDMConfig(preset="swm", variance=0.0, inverse_dynamics=2.5, hidden=8)
    assert score(normal(6, 4, 1, 4), config).weights == {
        "prediction": 1.0, "covariance": 12, "time_similarity": 0.2, "time_variance": 0.7, "inverse_dynamics": 2.5
    }  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("frames", ["each", "first"])
def test_all_seven_terms_equal_the_formulas(frames, tokens):
    z, guess = 0.7 * normal(6, 5, tokens, 4), normal(6, 4, tokens, 4, seed=1)
    terms = score(z, replace(EVERY, frames=frames), guess).terms
    assert set(terms) == {"prediction", *TERMS}
    steps = range(5) if frames == "each" else range(1)
    batch = torch.stack([torch.stack(std_cov(z[:, t].flatten(0, 1))) for t in steps]).mean(0)
    late = z if frames == "each" else z[:, 1:]
    time = torch.stack([torch.stack(std_cov(late[b, :, k])) for b in range(6) for k in range(tokens)]).mean(0)
    assert_close(terms["prediction"], (guess - z[:, 1:]).square().mean())
    assert_close(torch.stack([terms["variance"], terms["covariance"]]), batch)
    assert_close(torch.stack([terms["time_variance"], terms["time_covariance"]]), time)
    assert_close(terms["time_similarity"], (z[:, 1:] - z[:, :-1]).square().mean())


@pytest.mark.parametrize("T, D", [(2, 5), (4, 3), (9, 3), (5, 1)])
def test_gradients_of_the_time_terms(T, D):
    z = (0.6 * normal(2, T, 2, D)).requires_grad_()
    assert torch.autograd.gradcheck(time_variance, z)
    assert torch.autograd.gradcheck(time_covariance, z)
    assert D > 1 or time_covariance(z).item() == pytest.approx(0, abs=1e-14)


def test_a_clip_that_stands_still_fails_in_time_only():
    z = 2 * normal(64, 1, 1, 4).expand(64, 5, 1, 4)
    terms = score(z).terms
    assert terms["time_variance"].item() == pytest.approx(0.99, abs=1e-12)
    assert terms["time_similarity"].item() == 0 and abs(terms["time_covariance"].item()) < 1e-30
    assert terms["variance"].item() == 0


def test_clips_that_are_all_the_same_fail_over_the_batch_only():
    z = 3 * normal(1, 12, 1, 4).expand(16, 12, 1, 4)
    terms = score(z).terms
    assert terms["variance"].item() == pytest.approx(0.99, abs=1e-12)
    assert terms["covariance"].item() == pytest.approx(0, abs=1e-20)
    assert terms["time_variance"].item() < 0.05 and terms["time_covariance"].item() > 0.1


def test_time_statistics_centre_over_time_not_over_the_batch():
    """Where a clip lies does not matter, only how it moves: clips far apart have the same time statistics."""
    z = normal(8, 6, 2, 4)
    moved = z + 50 * normal(8, 1, 2, 4, seed=1)
    assert_close(time_covariance(moved), time_covariance(z))
    assert_close(time_variance(0.3 * moved), time_variance(0.3 * z))


def test_time_covariance_of_gaussian_frames():
    """E[C_ij^2] = 1 / (T - 1) for i != j."""
    assert time_covariance(normal(4000, 5, 1, 8)).item() == pytest.approx(1 / 4, rel=0.03)


def test_without_its_four_own_terms_it_is_vicreg():
    config = PLDMConfig(time_similarity=0, time_variance=0, time_covariance=0, inverse_dynamics=0)
    z = normal(16, 4, 1, 4)
    objective = PLDM(config, toy_model())
    assert not list(objective.parameters())
    losses = objective(z, (z[:, :-1],), None, None)
    assert losses.weights == {"prediction": 1.0, "variance": 3.9843, "covariance": 6.9238}
    hinge, energy = torch.stack([torch.stack(std_cov(z[:, t, 0])) for t in range(4)]).mean(0)
    assert losses.total.item() == pytest.approx((time_similarity(z) + 3.9843 * hinge + 6.9238 * energy).item())


def test_first_frame_statistics_leave_later_frames_free():
    config = PLDMConfig(frames="first", time_similarity=0, time_variance=0, inverse_dynamics=0)
    z = (0.5 * normal(8, 4, 1, 4)).requires_grad_()
    terms = score(z, config).terms
    (terms["variance"] + terms["covariance"]).backward()
    assert z.grad[:, 0].abs().min() > 0 and z.grad[:, 1:].abs().max() == 0


def test_the_order_of_the_clips_does_not_matter():
    z, batch = normal(12, 4, 1, 4), toy_batch(12, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    mixed = Batch(batch.pixels_BTCYX, batch.action_BTA[order], batch.state_BTS, batch.index_B)
    objective = PLDM(EVERY, toy_model()).double()
    assert_close(
        objective(z[order], (z[order][:, 1:],), mixed, None).total, objective(z, (z[:, 1:],), batch, None).total
    )


def test_bfloat16_is_within_two_percent():
    z = normal(64, 5, 1, 4, dtype=torch.float32)
    batch, objective = toy_batch(64, 5), PLDM(EVERY, toy_model())
    exact = objective(z, (z[:, :-1],), batch, None)
    rounded = objective(z.bfloat16(), (z[:, :-1].bfloat16(),), batch, None)
    for name, term in exact.terms.items():
        assert rounded.terms[name].dtype == term.dtype == torch.float32
        assert rounded.terms[name].item() == pytest.approx(term.item(), rel=0.02)


@pytest.mark.parametrize("frames, T", [("each", 2), ("first", 3)])
@pytest.mark.parametrize("constant", [0.0, 1.0, None])
def test_smallest_batch_and_collapse_are_finite(frames, T, constant):
    z = normal(2, T, 1, 4, dtype=torch.float32) if constant is None else torch.full((2, T, 1, 4), constant)
    z.requires_grad_()
    losses = score(z, replace(EVERY, frames=frames))
    losses.total.backward()
    assert losses.total.isfinite() and z.grad.isfinite().all()
    if constant is not None:
        assert losses.metrics["latent_std"] == 0 and losses.terms["variance"].item() == pytest.approx(0.99)


def test_a_jittered_collapse_escapes_to_full_rank():
    """Free embeddings with a predictor that copies the frame before: the batch terms must spread them."""
    n, d = 128, 16
    z = (1e-3 * normal(n, 3, 1, d, dtype=torch.float32)).requires_grad_()
    objective = PLDM(PLDMConfig(preset="wall", inverse_dynamics=0), toy_model())
    optimizer = torch.optim.Adam([z], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        losses = objective(z, (z[:, :-1],), None, None)
        losses.total.backward()
        optimizer.step()
    for t in range(3):
        assert effective_rank(z.detach()[:, t, 0]).item() >= 0.8 * d
    assert losses.metrics["latent_std_min"].item() > 0.8


def test_a_config_survives_being_written_and_read():
    config = PLDMConfig(preset="diverse_maze", time_covariance=0.5, frames="first", hidden=8)
    assert TypeAdapter(PLDMConfig).validate_python(asdict(config)) == config


def test_nan_is_not_swallowed():
    z = normal(8, 4, 1, 4)
    z[3, 1, 0, 2] = math.nan
    terms = score(z).terms
    assert all(terms[name].isnan() for name in terms)


def test_faults_are_named():
    z = normal(1, 4, 1, 4)
    with pytest.raises(ValueError, match="PLDM needs 2 or more samples per statistic, not 1; raise the batch size"):
        score(z)
    with pytest.raises(ValueError, match=r"time statistics need 2 or more frames, not 1 .*frames 'first'"):
        score(normal(4, 2, 1, 4), PLDMConfig(frames="first"))
    with pytest.raises(ValueError, match="inverse dynamics reads actions, but no batch was given"):
        PLDM(PLDMConfig(), toy_model())(normal(4, 3, 1, 4).float(), (normal(4, 2, 1, 4).float(),), None, None)
    with pytest.raises(ValueError, match="preset is 'maze'; it must be one of wall, diverse_maze, swm"):
        PLDMConfig(preset="maze")
    with pytest.raises(ValueError, match="time_variance is -1; it must be 0 or more, or left out"):
        PLDMConfig(time_variance=-1)
    with pytest.raises(ValueError, match="hidden is 0"):
        PLDMConfig(hidden=0)
