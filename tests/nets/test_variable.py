"""The latent variable on its own: draws, best codes, divergences and gradients by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lewm.nets.variable import (
    VARIABLES,
    DiscreteConfig,
    DiscreteVariable,
    Followed,
    GaussianConfig,
    GaussianVariable,
    build_variable,
)

B, D, A = 2, 3, 2
LATENT, ACTION = torch.ones(B, 1, D), torch.ones(B, A)


def discrete(prior: list[float], information: float = 0.0, explore: float = 0.0) -> DiscreteVariable:
    """Its prior is the same everywhere."""
    variable = DiscreteVariable(DiscreteConfig(codes=len(prior), information=information, explore=explore), D, A, 1)
    return constant(variable, variable.prior, torch.tensor(prior).log())


def gaussian(mean: list[float], raw: list[float], information: float = 1.0) -> GaussianVariable:
    variable = GaussianVariable(GaussianConfig(dims=len(mean), information=information), D, A, 1)
    return constant(variable, variable.posterior, torch.tensor(mean + raw))


def constant(variable: torch.nn.Module, net: torch.nn.Sequential, bias: Tensor) -> "DiscreteVariable":
    with torch.no_grad():
        net[-1].weight.zero_()  # type: ignore[operator]
        net[-1].bias.copy_(bias)  # type: ignore[operator]
    return variable  # type: ignore[return-value]


def by_code(*values: float):  # type: ignore[no-untyped-def]
    """A predictor whose next frame is a number of its own for every code, in every entry."""
    return lambda value_MBV: (value_MBV @ torch.tensor(values))[..., None, None].expand(-1, -1, 1, D)


@pytest.mark.parametrize(
    ("likely", "noise", "codes"),
    [
        (0.0, (0.0, 0.49, 0.51, 0.79, 0.81, 0.999), (0, 0, 1, 1, 2, 2)),
        (0.25, (0.0, 0.62, 0.63, 0.999), (0, 0, 1, 1)),  # code 2 is left out: 0.5 / 0.8 = 0.625
        (0.3, (0.0, 0.999), (0, 0)),  # more than the threshold, not at it
        (0.9, (0.0, 0.5, 0.999), (0, 0, 0)),  # none is likely enough: the likeliest stays
    ],
)
def test_codes_are_drawn_by_their_prior(likely: float, noise: tuple[float, ...], codes: tuple[int, ...]) -> None:
    variable = discrete([0.5, 0.3, 0.2])
    count = len(noise)
    drawn = variable.draw(
        LATENT[:1].expand(count, 1, D), ACTION[:1].expand(count, A), torch.tensor(noise)[:, None], likely
    )
    assert drawn.argmax(-1).tolist() == list(codes)
    assert torch.equal(drawn.sum(-1), torch.ones(count))


def test_left_out_codes_in_front_are_never_drawn() -> None:
    drawn = discrete([0.01, 0.99]).draw(LATENT, ACTION, torch.zeros(B, 1), likely=0.05)
    assert drawn.argmax(-1).tolist() == [1, 1]


def test_without_noise_the_likeliest_is_drawn() -> None:
    assert discrete([0.2, 0.5, 0.3]).draw(LATENT, ACTION).argmax(-1).tolist() == [1, 1]
    assert torch.equal(gaussian([1.0], [0.0]).draw(LATENT, ACTION), torch.zeros(B, 1))


def test_a_gaussian_is_drawn_from_the_standard_normal() -> None:
    noise = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    assert torch.equal(gaussian([1.0, 2.0], [0.0, 0.0]).draw(LATENT, ACTION, noise), noise)


@pytest.mark.parametrize(("information", "winner"), [(0.0, 1), (0.01, 0), (0.009, 1)])
def test_the_best_code_wins_if_it_is_worth_its_surprise(information: float, winner: int) -> None:
    """Errors 0.04 and 0.02, prior 0.9 and 0.1: code 1 costs ln 9 = 2.197 nats more, so it wins below 0.02 / 2.197 =
    0.0091 per nat."""
    found = discrete([0.9, 0.1], information).infer(by_code(0.2, 0.02**0.5), LATENT, ACTION, 0 * LATENT, None)
    assert found.value_BV.argmax(-1).tolist() == [winner] * B
    torch.testing.assert_close(found.predicted_BKD, torch.full((B, 1, D), [0.2, 0.02**0.5][winner]))
    torch.testing.assert_close(found.nats_B, -torch.tensor([0.9, 0.1])[winner].log().expand(B))
    assert torch.equal(found.loss_B, found.nats_B)


def test_every_problem_has_its_own_winner() -> None:
    following = torch.tensor([1.0, -1.0])[:, None, None].expand(B, 1, D)
    found = discrete([0.5, 0.5]).infer(by_code(1.0, -0.9), LATENT, ACTION, following, None)
    assert found.value_BV.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    torch.testing.assert_close(found.predicted_BKD[:, 0, 0], torch.tensor([1.0, -0.9]))


def test_exploring_trains_a_random_code_and_goes_on_with_the_winner() -> None:
    """explore 0.5, two codes: noise below 0.25 tries code 0, below 0.5 code 1, above the winner."""
    variable, four = discrete([0.5, 0.5], explore=0.5), (LATENT[:1].expand(4, 1, D), ACTION[:1].expand(4, A))
    noise = torch.tensor([[0.2], [0.3], [0.6], [0.99]])
    found = variable.infer(by_code(1.0, -1.0), *four, four[0], noise)
    assert found.scored_BKD[:, 0, 0].tolist() == [1.0, -1.0, 1.0, 1.0]
    assert found.predicted_BKD[:, 0, 0].tolist() == [1.0] * 4
    assert torch.equal(variable.infer(by_code(1.0, -1.0), *four, four[0], None).scored_BKD, four[0])


def test_only_the_winner_learns_and_the_prior_leaves_the_latent_alone() -> None:
    future = torch.tensor([0.2, 1.0], requires_grad=True)
    latent = LATENT.clone().requires_grad_()
    found = DiscreteVariable(DiscreteConfig(information=0.0), D, A, 1).infer(
        lambda value: (value @ future)[..., None, None].expand(-1, -1, 1, D), latent, ACTION, 0 * LATENT, None
    )
    (found.scored_BKD.square().mean() + found.loss_B.mean()).backward()
    torch.testing.assert_close(future.grad, torch.tensor([0.4, 0.0]))
    assert latent.grad is None


def test_gaussian_inference_and_divergence() -> None:
    """Against torch's own divergence; raw 0 is a standard deviation of 1 (+ 1e-4)."""
    variable = gaussian([0.5, -1.0], [0.0, 1.0], information=0.3)
    std = torch.nn.functional.softplus(torch.tensor([0.0, 1.0]) + 0.541324854612918) + 1e-4
    assert std[0].item() == pytest.approx(1.0001, abs=1e-5)
    normal = torch.distributions.Normal(torch.tensor([0.5, -1.0]), std)
    nats = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum()
    noise = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    found = variable.infer(by_code(1.0, 10.0), LATENT, ACTION, 0 * LATENT, noise)
    torch.testing.assert_close(found.value_BV, normal.loc + std * noise)
    torch.testing.assert_close(found.predicted_BKD[:, 0, 0], found.value_BV @ torch.tensor([1.0, 10.0]))
    torch.testing.assert_close(found.nats_B, nats.expand(B))
    torch.testing.assert_close(found.loss_B, 0.3 * nats.expand(B))
    torch.testing.assert_close(
        variable.infer(by_code(1.0, 10.0), LATENT, ACTION, 0 * LATENT, None).value_BV, normal.loc.expand(B, 2)
    )


