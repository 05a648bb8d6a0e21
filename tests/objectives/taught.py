"""A small model in training, clips for it, and one scored step: what the tests of the teacher's methods share."""

import torch
from toy_models import SIZE, toy_model

from lewm.data.windows import Batch
from lewm.objectives import Losses, Objective
from lewm.world_model import WorldModel


def learner(dtype=torch.float32) -> WorldModel:
    return toy_model().train().requires_grad_(True).to(dtype)


def clips(B=6, T=3, seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (B, T, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    action = torch.randn(B, T - 1, 4, generator=generator)
    return Batch(pixels, action, torch.zeros(B, T, 2), torch.arange(B))


def part(batch: Batch, rows) -> Batch:
    return Batch(*(getattr(batch, name)[rows] for name in ("pixels_BTCYX", "action_BTA", "state_BTS", "index_B")))


def imagine(model: WorldModel, batch: Batch):
    """Latents and two ways of predicting them."""
    latent, action = model.encode(batch.pixels_BTCYX), batch.action_BTA.to(model.pixel_scale.dtype)
    forced = model.predict(latent[:, :-1], action)
    rolled = model.rollout(latent[:, :1], action[:, :0], action[:, None])[:, 0]
    return latent, (forced, rolled)


def score(objective: Objective, latent, predicted, batch) -> Losses:
    return objective(latent, predicted, batch, torch.Generator().manual_seed(0))


def effective_rank(z_ND) -> float:
    p = torch.linalg.svdvals(z_ND - z_ND.mean(0)).square()
    p = p / p.sum()
    return torch.exp(-(p * p.log()).sum()).item()
