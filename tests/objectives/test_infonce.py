"""InfoNCE against golden values, its closed forms, the frames that are the same, and one process against two."""

import math

import pytest
import torch
from torch.testing import assert_close
from toy_models import toy_model

from lewm.data.windows import Batch
from lewm.distributed import average_gradients
from lewm.objectives.health import effective_rank
from lewm.objectives.infonce import (
    InfoNCE,
    InfoNCEConfig,
    Same,
    info_nce,
    same_frames,
    soft_cross_entropy,
    thumbnails,
)

ROW, COLUMN = torch.arange(12, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
X = torch.sin(0.7 * ROW + 1.3 * COLUMN + 0.1 * ROW * COLUMN)
Y = torch.cos(0.5 * ROW - 0.9 * COLUMN + 0.23 * ROW * COLUMN + 0.2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(x_ND):
    """N clips of one frame of one token."""
    return x_ND[:, None, None]


def build(config=InfoNCEConfig()):  # noqa: B008
    return InfoNCE(config, toy_model())


def clip(B=16, T=4, K=2, D=8, dtype=torch.float64, seed=0):
    latent = torch.randn(B, T, K, D, generator=seeded(seed), dtype=dtype)
    return latent, latent[:, 1:] + 0.3 * torch.randn(B, T - 1, K, D, generator=seeded(seed + 1), dtype=dtype)


def recording(index, T=3, size=16, seed=5):
    """Clips whose pictures are all different."""
    pixels = torch.randint(0, 256, (len(index), T, 3, size, size), generator=seeded(seed), dtype=torch.uint8)
    empty = torch.zeros(len(index), T - 1, 2)
    return Batch(pixels, empty, empty, torch.tensor(index))


# The contrast


def test_golden():
    assert info_nce(frames(X), frames(Y), 10.0).loss.item() == pytest.approx(6.3192742953, abs=1e-9)


def test_by_hand():
    """Two clips: cosines 1 and 0 with the own frame, 0.6 and 0.8 with the other's."""
    target = frames(torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    guess = frames(torch.tensor([[3.0, 0.0], [0.6, 0.8]], dtype=torch.float64))
    logits = 2 * torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    rows, columns = (-x.log_softmax(1).diagonal().mean() for x in (logits, logits.T))
    found = info_nce(guess, target, 2.0)
    assert_close(found.loss, (rows + columns) / 2)
    assert_close(found.information, math.log(2) - found.loss)
    assert found.accuracy == 1


@pytest.mark.parametrize("temperature, expected", [(0.07, 7.94e-5), (1.0, 3.8654)])
def test_perfect_orthonormal_pairs(temperature, expected):
    pairs = frames(torch.eye(128, dtype=torch.float64))
    found = info_nce(pairs, pairs, 1 / temperature)
    assert found.loss.item() == pytest.approx(expected, rel=1e-3)
    assert found.accuracy == 1


@pytest.mark.parametrize("other_times, candidates", [(None, 20), (1, 22), (2, 20 + 2 / 3)])
def test_collapse_scores_the_log_of_the_number_of_candidates(other_times, candidates):
    same = torch.full((10, 3, 2, 4), 0.7, dtype=torch.float64)
    found = info_nce(same, same, 14.0, None, other_times)
    expected = math.log(candidates) if other_times != 2 else (2 * math.log(21) + math.log(20)) / 3
    assert found.loss.item() == pytest.approx(expected, rel=1e-12)
    assert found.information.item() == pytest.approx(0, abs=1e-12)


def test_independent_latents_score_about_the_log_of_the_batch():
    target, guess = (torch.randn(256, 2, 1, 512, generator=seeded(i)) for i in range(2))
    assert info_nce(guess, target, 1.0).loss.item() == pytest.approx(math.log(256), rel=0.01)


def test_rotation_scale_and_order_do_not_matter():
    latent, guess = clip(T=3)
    target = latent[:, 1:]
    loss = info_nce(guess, target, 10.0).loss
    turn = torch.linalg.qr(torch.randn(8, 8, generator=seeded(3), dtype=torch.float64)).Q
    assert_close(info_nce(guess @ turn, target @ turn, 10.0).loss, loss)
    lengths = torch.rand(16, 2, 2, 1, generator=seeded(4), dtype=torch.float64) + 0.1
    assert_close(info_nce(guess * lengths, 5 * target, 10.0).loss, loss)
    order = torch.randperm(16, generator=seeded(5))
    assert_close(info_nce(guess[order], target[order], 10.0).loss, loss)


def test_both_directions_count_the_same():
    latent, guess = clip()
    assert_close(info_nce(guess, latent[:, 1:], 5.0, None, 1).loss, info_nce(latent[:, 1:], guess, 5.0, None, 1).loss)


def test_one_contrast_per_time_step_over_clips_and_tokens():
    latent, guess = clip()
    target = latent[:, 1:]
    alone = [info_nce(frames(guess[:, t].flatten(0, 1)), frames(target[:, t].flatten(0, 1)), 5.0) for t in range(3)]
    assert_close(info_nce(guess, target, 5.0).loss, torch.stack([found.loss for found in alone]).mean())


def test_other_times_written_out():
    """Against loops: candidates are all clips and tokens now, and the own clip and token two or more steps away."""
    latent, guess = clip(B=3, T=5, K=2)
    target = latent[:, 1:]
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (guess, target)]
    losses = []
    for one, other in (unit, unit[::-1]):
        for t in range(4):
            for b in range(3):
                for k in range(2):
                    logits = {(c, t, m): 4 * one[b, t, k] @ other[c, t, m] for c in range(3) for m in range(2)}
                    logits |= {(b, s, k): 4 * one[b, t, k] @ other[b, s, k] for s in range(4) if abs(s - t) >= 2}
                    losses.append(torch.stack(list(logits.values())).logsumexp(0) - logits[b, t, k])
    assert_close(info_nce(guess, target, 4.0, None, 2).loss, torch.stack(losses).mean())


def test_gradients_with_other_times_are_those_of_finite_differences():
    latent, guess = (x.requires_grad_() for x in clip(B=3, T=4, K=1, D=3))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, p, s: info_nce(p, z[:, 1:], s, None, 2).loss, (latent, guess, scale))


# Frames that are the same


def test_equal_shares_on_several_positives_by_hand():
    logit = torch.tensor([[1.0, 1.0, 0.0, -math.inf]], dtype=torch.float64)
    positive = torch.tensor([[True, True, False, False]])
    assert soft_cross_entropy(logit, positive).item() == pytest.approx(math.log(2 + math.exp(-1)))
    one = torch.tensor([[False, True, False, False]])
    assert soft_cross_entropy(logit, one).item() == pytest.approx(math.log(2 + math.exp(-1)))


def test_no_gradient_pushes_duplicates_apart():
    """Clips 0 and 1 show the same and are embedded alike: as positives they rest, as negatives they repel."""
    target = torch.eye(6, dtype=torch.float64)[[0, 0, 1, 2, 3, 4]]
    across = torch.eye(6, dtype=torch.bool)[None]
    across[0, [0, 1], [1, 0]] = True
    same = Same(across, torch.zeros(6, 1, 1, dtype=torch.bool))
    found = info_nce(frames(target), frames(target), 20.0, same)
    assert found.loss.item() == pytest.approx(2 / 6 * math.log(2), abs=1e-6)
    moved = target.clone()
    moved[0, 5], moved[1, 5] = 0.1, -0.1
    for told, attracts in ((same, True), (None, False)):
        leaf = moved.clone().requires_grad_()
        info_nce(frames(leaf), frames(leaf), 20.0, told).loss.backward()
        assert (leaf.grad[0, 5] > 0) == (leaf.grad[1, 5] < 0) == attracts


def test_tokens_of_the_same_frames_pair_up_by_position():
    latent, guess = clip(B=2, T=2, K=3)
    both = Same(torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(2, 1, 1, dtype=torch.bool))
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (guess[:, 0].flatten(0, 1), latent[:, 1].flatten(0, 1))]
    logits = 5 * unit[0] @ unit[1].T
    share = torch.eye(3, dtype=torch.float64).repeat(2, 2) / 2
    by_hand = -sum((share * x.log_softmax(1)).sum(1).mean() for x in (logits, logits.T)) / 2
    assert_close(info_nce(guess, latent[:, 1:], 5.0, both).loss, by_hand)


