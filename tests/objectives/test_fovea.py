"""The fovea looks at the thing, wherever it is and however it lies; what it draws makes a latent hold the angle."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from toy_models import SIZE, toy_model

import envs
from lewm.data.windows import Batch
from lewm.distributed import average_gradients
from lewm.nets.encoders import ConvConfig
from lewm.nets.encoders.conv import ConvEncoder
from lewm.objectives.fovea import Fovea, FoveaConfig, gaze, thumbnails, window
from lewm.probes import mlp_probe_r2

SMALL = FoveaConfig(window=0.5, pixels=4, hidden=8)


def scene(places_N2, angles_N, size=SIZE):
    """uint8 (N, 3, size, size): a dark rod with one thick end, centred at (y, x) and turned, on a grey floor."""
    y_N, x_N = torch.as_tensor(places_N2, dtype=torch.float32).T[:, :, None, None]
    angle_N = torch.as_tensor(angles_N)[:, None, None]
    y, x = torch.meshgrid(*(torch.arange(size) + 0.5 for _ in range(2)), indexing="ij")
    along = angle_N.cos() * (x - x_N) + angle_N.sin() * (y - y_N)
    across = angle_N.cos() * (y - y_N) - angle_N.sin() * (x - x_N)
    rod = (along.abs() < 5) & (across.abs() < torch.where(along > 1, 2.5, 1.0))
    return torch.where(rod, 40, 200).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


def clips(pixels_NCYX, T=1):
    B = len(pixels_NCYX) // T
    return Batch(pixels_NCYX.unflatten(0, (B, T)), torch.zeros(B, T - 1, 4), torch.zeros(B, T, 1), torch.arange(B))


def random_scene(N, seed):
    generator = torch.Generator().manual_seed(seed)
    places = 8 + 16 * torch.rand(N, 2, generator=generator)
    angles = 2 * math.pi * torch.rand(N, generator=generator)
    return scene(places, angles), places, angles


def test_the_gaze_is_at_the_middle_of_a_thing():
    salience = torch.zeros(2, 40, 40)
    salience[0, 5:9, 20:30] = 1.0
    salience[1, 30:36, 3:7] = 2.0
    salience[1, 2, 38] = 5.0  # brighter, but small
    assert_close(gaze(salience, 16.0), torch.tensor([[7.0, 25.0], [33.0, 5.0]]))


def test_a_blank_picture_is_looked_at_somewhere_without_nan():
    assert gaze(torch.zeros(1, 8, 8), 4.0).isfinite().all()


def test_a_window_is_the_average_of_what_it_covers_and_zero_outside():
    picture = torch.arange(64.0).view(1, 1, 8, 8)
    cut = window(picture, torch.tensor([[4.0, 4.0]]), 4.0, 2)
    assert_close(cut[0, 0], picture[0, 0, 2:6, 2:6].unflatten(0, (2, 2)).unflatten(2, (2, 2)).mean((1, 3)))
    assert_close(window(picture, torch.tensor([[0.0, 0.0]]), 4.0, 2)[0, 0, 0, 0], torch.tensor(0.0))


def test_the_same_thing_elsewhere_gives_the_same_thumbnail_and_turned_another():
    floor = torch.full((200, 3, SIZE, SIZE), 200, dtype=torch.uint8)  # what the mean picture is mostly taken over
    places = [(10, 10), (10, 22), (21, 12), (16, 16)]
    same = scene(places, [0.6] * 4)
    turned = scene(places, [0.6 + math.pi] * 4)
    seen = thumbnails(torch.cat([same, turned, floor])[:, None], FoveaConfig(window=0.5, pixels=8))[:8, 0]
    apart = torch.cdist(seen.flatten(1), seen.flatten(1))
    assert apart[:4, :4].max() < 0.5 * apart[:4, 4:].min()


def test_large_pictures_are_looked_at_like_small_ones():
    pixels = random_scene(40, 1)[0]
    large = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)
    config = FoveaConfig(window=0.5, pixels=8)
    assert_close(thumbnails(large[:, None], config), thumbnails(pixels[:, None], config), atol=0.12, rtol=0)


def test_the_loss_is_one_for_the_mean_thumbnail_and_zero_for_perfect_ones():
    pixels = random_scene(24, 2)[0]
    batch, fovea = clips(pixels), Fovea(SMALL, toy_model()).double()
    seen = thumbnails(batch.pixels_BTCYX, SMALL).double()
    latent = torch.randn(24, 1, 1, 4, dtype=torch.float64)
    fovea.forward = lambda z: seen.mean((0, 1)).expand_as(seen)
    assert fovea.loss(latent, batch).item() == pytest.approx(1.0, rel=1e-5)
    fovea.forward = lambda z: seen
    assert fovea.loss(latent, batch).item() == pytest.approx(0.0, abs=1e-12)
    fovea.forward = lambda z: 0 * seen
    squared, spread = seen.square().sum().item(), (seen - seen.mean((0, 1))).square().sum().item()
    assert fovea.loss(latent, batch).item() == pytest.approx(squared / spread, rel=1e-5)


def test_only_the_newest_frame_of_a_stack_is_looked_at():
    old, new = (random_scene(12, seed)[0] for seed in (3, 4))
    fovea = Fovea(SMALL, toy_model(frame_stack=2))
    latent = torch.randn(12, 1, 1, 4)
    stacked = [fovea.loss(latent, clips(torch.cat([past, new], 1))) for past in (old, new)]
    assert torch.equal(*stacked)


def test_pictures_that_never_change_are_no_reason_to_diverge():
    batch = clips(torch.full((8, 3, SIZE, SIZE), 90, dtype=torch.uint8))
    latent = torch.randn(8, 1, 1, 4, requires_grad=True)
    fovea = Fovea(SMALL, toy_model())
    loss = fovea.loss(latent, batch)
    loss.backward()
    assert loss.isfinite() and latent.grad.isfinite().all()


def encoder_trained_on(loss_of, pixels_NCYX, steps=300):
    """An encoder of PushT's pictures after some steps on a loss."""
    torch.manual_seed(0)
    encoder = ConvEncoder(ConvConfig(latent_dim=64, channels=(16, 32, 64)), 3, SIZE)
    loss, learned = loss_of()
    optimizer = torch.optim.Adam([*encoder.parameters(), *learned], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        seen = pixels_NCYX[torch.randint(len(pixels_NCYX), (128,), generator=generator)]
        optimizer.zero_grad()
        loss(encoder(seen / 60.0 - 3.8), seen).backward()
        optimizer.step()
    return encoder.eval()


def drawing_the_fovea():
    model = SimpleNamespace(latent_dim=64, tokens=1, facts=SimpleNamespace(channels=3))
    fovea = Fovea(FoveaConfig(window=0.4, pixels=8, hidden=128), model)
    return lambda latent, pixels: fovea.loss(latent[:, None], clips(pixels)), fovea.parameters()


def drawing_the_picture():
    """The same network draws the whole picture at half its size."""
    decoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 768))

    def loss(latent, pixels):
        small = nn.functional.avg_pool2d(pixels / 255.0, 2).flatten(1)
        return (decoder(latent[:, 0]) - small).square().mean() / small.var(0).mean()

    return loss, decoder.parameters()


