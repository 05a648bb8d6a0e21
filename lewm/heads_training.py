"""What the heads on frozen latents share: how they read a frame and a goal, hindsight pairs, the loop that fits them.

A head is fitted after the world model, on the latents of the same recordings, and any model can be given one later.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows
from lewm.nets.frozen.cache import features_for
from lewm.progress import Stage
from lewm.trainer_state import save_atomically
from lewm.training_loop import step_seed
from lewm.world_model import WorldModel


class LatentHead(nn.Module):
    """An MLP whose latents come in standardised; a subclass says which features it makes of them."""

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, features: int, inputs: int, width: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(features))
        self.register_buffer("std_D", torch.ones(features))
        widths = [inputs] + [width] * layers
        hidden: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            hidden += [nn.Linear(wide, narrow), nn.SiLU()]
        self.net = nn.Sequential(*hidden, nn.Linear(widths[-1], outputs))

    def standardise(self, latent_FKD: Tensor) -> None:
        """Scale the input by the statistics of these frames."""
        flat = latent_FKD.flatten(1)
        self.mean_D.copy_(flat.mean(0))
        self.std_D.copy_(flat.std(0).clamp(min=1e-3))

    def scaled(self, latent_KD: Tensor) -> Tensor:
        """Standardised features (..., K D) of latents (..., K, D)."""
        return (latent_KD.flatten(-2) - self.mean_D) / self.std_D


class PairHead(LatentHead):
    """An MLP over a frame and a goal: their standardised tokens, the difference, and `extra` further numbers."""

    def __init__(self, features: int, width: int, layers: int, outputs: int, extra: int = 0) -> None:
        super().__init__(features, 3 * features + extra, width, layers, outputs)

    def pair(self, latent_KD: Tensor, goal_KD: Tensor) -> Tensor:
        """Features (..., 3 K D) of latents and goals (..., K, D), broadcast over the leading axes."""
        z, goal = torch.broadcast_tensors(self.scaled(latent_KD), self.scaled(goal_KD))
        return torch.cat([z, goal, z - goal], -1)


class HeadGroup(nn.ModuleDict):
    """Heads that are fitted together, by name."""

    def standardise(self, latent_FKD: Tensor) -> None:
        """Scale the inputs of all of them by the statistics of these frames."""
        for head in self.values():
            assert isinstance(head, LatentHead)
            head.standardise(latent_FKD)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """Move every parameter of a target head a share `rate` of the way to the head's."""
    for behind, ahead in zip(slow.parameters(), fast.parameters(), strict=True):
        behind.lerp_(ahead, rate)


