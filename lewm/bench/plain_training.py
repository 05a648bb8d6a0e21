"""One training step with its parts written as LeWM's code and stable-worldmodel's loader have them.

What `lewm bench train` measures ours against. The parts can be taken one by one, so that each shows its share.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lewm.bench.objectives import plain_sigreg
from lewm.data.stacking import history_index
from lewm.data.windows import Windows, batch_indices
from lewm.objectives import AddOnsConfig, RunObjective, SigRegConfig
from lewm.objectives.prediction import prediction_loss
from lewm.objectives.sigreg import sigreg
from lewm.train import TrainConfig, Trainer, learning_rate, make_optimizer, predictions
from lewm.training_loop import step_seed
from lewm.world_model import ModelFacts, WorldModel

Clips = tuple[Tensor, Tensor]
"""pixels_BTCYX, uint8 or float32 and normalised, and action_BTA in raw units."""
Statistic = Callable[[Tensor, torch.Generator, SigRegConfig], Tensor]
"""(latent_BTKD, generator, config) to the scalar that keeps the latents apart."""


@dataclass(frozen=True)
class Way:
    """Which parts of a step are written plainly; the others are ours."""

    statistic: Statistic
    """SIGReg: ours, or the formula with its (T, N, slices, knots) tensors."""
    loader: bool
    """Whether worker processes read clip by clip and hand over normalised float32 pixels."""


WAYS: dict[str, Way] = {
    "SIGReg": Way(plain_sigreg, loader=False),
    "loader": Way(sigreg, loader=True),
    "both": Way(plain_sigreg, loader=True),
}
"""What each row of the benchmark exchanges."""


def check_run(objective: RunObjective, add_ons: AddOnsConfig) -> SigRegConfig:
    """The objective of a run whose step can be written plainly. Raises ValueError for any other."""
    plain = isinstance(objective, SigRegConfig) and objective == SigRegConfig(
        prediction=objective.prediction, weight=objective.weight, slices=objective.slices
    )
    if not plain or add_ons != AddOnsConfig():
        raise ValueError(
            f"the plain step knows objective sigreg with preset lejepa and no add-ons, not {objective} with {add_ons}; "
            "choose a run that trains on it, such as two_room"
        )
    assert isinstance(objective, SigRegConfig)
    return objective


class Clip(Dataset[Clips]):
    """One clip at a time, as stable-worldmodel's HDF5 reader gives it: every raw frame of its span is read, then those
    between are dropped, and each picture is scaled and normalised by itself. Read from our memory map, not from HDF5.
    """

    def __init__(self, windows: Windows, facts: ModelFacts) -> None:
        self.windows = Windows(windows.store, windows.spec, windows.episodes, "disk")
        self.mean_C11 = torch.tensor(facts.pixel_mean)[:, None, None]
        self.std_C11 = torch.tensor(facts.pixel_std).clamp(min=1e-3)[:, None, None]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Clips:
        spec, store = self.windows.spec, self.windows.store
        episode, start = (int(x[0]) for x in self.windows.locate(np.array([index])))
        shown = history_index(start + np.arange(spec.length) * spec.frame_skip, 0, spec.frame_stack, spec.stack_stride)
        first, end = int(shown.min()), start + spec.span
        pictures = torch.from_numpy(store.pixels(episode, slice(first, end + 1)))[torch.from_numpy(shown - first)]
        pixels = [
            torch.cat([(p.permute(2, 0, 1).float() / 255 - self.mean_C11) / self.std_C11 for p in stack])
            for stack in pictures
        ]
        action = torch.from_numpy(store.actions(episode)[start:end])
        return torch.stack(pixels), action.reshape(spec.length - 1, -1)


class PlainTraining:
    """State over time of a training run beside `ours`: the same weights at first, the same clips at every step."""

    def __init__(self, ours: Trainer, objective: SigRegConfig, way: Way, workers: int) -> None:
        self.config: TrainConfig = ours.config
        self.objective, self.way, self.workers = objective, way, workers
        self.windows, self.device, self.bfloat16 = ours.windows, ours.device, ours.bfloat16
        self.model: WorldModel = copy.deepcopy(ours.model)
        self.optimizer = make_optimizer(self.model, self.config)
        self.step = 0

    def batches(self, count: int) -> Iterator[Clips]:
        """The next `count` batches, on the device."""
        config = self.config
        steps = range(self.step, self.step + count)
        indices = [batch_indices(config.seed, step, len(self.windows), config.batch) for step in steps]
        if not self.way.loader:
            read = map(self.windows.batch, indices)
            yield from ((batch.pixels_BTCYX, batch.action_BTA) for batch in read)
            return
        loader = DataLoader(
            Clip(self.windows, self.model.facts),
            batch_sampler=[index.tolist() for index in indices],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(config.seed),
        )
        for pixels, action in loader:
            yield pixels.to(self.device, non_blocking=True), action.to(self.device, non_blocking=True)

    def loss(self, clips: Clips) -> Tensor:
        """Prediction plus weighted SIGReg of one batch."""
        pixels, action = clips
        if pixels.dtype == torch.uint8:
            latent = self.model.encode(pixels)
        else:
            latent = self.model.encoder(pixels.flatten(0, 1)).float().unflatten(0, pixels.shape[:2])
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, self.step))
        predicted = predictions(self.model, latent, action, self.config)
        prediction = prediction_loss(latent, predicted, self.objective.prediction)
        statistic = self.way.statistic(latent, generator, self.objective)
        return self.objective.prediction.weight * prediction + self.objective.weight * statistic

    def update(self, clips: Clips) -> None:
        """One optimiser step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
            loss = self.loss(clips)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
