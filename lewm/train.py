"""Training a world model: what one step does, as a function of (seed, step). The loop is in `lewm.training_loop`.

`train` may be called again with the same arguments at any time: it continues from the last `trainer.pt`, and the final
weights are bitwise those of an uninterrupted run on the same machine.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lewm import distributed
from lewm.data.proprio import measured
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Batch, Windows, batch_indices
from lewm.nets.frozen import frozen_in
from lewm.nets.frozen.cache import FeatureUse, features_for
from lewm.nets.variable import Followed
from lewm.objectives import AddOnsConfig, Losses, Objective, RunObjective, build_objective
from lewm.objectives.variable import with_variable
from lewm.pieces import follow_in_pieces, roll_in_pieces
from lewm.probes import Health, probe_model
from lewm.train_log import TrainLog
from lewm.trainer_state import flatten, refuse_other_settings, save_atomically
from lewm.training_loop import run_steps, step_seed
from lewm.world_model import ModelConfig, ModelFacts, WorldModel

OnProbe = Callable[[int, Health], None]
"""Called with (step, health) after every probe."""
STANDARDISED = 512
"""Training clips that the tokens of a frozen encoder are measured on (`encoder.standardise`)."""


@dataclass(frozen=True)
class TrainConfig:
    """How the world model is trained."""

    steps: int = 2000
    """Optimiser steps."""
    batch: int = 64
    """Clips per step, over all processes."""
    frames: int = 5
    """Frames per clip (T); a clip spans (T - 1) x frame_skip environment steps."""
    prediction: Literal["rollout", "teacher_forcing", "both"] = "rollout"
    """Predict from the model's own predictions, from the encoded frames, or both (averaged)."""
    history: int = 1
    """Encoded frames a rollout starts from."""
    rollout_steps: int | None = None
    """Most frames a rollout predicts before the next one starts from encoded frames again; null: to the end of the
    clip. With `prediction: both` and 2 this is V-JEPA 2-AC's: teacher forcing over the clip and two-step rollouts."""
    add_ons: AddOnsConfig = field(default_factory=AddOnsConfig)
    """Terms added to those of the objective; all off unless weighted."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay, on matrices only."""
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    """one_cycle: cosine up over 30 % of the steps, cosine down. cosine: linear warm-up, cosine to zero."""
    warmup: float = 0.01
    """Share of the steps spent warming up (schedule cosine)."""
    clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Decides the initial weights, the data order, the slices and the split."""
    held_out: float = 0.1
    """Share of the episodes kept away from training, for probes and evaluation."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on CUDA, float32 elsewhere."""
    compile: bool = False
    """torch.compile the encoder and the predictor (needs a C++ compiler or CUDA)."""
    resident: Literal["auto", "disk", "ram", "gpu"] = "auto"
    """Where the recordings live while training."""
    features: FeatureUse = "auto"
    """Features of a frozen encoder that `lewm cache-features` computed: taken where they are (auto), required
    (cached), or left alone (live)."""
    log_every: int = 50
    """Steps between TensorBoard scalars."""
    probe_every: int = 500
    """Steps between probes on held-out episodes (0: only at the end)."""
    probe_clips: int = 256
    """Held-out clips of a probe, which is fitted on as many training clips: take more for factors that are read out in
    curved ways only."""
    checkpoint_every: int = 250
    """Steps between trainer checkpoints; a killed run loses at most this many."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "history", "probe_clips", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        if self.frames <= self.history:
            raise ValueError(f"train.frames is {self.frames}; it must exceed train.history ({self.history})")
        if self.rollout_steps is not None and self.rollout_steps < 1:
            raise ValueError(f"train.rollout_steps is {self.rollout_steps}; it must be at least 1, or null")
        if self.rollout_steps is not None and self.prediction == "teacher_forcing":
            raise ValueError(
                f"train.rollout_steps is {self.rollout_steps}, but train.prediction is teacher_forcing, which rolls "
                "nothing out; set it to rollout or both, or leave rollout_steps out"
            )
        if not 0 < self.held_out < 1:
            raise ValueError(f"train.held_out is {self.held_out}; it must lie between 0 and 1")


def model_facts(store: Store, config: ModelConfig) -> ModelFacts:
    """What the recordings tell the model: sizes and statistics. Raises ValueError for what they cannot give it."""
    meta, stats = store.meta, store.meta.statistics
    if meta.frame[0] != meta.frame[1]:
        raise ValueError(f"frames are {meta.frame[0]} x {meta.frame[1]}, models see squares: import them with --size")
    return ModelFacts(
        size=meta.frame[0],
        action_low=tuple(meta.action_low),
        action_high=tuple(meta.action_high),
        action_mean=tuple(stats.action_mean),
        action_std=tuple(stats.action_std),
        pixel_mean=tuple(stats.pixel_mean),
        pixel_std=tuple(stats.pixel_std),
        proprio=measured(meta, config.proprio),
    )


def build_model(config: ModelConfig, facts: ModelFacts, seed: int) -> WorldModel:
    """A freshly initialised model; the only place that seeds torch's global generator for parameters."""
    torch.manual_seed(seed)
    return WorldModel(config, facts)


