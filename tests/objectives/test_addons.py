"""Add-ons by hand and by golden value, over any inner objective; over processes `pldm` and `reconstruction` as well."""

from dataclasses import asdict, replace

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.testing import assert_close
from toy_models import SIZE, toy_model

from lewm.data.windows import Batch
from lewm.distributed import average_gradients
from lewm.objectives import Losses, Objective, SigRegConfig, build_objective
from lewm.objectives.addons import AddOns, AddOnsConfig, InverseDynamics, add_ons, straightening, time_similarity
from lewm.objectives.pldm import PLDM, PLDMConfig
from lewm.objectives.reconstruction import DecoderConfig, Reconstruction, ReconstructionConfig

SMALL = DecoderConfig((4, 4))
ALL = AddOnsConfig(
    straightening=0.1, inverse_dynamics=2.0, hidden=8, time_similarity=0.3, decoder=0.5, decoder_shape=SMALL
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def golden_clips():
    """X of the golden values as three clips of four frames, one token of four dimensions."""
    i, j = torch.arange(12.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    return torch.sin(0.7 * i + 1.3 * j + 0.1 * i * j).view(3, 4, 1, 4)


def toy_batch(B=6, T=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (B, T, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    action = torch.rand(B, T - 1, 4, generator=generator) * 2 - 1
    return Batch(pixels, action, torch.zeros(B, T, 1), torch.arange(B))


def path(*points):
    return torch.tensor(points, dtype=torch.float64).view(1, len(points), 1, -1)


class Constant(Objective):
    """An inner objective with one term and a memory of its steps."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def forward(self, latent_BTKD, predicted, batch, generator):
        return Losses({"own": latent_BTKD.square().mean()}, {"own": 3.0}, {"seen": torch.tensor(7.0)})

    def after_step(self, model, progress):
        self.steps.append((model, progress))


def score(config, latent, batch=None, inner=None):
    objective = add_ons(inner or Constant(), config, toy_model()).to(latent.dtype)
    return objective(latent, (latent[:, 1:],), batch, torch.Generator())


# Straightening.


def test_straightening_golden_value():
    assert straightening(golden_clips()).item() == pytest.approx(0.3590992014, abs=1e-9)


@pytest.mark.parametrize(
    "points, expected",
    [
        ([(0, 0), (1, 2), (3, 6), (3.5, 7)], 0.0),  # straight, at any speed
        ([(0, 0), (1, 0), (0, 0)], 2.0),
        ([(0, 0), (1, 0), (1, 5)], 1.0),
        ([(0, 0), (1, 0), (1, 0), (1, 5)], 0.0),  # both pairs hold a standstill: nothing counts
        ([(0, 0), (1, 0), (0, 0), (0, 0), (0, 3)], 2.0),  # only the reversal counts
    ],
)
def test_straightening_by_hand(points, expected):
    assert straightening(path(*points)).item() == pytest.approx(expected, abs=1e-12)


def test_straightening_ignores_rotation_translation_and_scale():
    z = normal(5, 6, 2, 4)
    turn, _ = torch.linalg.qr(normal(4, 4, seed=1))
    assert_close(straightening(30 * z @ turn + 5), straightening(z))
    assert not torch.allclose(straightening(z * torch.tensor([1.0, 1, 1, 9])), straightening(z))


def test_straightening_of_pooled_tokens_is_that_of_the_mean_token():
    z = normal(5, 6, 3, 4)
    assert_close(straightening(z, pool_tokens=True), straightening(z.mean(2, keepdim=True)))
    assert not torch.allclose(straightening(z, pool_tokens=True), straightening(z))


def test_straightening_of_static_clips_is_zero_with_zero_gradient():
    z = torch.ones(4, 5, 2, 3, requires_grad=True)
    loss = straightening(z)
    loss.backward()
    assert loss.item() == 0 and torch.equal(z.grad, torch.zeros_like(z))


def test_straightening_gradient_is_finite_when_some_clips_stand_still():
    z = normal(4, 5, 2, 3)
    z[0] = 0.5
    z[1, 2:] = z[1, 2]
    z.requires_grad_()
    straightening(z).backward()
    assert z.grad.isfinite().all() and z.grad[2:].abs().min() > 0 and z.grad[0].abs().max() == 0


def test_straightening_straightens_a_path():
    z = normal(8, 6, 1, 4).requires_grad_()
    before = straightening(z).item()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        straightening(z).backward()
        optimizer.step()
    assert before > 1.0 > 0.1 > straightening(z).item()


# Time similarity and inverse dynamics.


def test_time_similarity_by_hand():
    assert time_similarity(path((0, 0), (1, 2), (1, 5))).item() == pytest.approx((1 + 4 + 0 + 9) / 4)
    assert time_similarity(torch.full((2, 3, 1, 4), 5.0)).item() == 0


def linear_head(sign):
    """Reads Δz exactly: relu(x) - relu(-x) = x. The toy's latent and action block have four entries each."""
    head = InverseDynamics(toy_model(), hidden=8).double()
    eye = torch.eye(4, dtype=torch.float64)
    difference = torch.cat([-eye, eye], 1) * sign
    with torch.no_grad():
        head.up.weight.copy_(torch.cat([difference, -difference]))
        head.down.weight.copy_(torch.cat([eye, -eye], 1))
        head.up.bias.zero_()
        head.down.bias.zero_()
    return head


@pytest.mark.parametrize("tokens", [1, 3])
def test_inverse_dynamics_is_zero_for_a_latent_that_moves_by_the_action(tokens):
    batch, model = toy_batch(), toy_model()
    step = model.scale_action(batch.action_BTA).double()
    start = normal(6, 1, tokens, 4)
    latent = torch.cat([start, start + step.cumsum(1)[:, :, None]], 1)
    assert linear_head(1).loss(latent, batch).item() == pytest.approx(0, abs=1e-12)
    wrong = linear_head(-1).loss(latent, batch).item()
    assert wrong == pytest.approx(4 * step.square().mean().item(), rel=1e-6)
    assert linear_head(1).loss(latent.flip(1), batch).item() > 1.0


def test_inverse_dynamics_pairs_a_frame_with_the_next_and_trains_the_latents():
    batch, head = toy_batch(), InverseDynamics(toy_model(), hidden=8).double()
    latent = normal(6, 4, 1, 4).requires_grad_()
    z = latent.detach()[:, :, 0]
    by_hand = torch.relu(torch.cat([z[:, :-1], z[:, 1:]], -1) @ head.up.weight.T + head.up.bias)
    guess = by_hand @ head.down.weight.T + head.down.bias
    loss = head.loss(latent, batch)
    assert_close(loss, (guess - toy_model().scale_action(batch.action_BTA)).square().mean())
    loss.backward()
    assert (latent.grad.abs().sum((0, 2, 3)) > 0).all()


# The wrapper.


def test_terms_are_added_to_those_of_any_objective():
    batch, latent = toy_batch(), normal(6, 4, 1, 4, dtype=torch.float32)
    losses = score(ALL, latent, batch)
    assert losses.weights == {
        "own": 3.0, "straightening": 0.1, "inverse_dynamics": 2.0, "time_similarity": 0.3, "decoder": 0.5
    }  # fmt: skip
    assert_close(losses.terms["own"], latent.square().mean())
    assert_close(losses.terms["straightening"], straightening(latent))
    assert_close(losses.terms["time_similarity"], time_similarity(latent))
    assert losses.metrics["seen"] == 7
    assert losses.total.item() == pytest.approx(sum(losses.weights[k] * v.item() for k, v in losses.terms.items()))
    inner = build_objective(SigRegConfig(slices=8), toy_model())
    wrapped = add_ons(inner, ALL, toy_model())(latent, (latent[:, 1:],), batch, torch.Generator().manual_seed(0))
    alone = inner(latent, (latent[:, 1:],), batch, torch.Generator().manual_seed(0))
    assert wrapped.terms.keys() == alone.terms.keys() | losses.terms.keys() - {"own"}
    assert all(torch.equal(wrapped.terms[k], alone.terms[k]) for k in alone.terms)


@pytest.mark.parametrize("name", ["straightening", "inverse_dynamics", "time_similarity", "decoder"])
def test_each_add_on_can_be_the_only_one(name):
    config = AddOnsConfig(**{name: 0.7}, decoder_shape=SMALL)
    losses = score(config, normal(6, 4, 1, 4, dtype=torch.float32), toy_batch())
    assert losses.weights == {"own": 3.0, name: 0.7}


def test_with_everything_off_the_objective_is_left_alone():
    inner = Constant()
    assert add_ons(inner, AddOnsConfig(), toy_model()) is inner
    assert not list(AddOns(inner, AddOnsConfig(), toy_model()).parameters())


def test_after_every_step_the_inner_objective_is_told():
    inner, model = Constant(), toy_model()
    add_ons(inner, ALL, model).after_step(model, 0.25)
    assert inner.steps == [(model, 0.25)]


@pytest.mark.parametrize("detached", [True, False])
def test_the_decoder_only_watches_unless_told_otherwise(detached):
    config = AddOnsConfig(decoder=1.0, decoder_detached=detached, decoder_shape=SMALL)
    latent = normal(6, 4, 1, 4, dtype=torch.float32).requires_grad_()
    objective = add_ons(Constant(), config, toy_model())
    objective(latent, (), toy_batch(), torch.Generator()).terms["decoder"].backward()
    assert (latent.grad is None) == detached
    assert all(p.grad.abs().sum() > 0 for p in objective.parameters())


def test_bfloat16_latents_are_scored_in_float32():
    latent, batch = normal(32, 4, 1, 4, dtype=torch.float32), toy_batch(32)
    objective = add_ons(Constant(), ALL, toy_model())
    exact = objective(latent, (), batch, torch.Generator())
    rounded = objective(latent.bfloat16(), (), batch, torch.Generator())
    for name in exact.terms.keys() - {"own"}:
        assert rounded.terms[name].dtype == torch.float32
        assert rounded.terms[name].item() == pytest.approx(exact.terms[name].item(), rel=0.02)


def test_a_constant_latent_has_finite_gradients():
    latent = torch.zeros(6, 4, 1, 4, requires_grad=True)
    losses = score(replace(ALL, decoder_detached=False), latent, toy_batch())
    losses.total.backward()
    assert losses.total.isfinite() and latent.grad.isfinite().all()


def test_a_config_survives_being_written_and_read():
    assert TypeAdapter(AddOnsConfig).validate_python(asdict(ALL)) == ALL


def test_faults_are_named():
    latent, batch = normal(6, 4, 1, 4, dtype=torch.float32), toy_batch()
    with pytest.raises(ValueError, match=r"straightening needs clips of 3 or more frames, not 2; raise train\.frames"):
        straightening(latent[:, :2])
    with pytest.raises(ValueError, match="time similarity needs clips of 2 or more frames, not 1"):
        time_similarity(latent[:, :1])
    head = InverseDynamics(toy_model(), 8)
    with pytest.raises(ValueError, match="inverse dynamics reads actions, but no batch was given"):
        head.loss(latent, None)
    with pytest.raises(ValueError, match="inverse dynamics needs clips of 2 or more frames, not 1"):
        head.loss(latent[:, :1], batch)
    with pytest.raises(ValueError, match=r"actions have shape \(6, 3, 4\), but the clips need \(6, 2, 4\)"):
        head.loss(latent[:, :3], batch)
    with pytest.raises(ValueError, match="add-on inverse_dynamics: the objective has this term already"):
        score(AddOnsConfig(inverse_dynamics=1.0), latent, batch, PLDM(PLDMConfig(hidden=8), toy_model()))
    with pytest.raises(ValueError, match=r"add-on straightening has weight -0\.1; it must be 0"):
        AddOnsConfig(straightening=-0.1)
    with pytest.raises(ValueError, match="hidden is 0"):
        AddOnsConfig(hidden=0)


# Data parallelism, for everything this file, `pldm` and `reconstruction` define.


def parallel_objectives():
    model = toy_model()
    torch.manual_seed(0)
    pldm = PLDMConfig(hidden=8, time_covariance=0.5)
    return [
        add_ons(Constant(), replace(ALL, decoder_detached=False), model),
        PLDM(pldm, model),
        add_ons(PLDM(replace(pldm, preset="swm", frames="first"), model), AddOnsConfig(straightening=0.1), model),
        Reconstruction(ReconstructionConfig(decoder=SMALL), model),
    ]


def parallel_step(rows):
    """Total losses and gradients of the given clips, averaged over ranks as in training."""
    generator = torch.Generator().manual_seed(1)
    x_BTC = torch.randn(6, 4, 6, generator=generator, dtype=torch.float64)
    x_BTC[4, 1:] = x_BTC[4, 1]  # one clip stands still: the halves count different numbers of turns
    whole = toy_batch()
    batch = Batch(whole.pixels_BTCYX[rows], whole.action_BTA[rows], whole.state_BTS[rows], whole.index_B[rows])
    results = []
    for objective in parallel_objectives():
        encoder = nn.Linear(6, 4).double()
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
        both = nn.ModuleList([encoder, objective.double()])
        latent = encoder(x_BTC[rows])[:, :, None]
        losses = objective(latent, (latent[:, :-1], 0.5 * latent[:, 1:]), batch, torch.Generator().manual_seed(9))
        losses.total.backward()
        average_gradients(both)
        results.append((losses.total.detach(), [p.grad for p in both.parameters()]))
    return results


def half_step(rank):
    return parallel_step(slice(3 * rank, 3 * rank + 3))


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    halves = on_two_ranks(half_step)
    alone = parallel_step(slice(0, 3))
    for first, second, whole, half in zip(*halves, parallel_step(slice(0, 6)), alone, strict=True):
        assert_close((first[0] + second[0]) / 2, whole[0], rtol=1e-9, atol=0)
        for one, other, grad in zip(first[1], second[1], whole[1], strict=True):
            assert torch.equal(one, other)
            assert_close(one, grad, rtol=1e-9, atol=1e-9 * grad.abs().max().item())
        assert abs(half[0].item() - whole[0].item()) > 1e-3  # half the batch alone is another loss
