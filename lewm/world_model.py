"""The world model: pixels to latents, latents and actions to the next latents. No loss, no planning.

B batch, N candidates, T time in blocks, H horizon in blocks, A action block (frame_skip x action_dim),
K latent tokens per frame, D latent width, C Y X image.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lewm.data.windows import WindowSpec
from lewm.nets.encoders import ConvConfig, EncoderConfig, build_encoder
from lewm.nets.predictors import MLPConfig, PredictorConfig, build_predictor


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a world model; everything known before the data is seen."""

    encoder: EncoderConfig = field(default_factory=ConvConfig)
    """Pixels to latent tokens."""
    predictor: PredictorConfig = field(default_factory=MLPConfig)
    """Latent and action block to the next latent."""
    frame_skip: int = 5
    """Environment steps per block: one prediction spans this many raw actions."""
    frame_stack: int = 1
    """Frames the encoder sees at once; 2 lets it read velocities."""
    stack_stride: int = 1
    """Environment steps between stacked frames."""

    def __post_init__(self) -> None:
        for name in ("frame_skip", "frame_stack", "stack_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.encoder.link != self.predictor.link:
            raise ValueError(
                f"model.predictor.link is {self.predictor.link!r} and model.encoder.link is {self.encoder.link!r}; a "
                "predicted latent has to lie where the encoded ones do: give both the same"
            )

    def window(self, length: int) -> WindowSpec:
        """How to cut recordings into clips of `length` frames for this model."""
        return WindowSpec(length, self.frame_skip, self.frame_stack, self.stack_stride)


@dataclass(frozen=True)
class ModelFacts:
    """What only the data can tell: sizes and statistics. Saved in the checkpoint, never in a config."""

    size: int
    """Image height and width in pixels."""
    action_low: tuple[float, ...]
    """Lower bound of each raw action entry."""
    action_high: tuple[float, ...]
    """Upper bound of each raw action entry."""
    action_mean: tuple[float, ...]
    """Mean of each raw action entry over the training recordings."""
    action_std: tuple[float, ...]
    """Standard deviation of each raw action entry."""
    pixel_mean: tuple[float, ...]
    """Mean of each colour channel, in [0, 1]."""
    pixel_std: tuple[float, ...]
    """Standard deviation of each colour channel, in [0, 1]."""

    @property
    def action_dim(self) -> int:
        """Entries of one raw action."""
        return len(self.action_mean)


class WorldModel(nn.Module):
    """Encoder and predictor with the input scaling between them and the world (uint8 pixels, raw actions)."""

    pixel_scale: Tensor
    pixel_shift: Tensor
    action_mean_A: Tensor
    action_std_A: Tensor

    def __init__(self, config: ModelConfig, facts: ModelFacts) -> None:
        super().__init__()
        self.config = config
        self.facts = facts
        self.encoder = build_encoder(config.encoder, channels=3 * config.frame_stack, size=facts.size)
        self.action_dim = config.frame_skip * facts.action_dim
        self.tokens: int = self.encoder.tokens
        self.latent_dim: int = self.encoder.latent_dim
        self.predictor = build_predictor(config.predictor, self.latent_dim, self.action_dim, self.tokens)
        self.context: int = self.predictor.context
        std = torch.tensor(facts.pixel_std).clamp(min=1e-3).repeat(config.frame_stack).view(-1, 1, 1)
        mean = torch.tensor(facts.pixel_mean).repeat(config.frame_stack).view(-1, 1, 1)
        # Derived from `facts`, which the checkpoint stores as plain numbers: not persistent, never loaded.
        self.register_buffer("pixel_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)
        self.register_buffer("action_mean_A", torch.tensor(facts.action_mean).repeat(config.frame_skip), False)
        action_std = torch.tensor(facts.action_std).clamp(min=1e-3)
        self.register_buffer("action_std_A", action_std.repeat(config.frame_skip), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.pixel_scale.device

    def encode(self, pixels_BTCYX: Tensor) -> Tensor:
        """Encode uint8 frames (C = 3 x frame_stack, oldest first) to latent_BTKD, each frame on its own."""
        if pixels_BTCYX.dtype != torch.uint8 or pixels_BTCYX.ndim != 5:
            raise ValueError(
                f"encode: pixels are {pixels_BTCYX.dtype} of shape {tuple(pixels_BTCYX.shape)}; "
                "they must be uint8 (B, T, C, Y, X)"
            )
        expected = (3 * self.config.frame_stack, self.facts.size, self.facts.size)
        if tuple(pixels_BTCYX.shape[2:]) != expected:
            raise ValueError(
                f"encode: frames are {tuple(pixels_BTCYX.shape[2:])} (channels, height, width); this model reads "
                f"{expected}: resize the pictures or use a model trained at that size"
            )
        frames = pixels_BTCYX.flatten(0, 1).to(self.pixel_scale.dtype)
        tokens = self.encoder(torch.addcmul(self.pixel_shift, frames, self.pixel_scale))
        # Under autocast the nets may answer in bfloat16; latents stay in full precision, or rollouts would drift.
        latent_BTKD: Tensor = tokens.to(self.pixel_scale.dtype).unflatten(0, pixels_BTCYX.shape[:2])
        return latent_BTKD

    def scale_action(self, action: Tensor) -> Tensor:
        """Raw action blocks (..., A) to about zero mean and unit variance, as the predictor reads them."""
        return (action - self.action_mean_A) / self.action_std_A

    def predict(self, latent_BTKD: Tensor, action_BTA: Tensor) -> Tensor:
        """Entry t is the latent that follows frame t when the raw action block t leaves it (causal in t)."""
        predicted_BTKD: Tensor = self.predictor(latent_BTKD, self.scale_action(action_BTA))
        return predicted_BTKD.to(latent_BTKD.dtype)

    def rollout(self, latent_BTKD: Tensor, past_BTA: Tensor, action_BNHA: Tensor) -> Tensor:
        """Imagine N futures of every problem: latent_BNHKD after each of the H blocks.

        latent_BTKD: the T frames seen so far, the last one being now. past_BTA: the T-1 blocks executed between them.
        The window slides once it reaches the predictor's trained context.
        """
        batch, candidates, horizon, _ = action_BNHA.shape
        seen = latent_BTKD.shape[1]
        if past_BTA.shape[1] != seen - 1:
            raise ValueError(f"rollout: {seen} frames need {seen - 1} past action blocks, got {past_BTA.shape[1]}")
        latents = latent_BTKD.repeat_interleave(candidates, 0)
        actions = torch.cat([past_BTA.repeat_interleave(candidates, 0), action_BNHA.flatten(0, 1)], 1)
        for now in range(seen, seen + horizon):
            start = max(0, now - self.context)
            window = self.predict(latents[:, start:now], actions[:, start:now])
            latents = torch.cat([latents, window[:, -1:]], 1)
        return latents[:, seen:].unflatten(0, (batch, candidates))
