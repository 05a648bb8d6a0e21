"""The learned distance between latents: how many blocks from here until the goal picture is seen.

Latent L2 knows neither walls nor dynamics. A cost-to-go head does: it is fitted after the world model, on the frozen
latents of the same recordings, by expectile temporal-difference learning (the offline shortest-path view of implicit
Q-learning, Kostrikov et al. 2021), and any model can be given one later.
"""

import hashlib
import itertools
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows
from lewm.progress import Stage
from lewm.train import save_atomically, step_seed
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class CostToGoConfig:
    """How the cost-to-go head is built and trained."""

    width: int = 256
    """Hidden units per layer."""
    layers: int = 2
    """Hidden layers."""
    steps: int = 4000
    """Optimiser steps; 0 trains none."""
    batch: int = 512
    """Transitions per step."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero."""
    expectile: float = 0.9
    """Weight on over-estimates (0.5 averages over the recorded behaviour, towards 1 it follows the fastest)."""
    hindsight: float = 0.5
    """Share of goals taken later from the same episode; the others are frames of any episode."""
    nearness: float = 2.0
    """Hindsight goals lie at a share u^nearness of what is left of the episode, u uniform: 1 draws them evenly, more
    prefers the near ones, where a fraction of a block decides between reached and missed."""
    target_rate: float = 0.01
    """How fast the target head follows, per step."""
    horizon: float = 60.0
    """Largest distance in blocks: targets are clipped there."""

    def __post_init__(self) -> None:
        if self.nearness <= 0:
            raise ValueError(f"cost_to_go.nearness is {self.nearness}; it must be positive")
        for name in ("width", "layers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"cost_to_go.{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps < 0:
            raise ValueError(f"cost_to_go.steps is {self.steps}; it must be 0 or more")
        if not 0.5 <= self.expectile < 1:
            raise ValueError(f"cost_to_go.expectile is {self.expectile}; it must lie in [0.5, 1)")
        if not 0 <= self.hindsight <= 1:
            raise ValueError(f"cost_to_go.hindsight is {self.hindsight}; it must lie in [0, 1]")


class CostToGo(nn.Module):
    """d(z, z_goal) >= 0 in blocks, over flattened tokens."""

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, config: CostToGoConfig, latent_dim: int, tokens: int) -> None:
        super().__init__()
        self.config = config
        features = latent_dim * tokens
        self.register_buffer("mean_D", torch.zeros(features))
        self.register_buffer("std_D", torch.ones(features))
        widths = [3 * features] + [config.width] * config.layers
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, latent_KD: Tensor, goal_KD: Tensor) -> Tensor:
        """Blocks from latent (..., K, D) to goal (..., K, D), broadcast over the leading axes."""
        z = (latent_KD.flatten(-2) - self.mean_D) / self.std_D
        goal = (goal_KD.flatten(-2) - self.mean_D) / self.std_D
        z, goal = torch.broadcast_tensors(z, goal)
        return F.softplus(self.net(torch.cat([z, goal, z - goal], -1))).squeeze(-1)


