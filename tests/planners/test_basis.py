"""Smooth noise: std 1 at every step, the correlation it promises, a spline that is one."""

from types import SimpleNamespace

import pytest
import torch

from planners import ICEM, MPPI, ActionBox, PredictiveSampling, noise_table
from planners.basis import basis, coloured, correlate, mixing, spline

SETTINGS = [(0.0, None), (0.5, None), (2.0, None), (4.0, None), (0.0, 2), (0.0, 4), (2.0, 3)]


@pytest.mark.parametrize("points", [4, 5, 10, 25])
@pytest.mark.parametrize(("beta", "knots"), SETTINGS)
def test_every_step_has_std_1(points: int, beta: float, knots: int | None) -> None:
    """The covariance of M x white noise is M M'; its diagonal is the variance of each step."""
    basis_TK = basis(points, beta, knots)
    assert basis_TK.shape == (points, knots or points)
    torch.testing.assert_close((basis_TK @ basis_TK.T).diagonal(), torch.ones(points, dtype=torch.float64))


def test_white_noise_is_uncorrelated_and_colour_ties_neighbours() -> None:
    neighbour = {}
    for beta in (0.0, 1.0, 2.0, 4.0):
        correlation_TT = basis(12, beta, None) @ basis(12, beta, None).T
        neighbour[beta] = correlation_TT.diagonal(1).mean().item()
        assert beta == 0 or correlation_TT[4].argmax() == 4
    assert neighbour[0.0] == pytest.approx(0, abs=1e-12)
    assert neighbour[0.0] + 0.3 < neighbour[1.0] < neighbour[2.0] - 0.2 < neighbour[2.0] < neighbour[4.0] < 1


def test_three_points_by_hand() -> None:
    # Cosines of 3 points, unit norm: (1,1,1)/sqrt 3, (1,0,-1)/sqrt 2, (1,-2,1)/sqrt 6, with powers 1, 1, 1/4 at beta 2.
    # Covariances: 0-0 1/3 + 1/2 + 1/24, 0-1 1/3 - 1/12, 0-2 1/3 - 1/2 + 1/24, 1-1 1/3 + 1/6.
    correlation_TT = basis(3, 2.0, None) @ basis(3, 2.0, None).T
    assert correlation_TT[0, 1].item() == pytest.approx(0.25 / (0.875 * 0.5) ** 0.5)
    assert correlation_TT[0, 2].item() == pytest.approx(-0.125 / 0.875)


def test_power_falls_with_the_frequency() -> None:
    """The k-th cosine half-wave of T points has power k^-beta; the constant has that of the slowest."""
    time_T, frequency_K = torch.arange(9.0).double() + 0.5, torch.arange(9.0).double()
    cosine_TK = torch.cos(torch.pi * time_T[:, None] * frequency_K / 9)
    cosine_TK = cosine_TK / cosine_TK.norm(dim=0)
    power_KK = cosine_TK.T @ coloured(9, 1.5) @ coloured(9, 1.5).T @ cosine_TK
    torch.testing.assert_close(power_KK, (1 / frequency_K.clamp(min=1) ** 1.5).diag())
    torch.testing.assert_close(coloured(9, 0.0), torch.eye(9, dtype=torch.float64))


def test_spline_goes_through_its_knots_and_is_straight_between_two() -> None:
    # Natural cubic through (0, 1, 0) at 0, 1, 2: c = 6 (0 - 2 + 0) / 4 = -3, value at 0.5 is 0.5 + 3/6 x 3/8 = 0.6875.
    values = spline(5, 3) @ torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert values.tolist() == pytest.approx([0, 0.6875, 1, 0.6875, 0])
    straight = spline(5, 2) @ torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert straight.tolist() == pytest.approx([1, 1.5, 2, 2.5, 3])
    torch.testing.assert_close(spline(6, 6), torch.eye(6, dtype=torch.float64))


def test_spline_has_no_kink() -> None:
    """The third difference of a cubic on a fine grid is tiny beside the second; a kink would make them equal."""
    values = spline(301, 4) @ torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    second = values.diff(n=2)
    assert second.diff().abs().max() < 0.05 * second.abs().max()