def test_clips_that_start_close_together_are_the_same():
    batch = recording([10, 12, 13, 500])
    same = same_frames(batch, InfoNCEConfig(window_tolerance=2))
    expected = torch.eye(4, dtype=torch.bool)
    expected[[0, 1, 1, 2], [1, 0, 2, 1]] = True
    assert torch.equal(same.across_TBB, expected.expand(2, -1, -1))
    assert torch.equal(same.within_BTT, torch.eye(2, dtype=torch.bool).expand(4, -1, -1))
    assert not same_frames(batch, InfoNCEConfig(window_tolerance=None, picture_tolerance=None)).across_TBB.any()


@pytest.mark.parametrize("size", [16, 64])
def test_frames_with_the_same_picture_are_the_same(size):
    batch = recording([0, 1000, 2000], size=size)
    batch.pixels_BTCYX[2, 1] = batch.pixels_BTCYX[0, 1]
    batch.pixels_BTCYX[1, 2] = batch.pixels_BTCYX[1, 1]
    same = same_frames(batch, InfoNCEConfig())
    now, later = torch.eye(3, dtype=torch.bool), torch.eye(3, dtype=torch.bool)
    now[[0, 2], [2, 0]] = True
    assert torch.equal(same.across_TBB, torch.stack([now, later]))
    assert same.within_BTT.sum((1, 2)).tolist() == [2, 4, 2]


