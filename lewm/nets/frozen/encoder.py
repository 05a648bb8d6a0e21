"""A pretrained encoder that stays as it is: frames in, the averaged patch tokens of somebody else's network out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.frozen.backbone import Backbone
from lewm.nets.frozen.families import FROZEN_FAMILIES
from lewm.nets.frozen.folder import locate, read_config
from lewm.nets.frozen.picture import PIXELS, open_picture
from lewm.nets.pixels import resize


@dataclass(frozen=True)
class FrozenConfig:
    """A pretrained encoder, never trained: only the predictor is (DINO-WM, V-JEPA 2-AC)."""

    name: Literal["frozen"] = "frozen"
    path: str = ""
    """Folder of the encoder (transformers' layout, one of lewm), its name on the hub, or pixels: the picture itself."""
    grid: int = 4
    """Tokens per side: patches are averaged down to grid x grid of them; 1 is one token per frame."""
    size: int | None = None
    """Height and width that frames are resized to; null: what the encoder's own preprocessing says."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Precision it runs in, the same in training, planning and caching."""
    standardise: bool = False
    """Whether the recordings' mean token of a place is taken off every token there, and what is left divided by one
    number, its spread: where most of a picture never changes, tokens are nearly their mean, which a predictor learns
    instead of what happens. Measured when training begins, kept in the checkpoint; cached features stay as they are."""

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"grid is {self.grid}; it must be at least 1")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1, or null for the encoder's own")

    @property
    def link(self) -> Literal["identity"]:
        """Latents are what the encoder gives, of any sign."""
        return "identity"


