"""A world whose picture is its state, and a model that knows it: every study's answer is known beforehand."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from toy_models import SIZE

from lewm.checkpoint import Checkpoint, Origin
from lewm.data.meta import PolicyMeta, Provenance, StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode, StoreWriter
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig
from lewm.study.subject import Subject, make_subject
from lewm.train import model_facts
from lewm.world_model import ModelConfig, WorldModel

SKIP, STEPS, EPISODES = 2, 20, 12
UNIT = 1 / 255
"""A step of the state: the picture shows it exactly, as the grey level of its first two channels."""


def write_lines(path: Path, states: bool = True) -> Store:
    """Episodes in which a point moves by a constant whole number of units per step, another one in each."""
    rng = np.random.default_rng(3)
    names = ("x", "y") if states else ()
    meta = StoreMeta(
        "toy", {}, (SIZE, SIZE, 3), "png", 2, (-3.0, -3.0), (3.0, 3.0), names, (), 0.1,
        Provenance((PolicyMeta("p", 1.0, 0.0),)),
    )  # fmt: skip

    def episode() -> Episode:
        move_2 = rng.choice([-3, -2, -1, 1, 2, 3], 2)
        grey_F2 = 127 + rng.integers(-20, 21, 2) + np.arange(STEPS + 1)[:, None] * move_2
        pixels = np.zeros((STEPS + 1, SIZE, SIZE, 3), np.uint8)
        pixels[..., :2] = grey_F2[:, None, None]
        state = (grey_F2 * UNIT).astype(np.float32)[:, : len(names)]
        return Episode(pixels, np.tile(move_2, (STEPS, 1)).astype(np.float32), state)

    with StoreWriter(path, meta) as writer:
        writer.write(episode() for _ in range(EPISODES))
    return Store.open(path)


class KnownWorld(WorldModel):
    """Reads the state off the picture and adds the actions to it, and `drift` at every block."""

    drift = 0.0

    def _encode(self, pixels_BTCYX: Tensor, proprio_BTP: Tensor | None) -> Tensor:
        return pixels_BTCYX[:, :, None, :2].double().mean((-1, -2)).float() * UNIT

    def predict(self, latent_BTKD: Tensor, action_BTA: Tensor, variable_BTV: Tensor | None = None) -> Tensor:
        move_BT2 = action_BTA.unflatten(-1, (SKIP, 2)).sum(-2)
        return latent_BTKD + move_BT2[:, :, None] * UNIT + self.drift


def known_subject(path: Path, drift: float = 0.0, states: bool = True) -> Subject:
    """The model that knows it, and recordings of which a third is held out."""
    store = write_lines(path, states)
    config = ModelConfig(ConvConfig(latent_dim=2, channels=(4, 4, 4)), MLPConfig(width=8), SKIP)
    torch.manual_seed(0)
    model = KnownWorld(config, model_facts(store, config)).eval().requires_grad_(False)
    model.drift = drift
    origin = Origin("toy", {}, "", tuple(store.meta.state_names), (), 0.1, 1 / 3, 0)
    return make_subject(Checkpoint(model, None, origin, Path("toy")), store)
