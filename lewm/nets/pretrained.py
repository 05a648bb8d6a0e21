"""An encoder folder, as `lewm pretrain` writes it: `model.safetensors`, `config.json`, `README.md`.

Loading executes nothing and needs neither the recordings nor the method that trained it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.token_vit import TokenViT, TokenViTConfig, TokenViTFacts
from lewm.schema import build, read_json

FORMAT = "lewm-encoder"
VERSION = 1
WEIGHTS, HEADER = "model.safetensors", "config.json"


@dataclass(frozen=True)
class PretrainedFacts:
    """All that the weights alone do not say."""

    encoder: TokenViTConfig
    """Size of the transformer."""
    facts: TokenViTFacts
    """Its channels, tubelets, levels."""
    size: int
    """Height and width of the pictures it was trained on."""
    frames: int
    """Frames of the clips it was trained on; 1 for pictures."""
    pixel_mean: tuple[float, ...]
    """Mean of each channel of its recordings, in [0, 1]: pictures are normalised by it."""
    pixel_std: tuple[float, ...]
    """Standard deviation of each channel, in [0, 1]."""
    normalise: bool
    """Whether its tokens end in a layer norm without parameters, as the targets it was trained on did."""


@dataclass(frozen=True)
class EncoderHeader:
    """`config.json` of an encoder folder."""

    format: str
    version: int
    pretrained: PretrainedFacts
    method: str
    """Name of the method, as in `lewm.pretrain.PRETRAIN`."""
    task: str
    """Task of the recordings."""
    held_out: float
    """Share of the episodes it did not see."""
    seed: int
    """Training seed; with `held_out` it decides which episodes those are."""
    lewm_version: str
    training: dict[str, Any]
    """Settings of the run."""


class PretrainedTokens(nn.Module):
    """A frozen token transformer: normalised pictures or clips to token_BSD. Never trained, always in evaluation mode.

    Attributes: `about` (PretrainedFacts), `width` (D), `side` (rows and columns of patches of one picture),
    `pixel_mean` and `pixel_std` (what its input is normalised by).
    """

    def __init__(self, about: PretrainedFacts) -> None:
        super().__init__()
        self.about = about
        self.width, self.side = about.encoder.width, about.size // about.encoder.patch
        self.pixel_mean, self.pixel_std = about.pixel_mean, about.pixel_std
        self.vit = TokenViT(about.encoder, about.facts)
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> "PretrainedTokens":
        """Stay in evaluation mode, whatever is asked of the model around it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """token_BSD of single pictures, S = side x side, rows first. ValueError for another picture size."""
        return self.clips(pixels_BCYX[:, None])

    @torch.no_grad()
    def clips(self, clip_BTCYX: Tensor) -> Tensor:
        """token_BSD of clips, S = T / tubelet x side x side, frames first. ValueError for another picture size."""
        size = self.about.size
        if tuple(clip_BTCYX.shape[-2:]) != (size, size):
            raise ValueError(
                f"pretrained encoder: pictures are {clip_BTCYX.shape[-2]} x {clip_BTCYX.shape[-1]}, it was trained on "
                f"{size} x {size}; resize them or pretrain at that size"
            )
        token_BSD: Tensor = self.vit(clip_BTCYX)
        return F.layer_norm(token_BSD, token_BSD.shape[-1:]) if self.about.normalise else token_BSD


def read_header(path: str | Path) -> EncoderHeader:
    """`config.json` of an encoder folder. Raises FileNotFoundError or ValueError naming what is wrong with it."""
    folder = Path(path)
    for name in (HEADER, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: {folder} is not an encoder folder (it holds {HEADER} and {WEIGHTS}); "
                "pass the folder that `lewm pretrain` wrote"
            )
    raw = read_json(folder / HEADER)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError(f"{folder / HEADER}: format must be {FORMAT!r}; this is not an encoder of `lewm pretrain`")
    if raw.get("version") != VERSION:
        raise ValueError(
            f"{folder / HEADER}: format version {raw.get('version')} is not {VERSION}; use the lewm that wrote it"
        )
    return build(EncoderHeader, raw, str(folder / HEADER))


def load_pretrained_encoder(path: str | Path) -> PretrainedTokens:
    """The frozen encoder of a folder, on the CPU.

    Raises FileNotFoundError when a part is missing and ValueError naming the first key, shape or version that does not
    fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    loaded = PretrainedTokens(read_header(path).pretrained)
    file = Path(path) / WEIGHTS
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}): copy the encoder again") from error
    wanted = loaded.vit.state_dict()
    if unlike := sorted(wanted.keys() ^ tensors.keys()):
        side = "is missing" if unlike[0] in wanted else "is not part of the encoder that config.json describes"
        raise ValueError(f"{file}: tensor {unlike[0]} {side} ({len(unlike)} do not fit in all)")
    for key, value in wanted.items():
        if tensors[key].shape != value.shape:
            raise ValueError(
                f"{file}: {key} has shape {tuple(tensors[key].shape)}; config.json describes {tuple(value.shape)}"
            )
    loaded.vit.load_state_dict(tensors)
    return loaded


def pool_tokens(token_BSD: Tensor, side: int, grid: int) -> Tensor:
    """Tokens of side x side patches averaged to grid x grid, rows first."""
    cell = side // grid
    square = token_BSD.unflatten(1, (grid, cell, grid, cell))
    return square.mean((2, 4)).flatten(1, 2)