@torch.no_grad()
def encode_store(model: WorldModel, store: Store, episodes: np.ndarray, quiet: bool = False) -> tuple[Tensor, Tensor]:
    """Latents of every frame of the episodes, as seen (latent_FKD) and as goals (goal_FKD), in episode order.

    A goal is a single picture: with stacked frames it is stacked with itself, so that a goal means a pose at rest and
    the head learns when that picture is passed, whatever the velocity. What was measured beside it is not known.
    Cached features of a frozen encoder are taken where there are any.
    """
    features = features_for(model.encoder, store)
    seen = Windows(store, model.config.window(1), episodes, "auto", model.device, features, features is None)
    stacked, frame = model.config.frame_stack, slice(-model.facts.channels, None)
    alike = stacked == 1 and not model.config.proprio
    latents, goals = [], []
    with Stage("encode", len(seen), "frames", quiet) as stage:
        for index in np.array_split(np.arange(len(seen)), max(1, len(seen) // 512)):
            batch = seen.batch(index)
            latents.append(model.encode_batch(batch)[:, 0])
            if not alike and features is not None and batch.feature_BTPKD is not None:
                newest_BTPKD = batch.feature_BTPKD[:, :, -features.meta.pictures :]
                goals.append(model.encode_features(newest_BTPKD.repeat(1, 1, stacked, 1, 1))[:, 0])
            elif not alike:
                newest_BTCYX = batch.pixels_BTCYX[:, :, frame]
                goals.append(model.encode_picture(newest_BTCYX.repeat(1, 1, stacked, 1, 1))[:, 0])
            stage.update(len(index))
    latent_FKD = torch.cat(latents)
    return latent_FKD, latent_FKD if alike else torch.cat(goals)


class HindsightPairs:
    """Draws a frame and how far ahead of it, in the same episode, its goal lies; at every raw environment step."""

    def __init__(self, lengths: np.ndarray, frame_skip: int) -> None:
        frames = lengths + 1
        first = np.cumsum(frames) - frames
        starts = [np.arange(f, f + n - frame_skip) for f, n in zip(first, frames, strict=True) if n > frame_skip]
        ends = [np.full(max(0, n - frame_skip), f + n - 1) for f, n in zip(first, frames, strict=True)]
        self.start = torch.from_numpy(np.concatenate(starts))
        self.last = torch.from_numpy(np.concatenate(ends))

    def draw(self, count: int, generator: torch.Generator, nearness: float) -> tuple[Tensor, Tensor]:
        """Frame numbers with at least a block left, and environment steps (0 or more) from there to the goal.

        Goals lie at a share u^nearness of what is left of the episode, u uniform.
        """
        pick = torch.randint(len(self.start), (count,), generator=generator)
        now, last = self.start[pick], self.last[pick]
        share = torch.rand(count, generator=generator) ** nearness
        return now, torch.minimum((share * (last - now + 1)).long(), last - now)


class FitConfig(Protocol):
    """The settings every fit has, in a dataclass; the heads document them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...


@dataclass(frozen=True)
class Fit:
    """Which model a head is fitted for, on which recordings, and where its state is kept."""

    model: WorldModel
    store: Store
    out: Path
    """Folder of the state that an interrupted fit continues from."""
    held_out: float
    """Share of the episodes that is not used."""
    seed: int
    quiet: bool = False


@dataclass(frozen=True)
class Recorded:
    """What a head is fitted on: the frozen latents of whole episodes, one episode after the other."""

    latent_FKD: Tensor
    goal_FKD: Tensor
    episodes: np.ndarray
    """The numbers of the episodes in the store."""
    lengths: np.ndarray
    """Actions of each episode; it has one frame more."""


StepLoss = Callable[[torch.Generator], Tensor]
"""The loss of one freshly drawn batch."""


def digest(model: WorldModel) -> str:
    """A hash of the weights: latents of another model are other latents."""
    sha = hashlib.sha256()
    for value in model.state_dict().values():
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def record_latents(fit: Fit) -> Recorded:
    """Encode the training episodes."""
    train_ids, _ = split_episodes(fit.store.num_episodes, fit.held_out, fit.seed)
    latent_FKD, goal_FKD = encode_store(fit.model, fit.store, train_ids, fit.quiet)
    return Recorded(latent_FKD, goal_FKD, train_ids, fit.store.episodes["length"][train_ids])


def _resume(
    path: Path, parts: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> tuple[int, float]:
    """Load the state in `path`, if there is one, and return the steps and the seconds it has behind it."""
    if not path.exists():
        return 0, 0.0
    device = next(parts["head"].parameters()).device
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    for key, value in settings.items():
        if state.get("settings", {}).get(key) != value:
            raise RuntimeError(f"{path} was fitted with another {key}: choose another --out, or delete the file")
    for key, part in parts.items():
        part.load_state_dict(state[key])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state.get("seconds", 0.0))  # states from before they were counted have none


def fit_head(
    name: str,
    config: FitConfig,
    fit: Fit,
    stream: int,
    parts: Mapping[str, LatentHead | HeadGroup],
    begin: Callable[[Recorded], StepLoss],
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Train `parts["head"]` in place with AdamW and a cosine rate; an interrupted fit in `fit.out` is continued.

    name: of the state file. stream: of the random batches, see `step_seed`. parts: the modules that make up the state;
    their inputs are standardised at step 0. Returns the seconds it took, encoding and earlier stretches included, but
    not what a kill lost. Raises RuntimeError when the folder holds another fit and when the loss is not finite.
    """
    begun = time.monotonic()
    fit.out.mkdir(parents=True, exist_ok=True)
    path, title = fit.out / f"{name}.pt", name.replace("_", "-")
    optimizer = torch.optim.AdamW(parts["head"].parameters(), lr=config.learning_rate, weight_decay=1e-4)
    settings = {"config": asdict(config), "seed": fit.seed, "held_out": fit.held_out, "model": digest(fit.model)}
    step, seconds = _resume(path, parts, optimizer, settings)
    if step == config.steps:
        return seconds
    recorded = record_latents(fit)
    if step == 0:
        for part in parts.values():
            part.standardise(recorded.latent_FKD)
    loss_of, saved = begin(recorded), time.monotonic()
    with Stage(title, config.steps, "steps", fit.quiet) as stage:
        stage.skip_to(step)
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            loss = loss_of(torch.Generator().manual_seed(step_seed(fit.seed, step, stream)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            after_step()
            step += 1
            if step % 100 == 0 or step == config.steps:
                value = loss.item()
                if not math.isfinite(value):
                    raise RuntimeError(f"{title}: the loss is {value} at step {step}; lower its learning_rate")
                stage.update(step - stage.done, loss=value)
            if step == config.steps or time.monotonic() - saved > 20:
                saved = time.monotonic()
                state: dict[str, Any] = {key: part.state_dict() for key, part in parts.items()}
                state |= {"optimizer": optimizer.state_dict(), "step": step, "settings": settings}
                save_atomically(state | {"seconds": seconds + saved - begun}, path)
    return seconds + saved - begun
