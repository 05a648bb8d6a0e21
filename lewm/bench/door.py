"""What a latent variable is worth in task door: prediction error where chance redraws the door, with and without one.

All predictors are fitted on the frozen latents of one checkpoint, so that their errors are in the same units (a
deterministic predictor trained together with its encoder makes the encoder show less of what it cannot predict).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewm.checkpoint import load
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows
from lewm.nets.variable import DiscreteConfig, GaussianConfig, VariableConfig
from lewm.probes import fit_linear
from lewm.progress import Stage
from lewm.train import build_model
from lewm.world_model import WorldModel

VARIABLES: dict[str, VariableConfig | None] = {
    "deterministic": None,
    "discrete, 2 codes": DiscreteConfig(information=0.05),
    "gaussian, 2 dims": GaussianConfig(information=0.03),
}
"""Predictors compared."""
BATCH, LEARNING_RATE = 256, 1e-3


@dataclass(frozen=True)
class Blocks:
    """One-block transitions: everything a predictor and its judge need."""

    latent_B2KD: Tensor
    """The frames before and after."""
    action_B1A: Tensor
    state_B2S: Tensor
    """(x, y, door, coin) before and after."""

    @property
    def redrawn_B(self) -> Tensor:
        """Whether the door was redrawn, to whatever state: the hidden coin tells."""
        redrawn_B: Tensor = self.state_B2S[:, 0, 3] != self.state_B2S[:, 1, 3]
        return redrawn_B


@dataclass(frozen=True)
class DoorRow:
    """One predictor on the held-out transitions of one kind."""

    predictor: str
    transitions: str
    """`door redrawn` or `other`."""
    n: int
    latent_error: float
    """Mean squared error over the variance of the latents."""
    door_error: float
    """Mean squared error of the door (0 closed, 1 open) that a linear probe reads in the prediction; 1/4 for a half."""
    nats: float
    """Information of the variable per block; log 2 = 0.693 for a fair coin."""


def blocks(model: WorldModel, store: Store, episodes: np.ndarray) -> Blocks:
    """All transitions of some episodes, encoded."""
    windows = Windows(store, model.config.window(2), episodes, "disk", model.device)
    batches = [windows.batch(index) for index in np.array_split(np.arange(len(windows)), -(-len(windows) // BATCH))]
    with torch.no_grad():
        latents = [model.encode(batch.pixels_BTCYX, batch.proprio_BTP) for batch in batches]
    actions, states = [b.action_BTA for b in batches], [b.state_BTS for b in batches]
    return Blocks(torch.cat(latents), torch.cat(actions), torch.cat(states))


def fit_predictor(like: WorldModel, variable: VariableConfig | None, data: Blocks, steps: int, seed: int) -> WorldModel:
    """A model like another one, with a predictor and variable of its own, fitted on given latents."""
    model = build_model(replace(like.config, variable=variable), like.facts, seed)
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = torch.randint(len(data.latent_B2KD), (BATCH,), generator=generator)
        latent, action = data.latent_B2KD[index], data.action_B1A[index]
        if model.variable is None:
            loss = (model.predict(latent[:, :1], action) - latent[:, 1:]).square().mean()
        else:
            followed = model.follow(latent, action, 1, model.variable.noise((BATCH, 1), generator))
            loss = (followed.scored_BTKD - latent[:, 1:]).square().mean() + followed.loss_BT.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def judge(name: str, model: WorldModel, fit: Blocks, test: Blocks) -> list[DoorRow]:
    """Errors on held-out transitions; with a variable those of its best guess, which has seen the frame after."""
    before, after = test.latent_B2KD[:, :1], test.latent_B2KD[:, 1:]
    nats_B = torch.zeros(len(after))
    if model.variable is None:
        predicted = model.predict(before, test.action_B1A)
    else:
        followed = model.follow(test.latent_B2KD, test.action_B1A, 1)
        predicted, nats_B = followed.predicted_BTKD, followed.nats_BT[:, 0]
    error_B = (predicted - after).square().mean((1, 2, 3)) / test.latent_B2KD.flatten(0, 1).var(0).mean()
    weight_D1, bias_1 = fit_linear(fit.latent_B2KD[:, 1].flatten(1), fit.state_B2S[:, 1, 2:3])
    door_B = ((predicted.flatten(1) @ weight_D1 + bias_1)[:, 0] - test.state_B2S[:, 1, 2]).square()
    rows = []
    for kind, chosen_B in (("door redrawn", test.redrawn_B), ("other", ~test.redrawn_B)):
        means = [values[chosen_B].mean().item() for values in (error_B, door_B, nats_B)]
        rows.append(DoorRow(name, kind, int(chosen_B.sum()), *means))
    return rows


def measure(checkpoint: Path, data: Path, steps: int, seed: int) -> list[DoorRow]:
    """Fit and judge every predictor. Raises ValueError for a checkpoint of another task."""
    loaded, store = load(checkpoint), Store.open(data)
    if loaded.origin.task != "door":
        raise ValueError(f"{checkpoint} was trained on task {loaded.origin.task!r}; this measures task door only")
    train_ids, held_ids = split_episodes(store.num_episodes, loaded.origin.held_out, loaded.origin.seed)
    fit, test = blocks(loaded.model, store, train_ids), blocks(loaded.model, store, held_ids)
    rows = []
    with Stage("door", len(VARIABLES), "predictors") as stage:
        for name, variable in VARIABLES.items():
            rows += judge(name, fit_predictor(loaded.model, variable, fit, steps, seed), fit, test)
            stage.update()
    return rows


def table(rows: Sequence[DoorRow]) -> str:
    """The rows as aligned text."""
    head = f"{'predictor':<20}{'door':<14}{'latent error':>13}{'door error':>12}{'nats':>8}"
    return "\n".join([head, *(_line(row) for row in rows)])


def _line(row: DoorRow) -> str:
    return f"{row.predictor:<20}{row.transitions:<14}{row.latent_error:>13.4f}{row.door_error:>12.4f}{row.nats:>8.3f}"
