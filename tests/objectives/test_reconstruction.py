"""The pixel decoder: it draws what latents hold, from encoded and from predicted frames."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter
from torch.testing import assert_close
from toy_models import SIZE, toy_model

from lewm.data.windows import Batch
from lewm.objectives.prediction import PredictionConfig
from lewm.objectives.reconstruction import (
    Decoder,
    DecoderConfig,
    Reconstruction,
    ReconstructionConfig,
    explained,
    pixel_loss,
)

SMALL = DecoderConfig((8, 4))


def toy_batch(B=5, T=3, C=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (B, T, C, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.zeros(B, T - 1, 4), torch.zeros(B, T, 1), torch.arange(B))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(config=None, **model):
    torch.manual_seed(0)
    return Reconstruction(config or ReconstructionConfig(decoder=SMALL), toy_model(**model))


def grid_model(tokens, size=SIZE, width=4):
    """A model with several tokens per frame, as far as a decoder looks at it."""
    return SimpleNamespace(
        facts=SimpleNamespace(size=size),
        pixel_scale=torch.ones(3, 1, 1),
        pixel_shift=torch.zeros(3, 1, 1),
        tokens=tokens,
        latent_dim=width,
    )


@pytest.mark.parametrize("channels", [(4,), (8, 4), (16, 8, 8, 4, 4)])
@pytest.mark.parametrize("stack", [1, 2])
def test_pictures_have_the_size_and_channels_the_model_reads(channels, stack):
    decoder = Decoder(DecoderConfig(channels), toy_model(frame_stack=stack))
    assert decoder(normal(2, 3, 1, 4)).shape == (2, 3, 3 * stack, SIZE, SIZE)
    picture = decoder.picture(normal(2, 3, 1, 4))
    assert picture.shape == (2, 3, 3 * stack, SIZE, SIZE) and picture.dtype == torch.uint8


def test_the_default_decoder_is_small():
    assert sum(p.numel() for p in Decoder(DecoderConfig(), toy_model()).parameters()) < 200_000


def test_pixels_are_normalised_as_the_encoder_reads_them_and_back():
    model, batch = toy_model(), toy_batch()
    decoder = Decoder(SMALL, model)
    target = decoder.target(batch)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.facts.pixel_mean, model.facts.pixel_std))
    assert_close(target, (batch.pixels_BTCYX / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    decoder.forward = lambda latent: target
    assert torch.equal(decoder.picture(normal(5, 3, 1, 4)), batch.pixels_BTCYX)


def test_terms_by_hand():
    objective, batch, z = build(), toy_batch(), normal(5, 3, 1, 4)
    guesses = normal(5, 2, 1, 4, seed=1), normal(5, 2, 1, 4, seed=2)
    losses = objective(z, guesses, batch, None)
    decoder, pixels = objective.decoder, objective.decoder.target(batch)
    assert losses.weights == {"prediction": 1.0, "reconstruction": 1.0, "predicted_reconstruction": 1.0}
    assert_close(losses.terms["reconstruction"], (decoder(z) - pixels).square().mean())
    by_way = [(decoder(guess) - pixels[:, 1:]).square().mean() for guess in guesses]
    assert_close(losses.terms["predicted_reconstruction"], (by_way[0] + by_way[1]) / 2)
    latent_error = torch.stack([(guess - z[:, 1:]).square().mean() for guess in guesses]).mean()
    assert_close(losses.terms["prediction"], latent_error)


def test_weights_and_the_shared_prediction_term():
    config = ReconstructionConfig(
        prediction=PredictionConfig("l1", weight=0.5), weight=2.0, predicted_weight=0.0, decoder=SMALL
    )
    z, guess = normal(5, 3, 1, 4), normal(5, 2, 1, 4, seed=1)
    losses = build(config)(z, (guess,), toy_batch(), None)
    assert losses.weights == {"prediction": 0.5, "reconstruction": 2.0}
    assert_close(losses.terms["prediction"], (guess - z[:, 1:]).abs().mean())


def test_predicted_frames_are_compared_with_the_frames_they_predict():
    """A decoder that draws its latent as a grey level: frame t has level t, and so has its latent."""
    objective = build(ReconstructionConfig(decoder=DecoderConfig((4,))))
    decoder = objective.decoder
    levels = torch.arange(4.0).view(1, 4, 1, 1, 1)
    decoder.forward = lambda latent: latent[..., :1, None].expand(-1, -1, 3, SIZE, SIZE)
    decoder.target = lambda batch: levels.expand(2, 4, 3, SIZE, SIZE)
    z = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 1, 4)
    right, late = objective(z, (z[:, 1:],), toy_batch(2, 4), None), objective(z, (z[:, :-1],), toy_batch(2, 4), None)
    assert right.terms["predicted_reconstruction"].item() == 0 and right.terms["reconstruction"].item() == 0
    assert late.terms["predicted_reconstruction"].item() == pytest.approx(1.0)


def test_gradients_reach_decoder_latents_and_predictions():
    objective = build()
    z, guess = normal(5, 3, 1, 4).requires_grad_(), normal(5, 2, 1, 4, seed=1).requires_grad_()
    losses = objective(z, (guess,), toy_batch(), None)
    (losses.terms["reconstruction"] + losses.terms["predicted_reconstruction"]).backward()
    assert (z.grad.abs().sum((0, 2, 3)) > 0).all() and (guess.grad.abs().sum((0, 2, 3)) > 0).all()
    assert all(p.grad.abs().sum() > 0 for p in objective.parameters())


def test_free_latents_learn_to_tell_pictures_apart():
    """Eight flat colours: from nearly collapsed latents the decoder's gradient spreads them until all are drawn."""
    colours = torch.randint(0, 256, (8, 1, 3, 1, 1), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    batch = Batch(colours.expand(8, 1, 3, SIZE, SIZE), torch.zeros(8, 0, 4), torch.zeros(8, 1, 1), torch.arange(8))
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig((8,)), toy_model())
    z = (1e-3 * normal(8, 1, 1, 4)).requires_grad_()
    optimizer = torch.optim.Adam([z, *decoder.parameters()], lr=0.02)
    target = decoder.target(batch)
    assert explained(pixel_loss(decoder(z), target), target) < 0.05
    for _ in range(200):
        optimizer.zero_grad()
        loss = pixel_loss(decoder(z), target)
        loss.backward()
        optimizer.step()
    assert explained(loss, target) > 0.95
    assert z.detach().std(0).max() > 0.1