def test_an_encoder_that_draws_the_fovea_learns_the_angle_which_one_that_draws_pictures_leaves_out():
    """Measured: R2 0.95 and 0.0 of the worse of cos and sin."""
    env, rng = envs.make("push_t", size=SIZE), np.random.default_rng(0)
    states = np.stack([env._draw_state(rng) for _ in range(6000)])
    pixels = torch.from_numpy(np.stack([env.goal_image(state) for state in states])).permute(0, 3, 1, 2).contiguous()
    angle = torch.from_numpy(states[:, 4]).float()
    target = torch.stack([angle.cos(), angle.sin()], 1)
    r2 = {}
    for loss_of in (drawing_the_fovea, drawing_the_picture):
        encoder = encoder_trained_on(loss_of, pixels[:4500])
        with torch.no_grad():
            latent = encoder(pixels / 60.0 - 3.8)[:, 0]
        r2[loss_of] = mlp_probe_r2(latent[:4500], target[:4500], latent[4500:], target[4500:]).min().item()
    assert r2[drawing_the_fovea] > 0.8 > 0.3 > r2[drawing_the_picture], r2


def parallel_step(rows):
    pixels = random_scene(12, 7)[0]
    torch.manual_seed(3)
    encoder, fovea = nn.Linear(6, 4).double(), Fovea(SMALL, toy_model()).double()
    both = nn.ModuleList([encoder, fovea])
    x = torch.randn(6, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = clips(pixels, T=2)
    batch = Batch(whole.pixels_BTCYX[rows], whole.action_BTA[rows], whole.state_BTS[rows], whole.index_B[rows])
    loss = fovea.loss(encoder(x[rows])[:, :, None], batch)
    loss.backward()
    average_gradients(both)
    return loss.detach(), [p.grad for p in both.parameters()]


def half_step(rank):
    return parallel_step(slice(3 * rank, 3 * rank + 3))


def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(on_two_ranks):
    first, second = on_two_ranks(half_step)
    whole = parallel_step(slice(0, 6))
    assert_close((first[0] + second[0]) / 2, whole[0], rtol=1e-5, atol=0)
    for one, other, grad in zip(first[1], second[1], whole[1], strict=True):
        assert torch.equal(one, other)
        assert_close(one, grad, rtol=1e-5, atol=1e-7)


def test_faults_are_named():
    with pytest.raises(ValueError, match="the fovea looks at pixels, but no batch was given"):
        Fovea(SMALL, toy_model()).loss(torch.zeros(2, 1, 1, 4), None)
    for change, message in (({"window": 0.0}, r"fovea window is 0\.0; it must lie in"), ({"pixels": 0}, "pixels is 0")):
        with pytest.raises(ValueError, match=message):
            FoveaConfig(**change)
