"""SIGReg against golden values, closed forms and the formula written out."""

import math

import pytest
import torch
from torch.testing import assert_close

from lewm.objectives import PredictionConfig, SigRegConfig
from lewm.objectives.sigreg import PRESETS, Quadrature, epps_pulley, objective, random_slices, sigreg

LEJEPA = PRESETS["lejepa"]
FULL_GRID = {
    "lejepa": (-3.0, 3.0, 33),  # the half grid counted twice is the trapezoid rule on the whole
    "lejepa_paper": (-5.0, 5.0, 17),
    "lewm_paper": (0.2, 4.0, 17),
    "bcs": (-3.0, 3.0, 10),
    "survey": (0.0, 3.0, 17),
}


def nodes(preset):
    """Knots, quadrature weights (window included) and the Gaussian's characteristic function, on the unfolded grid."""
    t = torch.linspace(*FULL_GRID[preset], dtype=torch.float64)
    w = torch.ones_like(t)
    if preset != "survey":
        w = w * (t[1] - t[0])
        w[[0, -1]] /= 2
        w = w * torch.exp(-(t**2) / 2)
    return t, w, torch.exp(-(t**2) / 2)


def plain(x_NS, preset="lejepa"):
    """The statistic as the papers write it, through autograd: one cosine and one sine per sample, slice and knot."""
    t, w, gaussian = (v.to(x_NS) for v in nodes(preset))
    waves = x_NS[..., None] * t
    error = (waves.cos().mean(-3) - gaussian).square() + waves.sin().mean(-3).square()
    return error @ w * (x_NS.shape[-2] if PRESETS[preset].scale_by_n else 1)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def golden_samples():
    i, j = torch.arange(12.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return torch.sin(0.7 * i + 1.3 * j + 0.1 * i * j)


@pytest.mark.parametrize(
    "preset, expected",
    [
        ("lejepa", [0.70011573, 0.55180359, 0.81410075, 0.3101589]),
        ("lejepa_paper", [0.70755076, 0.56166254, 0.81947287, 0.32569767]),
        ("bcs", [0.05827749, 0.04591548, 0.06781535, 0.02572909]),
    ],
)
def test_golden_values(preset, expected):
    statistic = epps_pulley(golden_samples(), PRESETS[preset])
    assert_close(statistic, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("preset", PRESETS)
def test_equals_the_formula_in_float64(preset):
    x = 1.5 * normal(3, 20, 7)
    assert_close(epps_pulley(x, PRESETS[preset]), plain(x, preset), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_equals_autograd_of_the_formula_in_float32(preset):
    x = normal(5, 64, 32, dtype=torch.float32)
    upstream = torch.rand(5, 32, generator=torch.Generator().manual_seed(1))
    grads = []
    for statistic in (lambda v: epps_pulley(v, PRESETS[preset]), lambda v: plain(v, preset)):
        leaf = x.clone().requires_grad_()
        (statistic(leaf) * upstream).sum().backward()
        grads.append(leaf.grad)
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[1].norm()
    assert (grads[0] - grads[1]).abs().max() <= 1e-5 * grads[1].abs().max()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 2)])
def test_gradcheck(preset, shape):
    x = normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: epps_pulley(v, PRESETS[preset]), x)


def test_cutting_into_chunks_changes_nothing():
    """More samples times slices than one chunk holds, and a number of rows that does not divide."""
    x = normal(1, 3000, 67, dtype=torch.float32).requires_grad_()
    statistic = epps_pulley(x, LEJEPA)
    statistic.sum().backward()
    for column in (0, 21, 22, 66):
        alone = x.detach()[..., column : column + 1].clone().requires_grad_()
        one = epps_pulley(alone, LEJEPA)
        one.sum().backward()
        assert_close(statistic[:, column], one[:, 0])
        assert_close(x.grad[..., column], alone.grad[..., 0])


# E[T] on n Gaussian samples is sum_k w_k (1 - phi_k^2); at a batch collapsed to zero T is sum_k w_k (1 - phi_k)^2.
@pytest.mark.parametrize(
    "preset, on_gaussian, collapsed",
    [
        ("lejepa", 1.052464, 0.40205),
        ("lejepa_paper", 1.05942, 0.40892),
        ("lewm_paper", 0.5253, 0.20433),
        ("bcs", 1.0503, 0.39996),
        ("survey", 11.7735, 7.8838),
    ],
)
def test_expectation_and_collapse_of_every_preset(preset, on_gaussian, collapsed):
    n, columns = 32, 4000
    scale = 1 if PRESETS[preset].scale_by_n else n
    samples = epps_pulley(normal(n, columns, seed=5), PRESETS[preset]) * scale
    error = samples.std() / math.sqrt(columns)
    assert abs(samples.mean() - on_gaussian) < 4 * error < 0.15 * on_gaussian
    at_zero = epps_pulley(torch.zeros(n, 1, dtype=torch.float64), PRESETS[preset]) * scale / n
    assert at_zero.item() == pytest.approx(collapsed, abs=5e-5)


def test_default_on_the_standard_gaussian_does_not_depend_on_n():
    """E[T] = 1.052464 and std 0.960 (for n to infinity); with 20,000 draws the error of the mean is 0.007."""
    for n in (2, 16, 128):
        samples = epps_pulley(normal(n, 20_000, seed=n, dtype=torch.float32), LEJEPA)
        assert samples.mean().item() == pytest.approx(1.052464, abs=0.03)
    assert samples.std().item() == pytest.approx(math.sqrt(0.92164), abs=0.03)


