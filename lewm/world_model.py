"""The world model: pixels to latents, latents and actions to the next latents. No loss, no planning.

B batch, N candidates, T time in blocks, H horizon in blocks, A action block (frame_skip x action_dim),
K latent tokens per frame, D latent width, C Y X image.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lewm.data.proprio import Measured
from lewm.data.windows import Batch, WindowSpec
from lewm.nets.encoders import ConvConfig, EncoderConfig, build_encoder
from lewm.nets.frozen import FrozenConfig, FrozenEncoder, frozen_in
from lewm.nets.measured import MeasuredEncoder
from lewm.nets.pixels import pixel_scaling
from lewm.nets.predictors import ACConfig, MLPConfig, PredictorConfig, build_predictor
from lewm.nets.variable import Followed, VariableConfig, build_variable


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
    proprio: tuple[str, ...] = ()
    """State entries or extra columns of the recordings, such as joint angles, that are measured beside each picture."""
    proprio_width: int | None = 16
    """Latent entries for them, beside those of the picture; null: the numbers themselves, standardised, an angle as its
    cosine and sine."""
    variable: VariableConfig | None = None
    """What the next frame holds beyond latent and action, for stochastic worlds (discrete, gaussian); null: nothing."""

    def __post_init__(self) -> None:
        for name in ("frame_skip", "frame_stack", "stack_stride", "proprio_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model.{name} is {value}; it must be at least 1")
        if isinstance(self.predictor, ACConfig) and self.predictor.extrinsics and self.proprio_width is not None:
            raise ValueError(
                f"model.predictor.extrinsics is {self.predictor.extrinsics}, but model.proprio_width mixes all "
                "measurements; set proprio_width to null, so that the camera's entries can be told apart"
            )
        if (
            isinstance(self.encoder, FrozenConfig)
            and self.encoder.standardise
            and isinstance(self.predictor, ACConfig)
            and self.predictor.normalise
        ):
            raise ValueError(
                "model.encoder.standardise and model.predictor.normalise are both true, but what is layer-normed can "
                "be no standardised token: set one of them to false"
            )
        if self.encoder.link != self.predictor.link:
            raise ValueError(
                f"model.predictor.link is {self.predictor.link!r} and model.encoder.link is {self.encoder.link!r}; a "
                "predicted latent has to lie where the encoded ones do: give both the same"
            )
        if self.proprio and self.encoder.link != "identity":
            raise ValueError(
                f"model.encoder.link is {self.encoder.link!r}, which model.proprio cannot follow: measurements have "
                "both signs; use link identity, or leave model.proprio out"
            )

    def window(self, length: int) -> WindowSpec:
        """How to cut recordings into clips of `length` frames for this model."""
        return WindowSpec(length, self.frame_skip, self.frame_stack, self.stack_stride, self.proprio)


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
    """Mean of each colour channel, in [0, 1]; three per camera."""
    pixel_std: tuple[float, ...]
    """Standard deviation of each colour channel, in [0, 1]."""
    proprio: tuple[Measured, ...] = ()
    """The measured numbers that the configuration's names stand for."""

    @property
    def action_dim(self) -> int:
        """Entries of one raw action."""
        return len(self.action_mean)

    @property
    def channels(self) -> int:
        """Channels of one frame, three per camera."""
        return len(self.pixel_mean)


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
        picture = build_encoder(config.encoder, facts.channels * config.frame_stack, facts.size)
        self.picture_dim: int = picture.latent_dim
        self.encoder = MeasuredEncoder(picture, facts.proprio, config.proprio_width) if config.proprio else picture
        self.action_dim = config.frame_skip * facts.action_dim
        self.tokens: int = self.encoder.tokens
        self.latent_dim: int = self.encoder.latent_dim
        entries = 0
        self.variable = None
        if config.variable is not None:
            self.variable = build_variable(config.variable, self.latent_dim, self.action_dim, self.tokens)
            entries = self.variable.entries
        self.predictor = build_predictor(
            config.predictor,
            self.latent_dim,
            self.action_dim + entries,
            self.tokens,
            measured=self.latent_dim - self.picture_dim,
        )
        self.context: int = self.predictor.context
        mean, std = facts.pixel_mean * config.frame_stack, facts.pixel_std * config.frame_stack
        if isinstance(picture, FrozenEncoder):  # it was trained on pixels scaled by other statistics
            mean, std = picture.pixel_mean, picture.pixel_std
        scale, shift = pixel_scaling(mean, std)
        # Derived from `facts`, which the checkpoint stores as plain numbers: not persistent, never loaded.
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", shift, persistent=False)
        self.register_buffer("action_mean_A", torch.tensor(facts.action_mean).repeat(config.frame_skip), False)
        action_std = torch.tensor(facts.action_std).clamp(min=1e-3)
        self.register_buffer("action_std_A", action_std.repeat(config.frame_skip), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.pixel_scale.device

    def encode(self, pixels_BTCYX: Tensor, proprio_BTP: Tensor | None = None) -> Tensor:
        """Encode uint8 frames (C = 3 x cameras x frame_stack, oldest first) to latent_BTKD, each frame on its own.

        proprio_BTP: raw measurements, for a model that has them (`model.proprio`).
        """
        if (proprio_BTP is None) == bool(self.facts.proprio):
            raise ValueError(
                f"encode: this model measures {', '.join(self.config.proprio) or 'nothing beside the picture'}; "
                f"{'pass proprio_BTP' if proprio_BTP is None else 'leave proprio_BTP out'}"
            )
        return self._encode(pixels_BTCYX, proprio_BTP)

    def encode_picture(self, pixels_BTCYX: Tensor) -> Tensor:
        """As `encode`, of pictures whose measurements nobody knows, such as goals: those entries are 0, their mean."""
        return self._encode(pixels_BTCYX, None)

    def encode_batch(self, batch: Batch) -> Tensor:
        """As `encode`, of the frames of a batch of windows: from their cached features, where it brings them."""
        if batch.feature_BTPKD is None:
            return self.encode(batch.pixels_BTCYX, batch.proprio_BTP)
        return self.encode_features(batch.feature_BTPKD, batch.proprio_BTP)

    def encode_features(self, feature_BTPKD: Tensor, proprio_BTP: Tensor | None = None) -> Tensor:
        """As `encode`, of frames whose P pictures (stacked frames x cameras, oldest first) were encoded before.

        feature_BTPKD: what the frozen encoder's `features` gave. ValueError for a model whose encoder is trained.
        """
        picture = frozen_in(self.encoder)
        if picture is None:
            raise ValueError("encode_features: this model's encoder is trained, so features of frames are never final")
        tokens = picture.join(feature_BTPKD.flatten(0, 1))
        if isinstance(self.encoder, MeasuredEncoder):
            tokens = self.encoder.beside(tokens, None if proprio_BTP is None else proprio_BTP.flatten(0, 1))
        latent_BTKD: Tensor = tokens.to(self.pixel_scale.dtype).unflatten(0, feature_BTPKD.shape[:2])
        return latent_BTKD

    def pictured(self, latent_BTKD: Tensor) -> Tensor:
        """The entries of latents that come from the picture, all of them for a model that measures nothing."""
        return latent_BTKD[..., : self.picture_dim]

    def measure(self, proprio_BP: Tensor) -> Tensor:
        """Latent entries (B, proprio_width) that raw measurements become."""
        if not isinstance(self.encoder, MeasuredEncoder):
            raise ValueError("measure: this model measures nothing; train with model.proprio")
        return self.encoder.embed_measured(proprio_BP)

    def _encode(self, pixels_BTCYX: Tensor, proprio_BTP: Tensor | None) -> Tensor:
        if pixels_BTCYX.dtype != torch.uint8 or pixels_BTCYX.ndim != 5:
            raise ValueError(
                f"encode: pixels are {pixels_BTCYX.dtype} of shape {tuple(pixels_BTCYX.shape)}; "
                "they must be uint8 (B, T, C, Y, X)"
            )
        expected = (self.facts.channels * self.config.frame_stack, self.facts.size, self.facts.size)
        if tuple(pixels_BTCYX.shape[2:]) != expected:
            raise ValueError(
                f"encode: frames are {tuple(pixels_BTCYX.shape[2:])} (channels, height, width); this model reads "
                f"{expected}: resize the pictures or use a model trained at that size"
            )
        frames = pixels_BTCYX.flatten(0, 1).to(self.pixel_scale.dtype)
        frames = torch.addcmul(self.pixel_shift, frames, self.pixel_scale)
        tokens = self.encoder(frames) if proprio_BTP is None else self.encoder(frames, proprio_BTP.flatten(0, 1))
        # Under autocast the nets may answer in bfloat16; latents stay in full precision, or rollouts would drift.
        latent_BTKD: Tensor = tokens.to(self.pixel_scale.dtype).unflatten(0, pixels_BTCYX.shape[:2])
        return latent_BTKD

    def scale_action(self, action: Tensor) -> Tensor:
        """Raw action blocks (..., A) to about zero mean and unit variance, as the predictor reads them."""
        return (action - self.action_mean_A) / self.action_std_A

    def predict(self, latent_BTKD: Tensor, action_BTA: Tensor, variable_BTV: Tensor | None = None) -> Tensor:
        """Entry t is the latent that follows frame t when the raw action block t leaves it (causal in t).

        variable_BTV: what chance does in each block, for a model with a latent variable; None takes what its prior
        holds likeliest. ValueError for a model without one.
        """
        scaled_BTA = self.scale_action(action_BTA)
        if self.variable is not None:
            if variable_BTV is None:
                variable_BTV = self.variable.draw(latent_BTKD, scaled_BTA)
            scaled_BTA = torch.cat([scaled_BTA, variable_BTV], -1)
        elif variable_BTV is not None:
            raise ValueError("predict: this model has no latent variable; give no variable_BTV, or set model.variable")
        predicted_BTKD: Tensor = self.predictor(latent_BTKD, scaled_BTA)
        return predicted_BTKD.to(latent_BTKD.dtype)

    def rollout(
        self,
        latent_BTKD: Tensor,
        past_BTA: Tensor,
        action_BNHA: Tensor,
        noise_BNHV: Tensor | None = None,
        likely: float = 0.0,
    ) -> Tensor:
        """Imagine N futures of every problem: latent_BNHKD after each of the H blocks.

        latent_BTKD: the T frames seen so far, the last one being now. past_BTA: the T-1 blocks executed between them.
        The window slides once it reaches the predictor's trained context.
        noise_BNHV, likely: a model with a latent variable draws it in every block from its prior, see `Variable.draw`;
        None takes the likeliest. The variables of the past are those that explain the frames seen.
        """
        batch, candidates, horizon, _ = action_BNHA.shape
        seen = latent_BTKD.shape[1]
        if past_BTA.shape[1] != seen - 1:
            raise ValueError(f"rollout: {seen} frames need {seen - 1} past action blocks, got {past_BTA.shape[1]}")
        latents = latent_BTKD.repeat_interleave(candidates, 0)
        actions = torch.cat([past_BTA.repeat_interleave(candidates, 0), action_BNHA.flatten(0, 1)], 1)
        values = None
        if self.variable is not None:
            values = latents.new_zeros(len(latents), 0, self.variable.entries)
            if seen > 1:
                values = self.follow(latent_BTKD, past_BTA, seen - 1).value_BTV.repeat_interleave(candidates, 0)
        for now in range(seen, seen + horizon):
            start = max(0, now - self.context)
            if self.variable is not None and values is not None:
                noise = None if noise_BNHV is None else noise_BNHV[:, :, now - seen].flatten(0, 1)
                value = self.variable.draw(latents[:, -1], self.scale_action(actions[:, now - 1]), noise, likely)
                values = torch.cat([values, value[:, None]], 1)
            window = self.predict(
                latents[:, start:now], actions[:, start:now], None if values is None else values[:, start:now]
            )
            latents = torch.cat([latents, window[:, -1:]], 1)
        return latents[:, seen:].unflatten(0, (batch, candidates))

    def follow(
        self, latent_BTKD: Tensor, action_BTA: Tensor, history: int, noise_BTV: Tensor | None = None
    ) -> Followed:
        """Predict a recorded clip, inferring the latent variable of every block from the frame that came after it.

        latent_BTKD: T frames. action_BTA: the T-1 blocks between them. history: frames that are given; from there on it
        goes by its own predictions, so that T-1 is teacher forcing. noise_BTV: of `Variable.noise`, for training; None
        takes the best guesses. ValueError for a model without a latent variable.
        """
        if self.variable is None:
            raise ValueError("follow: this model has no latent variable; use rollout, or set model.variable")
        if latent_BTKD.shape[1] < 2:
            raise ValueError(f"follow: a clip of {latent_BTKD.shape[1]} frames has nothing to predict; give 2 or more")
        frames, values = latent_BTKD[:, :1], latent_BTKD.new_zeros(len(latent_BTKD), 0, self.variable.entries)
        found = []
        for now in range(1, latent_BTKD.shape[1]):
            window = slice(max(0, now - self.context), now)
            inferred = self.variable.infer(
                partial(self._predict_last, frames[:, window], action_BTA[:, window], values[:, window]),
                frames[:, -1],
                self.scale_action(action_BTA[:, now - 1]),
                latent_BTKD[:, now],
                None if noise_BTV is None else noise_BTV[:, now - 1],
            )
            found.append(inferred)
            following = latent_BTKD[:, now] if now < history else inferred.predicted_BKD
            frames = torch.cat([frames, following[:, None]], 1)
            values = torch.cat([values, inferred.value_BV[:, None]], 1)
        return Followed(
            torch.stack([one.predicted_BKD for one in found], 1),
            torch.stack([one.scored_BKD for one in found], 1),
            values,
            torch.stack([one.nats_B for one in found], 1),
            torch.stack([one.loss_B for one in found], 1),
        )

    def _predict_last(self, latent_BTKD: Tensor, action_BTA: Tensor, past_BTV: Tensor, value_MBV: Tensor) -> Tensor:
        """predicted_MBKD after the last frame of a window, under M values of the last block's variable."""
        count = len(value_MBV)
        past_MBTV = past_BTV.expand(count, *past_BTV.shape)
        variable_RTV = torch.cat([past_MBTV, value_MBV[:, :, None]], 2).flatten(0, 1)
        latents, actions = latent_BTKD.repeat(count, 1, 1, 1), action_BTA.repeat(count, 1, 1)
        return self.predict(latents, actions, variable_RTV)[:, -1].unflatten(0, (count, -1))