def expectile_loss(distance: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Squared error, `expectile` of the weight on over-estimates: the smaller of the distances seen wins."""
    error = distance - target
    return (torch.where(error > 0, expectile, 1 - expectile) * error.square()).mean()


@torch.no_grad()
def encode_store(model: WorldModel, store: Store, episodes: np.ndarray, quiet: bool = False) -> tuple[Tensor, Tensor]:
    """Latents of every frame of the episodes, as seen (latent_FKD) and as goals (goal_FKD), in episode order.

    A goal is a single picture: with stacked frames it is stacked with itself, so that a goal means a pose at rest and
    the head learns when that picture is passed, whatever the velocity.
    """
    seen = Windows(store, model.config.window(1), episodes, "auto", model.device)
    stacked = model.config.frame_stack
    latents, goals = [], []
    with Stage("encode", len(seen), "frames", quiet) as stage:
        for index in np.array_split(np.arange(len(seen)), max(1, len(seen) // 512)):
            pixels = seen.batch(index).pixels_BTCYX
            latents.append(model.encode(pixels)[:, 0])
            if stacked > 1:
                goals.append(model.encode(pixels[:, :, -3:].repeat(1, 1, stacked, 1, 1))[:, 0])
            stage.update(len(index))
    latent_FKD = torch.cat(latents)
    return latent_FKD, torch.cat(goals) if stacked > 1 else latent_FKD


class Transitions:
    """Draws (z, z', goal, recorded distance) from the latents of whole episodes, at every raw environment step."""

    def __init__(self, latent_FKD: Tensor, goal_FKD: Tensor, lengths: np.ndarray, frame_skip: int) -> None:
        self.latent_FKD, self.goal_FKD, self.skip = latent_FKD, goal_FKD, frame_skip
        frames = lengths + 1
        first = np.cumsum(frames) - frames
        starts = [np.arange(f, f + n - frame_skip) for f, n in zip(first, frames, strict=True) if n > frame_skip]
        ends = [np.full(max(0, n - frame_skip), f + n - 1) for f, n in zip(first, frames, strict=True)]
        self.start = torch.from_numpy(np.concatenate(starts))
        self.last = torch.from_numpy(np.concatenate(ends))

    def draw(
        self, count: int, hindsight: float, generator: torch.Generator, nearness: float = 1.0
    ) -> tuple[Tensor, ...]:
        """latent, next latent, goal (B, K, D each), and the recorded distance in blocks (inf for random goals).

        A share `hindsight` of the goals are frames of the same episode, from the present one (distance 0) to its last.
        """
        pick = torch.randint(len(self.start), (count,), generator=generator)
        now, last = self.start[pick], self.last[pick]
        share = torch.rand(count, generator=generator) ** nearness
        ahead = torch.minimum((share * (last - now + 1)).long(), last - now)
        own = torch.rand(count, generator=generator) < hindsight
        goal = torch.where(own, now + ahead, torch.randint(len(self.goal_FKD), (count,), generator=generator))
        recorded = torch.where(own, ahead / self.skip, torch.inf)
        device = self.latent_FKD.device
        now, goal, recorded = now.to(device), goal.to(device), recorded.to(device)
        return self.latent_FKD[now], self.latent_FKD[now + self.skip], self.goal_FKD[goal], recorded


def td_loss(head: CostToGo, target_head: CostToGo, sample: tuple[Tensor, ...], config: CostToGoConfig) -> Tensor:
    """Expectile TD loss of one draw.

    Target: one block plus the target head's distance from the next latent, but never more than the recording itself
    took (a goal passed within the block is a fraction of a block away).
    """
    latent, following, goal, recorded = sample
    with torch.no_grad():
        bootstrap = 1 + target_head(following, goal)
        target = torch.minimum(bootstrap, recorded).clamp(max=config.horizon)
    return expectile_loss(head(latent, goal), target, config.expectile)


def _digest(model: WorldModel) -> str:
    """A hash of the weights: latents of another model are other latents."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_cost_to_go(
    model: WorldModel,
    config: CostToGoConfig,
    store: Store,
    out: Path,
    held_out: float,
    seed: int,
    quiet: bool = False,
) -> CostToGo:
    """Fit a cost-to-go head for a trained model on the training episodes of `store`; resumes like `train`.

    Raises RuntimeError when the loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cost_to_go.pt"
    device = model.device
    train_ids, _ = split_episodes(store.num_episodes, held_out, seed)
    torch.manual_seed(step_seed(seed, 0, 7))
    head = CostToGo(config, model.latent_dim, model.tokens).to(device)
    target_head = CostToGo(config, model.latent_dim, model.tokens).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    step = 0
    settings = {"config": asdict(config), "seed": seed, "held_out": held_out, "model": _digest(model)}
    if path.exists():
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        for key, value in settings.items():
            if state.get("settings", {}).get(key) != value:
                raise RuntimeError(f"{path} was fitted with another {key}: choose another --out, or delete the file")
        head.load_state_dict(state["head"])
        target_head.load_state_dict(state["target"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    if step < config.steps:
        latent_FKD, goal_FKD = encode_store(model, store, train_ids, quiet)
        if step == 0:
            flat = latent_FKD.flatten(1)
            head.mean_D.copy_(flat.mean(0))
            head.std_D.copy_(flat.std(0).clamp(min=1e-3))
            target_head.load_state_dict(head.state_dict())
        data = Transitions(latent_FKD, goal_FKD, store.episodes["length"][train_ids], model.config.frame_skip)
    saved = time.monotonic()
    with Stage("cost-to-go", config.steps, "steps", quiet) as stage:
        stage.skip_to(step)
        while step < config.steps:
            generator = torch.Generator().manual_seed(step_seed(seed, step, 8))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            loss = td_loss(
                head, target_head, data.draw(config.batch, config.hindsight, generator, config.nearness), config
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target_head.parameters(), head.parameters(), strict=True):
                    slow.lerp_(fast, config.target_rate)
            step += 1
            if step % 100 == 0 or step == config.steps:
                value = loss.item()
                if not math.isfinite(value):
                    raise RuntimeError(f"cost-to-go: the loss is {value} at step {step}; lower its learning_rate")
                stage.update(step - stage.done, loss=value)
            if step == config.steps or time.monotonic() - saved > 20:
                saved = time.monotonic()
                parts = {"head": head.state_dict(), "target": target_head.state_dict()}
                save_atomically(parts | {"optimizer": optimizer.state_dict(), "step": step, "settings": settings}, path)
    return head.eval().requires_grad_(False)
