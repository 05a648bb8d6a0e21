"""The Epps-Pulley statistic against golden values, closed forms and the formula written out."""

import math

import pytest
import torch
from formula import nodes, normal, plain, plain_unbiased
from torch.testing import assert_close

from lewm.objectives import epps_pulley as statistics
from lewm.objectives.epps_pulley import Quadrature, aliased_share, aliasing_period
from lewm.objectives.sigreg import PRESETS

LEJEPA = PRESETS["lejepa"]


def epps_pulley(projected_NS, quadrature):
    """The biased statistic, what `sigreg` is unless told otherwise."""
    return statistics.epps_pulley(projected_NS, quadrature)[0]


def unbiased(projected_NS, quadrature=LEJEPA):
    return statistics.epps_pulley(projected_NS, quadrature)[1]


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


PERIODS = {
    "lejepa": 2 * math.pi * 16 / 3,  # 33.51
    "lejepa_paper": 2 * math.pi * 8 / 5,  # 10.05
    "lewm_paper": 2 * math.pi * 80,  # every knot is a multiple of 1 / 80: 0.2 = 16 / 80, spaced by 19 / 80
    "bcs": 6 * math.pi,  # odd multiples of 1 / 3: 18.85, twice as far as their spacing says
    "survey": 2 * math.pi * 16 / 3,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_aliasing_period(preset):
    """Knots cannot tell a sample from its neighbour one period away; half a period away, or a third, they can."""
    period, x = PERIODS[preset], normal(16, 5)
    assert aliasing_period(PRESETS[preset]) == pytest.approx(period, rel=1e-9)
    for moved_by, same in ((period, True), (-period, True), (period / 2, False), (period / 3, False)):
        moved = x.clone()
        moved[3] += moved_by
        for one, other in zip(*(statistics.epps_pulley(v, PRESETS[preset]) for v in (moved, x)), strict=True):
            assert torch.allclose(one, other) == same


def test_aliased_share_by_hand():
    """Beyond half of 33.51, on either side."""
    x = torch.tensor([[0.0, 16.7, 16.8, 40.0], [-16.7, -16.8, 1.0, -1.0]], dtype=torch.float64).requires_grad_()
    share = aliased_share(x, LEJEPA)
    assert share.item() == 3 / 8 and not share.requires_grad
    assert aliased_share(x, PRESETS["lewm_paper"]).item() == 0


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


@pytest.mark.parametrize("grid", [(-1.0, 3.0, 17), (3.0, 3.0, 17), (0.0, 3.0, 1)])
def test_bad_quadratures_are_refused(grid):
    with pytest.raises(ValueError, match=r"a quadrature of .* is not possible"):
        Quadrature(*grid)


# The unbiased statistic.


def test_unbiased_golden_values():
    expected = torch.tensor([-0.10757457, -0.28122016, 0.04534063, -0.56511954], dtype=torch.float64)
    assert_close(unbiased(golden_samples()), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("preset", PRESETS)
def test_unbiased_sums_over_pairs_of_different_samples(preset):
    x = 1.5 * normal(3, 20, 7)
    assert_close(unbiased(x, PRESETS[preset]), plain_unbiased(x, preset), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_of_both_equal_autograd_of_the_formulas_in_float64(preset):
    """Each alone and both at once, on samples of the size of an alarm as well."""
    for scale in (0.3, 1.0, 12.0):
        x = scale * normal(2, 24, 5)
        first, second = (torch.rand(2, 5, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2))
        for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
            ours, theirs = (x.clone().requires_grad_() for _ in range(2))
            biased_S, unbiased_S = statistics.epps_pulley(ours, PRESETS[preset])
            (a * first * biased_S + b * second * unbiased_S).sum().backward()
            (a * first * plain(theirs, preset) + b * second * plain_unbiased(theirs, preset)).sum().backward()
            assert (ours.grad - theirs.grad).abs().max() <= 1e-9 * theirs.grad.abs().max()


@pytest.mark.parametrize("n", [2, 3, 16, 128])
def test_unbiased_is_zero_on_average_on_gaussian_samples_of_any_number(n):
    samples = unbiased(normal(n, 20_000, seed=n))
    error = samples.std().item() / math.sqrt(20_000)
    assert abs(samples.mean().item()) < 4 * error < 0.05
    assert samples.min() < 0


def test_unbiased_is_least_at_deviation_one_and_the_other_below():
    """On N(0, s^2) with psi = exp(-s^2 t^2 / 2): E = n sum w (psi - phi)^2, and n sum ... + sum w (1 - psi^2); the
    second is least near s = 1 - 1 / n: 0.874 at n = 8."""
    n, x = 8, normal(8, 40_000, seed=9)
    t, w, gaussian = nodes("lejepa")
    means = {}
    for sigma in (0.874, 1.0):
        psi = torch.exp(-((sigma * t) ** 2) / 2)
        exact = n * (w * (psi - gaussian).square()).sum()
        for name, expected, found in zip(
            ("biased", "unbiased"),
            (exact + (w * (1 - psi.square())).sum(), exact),
            statistics.epps_pulley(sigma * x, LEJEPA),
            strict=True,
        ):
            means[name, sigma] = found.mean()
            assert abs(found.mean() - expected) < 4 * found.std() / 200
    assert means["biased", 0.874] < means["biased", 1.0]
    assert means["unbiased", 0.874] > means["unbiased", 1.0]


def test_two_samples_are_enough_for_both_and_one_is_refused():
    """x and -x: phi_n is cos(t x), and its only pair cos(2 t x)."""
    x = 0.7
    t, w, gaussian = nodes("lejepa")
    by_hand = 2 * (w * ((2 * t * x).cos() - 2 * gaussian * (t * x).cos() + gaussian.square())).sum()
    assert unbiased(torch.tensor([[x], [-x]], dtype=torch.float64)).item() == pytest.approx(by_hand.item(), rel=1e-10)
    with pytest.raises(ValueError, match="SIGReg needs 2 or more samples per statistic, not 1; raise the batch size"):
        unbiased(torch.zeros(1, 3))


def test_unbiased_leaves_a_collapse_too():
    """At zero all pairs agree: as bad as for the biased statistic, 0.40205 n; with jitter the gradient spreads."""
    n = 16
    assert unbiased(torch.zeros(n, 1, dtype=torch.float64)).item() == pytest.approx(0.40205 * n, abs=1e-3)
    x = (1e-3 * normal(n, 1)).requires_grad_()
    unbiased(x).sum().backward()
    assert ((x.grad * (x - x.mean())).sum() < 0).item()