class FrozenEncoder(nn.Module):
    """pixels_BCYX, normalised by `pixel_mean` and `pixel_std`, to token_BKD with K = grid x grid.

    Every picture (camera, stacked frame) is encoded alone; their tokens of one place are joined along the width. The
    network is no submodule: it has no parameters here, takes no gradient, is always in eval mode, and stays out of
    checkpoints, which keep the SHA-256 of its weights and refuse others.
    """

    weights_sha256: Tensor
    mean_KD: Tensor
    spread: Tensor
    low_C11: Tensor
    high_C11: Tensor

    def __init__(self, config: FrozenConfig, channels: int, size: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = open_backbone(config)
        per_picture = self.backbone.channels
        if channels % per_picture:
            raise ValueError(
                f"frozen encoder {config.path}: it sees pictures of {per_picture} channels, and frames have {channels}"
            )
        self.pictures = channels // per_picture
        self.tokens: int = config.grid**2
        self.latent_dim: int = self.pictures * self.backbone.width
        mean, std = self.backbone.preprocess.mean, self.backbone.preprocess.std
        self.pixel_mean: tuple[float, ...] = mean * self.pictures
        """Of every input channel: what takes the place of the recordings' statistics."""
        self.pixel_std: tuple[float, ...] = std * self.pictures
        sha = torch.tensor(list(bytes.fromhex(self.backbone.weights_sha256)), dtype=torch.uint8)
        self.register_buffer("weights_sha256", sha)
        if config.standardise:  # NaN until `standardise` measured them, or a checkpoint brings them
            self.register_buffer("mean_KD", torch.full((self.tokens, self.latent_dim), torch.nan))
            self.register_buffer("spread", torch.tensor(torch.nan))
        low, high = ([(edge - m) / s for m, s in zip(mean, std)] for edge in (0.0, 1.0))
        self.register_buffer("low_C11", torch.tensor(low).view(-1, 1, 1), persistent=False)
        self.register_buffer("high_C11", torch.tensor(high).view(-1, 1, 1), persistent=False)

    @property
    def key(self) -> dict[str, Any]:
        """All that decides its features of a frame, as plain data."""
        backbone, preprocess = self.backbone, self.backbone.preprocess
        return {
            "family": backbone.family,
            "weights_sha256": backbone.weights_sha256,
            "size": preprocess.size,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "resample": preprocess.resample,
            "grid": self.config.grid,
            "compute": self.config.compute,
        }

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """Normalised float pixels to token_BKD, without a gradient."""
        picture_RCYX = pixels_BCYX.unflatten(1, (self.pictures, -1)).flatten(0, 1)
        return self.join(self.features(picture_RCYX).unflatten(0, (-1, self.pictures)))

    @torch.no_grad()
    def features(self, pixels_BCYX: Tensor) -> Tensor:
        """feature_BKD of single normalised pictures, as the cache keeps them; the caller's autocast does not matter."""
        preprocess = self.backbone.preprocess
        with torch.autocast(pixels_BCYX.device.type, torch.bfloat16, enabled=self.config.compute == "bfloat16"):
            seen = resize(pixels_BCYX, preprocess.size, preprocess.resample)
            if preprocess.resample == "bicubic":  # which overshoots at edges; a picture ends at black and white
                seen = torch.minimum(torch.maximum(seen, self.low_C11), self.high_C11)
            token_BKD = self.backbone.tokens(self.backbone.net, seen).to(pixels_BCYX.dtype)
        side, grid = self.backbone.side, self.config.grid
        if side == grid:
            return token_BKD
        return F.adaptive_avg_pool2d(token_BKD.mT.unflatten(2, (side, side)), grid).flatten(2).mT

    def join(self, feature_BPKD: Tensor) -> Tensor:
        """token_BKD of frames whose P pictures have these features, as computed or as cached."""
        token_BKD = feature_BPKD.movedim(1, 2).flatten(2).to(self.low_C11.dtype)
        return (token_BKD - self.mean_KD) / self.spread if self.config.standardise else token_BKD

    @torch.no_grad()
    def standardise(self, batches: Iterable[Tensor]) -> None:
        """Measure the mean token of every place and the spread around it on token_BKD of recorded frames.

        batches: encoded one after the other while they are asked for, since tokens are plain only within this call.
        Raises ValueError where all frames have the same tokens, which have no spread.
        """
        self.mean_KD.zero_()
        self.spread.fill_(1.0)
        count, total_KD = 0, torch.zeros_like(self.mean_KD, dtype=torch.float64)
        squares_KD = torch.zeros_like(total_KD)
        for token_BKD in batches:
            count += len(token_BKD)
            total_KD += token_BKD.double().sum(0)
            squares_KD += token_BKD.double().square().sum(0)
        mean_KD = total_KD / count
        spread = (squares_KD / count - mean_KD.square()).clamp(min=0).mean().sqrt()
        if not spread > 1e-6 * mean_KD.abs().mean():
            raise ValueError(
                f"encoder.standardise: {self.config.path} gives the same tokens for all {count} frames looked at; set "
                "it to false, or check the recordings"
            )
        self.mean_KD.copy_(mean_KD)
        self.spread.copy_(spread)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode whatever the model around it does."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Device and precision of the model are those of the network too, though it is no submodule."""
        self.backbone.net._apply(fn)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.check_weights(state_dict.get(f"{prefix}weights_sha256"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_weights(self, sha256: Tensor | None) -> None:
        """Raises ValueError where a saved model was made with other weights than those in `config.path`."""
        here = self.backbone.weights_sha256
        theirs = "none" if sha256 is None else bytes(sha256.tolist()).hex()
        if theirs != here:
            raise ValueError(
                f"the model was trained on a frozen encoder whose weights have SHA-256 {theirs[:12]}, those of "
                f"{self.config.path} have {here[:12]}: give the encoder it was trained on"
            )


def open_backbone(config: FrozenConfig) -> Backbone:
    """Load the network that a configuration names.

    Raises ValueError, FileNotFoundError or ImportError, one sentence each.
    """
    if config.path == PIXELS:
        return open_picture(config.grid, config.size)
    folder = locate(config.path)
    raw = read_config(folder)
    family = raw.get("model_type") or raw.get("format")
    if family not in FROZEN_FAMILIES:
        raise ValueError(
            f"{folder / 'config.json'}: model_type is {family!r}; a frozen encoder is one of "
            f"{', '.join(FROZEN_FAMILIES)}"
        )
    backbone = FROZEN_FAMILIES[family](family, folder, raw, config.size)
    if config.grid > backbone.side:
        raise ValueError(
            f"encoder.grid is {config.grid}; {config.path} gives {backbone.side} x {backbone.side} tokens per picture "
            f"of {backbone.preprocess.size} pixels: choose 1..{backbone.side}"
        )
    return backbone


def frozen_in(encoder: nn.Module) -> FrozenEncoder | None:
    """The frozen encoder that a model's encoder is, alone or beside measurements; None for one that is trained."""
    picture = getattr(encoder, "picture", encoder)
    return picture if isinstance(picture, FrozenEncoder) else None
