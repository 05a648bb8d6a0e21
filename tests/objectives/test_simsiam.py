"""SimSiam: the cosine, what it cannot see, its heads, and one process against two."""

import pytest
import torch
from torch.testing import assert_close
from toy_models import toy_model

from lewm.distributed import average_gradients
from lewm.objectives import PredictionConfig
from lewm.objectives.losses import full_precision
from lewm.objectives.simsiam import SimSiam, SimSiamConfig, negative_cosine, unit_std

ROW, COLUMN = torch.arange(12, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
X = torch.sin(0.7 * ROW + 1.3 * COLUMN + 0.1 * ROW * COLUMN)
Y = torch.cos(0.5 * ROW - 0.9 * COLUMN + 0.23 * ROW * COLUMN + 0.2)
HEADS = SimSiamConfig(projector=16, predictor=6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(config=SimSiamConfig()):  # noqa: B008
    model = toy_model()
    torch.manual_seed(0)
    return SimSiam(config, model)


def score(latent, *predicted, config=SimSiamConfig()):  # noqa: B008
    objective = build(config)
    return objective.to(full_precision(latent).dtype)(latent, predicted, None, seeded())


def clip(B=16, T=4, K=2, D=4, dtype=torch.float64):
    latent = torch.randn(B, T, K, D, generator=seeded(), dtype=dtype)
    return latent, latent[:, 1:] + 0.5 * torch.randn(B, T - 1, K, D, generator=seeded(1), dtype=dtype)


def test_golden():
    assert negative_cosine(X, Y).item() == pytest.approx(-0.0441651592, abs=1e-9)
    unit_x, unit_y = (x / x.norm(dim=1, keepdim=True) for x in (X, Y))
    byol = (unit_x - unit_y).square().sum(1).mean()
    assert byol.item() == pytest.approx(1.9116696818, abs=1e-9)
    assert 2 + 2 * negative_cosine(X, Y).item() == pytest.approx(byol.item())


def test_by_hand():
    latent = torch.tensor([[[[7.0, 7.0]], [[0.0, 2.0]], [[3.0, 4.0]]]])
    guess = torch.tensor([[[[1.0, 0.0]], [[3.0, 0.0]]]])
    losses = score(latent, guess, config=SimSiamConfig(weight=3.0))
    assert losses.terms["simsiam"].item() == pytest.approx(-(0 + 0.6) / 2)
    assert losses.terms["prediction"].item() == pytest.approx((1 + 4 + 0 + 16) / 4)
    assert losses.weights == {"prediction": 1.0, "simsiam": 3.0}
    twice = score(latent, guess, latent[:, 1:])
    assert twice.terms["simsiam"].item() == pytest.approx(-(0.3 + 1) / 2)


def test_range_and_scale():
    assert negative_cosine(X, 5 * X).item() == pytest.approx(-1)
    assert negative_cosine(X, -0.1 * X).item() == pytest.approx(1)


@pytest.mark.parametrize("config", [SimSiamConfig(), HEADS], ids=["bare", "heads"])
def test_no_gradient_reaches_the_target(config):
    latent, guess = (x.requires_grad_() for x in clip())
    score(latent, guess, config=config).total.backward()
    assert latent.grad is None
    assert guess.grad.abs().sum() > 0


def test_collapse_is_invisible_to_the_loss_and_visible_to_the_indicator():
    """No recovery is expected: at collapse the loss is the best there is and has no gradient."""
    latent = torch.full((64, 3, 1, 16), 0.3, dtype=torch.float64) + 1e-6 * torch.randn(64, 3, 1, 16, generator=seeded())
    guess = latent[:, :-1].clone().requires_grad_()
    losses = score(latent, guess)
    losses.total.backward()
    assert losses.terms["simsiam"].item() == pytest.approx(-1, abs=1e-9)
    assert guess.grad.abs().max() < 1e-6
    assert losses.metrics["unit_std"] < 1e-5


@pytest.mark.parametrize("D", [4, 64])
def test_isotropic_latents_have_the_spread_the_indicator_promises(D):
    latent = 7 * torch.randn(512, 2, 1, D, generator=seeded())
    metrics = score(latent, latent[:, 1:]).metrics
    assert metrics["unit_std_isotropic"].item() == pytest.approx(D**-0.5)
    assert metrics["unit_std"].item() == pytest.approx(D**-0.5, rel=0.02)


def test_the_indicator_looks_at_every_time_step_alone():
    """Latents that move in time but agree across clips have collapsed."""
    latent = torch.randn(1, 5, 1, 8, generator=seeded()).expand(32, -1, -1, -1)
    assert unit_std(latent).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("config", [SimSiamConfig(), HEADS], ids=["bare", "heads"])
def test_a_constant_batch_is_finite_with_finite_gradient(config, constant):
    latent, guess = (torch.full_like(x, constant).requires_grad_() for x in clip())
    losses = score(latent, guess, config=config)
    losses.total.backward()
    assert losses.total.isfinite() and guess.grad.isfinite().all()
    assert all(metric.isfinite() for metric in losses.metrics.values())


def test_heads_have_the_published_layers():
    objective = build(HEADS)
    shapes = [tuple(p.shape) for p in objective.parameters() if p.requires_grad and p.ndim == 2]
    assert shapes == [(16, 4), (16, 16), (16, 16), (6, 16), (16, 6)]
    frozen = [name for name, p in objective.named_parameters() if not p.requires_grad]
    assert frozen == ["projector.7.weight", "projector.7.bias"]
    assert not list(build().parameters())


def test_the_projected_target_is_normalised_and_heads_are_trained():
    objective = build(HEADS)
    latent, guess = clip(dtype=torch.float32)
    projected = objective.projector(latent).flatten(0, 2)
    assert_close(projected.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    assert_close(projected.std(0, unbiased=False), torch.ones(16), atol=1e-3, rtol=0)
    objective(latent, (guess,), None, seeded()).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


def test_bfloat16_is_within_two_percent_also_through_heads():
    latent, guess = clip(dtype=torch.float32)
    for config in (SimSiamConfig(), HEADS):
        exact, rounded = (score(*x, config=config).terms for x in ((latent, guess), (latent.bfloat16(), guess)))
        assert rounded["simsiam"].dtype == torch.float32
        assert rounded["simsiam"].item() == pytest.approx(exact["simsiam"].item(), rel=0.02)


def test_a_single_sample_has_no_statistics():
    latent = torch.randn(1, 2, 1, 4, generator=seeded())
    assert score(latent, latent[:, 1:]).metrics["unit_std"] == 0
    with pytest.raises(ValueError, match="BatchNorm"):
        score(latent, latent[:, 1:], config=HEADS)


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"projector": 0}, {"predictor": -4}])
def test_a_bad_config_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        SimSiamConfig(**wrong)