def test_the_picture_tolerance_is_a_root_mean_square_in_grey_levels():
    batch = recording([0, 1000])
    batch.pixels_BTCYX[:] = 100
    batch.pixels_BTCYX[1, 1] = 104
    batch.pixels_BTCYX[1, 2, 0, :4, :4] = 148  # 16 of 768 values differ by 48: 6.93
    for tolerance, expected in ((3.9, (False, False)), (4.1, (True, False)), (6.8, (True, False)), (7.0, (True, True))):
        same = same_frames(batch, InfoNCEConfig(picture_tolerance=tolerance))
        assert tuple(same.across_TBB[:, 0, 1].tolist()) == expected


def test_a_small_thing_that_moves_a_pixel_makes_another_picture():
    """A disc of radius 3 on a black 64 x 64 picture, one step to the side."""
    y, x = torch.arange(64)[:, None], torch.arange(64)
    batch = recording([0, 1000], T=2, size=64)
    batch.pixels_BTCYX[0, 1], batch.pixels_BTCYX[1, 1] = (
        (200 * ((y - 30) ** 2 + (x - at) ** 2 <= 9)).to(torch.uint8) for at in (30, 31)
    )
    assert not same_frames(batch, InfoNCEConfig()).across_TBB[0, 0, 1]
    assert thumbnails(batch.pixels_BTCYX).shape == (2, 2, 3 * 32 * 32)


def test_the_objective_uses_the_batch():
    latent, guess = clip(B=3, T=3, K=1)
    batch = recording([0, 1000, 2000])
    batch.pixels_BTCYX[1, 1:] = batch.pixels_BTCYX[0, 1:]
    told = build()(latent, (guess,), batch, seeded()).terms["infonce"]
    same = same_frames(batch, InfoNCEConfig())
    assert_close(told, info_nce(guess, latent[:, 1:], build().log_scale.exp(), same).loss)
    assert told != build()(latent, (guess,), None, seeded()).terms["infonce"]


# The objective


def test_terms_weights_and_metrics():
    latent, guess = clip()
    losses = build(InfoNCEConfig(weight=0.5, temperature=0.2))(latent, (guess, latent[:, 1:]), None, seeded())
    assert losses.weights == {"prediction": 1.0, "infonce": 0.5}
    ways = [info_nce(p, latent[:, 1:], 5.0).loss for p in (guess, latent[:, 1:])]
    assert_close(losses.terms["infonce"], sum(ways) / 2, rtol=1e-6, atol=0)
    assert losses.metrics["temperature"].item() == pytest.approx(0.2)
    assert losses.terms["infonce"].dtype == torch.float64
    assert not any(metric.requires_grad for metric in losses.metrics.values())


def test_the_temperature_learns_and_stays_in_its_range():
    objective = build()
    latent, guess = clip(dtype=torch.float32)
    objective(latent, (guess,), None, seeded()).total.backward()
    assert objective.log_scale.grad.abs() > 0
    for far, temperature in ((50.0, 0.01), (-50.0, 1.0)):
        objective.log_scale.data.fill_(far)
        objective.after_step(toy_model(), 0.5)
        assert objective.log_scale.exp().item() == pytest.approx(1 / temperature)
        assert objective.log_scale.requires_grad


def test_a_fixed_temperature_is_not_trained_but_saved():
    objective = build(InfoNCEConfig(learn_temperature=False))
    assert not objective.log_scale.requires_grad and "log_scale" in objective.state_dict()


