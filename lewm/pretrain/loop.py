"""Pretraining an encoder: what one step does, as a function of (seed, step). The loop is in `lewm.training_loop`.

`pretrain` may be called again with the same arguments at any time: it continues from the last `trainer.pt`, and the
final weights are bitwise those of an uninterrupted run on the same machine.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lewm import distributed
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Batch, Windows, WindowSpec, batch_indices
from lewm.nets.pretrained import HEADER, PretrainedFacts
from lewm.objectives.losses import Losses
from lewm.pretrain import ClipShape, Setup, build_method
from lewm.pretrain.config import PretrainConfig, PretrainRun
from lewm.pretrain.folder import save_encoder
from lewm.pretrain.probe import Frames, TokenHealth, encode, feature_picture, token_health, write_png
from lewm.train import make_optimizer
from lewm.train_log import TrainLog
from lewm.trainer_state import flatten, refuse_other_settings, save_atomically
from lewm.training_loop import run_steps, step_seed

OnProbe = Callable[[int, TokenHealth], None]
"""Called with (step, health) after every probe."""
SHOWN = 8
"""Held-out frames in the picture of features."""


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Learning rate used at `step` in [0, steps)."""
    rise = max(1.0, config.warmup * config.steps)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    if config.schedule == "constant":
        left = (config.steps - step) / max(1.0, config.cooldown * config.steps)
        return config.learning_rate * min(1.0, left)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, config.steps - rise)))


def weight_decay(config: PretrainConfig, step: int) -> float:
    """Weight decay of matrices at `step` in [0, steps): a cosine from its first value to its last."""
    done = step / config.steps
    return config.final_weight_decay + (config.weight_decay - config.final_weight_decay) * 0.5 * (
        1 + math.cos(math.pi * done)
    )


def prepare(pixels_BTCYX: Tensor, shape: ClipShape, setup: Setup) -> Tensor:
    """uint8 clips to normalised clips of a shape: the first frames, averaged over shrink x shrink pixels."""
    clip = pixels_BTCYX[:, : shape.frames].float() / 255
    if shape.shrink > 1:
        clip = F.avg_pool2d(clip.flatten(0, 1), shape.shrink).unflatten(0, clip.shape[:2])
    mean, std = (torch.tensor(x, device=clip.device)[:, None, None] for x in (setup.pixel_mean, setup.pixel_std))
    return (clip - mean) / std.clamp(min=1e-3)