RANKED = [SimSiamConfig(), HEADS, SimSiamConfig(predictor=8, prediction=PredictionConfig("cosine", weight=0.0))]


def step(config, x_BTC):
    objective = build(config).double()
    net = torch.nn.Linear(6, 8).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=seeded())
    latent = net(x_BTC).unflatten(-1, (2, 4))
    losses = objective(latent, (latent[:, :-1], latent[:, :-1].flip(-1)), None, seeded())
    losses.total.backward()
    both = torch.nn.ModuleList([net, objective])
    average_gradients(both)
    return losses.detach(), [p.grad for p in both.parameters() if p.grad is not None], list(objective.buffers())


def half_step(rank, x_BTC):
    results = [step(config, x_BTC.chunk(2)[rank]) for config in RANKED]
    return [(losses.terms, losses.metrics, *rest) for losses, *rest in results]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    x_BTC = torch.randn(12, 3, 6, generator=seeded(1), dtype=torch.float64)
    halves = on_two_ranks(half_step, x_BTC)
    for config, *both in zip(RANKED, *halves, strict=True):
        losses, grads, buffers = step(config, x_BTC)
        for name, term in losses.terms.items():  # means over the clips of a rank, as everywhere
            assert_close(sum(terms[name] for terms, *_ in both) / 2, term, rtol=1e-9, atol=0)
        for _, metrics, ranked, state in both:
            assert_close(metrics, losses.metrics, rtol=1e-9, atol=0)
            assert_close(ranked, grads, rtol=1e-9, atol=1e-12)
            assert_close(state, buffers, rtol=1e-9, atol=1e-12)