def predictions(model: WorldModel, latent_BTKD: Tensor, action_BTA: Tensor, config: TrainConfig) -> tuple[Tensor, ...]:
    """The predictions the objective scores, each aligned with latent_BTKD[:, 1:]."""
    modes = []
    if config.prediction in ("teacher_forcing", "both"):
        modes.append(model.predict(latent_BTKD[:, :-1], action_BTA))
    if config.prediction in ("rollout", "both"):
        modes.append(roll_in_pieces(model, latent_BTKD, action_BTA, config.history, config.rollout_steps))
    return tuple(modes)


def explained(
    model: WorldModel, latent_BTKD: Tensor, action_BTA: Tensor, config: TrainConfig, generator: torch.Generator
) -> tuple[Followed, ...]:
    """`predictions` of a model with a latent variable, which is inferred in every block."""
    assert model.variable is not None
    # Drawn for the clips of all processes, as one process would draw it, of which each takes its own.
    world = distributed.world_size()
    noise_BTV = model.variable.noise((world * len(latent_BTKD), config.frames - 1), generator)
    noise_BTV = noise_BTV[distributed.rank() :: world].to(latent_BTKD)
    clip, found = (latent_BTKD, action_BTA, noise_BTV), []
    if config.prediction in ("teacher_forcing", "both"):
        found.append(follow_in_pieces(model, *clip, config.frames - 1, None))
    if config.prediction in ("rollout", "both"):
        found.append(follow_in_pieces(model, *clip, config.history, config.rollout_steps))
    return tuple(found)


