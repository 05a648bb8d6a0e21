"""What the robot can measure, read out of the latent: a linear map to recorded state entries such as joint angles.

It gives plans a proprioceptive cost: how far the imagined pose is from the one the goal picture shows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows
from lewm.nets.frozen.cache import features_for
from lewm.probes import fit_linear, r2_score, state_targets
from lewm.world_model import WorldModel

MAX_FRAMES = 10_000
"""Frames that are encoded of the training episodes, and as many of the held-out ones: plenty for a linear map."""


@dataclass(frozen=True)
class ReadoutConfig:
    """Which recorded state entries are read out."""

    entries: tuple[str, ...] = ()
    """Names of the entries, such as joint angles; none fits no readout. They have to be in the recordings' state."""
    ridge: float = 1e-3
    """Weight of the ridge penalty, for standardised latents."""

    def __post_init__(self) -> None:
        if len(set(self.entries)) != len(self.entries):
            raise ValueError(f"readout.entries is {self.entries}; name each entry once")
        if not self.ridge > 0:
            raise ValueError(f"readout.ridge is {self.ridge}; it must be positive")


class Readout(nn.Module):
    """latent (..., K, D) to the entries (..., P) in units of their standard deviation; angles as cosine and sine."""

    weight_DP: Tensor
    bias_P: Tensor

    def __init__(self, config: ReadoutConfig, features: int, angles: int) -> None:
        super().__init__()
        self.config = config
        outputs = len(config.entries) + angles
        self.register_buffer("weight_DP", torch.zeros(features, outputs))
        self.register_buffer("bias_P", torch.zeros(outputs))

    def forward(self, latent_KD: Tensor) -> Tensor:
        """Entries of every latent."""
        return latent_KD.flatten(-2) @ self.weight_DP + self.bias_P


@torch.no_grad()
def fit_readout(
    model: WorldModel, config: ReadoutConfig, store: Store, held_out: float, seed: int
) -> tuple[Readout, dict[str, float]]:
    """Ridge regression on frames of the training episodes, and the R2 of every entry on the held-out ones.

    Raises ValueError for an entry that the recordings do not have or that never changes.
    """
    names, angles = store.meta.state_names, store.meta.angle_names
    if unknown := [name for name in config.entries if name not in names]:
        raise ValueError(f"readout.entries: the recordings have no {unknown[0]!r}; there are {', '.join(names)}")
    turning = tuple(name for name in config.entries if name in angles)
    samples = []
    for episodes in split_episodes(store.num_episodes, held_out, seed):
        latent_FD, state_FS = _sample(model, store, episodes, seed)
        state_FS = state_FS[:, [names.index(name) for name in config.entries]]
        target_FP, labels = state_targets(state_FS, config.entries, turning)
        samples.append((latent_FD, target_FP))
    (fit_FD, fit_FP), (test_FD, test_FP) = samples
    std_P = fit_FP.std(0)
    if (std_P < 1e-6).any():
        still = labels[int(std_P.argmin())]
        raise ValueError(f"readout.entries: {still} never changes in the recordings; leave it out")
    weight_DP, bias_P = fit_linear(fit_FD, fit_FP / std_P, config.ridge)
    readout = Readout(config, fit_FD.shape[1], len(turning)).to(model.device)
    readout.weight_DP.copy_(weight_DP)
    readout.bias_P.copy_(bias_P)
    found_FP = test_FD @ weight_DP + bias_P
    return readout.eval(), dict(zip(labels, r2_score(found_FP, test_FP / std_P).tolist(), strict=True))


def _sample(model: WorldModel, store: Store, episodes: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """latent_FD and state_FS of at most MAX_FRAMES frames of the episodes."""
    features = features_for(model.encoder, store)
    windows = Windows(store, model.config.window(1), episodes, "disk", model.device, features, features is None)
    chosen = np.random.default_rng(seed).permutation(len(windows))[:MAX_FRAMES]
    latents, states = [], []
    for index in np.array_split(np.sort(chosen), -(-len(chosen) // 512)):
        batch = windows.batch(index)
        latents.append(model.encode_batch(batch)[:, 0].flatten(1).cpu().float())
        states.append(batch.state_BTS[:, 0].cpu())
    return torch.cat(latents), torch.cat(states)
