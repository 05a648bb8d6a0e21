"""What every row of the table of objectives keeps; a new row is covered by being there."""

import math
import typing
from dataclasses import asdict, replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import TypeAdapter
from torch import nn
from torch.testing import assert_close
from toy_models import toy_model

from lewm.distributed import average_gradients
from lewm.objectives import OBJECTIVES, ObjectiveConfig, PredictionConfig, SigRegConfig, build_objective

CONFIGS = {config.name: config for config in (cls() for cls in typing.get_args(ObjectiveConfig) or (ObjectiveConfig,))}
VARIANTS = [
    *CONFIGS.values(),
    SigRegConfig(preset="lewm_paper", slices=32, prediction=PredictionConfig("l1", stop_gradient=True)),
    SigRegConfig(pool_time=True, reference_batch=64, slices=32, prediction=PredictionConfig("cosine", weight=2.0)),
]
every_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def clip(B, T, K=2, D=8, seed=0, dtype=torch.float32):
    """Latents and one prediction of them."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(B, T, K, D, generator=generator, dtype=dtype)
    return latent, latent[:, 1:] + 0.3 * torch.randn(B, T - 1, K, D, generator=generator, dtype=dtype)


def score(name, latent, *predicted, config=None, seed=3):
    objective = build_objective(config or CONFIGS[name], toy_model())
    return objective(latent, predicted, None, torch.Generator().manual_seed(seed))


def test_the_table_and_the_configs_name_the_same_objectives():
    assert OBJECTIVES.keys() == CONFIGS.keys()


@every_objective
def test_a_config_survives_being_written_and_read(name):
    config = replace(CONFIGS[name], weight=0.25, prediction=PredictionConfig("cosine", True, 0.5))
    assert TypeAdapter(ObjectiveConfig).validate_python(asdict(config)) == config


@every_objective
def test_terms_are_named_finite_scalars_and_the_total_their_weighted_sum(name):
    latent, predicted = clip(16, 4)
    losses = score(name, latent, predicted)
    assert "prediction" in losses.terms and len(losses.terms) > 1
    assert all(term.ndim == 0 and term.dtype == torch.float32 for term in losses.terms.values())
    assert not any(metric.requires_grad for metric in losses.metrics.values())
    by_hand = sum(losses.weights[key] * term.item() for key, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(by_hand, rel=1e-6)


@every_objective
def test_the_smallest_batch_is_finite(name):
    latent, predicted = (x.requires_grad_() for x in clip(2, 2, K=1))
    losses = score(name, latent, predicted)
    losses.total.backward()
    assert losses.total.isfinite() and latent.grad.isfinite().all() and predicted.grad.isfinite().all()


@every_objective
def test_a_constant_batch_is_finite_with_finite_gradient(name):
    for constant in (0.0, 1.0):
        latent, predicted = (torch.full_like(x, constant).requires_grad_() for x in clip(8, 3))
        losses = score(name, latent, predicted)
        losses.total.backward()
        assert losses.total.isfinite() and latent.grad.isfinite().all() and predicted.grad.isfinite().all()


@every_objective
def test_the_order_of_the_batch_does_not_matter(name):
    latent, predicted = clip(32, 4, dtype=torch.float64)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    assert_close(score(name, latent[order], predicted[order]).total, score(name, latent, predicted).total)


@every_objective
def test_bfloat16_is_within_two_percent(name):
    latent, predicted = clip(64, 4)
    exact, rounded = score(name, latent, predicted), score(name, latent.bfloat16(), predicted.bfloat16())
    for key, term in exact.terms.items():
        assert rounded.terms[key].dtype == torch.float32
        assert rounded.terms[key].item() == pytest.approx(term.item(), rel=0.02)


@every_objective
def test_bfloat16_gradients_come_back_in_bfloat16_and_agree(name):
    latent, predicted = clip(64, 4)
    exact, rounded = latent.clone().requires_grad_(), latent.bfloat16().requires_grad_()
    score(name, exact, predicted).total.backward()
    score(name, rounded, predicted.bfloat16()).total.backward()
    assert rounded.grad.dtype == torch.bfloat16
    assert (rounded.grad - exact.grad).norm() < 0.02 * exact.grad.norm()


@every_objective
def test_the_generator_decides_everything_random(name):
    latent, predicted = clip(16, 4)
    torch.manual_seed(0)
    first = score(name, latent, predicted).total
    torch.manual_seed(1)
    assert torch.equal(first, score(name, latent, predicted).total)


def test_sigreg_total_by_hand():
    latent, predicted = clip(16, 4)
    losses = score(
        "sigreg", latent, predicted, config=SigRegConfig(weight=0.3, prediction=PredictionConfig(weight=2.0))
    )
    assert losses.weights == {"prediction": 2.0, "sigreg": 0.3}
    assert losses.terms["prediction"].item() == pytest.approx((predicted - latent[:, 1:]).square().mean().item())
    assert losses.total.item() == pytest.approx(
        2.0 * losses.terms["prediction"].item() + 0.3 * losses.terms["sigreg"].item()
    )


def test_reference_batch_keeps_the_balance_of_the_gradients():
    """A clip's SIGReg gradient over its prediction gradient is the same when every clip comes four times."""
    latent, predicted = clip(16, 3)
    ratios = []
    for copies in (1, 4):
        z, p = latent.repeat(copies, 1, 1, 1).requires_grad_(), predicted.repeat(copies, 1, 1, 1)
        losses = score("sigreg", z, p, config=SigRegConfig(reference_batch=64))
        grads = [
            torch.autograd.grad(losses.weights[key] * term, z, retain_graph=True)[0]
            for key, term in losses.terms.items()
        ]
        ratios.append(grads[1][0].norm() / grads[0][0].norm())
    assert_close(ratios[0], ratios[1], rtol=1e-4, atol=0)
    assert score("sigreg", latent, predicted, config=SigRegConfig(reference_batch=64)).weights[
        "sigreg"
    ] == pytest.approx(0.4)


# Data parallelism: the same step by one process with all clips and by two with half of them each.


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.predictor = nn.Linear(6, 8), nn.Linear(4, 4)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x_BTC):
        latent = self.encoder(x_BTC).unflatten(-1, (2, 4))
        return latent, (self.predictor(latent[:, :-1]), latent[:, :-1])


def step(config, x_BTC):
    """Total loss and gradients, averaged over ranks as in training."""
    toy = Toy()
    latent, predicted = toy(x_BTC)
    objective = build_objective(config, toy_model())
    losses = objective(latent, predicted, None, torch.Generator().manual_seed(9))
    losses.total.backward()
    average_gradients(toy)
    return losses.total.detach(), [p.grad for p in toy.parameters()]


def half_step(rank, folder, x_BTC):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([step(config, x_BTC.chunk(2)[rank]) for config in VARIANTS], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(tmp_path):
    x_BTC = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(1))
    mp.spawn(half_step, (str(tmp_path), x_BTC), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for config, first, second in zip(VARIANTS, *halves, strict=True):
        loss, grads = step(config, x_BTC)
        assert_close((first[0] + second[0]) / 2, loss, rtol=1e-5, atol=0, msg=lambda m, c=config: f"{c}: {m}")
        for one, other, whole in zip(first[1], second[1], grads, strict=True):
            assert torch.equal(one, other)
            assert_close(one, whole, rtol=1e-5, atol=1e-6 * whole.abs().max().item())
        alone, _ = step(config, x_BTC.chunk(2)[0])
        assert math.fabs(alone.item() - loss.item()) > 1e-3  # half the batch alone is another loss