def step_losses(
    model: WorldModel, batch: Batch, config: TrainConfig, objective: Objective, generator: torch.Generator
) -> Losses:
    """Encode a clip, predict it, score it: the whole forward pass of training."""
    latent_BTKD = model.encode_batch(batch)
    if model.variable is None:
        predicted = predictions(model, latent_BTKD, batch.action_BTA, config)
        losses: Losses = objective(latent_BTKD, predicted, batch, generator)
        return losses
    followed = explained(model, latent_BTKD, batch.action_BTA, config, generator)
    losses = objective(latent_BTKD, tuple(one.scored_BTKD for one in followed), batch, generator)
    return with_variable(losses, followed, model.variable)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate used at `step` in [0, steps)."""
    if config.schedule == "one_cycle":
        rise = max(1.0, 0.3 * config.steps)
        if step < rise:
            return config.learning_rate * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise)))
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, config.steps - rise)))
    rise = max(1.0, config.warmup * config.steps)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, config.steps - rise)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases, norms and embeddings of one axis alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


class Trainer:
    """State over time of one training run: model, optimiser, data, logs, and where they are saved."""

    def __init__(
        self,
        model_config: ModelConfig,
        objective: RunObjective,
        config: TrainConfig,
        store: Store,
        out: Path,
        device: torch.device,
    ) -> None:
        self.config, self.device, self.out = config, device, out
        world = distributed.world_size()
        if config.batch % world:
            raise ValueError(f"train.batch is {config.batch}; it must be a multiple of the {world} processes")
        self.store = store
        train_ids, held_ids = split_episodes(store.num_episodes, config.held_out, config.seed)
        spec = model_config.window(config.frames)
        self.model = build_model(model_config, model_facts(store, model_config), config.seed).to(device)
        features = features_for(self.model.encoder, store, config.features)
        pictures = features is None or config.add_ons.decoder > 0
        self.windows = Windows(store, spec, train_ids, config.resident, device, features, pictures)
        self.held_windows = Windows(store, spec, held_ids, "disk", device, features, pictures)
        self.shown = self.held_windows if pictures else Windows(store, spec, held_ids, "disk", device)
        self.objective = build_objective(objective, self.model, config.add_ons).to(device)
        self.trained = nn.ModuleList([self.model, self.objective])
        self.optimizer = make_optimizer(self.trained, config)
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
        self.step = 0
        parts = {"model": asdict(model_config), "objective": asdict(objective), "train": asdict(config)}
        data = {"frames": store.num_frames, "task": store.meta.task}
        if features is not None:  # rounded otherwise than live ones
            data["features"] = features.meta.dtype
        self.settings = flatten(parts | {"data": data})
        self.resume()
        if self.step == 0:
            self.standardise_tokens()
        if config.compile:
            if frozen_in(self.model.encoder) is None:
                self.model.encoder.compile()
            self.model.predictor.compile()

    @property
    def state_path(self) -> Path:
        """The trainer state that a restart continues from."""
        return self.out / "trainer.pt"

    def save(self) -> None:
        """Write the trainer state; rank 0 only."""
        if distributed.rank() == 0:
            state: dict[str, Any] = {"model": self.model.state_dict(), "objective": self.objective.state_dict()}
            state["optimizer"] = self.optimizer.state_dict()
            save_atomically(state | {"step": self.step, "settings": self.settings}, self.state_path)

    def resume(self) -> None:
        """Continue from `trainer.pt` when there is one; refuse one that belongs to another configuration."""
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        refuse_other_settings(self.state_path, self.settings, state["settings"])
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def standardise_tokens(self) -> None:
        """Measure the tokens of a frozen encoder that is to standardise them, on training clips; alike on all ranks."""
        frozen = frozen_in(self.model.encoder)
        if frozen is None or not frozen.config.standardise:
            return
        count = min(STANDARDISED, len(self.windows))
        clips = np.random.default_rng(self.config.seed).choice(len(self.windows), count, replace=False)
        clips_B = (self.windows.batch(part) for part in np.array_split(clips, math.ceil(count / self.config.batch)))
        with torch.no_grad():
            frozen.standardise(self.model.pictured(self.model.encode_batch(b)).flatten(0, 1) for b in clips_B)

    def read_batch(self) -> Batch:
        """This process's share of the batch of the current step."""
        index = batch_indices(self.config.seed, self.step, len(self.windows), self.config.batch)
        return self.windows.batch(index[distributed.rank() :: distributed.world_size()])

    def update(self, batch: Batch) -> tuple[Losses, Tensor]:
        """One optimiser step; returns the losses and the gradient norm."""
        config = self.config
        torch.manual_seed(step_seed(config.seed, self.step, 1 + distributed.rank()))  # dropout
        generator = torch.Generator().manual_seed(step_seed(config.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast:
            losses = step_losses(self.model, batch, config, self.objective, generator)
        losses.total.backward()
        distributed.average_gradients(self.trained)
        norm = nn.utils.clip_grad_norm_(self.trained.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        self.objective.after_step(self.model, self.step / config.steps)
        return losses.detach(), norm

    def probe(self, log: TrainLog, on_probe: OnProbe | None) -> None:
        """Log the health of the latent space and a held-out clip, and hand it to whoever asked; rank 0 only."""
        if distributed.rank() == 0:
            health = self.health()
            newest = slice(-self.model.facts.channels, None)
            clip_TCYX = self.shown.batch(np.arange(1)).pixels_BTCYX[0, :, newest][:, :3]
            log.probe(self.step, health, clip_TCYX)
            if on_probe is not None:
                on_probe(self.step, health)

    def health(self) -> Health:
        """Probes on held-out clips; the probe itself is fitted on training clips."""
        count = min(self.config.probe_clips, len(self.held_windows), len(self.windows))
        rng = np.random.default_rng(self.config.seed)
        fit = self.windows.batch(rng.choice(len(self.windows), count, replace=False))
        test = self.held_windows.batch(rng.choice(len(self.held_windows), count, replace=False))
        meta = self.store.meta
        return probe_model(self.model, fit, test, meta.state_names, meta.angle_names, self.config.history)


def train(
    model_config: ModelConfig,
    objective: RunObjective,
    config: TrainConfig,
    store: Store,
    out: Path,
    device: torch.device,
    quiet: bool = False,
    on_probe: OnProbe | None = None,
) -> WorldModel:
    """Train a world model on a store, or continue a run that was interrupted in `out`.

    Writes `trainer.pt` and TensorBoard logs to `out`. Raises TrainingDiverged naming the step, the clips and the last
    good state, and Interrupted after a SIGTERM or Ctrl-C (the state is saved first). Returns the model in eval mode.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model_config, objective, config, store, out, device)
    if trainer.step == config.steps:  # finished by an earlier call
        return trainer.model.eval()
    log = TrainLog(out / "tensorboard", trainer.step, trainer.state_path)

    def probe() -> dict[str, float]:
        trainer.probe(log, on_probe)
        return {}

    run_steps("train", trainer, config, log, partial(learning_rate, config), probe, quiet)
    trainer.probe(log, on_probe)
    log.close()
    return trainer.model.eval()
