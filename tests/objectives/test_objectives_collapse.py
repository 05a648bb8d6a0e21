"""Which objectives bring latents back from a collapse: free embeddings, the identity as predictor.

A new row has to say here what it promises.
"""

from dataclasses import replace

import torch
from table import every_row
from taught import effective_rank
from toy_models import FACTS, SIZE

from lewm.data.windows import Batch
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig
from lewm.objectives import OBJECTIVES, build_objective
from lewm.objectives.reconstruction import DecoderConfig
from lewm.world_model import ModelConfig, WorldModel

N, D, JITTER = 64, 8, 1e-3
EXPECTED = {
    "sigreg": "spreads",
    "vicreg": "spreads",
    "barlow": "spreads",
    "whitening": "keeps",
    "rdmreg": "spreads",
    "ema": "blind",
    "simsiam": "blind",
    "infonce": "spreads",
    "data2vec": "blind",
    "cjepa": "spreads",
    "pldm": "spreads",
    "reconstruction": "tells apart",
}
"""spreads: from a point with jitter to all dimensions. keeps: does not see scale, so a point may stay one, but no
dimension is lost. tells apart: spreads, in as many dimensions as pictures need. blind: a collapse is as good as any
other solution, and only the dynamics of training can prevent it."""
SETTINGS = {"cjepa": {"weight": 0.1}, "reconstruction": {"decoder": DecoderConfig((8, 8))}, "rdmreg": {"slices": 64}}
"""C-JEPA's weight is the paper's times 100, within what its config names for small models; the others are for speed."""


STEPS = {"reconstruction": 30}
"""Fewer than 120, because they take longer."""


def pictures():
    """Clips that differ: four quarters of random grey."""
    generator = torch.Generator().manual_seed(0)
    quarters = torch.randint(0, 256, (N, 2, 3, 2, 2), dtype=torch.uint8, generator=generator)
    pixels = quarters.repeat_interleave(SIZE // 2, -1).repeat_interleave(SIZE // 2, -2)
    return Batch(pixels, torch.randn(N, 1, 4, generator=generator), torch.zeros(N, 2, 1), 10 * torch.arange(N))


def collapsed_model():
    """All pictures get the same latent, and so does the teacher made from it, in every layer."""
    torch.manual_seed(0)
    config = ModelConfig(ConvConfig(latent_dim=D, channels=(4, 4, 4)), MLPConfig(width=8), frame_skip=2)
    model = WorldModel(config, FACTS).train()
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if name.startswith("layers"):
                parameter.zero_()
    return model


def flow(config, steps):
    """Latents of both frames before and after."""
    model, batch = collapsed_model(), pictures()
    objective = build_objective(config, model)
    start = 1 + JITTER * torch.randn(N, 2, 1, D, generator=torch.Generator().manual_seed(1))
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z, *(p for p in objective.parameters() if p.requires_grad)], lr=0.03)
    slices = torch.Generator().manual_seed(2)
    for step in range(steps):
        optimizer.zero_grad()
        objective(z, (z[:, :1],), batch, slices).total.backward()
        optimizer.step()
        objective.after_step(model, (step + 1) / steps)
    return [x.detach()[:, t, 0] for x in (start, z) for t in range(2)]


def test_every_row_says_what_it_promises():
    assert EXPECTED.keys() == OBJECTIVES.keys()


@every_row
def test_collapse_matrix(case):
    config = replace(case.config, **SETTINGS.get(case.config.name, {}))
    promise, found = EXPECTED[config.name], flow(config, STEPS.get(config.name, 120))
    for before, after in zip(found[:2], found[2:]):
        if promise in ("spreads", "keeps"):
            assert effective_rank(after) >= 0.8 * D
        if promise in ("spreads", "tells apart"):
            assert after.std(0).min() > 50 * JITTER
        if promise == "keeps":
            assert after.std(0).min() >= before.std(0).min()
        if promise == "blind":
            assert after.std(0).max() < 2 * before.std(0).max()