def test_noise_is_smooth_along_raw_time_and_entries_stay_independent() -> None:
    """Blocks of 5 raw actions with 2 entries each: neighbours in time are 2 apart in the flat block."""
    white = noise_table([(0, 0, 0)], (10, 2000, 2), 10)
    smooth = correlate(SimpleNamespace(noise_beta=2.0, knots=None), white, 5)
    raw_NTA = smooth.reshape(-1, 10, 2)
    expected_TT = (basis(10, 2.0, None) @ basis(10, 2.0, None).T).float()
    for entry in range(2):
        torch.testing.assert_close(torch.cov(raw_NTA[..., entry].T), expected_TT, atol=0.03, rtol=0)
    assert torch.corrcoef(torch.cat([raw_NTA[..., 0], raw_NTA[..., 1]], 1).T)[:10, 10:].abs().max() < 0.03
    across_blocks = torch.corrcoef(raw_NTA[:, 4:6, 0].T)[0, 1]
    assert across_blocks > 0.6, "the last action of a block and the first of the next are neighbours"


def test_spline_uses_only_its_knots() -> None:
    white = noise_table([(0, 0, 0)], (1, 4, 3), 2)
    config = SimpleNamespace(noise_beta=0.0, knots=2)
    smooth = correlate(config, white, 1)
    other = white.clone()
    other[..., 2, :] += 1
    assert torch.equal(smooth, correlate(config, other, 1))
    torch.testing.assert_close(smooth[..., 0, :], white[..., 0, :])
    torch.testing.assert_close(smooth[..., 2, :], white[..., 1, :])
    torch.testing.assert_close(smooth[..., 1, :], (white[..., 0, :] + white[..., 1, :]) / 2**0.5)


def test_white_noise_is_left_as_it_is() -> None:
    white = noise_table([(0, 0, 0)], (2, 4, 3), 2)
    assert correlate(SimpleNamespace(noise_beta=0.0, knots=None), white, 1) is white


def test_matrix_is_made_once() -> None:
    """A second call during the capture of a CUDA graph must find it on the device."""
    size = (7, 2, 1.5, None, torch.float32, torch.device("cpu"))
    assert mixing(*size) is mixing(*size)


@pytest.mark.parametrize("Planner", [ICEM, MPPI, PredictiveSampling])
def test_bad_settings_are_refused(Planner: type[ICEM] | type[MPPI] | type[PredictiveSampling]) -> None:
    for beta in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"{Planner.__name__}: noise_beta is {beta}; it must be finite and at"):
            Planner(noise_beta=beta)
    with pytest.raises(ValueError, match=rf"{Planner.__name__}: knots is 1; it must be at least 2, or None"):
        Planner(knots=1)
    planner = Planner(horizon=2, knots=7)
    box = ActionBox.from_bounds(-torch.ones(6), torch.ones(6), steps=3)
    with pytest.raises(ValueError, match=r"knots is 7; a plan of 6 raw actions has room for 2\.\.6, or None"):
        planner.plan(lambda a: a.sum((2, 3)), noise_table([(0,)], planner, 6), box)


@pytest.mark.parametrize("Planner", [ICEM, MPPI, PredictiveSampling])
def test_planner_draws_smooth_candidates(Planner: type[ICEM] | type[MPPI] | type[PredictiveSampling]) -> None:
    far = torch.full((2,), 1e9)
    box = ActionBox(-far, far, torch.zeros(2), torch.ones(2), steps=2)
    planner = Planner(horizon=4, candidates=2000, iterations=1, noise_beta=2.0)
    seen = []

    def cost(action_BNHA: torch.Tensor) -> torch.Tensor:
        seen.append(action_BNHA[0, 1:].flatten(1))
        return action_BNHA.square().sum((2, 3))

    planner.plan(cost, noise_table([(0,)], planner, 2), box)
    expected_TT = (basis(8, 2.0, None) @ basis(8, 2.0, None).T).float()
    torch.testing.assert_close(torch.corrcoef(seen[0].T), expected_TT, atol=0.08, rtol=0)