def test_gaussian_inference_reads_all_it_is_given_and_bends_no_target() -> None:
    torch.manual_seed(0)
    variable = GaussianVariable(GaussianConfig(dims=1), D, A, 1)
    inputs = [torch.randn(B, 1, D, requires_grad=True), torch.randn(B, A, requires_grad=True)]
    following = torch.randn(B, 1, D, requires_grad=True)
    found = variable.infer(by_code(1.0), inputs[0], inputs[1], following, torch.zeros(B, 1))
    found.predicted_BKD.sum().backward()
    assert all(x.grad is not None and x.grad.abs().min() > 0 for x in inputs)
    assert following.grad is None
    moved = variable.infer(by_code(1.0), inputs[0], inputs[1], following + 1, torch.zeros(B, 1))
    assert (moved.value_BV - found.value_BV).abs().min() > 1e-4


@pytest.mark.parametrize("kind", VARIABLES)
def test_noise_comes_from_the_generator(kind: str) -> None:
    variable = build_variable(VARIABLES[kind][0](), D, A, 1)
    before = torch.random.get_rng_state()
    first, again = (variable.noise((500, 4), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (500, 4, variable.noise_dim)
    mean, std = {"discrete": (0.5, 12**-0.5), "gaussian": (0.0, 1.0)}[kind]
    assert abs(first.mean().item() - mean) < 0.05 and abs(first.std().item() - std) < 0.05


def test_metrics_count_the_codes_in_use_and_the_spread() -> None:
    def followed(value_BTV: Tensor) -> Followed:
        return Followed(LATENT, LATENT, value_BTV, LATENT, LATENT)

    codes = torch.eye(4)[torch.tensor([[0, 1], [0, 1]])]
    assert discrete([0.25] * 4).metrics(followed(codes))["codes_in_use"].item() == pytest.approx(2.0)
    spread = gaussian([0.0], [0.0]).metrics(followed(torch.tensor([[[1.0], [-1.0]]])))["spread"]
    assert spread.item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (DiscreteConfig(), {"codes": 1}, r"variable.codes is 1; it must be at least 2"),
        (DiscreteConfig(), {"explore": 1.0}, r"variable.explore is 1.0; it must lie in \[0, 1\)"),
        (DiscreteConfig(), {"information": -0.1}, r"variable.information is -0.1; it must be 0 or more"),
        (GaussianConfig(), {"information": float("nan")}, r"variable.information is nan"),
        (GaussianConfig(), {"dims": 0}, r"variable.dims is 0; it must be at least 1"),
        (GaussianConfig(), {"width": 0}, r"variable.width is 0; it must be at least 1"),
    ],
)
def test_bad_settings_are_refused(config: DiscreteConfig, change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)