@pytest.mark.parametrize(
    "mean, sigma, expected", [(0, 0.5, 19.806), (0, 2, 31.884), (1, 1, 57.928), (0, 0.1, 49.545), (0, 0, 51.462)]
)
def test_default_on_other_gaussians(mean, sigma, expected):
    samples = epps_pulley(mean + sigma * normal(128, 2000, seed=3), LEJEPA)
    error = samples.std().item() / math.sqrt(2000)
    assert error < 0.02 * expected
    assert abs(samples.mean().item() - expected) < 4 * error + 5e-4


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0, 3.0])
def test_constant_batch_follows_the_closed_form(c):
    """n sqrt(2 pi) (1 - sqrt(2) e^{-c^2/4} + 1/sqrt(3)) over the whole line; a wide, fine grid is that integral."""
    n, exact = 10, math.sqrt(2 * math.pi) * (1 - math.sqrt(2) * math.exp(-(c**2) / 4) + 1 / math.sqrt(3))
    fine = Quadrature(-9.0, 9.0, 361)
    assert epps_pulley(torch.full((n, 1), c, dtype=torch.float64), fine).item() == pytest.approx(n * exact, rel=1e-9)


def test_exact_statistic_without_quadrature():
    """sqrt(2 pi) [ sum_jk e^{-(xj-xk)^2/2} / n - sqrt(2) sum_j e^{-xj^2/4} + n / sqrt(3) ], golden on the axes."""
    x, n = golden_samples(), 12
    pairs = torch.exp(-((x[:, None] - x[None]) ** 2) / 2).sum((0, 1)) / n
    exact = math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * torch.exp(-(x**2) / 4).sum(0) + n / math.sqrt(3))
    assert_close(exact, torch.tensor([0.70754973, 0.56166211, 0.81947196, 0.32570051]).double(), rtol=0, atol=1e-7)
    assert_close(epps_pulley(x, Quadrature(-9.0, 9.0, 361)), exact, rtol=1e-9, atol=0)


def test_no_data_exceeds_the_bound():
    """T <= n sum_k w_k (1 + phi_k)^2 = 7.492 n."""
    _, w, gaussian = nodes("lejepa")
    assert (w * (1 + gaussian) ** 2).sum().item() == pytest.approx(7.492, abs=5e-4)
    n = 8
    worst = [scale * normal(n, 500, seed=scale) + shift for scale in (1, 10, 100) for shift in (0, 5, 16.75)]
    assert max(epps_pulley(x, LEJEPA).max().item() for x in worst) <= 7.492 * n
    assert epps_pulley(torch.full((n, 1), 10.0), LEJEPA).item() > 3.5 * n  # far collapse is punished, too


@pytest.mark.parametrize(
    "preset, period", [("lejepa", 2 * math.pi * 16 / 3), ("lejepa_paper", 2 * math.pi * 8 / 5), ("bcs", 6 * math.pi)]
)
def test_aliasing_period(preset, period):
    """Equally spaced knots cannot tell a sample from its neighbour one period away: 33.51, 10.05 and 18.85."""
    x = normal(16, 5)
    for moved_by, same in ((period, True), (period / 3, False)):
        moved = x.clone()
        moved[3] += moved_by
        assert torch.allclose(epps_pulley(moved, PRESETS[preset]), epps_pulley(x, PRESETS[preset])) == same


def test_gradient_bound():
    """|dT/dx_i| <= 2 sum_k w_k t_k (1 + phi_k) = 5.931 for any data and any n."""
    for n in (2, 7, 100):
        for scale in (0.1, 1.0, 3.0):
            x = (scale * normal(n, 300, seed=n) + scale).requires_grad_()
            epps_pulley(x, LEJEPA).sum().backward()
            assert x.grad.abs().max() <= 5.931
    two = torch.tensor([[1.0], [1.0]]).requires_grad_()
    epps_pulley(two, LEJEPA).sum().backward()
    assert two.grad.abs().max() > 0.5


def test_collapse_is_a_strict_saddle():
    """At zero the gradient vanishes and the Hessian is -2a I + (2b/n) 11^T with a = 1.546, b = 2.4318."""
    n, h = 6, 1e-4

    def gradient(x):
        leaf = x.clone().requires_grad_()
        epps_pulley(leaf[:, None], LEJEPA).sum().backward()
        return leaf.grad

    zero = torch.zeros(n, dtype=torch.float64)
    assert gradient(zero).abs().max() < 1e-12
    eye = torch.eye(n, dtype=torch.float64)
    hessian = torch.stack([(gradient(h * e) - gradient(-h * e)) / (2 * h) for e in eye])
    a, b = 1.546, 2.4318
    assert_close(hessian, -2 * a * eye + 2 * b / n, rtol=0, atol=2e-3)
    assert torch.linalg.eigvalsh(hessian)[:-1].max() < -3.0  # every spreading direction falls away


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


@pytest.mark.parametrize("grid", [(-1.0, 3.0, 17), (3.0, 3.0, 17), (0.0, 3.0, 1)])
def test_bad_quadratures_are_refused(grid):
    with pytest.raises(ValueError, match=r"a quadrature of .* is not possible"):
        Quadrature(*grid)