def setup_for(run: PretrainRun, store: Store) -> Setup:
    """What the recordings tell a method. Raises ValueError for pictures the encoder cannot cut up."""
    (height, width, channels), stats, patch = store.meta.frame, store.meta.statistics, run.encoder.patch
    if height != width:
        raise ValueError(f"frames are {height} x {width}, encoders see squares: import them with --size")
    if height % patch or (height // patch) % run.train.probe_grid:
        raise ValueError(
            f"frames are {height} x {height}; encoder.patch ({patch}) must divide that, and train.probe_grid "
            f"({run.train.probe_grid}) the patches per side"
        )
    return Setup(run.encoder, channels, height, tuple(stats.pixel_mean), tuple(stats.pixel_std))


class Pretrainer:
    """State over time of one pretraining: method, optimiser, data, and where they are saved."""

    def __init__(self, run: PretrainRun, store: Store, out: Path, device: torch.device) -> None:
        self.run, self.config, self.store, self.out, self.device = run, run.train, store, out, device
        config, world = run.train, distributed.world_size()
        if config.batch % world:
            raise ValueError(f"train.batch is {config.batch}; it must be a multiple of the {world} processes")
        self.setup = setup_for(run, store)
        torch.manual_seed(config.seed)
        self.method = build_method(run.method, self.setup).to(device)
        self.fit_ids, self.held_ids = split_episodes(store.num_episodes, config.held_out, config.seed)
        spec = WindowSpec(self.method.longest, config.frame_skip)
        self.windows = Windows(store, spec, self.fit_ids, config.resident, device)
        self.optimizer = make_optimizer(self.method, config)  # type: ignore[arg-type]  # it reads two fields they share
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
        self.step = 0
        self.settings = flatten(asdict(run) | {"data": {"frames": store.num_frames, "task": store.meta.task}})
        self.resume()

    @property
    def state_path(self) -> Path:
        """The trainer state that a restart continues from."""
        return self.out / "trainer.pt"

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return self.step / self.config.steps

    def save(self) -> None:
        """Write the trainer state; rank 0 only."""
        if distributed.rank() == 0:
            state = {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()}
            save_atomically(state | {"step": self.step, "settings": self.settings}, self.state_path)

    def resume(self) -> None:
        """Continue from `trainer.pt` when there is one; refuse one that belongs to another configuration."""
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        refuse_other_settings(self.state_path, self.settings, state["settings"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def read_batch(self) -> Batch:
        """This process's share of the batch of the current step."""
        index = batch_indices(self.config.seed, self.step, len(self.windows), self.config.batch)
        return self.windows.batch(index[distributed.rank() :: distributed.world_size()])

    def update(self, batch: Batch) -> tuple[Losses, Tensor]:
        """One optimiser step; returns the losses and the gradient norm."""
        config = self.config
        generator = torch.Generator().manual_seed(step_seed(config.seed, self.step))
        for group, decay in zip(self.optimizer.param_groups, (weight_decay(config, self.step), 0.0), strict=True):
            group["lr"], group["weight_decay"] = learning_rate(config, self.step), decay
        clip_BTCYX = prepare(batch.pixels_BTCYX, self.method.clip_shape(self.progress), self.setup)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast:
            losses: Losses = self.method(clip_BTCYX, self.progress, generator)
        losses.total.backward()
        distributed.average_gradients(self.method)
        norm = nn.utils.clip_grad_norm_(self.method.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        self.method.after_step(self.progress)
        return losses.detach(), norm

    def frames(self, episodes: NDArray[np.int64], count: int) -> tuple[Tensor, Frames]:
        """The same frames of some episodes at every call: uint8 pixels_NCYX, and them as the encoder reads them."""
        windows = Windows(self.store, WindowSpec(1), episodes, "disk", self.device)
        index = np.random.default_rng(self.config.seed).permutation(len(windows))[:count]
        batch = windows.batch(index)
        clip_N1CYX = prepare(batch.pixels_BTCYX, ClipShape(), self.setup)
        return batch.pixels_BTCYX[:, 0], Frames(clip_N1CYX[:, 0], batch.state_BTS[:, 0].cpu())

    def probe(self, log: TrainLog, on_probe: OnProbe | None) -> TokenHealth | None:
        """Log what the kept encoder holds and a picture of its features; rank 0 only."""
        if distributed.rank() > 0:
            return None
        side, kept = self.setup.size // self.run.encoder.patch, self.method.kept()
        _, fit = self.frames(self.fit_ids, self.config.probe_frames)
        pixels_NCYX, test = self.frames(self.held_ids, self.config.probe_frames)
        fit_NSD, test_NSD = (encode(kept, part.picture_NCYX, self.method.normalise) for part in (fit, test))
        meta, grid = self.store.meta, self.config.probe_grid
        health = token_health(fit_NSD, test_NSD, fit, test, meta.state_names, meta.angle_names, side, grid)
        sheet_CYX = feature_picture(pixels_NCYX[:SHOWN], test_NSD[:SHOWN], side)
        write_png(sheet_CYX, self.out / "features.png")
        if log.writer is not None:
            for name, value in health.scalars.items():
                log.writer.add_scalar(name, value, self.step)
            log.writer.add_image("features/held_out", sheet_CYX, self.step)
        if on_probe is not None:
            on_probe(self.step, health)
        return health

    def finish(self, health: TokenHealth | None) -> Path:
        """Write the encoder folder `out/encoder`; rank 0 only."""
        path, kept = self.out / "encoder", self.method.kept()
        if distributed.rank() == 0:
            setup, shape = self.setup, self.method.clip_shape(math.nextafter(1.0, 0.0))
            about = PretrainedFacts(
                setup.encoder,
                kept.facts,
                setup.size,
                shape.frames,
                setup.pixel_mean,
                setup.pixel_std,
                self.method.normalise,
            )
            save_encoder(path, kept, about, self.run, self.store.meta.task, health)
        return path


def pretrain(
    run: PretrainRun,
    store: Store,
    out: Path,
    device: torch.device,
    quiet: bool = False,
    on_probe: OnProbe | None = None,
) -> Path:
    """Train an encoder on a store, or continue a run that was interrupted in `out`; returns the folder `out/encoder`.

    Writes `trainer.pt`, `features.png` and TensorBoard logs to `out`. Raises TrainingDiverged naming the step, the
    clips and the last good state, and Interrupted after a SIGTERM or Ctrl-C (the state is saved first).
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer, config = Pretrainer(run, store, out, device), run.train
    if trainer.step == config.steps and (out / "encoder" / HEADER).is_file():  # finished by an earlier call
        return out / "encoder"
    log = TrainLog(out / "tensorboard", trainer.step, trainer.state_path)
    if trainer.step == 0:  # what random weights give, to compare with
        trainer.probe(log, on_probe)

    def probe() -> dict[str, float]:
        health = trainer.probe(log, on_probe)
        return {"probe_r2": health.mean_r2 if health else math.nan}

    run_steps("pretrain", trainer, config, log, partial(learning_rate, config), probe, quiet)
    health = trainer.probe(log, on_probe)
    log.close()
    return trainer.finish(health)