def test_explained_is_one_for_the_picture_and_zero_for_the_mean_picture():
    pixels = normal(6, 4, 3, 8, 8) + 10 * normal(3, 8, 8, seed=1)  # a strong background that never changes
    mean = pixels.mean((0, 1), keepdim=True).expand_as(pixels)
    assert explained(pixel_loss(pixels, pixels), pixels).item() == 1
    assert explained(pixel_loss(mean, pixels), pixels).item() == pytest.approx(0, abs=1e-5)
    assert explained(pixel_loss(torch.zeros_like(pixels), pixels), pixels).item() < -10
    objective = build()
    losses = objective(normal(5, 3, 1, 4).requires_grad_(), (normal(5, 2, 1, 4),), toy_batch(), None)
    assert not losses.metrics["explained_pixels"].requires_grad


@pytest.mark.parametrize("patches", [2, 4, 7])
def test_a_grid_of_tokens_is_drawn_where_it_lies(patches):
    """Reading order: changing the token of a corner changes that corner of the picture and not the opposite one."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig((8, 4)), grid_model(patches**2))
    z = normal(1, 1, patches**2, 4)
    moved = z.clone()
    moved[0, 0, patches - 1] += 1  # the last token of the first row: top right
    change = (decoder(moved) - decoder(z)).abs().sum((0, 1, 2))
    assert change[:4, -4:].min() > 0
    assert change[-4:, :4].max() == 0


def test_bfloat16_is_within_two_percent_and_constants_are_finite():
    objective, batch, z = build(), toy_batch(), normal(5, 3, 1, 4)
    guess = normal(5, 2, 1, 4, seed=1)
    exact, rounded = (
        objective(z, (guess,), batch, None),
        objective(z.bfloat16(), (guess.bfloat16(),), batch, None),
    )
    for name, term in exact.terms.items():
        assert rounded.terms[name].dtype == term.dtype == torch.float32
        assert rounded.terms[name].item() == pytest.approx(term.item(), rel=0.02)
    zero = torch.zeros(2, 2, 1, 4, requires_grad=True)
    losses = objective(zero, (zero[:, 1:],), toy_batch(2, 2), None)
    losses.total.backward()
    assert losses.total.isfinite() and zero.grad.isfinite().all()


def test_the_state_holds_parameters_only():
    """What the model's statistics say is not saved twice."""
    objective = build()
    assert objective.state_dict().keys() == dict(objective.named_parameters()).keys()


def test_a_config_survives_being_written_and_read():
    config = ReconstructionConfig(prediction=PredictionConfig("cosine", True, 0.5), weight=0.2, decoder=SMALL)
    assert TypeAdapter(ReconstructionConfig).validate_python(asdict(config)) == config


def test_faults_are_named():
    with pytest.raises(ValueError, match="the decoder is trained on pixels, but no batch was given"):
        build()(normal(5, 3, 1, 4), (normal(5, 2, 1, 4),), None, None)
    with pytest.raises(ValueError, match="picture size 32 is not divisible by 64, the stride of 6 layers"):
        Decoder(DecoderConfig((4,) * 6), toy_model())
    with pytest.raises(ValueError, match="5 tokens per frame are no square grid"):
        Decoder(SMALL, grid_model(5))
    with pytest.raises(ValueError, match=r"decoder channels is \(\)"):
        DecoderConfig(())
    with pytest.raises(ValueError, match="predicted_weight is -1; it must be 0 or more"):
        ReconstructionConfig(predicted_weight=-1)