@pytest.mark.parametrize("other_times", [None, 1])
@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_a_constant_batch_is_finite_with_finite_gradient(constant, other_times):
    objective = build(InfoNCEConfig(other_times=other_times))
    latent, guess = (torch.full_like(x, constant).requires_grad_() for x in clip())
    batch = recording([0] * 16, T=4)
    objective(latent, (guess,), batch, seeded()).total.backward()
    assert latent.grad.isfinite().all() and guess.grad.isfinite().all() and objective.log_scale.grad.isfinite()


def test_bfloat16_is_within_two_percent_and_autocast_changes_nothing():
    latent, guess = clip(B=64, dtype=torch.float32)
    exact = build()(latent, (guess,), None, seeded()).terms["infonce"]
    rounded = build()(latent.bfloat16(), (guess.bfloat16(),), None, seeded()).terms["infonce"]
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(build()(latent, (guess,), None, seeded()).terms["infonce"], exact)


def test_a_collapsed_batch_recovers():
    latent = torch.ones(64, 1, 1, 8) + 1e-3 * torch.randn(64, 1, 1, 8, generator=seeded())
    before = latent / latent.norm(dim=-1, keepdim=True)
    latent.requires_grad_()
    objective = build()
    optimizer = torch.optim.Adam([latent, *objective.parameters()], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        objective(latent.expand(-1, 2, -1, -1), (latent,), None, seeded()).total.backward()
        optimizer.step()
        objective.after_step(toy_model(), 0.5)
    unit = (latent / latent.norm(dim=-1, keepdim=True)).detach()
    assert effective_rank(unit.flatten(0, 2)) > 0.8 * 8
    assert before.std(0).mean() < 1e-3 and unit.std(0).mean() > 0.2  # 0.35 would be isotropic
    found = objective(latent.expand(-1, 2, -1, -1), (latent,), None, seeded()).metrics
    assert found["accuracy"] == 1 and found["information"] > 0.8 * math.log(64)


def test_one_sample_is_refused():
    latent = torch.randn(1, 3, 1, 4, generator=seeded())
    with pytest.raises(ValueError, match="2 or more samples per time step, not 1; raise the batch size"):
        build()(latent, (latent[:, 1:],), None, seeded())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"weight": -1.0}, "weight is -1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 1.5}, "temperature is 1.5"),
        ({"temperature": 0.005}, "temperature is 0.005 and min_temperature 0.01"),
        ({"other_times": 0}, "other_times is 0"),
        ({"window_tolerance": -1}, "window_tolerance is -1"),
        ({"picture_tolerance": math.nan}, "picture_tolerance is nan"),
    ],
)
def test_a_bad_config_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        InfoNCEConfig(**wrong)


# Data parallelism

RANKED = [InfoNCEConfig(), InfoNCEConfig(temperature=0.2, other_times=2), InfoNCEConfig(picture_tolerance=None)]


def step(config, x_BTC, batch):
    objective = build(config).double()
    net = torch.nn.Linear(6, 8).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=seeded())
    latent = net(x_BTC).unflatten(-1, (2, 4))
    losses = objective(latent, (latent[:, :-1], latent[:, :-1].flip(-1)), batch, seeded())
    losses.total.backward()
    both = torch.nn.ModuleList([net, objective])
    average_gradients(both)
    return losses.detach(), [p.grad for p in both.parameters()]


def ranked_batch(part=slice(None)):
    batch = recording([7, 100, 300, 400, 8, 500], T=4)
    batch.pixels_BTCYX[5, 2:] = batch.pixels_BTCYX[1, 2]  # the same over ranks and static
    return Batch(batch.pixels_BTCYX[part], batch.action_BTA[part], batch.state_BTS[part], batch.index_B[part])


def half_step(rank, x_BTC):
    part = slice(3 * rank, 3 * rank + 3)
    results = [step(config, x_BTC[part], ranked_batch(part)) for config in RANKED]
    return [(losses.terms, losses.metrics, grads) for losses, grads in results]


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    x_BTC = torch.randn(6, 4, 6, generator=seeded(1), dtype=torch.float64)
    halves = on_two_ranks(half_step, x_BTC)
    for config, *both in zip(RANKED, *halves, strict=True):
        losses, grads = step(config, x_BTC, ranked_batch())
        for terms, metrics, ranked in both:
            assert_close(terms["infonce"], losses.terms["infonce"], rtol=1e-9, atol=0)
            assert_close(metrics, losses.metrics, rtol=1e-9, atol=1e-12)
            assert_close(ranked, grads, rtol=1e-9, atol=1e-12)
