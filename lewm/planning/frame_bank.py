"""A bank of frames and their latents: how an imagined latent is shown, since nothing decodes it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import envs
from lewm.data.codec import side_by_side
from lewm.data.stacking import channels_first
from lewm.data.store import Store
from lewm.data.windows import Windows
from lewm.world_model import WorldModel

BANK_BYTES = 256_000_000
"""Most memory a bank's latents may take; models with many tokens get fewer frames."""


@dataclass(frozen=True)
class FrameBank:
    """Latents and pictures of a sample of frames."""

    latent_FD: Tensor
    """Flattened latents, without what was measured, on the model's device."""
    pixels_FYXC: np.ndarray
    """The frames (of a stack: the newest), uint8."""

    @staticmethod
    @torch.inference_mode()
    def from_store(store: Store, model: WorldModel, count: int = 4000, seed: int = 0) -> "FrameBank":
        """Encode at most `count` frames drawn evenly over the whole store; fewer where the latents are very wide."""
        windows = Windows(store, model.config.window(1), None, "disk", model.device)
        fits = BANK_BYTES // (4 * model.tokens * model.latent_dim)
        count = max(1, min(count, fits, len(windows)))
        chosen = np.sort(np.random.default_rng(seed).choice(len(windows), count, replace=False))
        latents, pixels = [], []
        for index in np.array_split(chosen, -(-count // 256)):
            frames_BTCYX = windows.batch(index).pixels_BTCYX
            latents.append(_flat(model, frames_BTCYX))
            newest_BCYX = frames_BTCYX[:, 0, -model.facts.channels :]
            pixels.append(side_by_side(newest_BCYX.movedim(1, -1).cpu().numpy()))
        return FrameBank(torch.cat(latents), np.concatenate(pixels))

    @staticmethod
    @torch.inference_mode()
    def from_task(task: envs.GoalEnv, model: WorldModel, count: int = 2000, seed: int = 0) -> "FrameBank":
        """Encode pictures of `count` random states of a task, each at rest: for a model whose recordings are away."""
        first, _ = task.reset(seed=seed)
        pixels_FYXC = np.stack([first, *(task.reset()[0] for _ in range(count - 1))])
        latents = []
        for frames_FYXC in np.array_split(pixels_FYXC, -(-count // 256)):
            stack = channels_first([torch.from_numpy(frames_FYXC)] * model.config.frame_stack)
            latents.append(_flat(model, stack[:, None].to(model.device)))
        return FrameBank(torch.cat(latents), side_by_side(pixels_FYXC))

    def nearest(self, latent: Tensor) -> np.ndarray:
        """Index of the nearest recorded frame (Euclidean) for latents (..., D) as the bank holds them."""
        flat = latent.reshape(-1, self.latent_FD.shape[1]).to(self.latent_FD)
        exact = "donot_use_mm_for_euclid_dist"  # the fast form rounds neighbours into each other
        index = [torch.cdist(part, self.latent_FD, compute_mode=exact).argmin(1) for part in flat.split(64)]
        return torch.cat(index).cpu().numpy().reshape(latent.shape[:-1])


def _flat(model: WorldModel, pixels_BTCYX: Tensor) -> Tensor:
    """latent_BD of single frames."""
    return model.pictured(model.encode_picture(pixels_BTCYX))[:, 0].flatten(1).float()
