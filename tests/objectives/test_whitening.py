"""Whitening against golden values, invariances and the definition; what it refuses; what it keeps for planning."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F
from torch.testing import assert_close

from lewm.objectives import PredictionConfig
from lewm.objectives.health import effective_rank
from lewm.objectives.whitening import METHODS, Whitening, WhiteningConfig, newton_schulz, norm_mse, whiten, zca

D = 4
every_method = pytest.mark.parametrize("method", METHODS)
VARIANTS = [
    WhiteningConfig(),
    WhiteningConfig(method="zca", distance="mse", pool_time=False, epsilon=1e-3),
    WhiteningConfig(method="newton_schulz", pool_time=True, prediction=PredictionConfig("l1")),
]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def golden_views():
    i, j = torch.arange(12.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return torch.sin(0.7 * i + 1.3 * j + 0.1 * i * j), torch.cos(0.5 * i - 0.9 * j + 0.23 * i * j + 0.2)


def white(sample_ND, **settings):
    return whiten(sample_ND[None], WhiteningConfig(**settings))[0]


def build(config=None, latent_dim=D):
    return Whitening(config or WhiteningConfig(), SimpleNamespace(latent_dim=latent_dim))


def score(latent, *predicted, config=None):
    return build(config)(latent, predicted, None, torch.Generator())


def clip(B, T, K=2, dtype=torch.float64):
    latent = normal(B, T, K, D, dtype=dtype)
    return latent, latent[:, 1:] + 0.3 * normal(B, T - 1, K, D, seed=1, dtype=dtype)


@pytest.mark.parametrize(
    "method, cosine, squared",
    [
        ("cholesky", 1.3881117282, 1.2873496416),
        ("zca", 1.7812913492, 1.6859809361),
        ("newton_schulz", 1.7812913492, 1.6859809361),
    ],
)
def test_golden_values(method, cosine, squared):
    x, y = (white(view, method=method) for view in golden_views())
    assert norm_mse(x, y).item() == pytest.approx(cosine, abs=1e-9)
    assert F.mse_loss(x, y).item() == pytest.approx(squared, abs=1e-9)


def test_golden_latents_through_the_objective():
    x, y = golden_views()
    latent = torch.stack([x, y], 1)[:, :, None]
    losses = score(latent, latent[:, :1])
    assert losses.terms["whitening"].item() == pytest.approx(1.3881117282, abs=1e-9)
    assert losses.terms["prediction"].item() == pytest.approx(0.9419451249, abs=1e-9)
    assert losses.weights == {"prediction": 0.1, "whitening": 1.0}
    squared = score(latent, latent[:, :1], config=WhiteningConfig(distance="mse", weight=0.5))
    assert squared.terms["whitening"].item() == pytest.approx(1.2873496416, abs=1e-9)
    assert squared.weights["whitening"] == 0.5


@every_method
@pytest.mark.parametrize("n", [9, 200])
def test_whitened_samples_have_mean_zero_and_unit_covariance(method, n):
    """Whatever their scale and mean, from n - 1 = d samples on."""
    for scale, shift in ((1.0, 0.0), (1e-3, 0.0), (100.0, 1000.0)):
        mixed = scale * normal(n, 8) @ normal(8, 8, seed=1) + shift
        out = white(mixed, method=method, iterations=60)
        assert_close(torch.cov(out.T), torch.eye(8).double(), rtol=0, atol=1e-5)
        assert out.mean(0).abs().max() < 1e-5


def test_cholesky_does_not_see_upper_triangular_maps():
    x, upper = normal(50, 6), torch.triu(normal(6, 6, seed=1))
    upper.diagonal().abs_().add_(0.2)
    assert_close(white(x @ upper + 3.0), white(x), rtol=0, atol=1e-9)


def test_a_rotation_of_both_views_changes_cholesky_and_leaves_zca():
    x, y = golden_views()
    turn = torch.linalg.qr(normal(4, 4)).Q
    for method, same in (("cholesky", False), ("zca", True), ("newton_schulz", True)):
        before = norm_mse(white(x, method=method), white(y, method=method)).item()
        after = norm_mse(white(x @ turn, method=method), white(y @ turn, method=method)).item()
        assert (after == pytest.approx(before, rel=1e-9)) == same


@every_method
def test_identical_views_score_zero_and_independent_ones_two(method):
    latent, other = normal(3000, 2, 1, D), normal(3000, 1, 1, D, seed=1)
    for distance in ("norm_mse", "mse"):
        config = WhiteningConfig(method=method, distance=distance)
        assert score(latent, latent[:, 1:], config=config).terms["whitening"].item() == pytest.approx(0, abs=1e-9)
        assert score(latent, other, config=config).terms["whitening"].item() == pytest.approx(2, abs=0.1)


def test_zca_is_the_symmetric_inverse_root_and_newton_schulz_reaches_it():
    a = normal(3, 6, 20)
    cov = a @ a.mT / 20
    root = zca(cov)
    assert_close(root, root.mT)
    assert_close(root @ cov @ root, torch.eye(6).double().expand(3, 6, 6), rtol=0, atol=1e-10)
    errors = [(newton_schulz(cov, k) - root).abs().max().item() for k in (2, 5, 20)]
    assert errors[0] > errors[1] > 1e-3 and errors[2] < 1e-10


def test_few_newton_schulz_steps_leave_weak_directions_weak():
    """A direction with the share s of all variance is whitened in about log(1 / s) / log(2.25) steps and a few."""
    cov = torch.diag(torch.tensor([1.0, 1e-4])).double()
    left = [(newton_schulz(cov, k) @ cov @ newton_schulz(cov, k)).diagonal() for k in (5, 20)]
    assert left[0][0].item() == pytest.approx(1, abs=1e-3)
    assert left[0][1].item() == pytest.approx(1e-4 * 2.25**5, rel=0.02)
    assert left[1][1].item() == pytest.approx(1)


@every_method
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_gradcheck(method, epsilon):
    config = WhiteningConfig(method=method, epsilon=epsilon)
    sample = normal(2, 6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whiten(x, config), sample)


def test_the_gradient_of_zca_is_finite_where_eigenvalues_coincide():
    grads = []
    for root in (zca, lambda cov: newton_schulz(cov, 20)):
        cov = torch.eye(4, dtype=torch.float64, requires_grad=True)
        (root(cov) * normal(4, 4)).sum().backward()
        grads.append((cov.grad + cov.grad.T) / 2)
    upstream = normal(4, 4)
    assert_close(grads[0], -(upstream + upstream.T) / 4)  # d C^(-1/2) = -dC / 2 at the identity
    assert_close(grads[1], grads[0])


@every_method
def test_statistics_are_per_time_step_or_pooled_each_side_by_its_own(method):
    latent, one = clip(12, 3)
    two = 2 * normal(12, 2, 2, D, seed=5) + 1
    target = latent[:, 1:]
    frames = [(guess[:, t], target[:, t]) for guess in (one, two) for t in range(2)]
    clips = [(guess, target) for guess in (one, two)]
    for pool, pairs in ((False, frames), (True, clips)):
        by_hand = [norm_mse(*(white(side.reshape(-1, D), method=method) for side in pair)) for pair in pairs]
        losses = score(latent, one, two, config=WhiteningConfig(method=method, pool_time=pool))
        assert_close(losses.terms["whitening"], torch.stack(by_hand).mean())


def test_time_is_pooled_where_a_step_has_fewer_than_two_samples_per_dimension():
    for B, pooled in ((D - 1, True), (D, False)):
        latent, predicted = clip(B, 4)  # two tokens: 2 B samples per time step
        chosen, other = (score(latent, predicted, config=WhiteningConfig(pool_time=p)) for p in (pooled, not pooled))
        left_out = score(latent, predicted).terms["whitening"]
        assert torch.equal(left_out, chosen.terms["whitening"])
        assert not torch.equal(left_out, other.terms["whitening"])


@every_method
def test_too_few_samples_are_refused_with_the_smallest_legal_number(method):
    settings = {"method": method, "pool_time": False}
    latent, predicted = clip(D, 3, K=1)
    message = rf"whitening a latent of width {D} needs {D + 1} or more samples per statistic, not {D}; .* pool_time"
    with pytest.raises(ValueError, match=message):
        score(latent, predicted, config=WhiteningConfig(**settings))
    assert score(*clip(D + 1, 3, K=1), config=WhiteningConfig(**settings)).total.isfinite()
    assert score(latent, predicted, config=WhiteningConfig(**settings, epsilon=1e-3)).total.isfinite()
    one = normal(1, 2, 1, D)
    with pytest.raises(ValueError, match="whitening needs 2 or more samples per statistic, not 1"):
        score(one, one[:, 1:], config=WhiteningConfig(**settings, epsilon=1e-3))


@every_method
@pytest.mark.parametrize("kind", ["constant", "far constant", "copy", "sum", "zero", "twice each of half the rank"])
def test_a_rank_deficient_batch_is_refused_and_epsilon_mends_it(method, kind):
    x = normal(40, D).float()
    if kind == "constant":
        x[:, 2] = 0.1
    elif kind == "far constant":
        x[:, 2] = 1234.5678 + 1e-4 * x[:, 2]  # less than float32 resolves there
    elif kind == "copy":
        x[:, 2] = x[:, 0]
    elif kind == "sum":
        x[:, 2] = x[:, 0] + x[:, 1]
    elif kind == "zero":
        x.zero_()
    else:
        x = x[:2].repeat(20, 1)
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match=rf"of width {D}, is rank-deficient .*; set epsilon above 0"):
            white(x.to(dtype), method=method)
        leaf = x.to(dtype, copy=True).requires_grad_()
        out = white(leaf, method=method, epsilon=1e-3)
        norm_mse(out, normal(40, D, seed=1)).backward()
        assert out.isfinite().all() and leaf.grad.isfinite().all()


def test_ill_conditioned_is_not_rank_deficient():
    x = normal(200, 8).float() * torch.logspace(0, -4, 8)
    assert_close(torch.cov(white(x).T), torch.eye(8).double(), rtol=0, atol=1e-5)


@every_method
def test_a_constant_batch_with_epsilon_is_finite_with_finite_gradient(method):
    for constant in (0.0, 0.3):
        latent, predicted = (torch.full((8, t, 2, D), constant).requires_grad_() for t in (3, 2))
        losses = score(latent, predicted, config=WhiteningConfig(method=method, epsilon=1e-3))
        losses.total.backward()
        assert losses.total.isfinite() and latent.grad.isfinite().all() and predicted.grad.isfinite().all()


@every_method
def test_nan_is_not_swallowed(method):
    latent, predicted = clip(16, 2)
    predicted[3, 0, 0, 2] = float("nan")
    assert score(latent, predicted, config=WhiteningConfig(method=method)).terms["whitening"].isnan()


@every_method
def test_bfloat16_is_within_two_percent_and_autocast_rounds_nothing(method):
    latent, predicted = clip(64, 3, dtype=torch.float32)
    config = WhiteningConfig(method=method)
    exact = score(latent, predicted, config=config)
    rounded = score(latent.bfloat16(), predicted.bfloat16(), config=config)
    with torch.autocast("cpu", torch.bfloat16):
        cast = score(latent, predicted, config=config)
    for name, term in exact.terms.items():
        assert term.dtype == rounded.terms[name].dtype == torch.float32
        assert rounded.terms[name].item() == pytest.approx(term.item(), rel=0.02)
        assert torch.equal(cast.terms[name], term)
    assert score(latent.double(), predicted.double()).total.dtype == torch.float64


def test_the_order_of_the_batch_does_not_matter():
    latent, predicted = clip(16, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert_close(score(latent[order], predicted[order]).total, score(latent, predicted).total)


@every_method
def test_free_embeddings_from_a_jittered_collapse_agree_without_losing_rank(method):
    """The identity as predictor: predictions come true, in all directions; the prediction alone would shrink them."""
    n, d = 64, 16
    z = (1e-3 * normal(n, 2, 1, d, seed=2, dtype=torch.float32)).requires_grad_()
    config = WhiteningConfig(method=method, pool_time=False)
    objective = build(config, d)
    optimizer = torch.optim.Adam([z], lr=1e-3)
    first = objective(z, (z[:, :1],), None, torch.Generator()).terms["whitening"].item()
    for _ in range(100):
        optimizer.zero_grad()
        losses = objective(z, (z[:, :1],), None, torch.Generator())
        losses.total.backward()
        optimizer.step()
    assert first > 1.8 and losses.terms["whitening"].item() < 0.05
    assert effective_rank(z.detach()[:, 1, 0]) >= 0.8 * d
    assert z.detach().std() > 1e-3  # the loss does not see scale, so nothing takes it away


# Running statistics.


def test_the_first_batch_is_the_running_statistic_and_later_ones_move_it():
    objective = build(WhiteningConfig(momentum=0.5))
    batches = [normal(20, 3, 2, D, seed=s) + s for s in range(3)]
    flats = [b.reshape(-1, D) for b in batches]
    for latent in batches:
        objective(latent, (latent[:, 1:],), None, torch.Generator())
        if objective.num_batches_tracked == 1:
            assert_close(objective.running_mean, flats[0].mean(0))
            assert_close(objective.running_covariance, torch.cov(flats[0].T))
    mean = ((flats[0].mean(0) + flats[1].mean(0)) / 2 + flats[2].mean(0)) / 2
    cov = ((torch.cov(flats[0].T) + torch.cov(flats[1].T)) / 2 + torch.cov(flats[2].T)) / 2
    assert_close(objective.running_mean, mean)
    assert_close(objective.running_covariance, cov)


def test_evaluation_moves_nothing():
    objective = build().eval()
    latent, predicted = clip(16, 3)
    objective(latent, (predicted,), None, torch.Generator())
    assert objective.num_batches_tracked == 0 and objective.running_covariance.abs().max() == 0


@every_method
def test_the_frozen_layer_whitens_what_was_seen(method):
    objective = build(WhiteningConfig(method=method))
    latent = (normal(100, 3, 2, D) @ normal(D, D, seed=1) + 5).float()
    objective(latent, (latent[:, 1:],), None, torch.Generator())
    layer = objective.frozen()
    out = layer(latent)
    assert out.shape == latent.shape and not layer.weight.requires_grad
    flat = out.reshape(-1, D)
    assert_close(torch.cov(flat.T), torch.eye(D), rtol=0, atol=1e-4)
    assert flat.mean(0).abs().max() < 1e-4
    assert_close(layer(latent[:1]), out[:1])  # whatever the batch


def test_the_frozen_layer_needs_a_trained_state_and_survives_saving(tmp_path):
    with pytest.raises(RuntimeError, match="whitening has seen no batch yet; train for at least one step"):
        build().frozen()
    objective, restored = build(), build()
    latent, predicted = clip(16, 3)
    objective(latent, (predicted,), None, torch.Generator())
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(restored.frozen().weight, objective.frozen().weight)
    assert torch.equal(restored.frozen().bias, objective.frozen().bias)


def test_metrics_show_the_spread_of_the_latents():
    latent = normal(500, 2, 1, D) * torch.linspace(0.5, 2, D).double()
    metrics = score(latent, latent[:, 1:]).metrics
    assert metrics["latent_std"].item() == pytest.approx(1.25, rel=0.05)
    assert metrics["latent_std_min"].item() == pytest.approx(0.5, rel=0.05)
    assert not any(metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": -1.0}, "weight is -1.0; it must be 0 or more"),
        ({"method": "pca"}, "method is 'pca'; it must be one of cholesky, zca, newton_schulz"),
        ({"epsilon": -0.1}, "epsilon is -0.1; it must lie between 0 and 1"),
        ({"iterations": 0}, "iterations is 0; it must be 1 or more"),
        ({"momentum": 0.0}, "momentum is 0.0; it must be above 0 and at most 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WhiteningConfig(**settings)


def test_a_config_survives_being_written_and_read():
    for config in VARIANTS:
        assert TypeAdapter(WhiteningConfig).validate_python(asdict(config)) == config


def step(config, latent, predicted):
    latent, predicted = latent.clone().requires_grad_(), predicted.clone().requires_grad_()
    objective = build(config)
    losses = objective(latent, (predicted,), None, torch.Generator())
    losses.total.backward()
    return losses.total.detach(), objective.state_dict(), latent.grad, predicted.grad


def half_step(rank, latent, predicted):
    return [step(config, latent.chunk(2)[rank], predicted.chunk(2)[rank]) for config in VARIANTS]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    """Running statistics included."""
    latent, predicted = clip(8, 3)
    halves = on_two_ranks(half_step, latent, predicted)
    for config, first, second in zip(VARIANTS, *halves, strict=True):
        total, state, *grads = step(config, latent, predicted)
        assert_close((first[0] + second[0]) / 2, total, rtol=1e-9, atol=0)
        assert_close(first[1], state, rtol=1e-9, atol=1e-12)
        assert_close(second[1], state, rtol=1e-9, atol=1e-12)
        for one, other, whole in zip(first[2:], second[2:], grads, strict=True):
            assert_close(torch.cat([one, other]) / 2, whole, rtol=1e-9, atol=1e-12)  # training averages over ranks
        assert abs(step(config, latent[:4], predicted[:4])[0] - total) > 1e-3
