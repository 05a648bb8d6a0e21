"""An encoder that sees measured numbers beside the picture: their embedding is appended to every token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lewm.data.proprio import Measured
from lewm.nets.encoders import Encoder
from lewm.nets.heads import fixed_scale


class MeasuredEncoder(nn.Module):
    """Tokens of the picture (D - width entries), then the embedding of the measurements (`width` entries).

    width: None appends the measurements themselves, standardised.
    Where nothing was measured, as of a goal that is only a picture, the embedding is zero: its mean.
    """

    mean_P: Tensor
    std_P: Tensor
    angle_P: Tensor

    def __init__(self, picture: Encoder, entries: Sequence[Measured], width: int | None) -> None:
        super().__init__()
        features = len(entries) + sum(entry.angle for entry in entries)
        self.picture = picture
        self.width: int = features if width is None else width
        self.tokens: int = picture.tokens
        self.latent_dim: int = picture.latent_dim + self.width
        # Derived from the model's facts, which the checkpoint stores as plain numbers: not persistent, never loaded.
        self.register_buffer("mean_P", torch.tensor([e.mean for e in entries]), persistent=False)
        self.register_buffer("std_P", torch.tensor([e.std for e in entries]).clamp(min=1e-3), False)
        self.register_buffer("angle_P", torch.tensor([e.angle for e in entries]), persistent=False)
        self.embed: nn.Module = nn.Identity()
        if width is not None:
            self.embed = nn.Sequential(
                nn.Linear(features, 2 * width), nn.SiLU(), nn.Linear(2 * width, width), fixed_scale(width, True)
            )

    def forward(self, pixels_BCYX: Tensor, proprio_BP: Tensor | None = None) -> Tensor:
        """latent_BKD of normalised pictures and raw measurements."""
        return self.beside(self.picture(pixels_BCYX), proprio_BP)

    def beside(self, tokens_BKD: Tensor, proprio_BP: Tensor | None) -> Tensor:
        """latent_BKD of the picture's tokens, however they were had, and raw measurements."""
        if proprio_BP is None:
            measured_BD = tokens_BKD.new_zeros(len(tokens_BKD), self.width)
        else:
            measured_BD = self.embed_measured(proprio_BP).to(tokens_BKD.dtype)
        return torch.cat([tokens_BKD, measured_BD[:, None].expand(-1, self.tokens, -1)], -1)

    def embed_measured(self, proprio_BP: Tensor) -> Tensor:
        """Embedding (B, width) of raw measurements: numbers standardised, angles as cosine and sine."""
        turning_BP = proprio_BP[:, self.angle_P]
        scaled_BP = ((proprio_BP - self.mean_P) / self.std_P)[:, ~self.angle_P]
        embedded: Tensor = self.embed(torch.cat([scaled_BP, turning_BP.cos(), turning_BP.sin()], -1))
        return embedded
