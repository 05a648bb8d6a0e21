"""A residual MLP that predicts the next latent from the current one alone: the quickest thing to plan with."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import check_window
from lewm.nets.heads import LINKS, LinkName, check_link


@dataclass(frozen=True)
class MLPConfig:
    """Residual MLP; sees one frame."""

    name: Literal["mlp"] = "mlp"
    width: int = 512
    """Hidden width."""
    depth: int = 2
    """Hidden layers; those after the first are residual."""
    link: LinkName = "identity"
    """Last step: `relu` and `rep_relu` set negative entries to zero, for objective rdmreg with rectified targets; give
    the encoder the same."""

    def __post_init__(self) -> None:
        check_link(self.link)
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class MLPPredictor(nn.Module):
    """z + f(z, a), each frame on its own, so any number of frames will do. Only for one token per frame."""

    context: int = 1

    def __init__(self, config: MLPConfig, latent_dim: int, action_dim: int, tokens: int) -> None:
        super().__init__()
        if tokens != 1:
            raise ValueError(
                f"mlp predictor: the encoder gives {tokens} tokens per frame and this predictor reads one; "
                "use predictor rotary or an encoder with one token"
            )
        # Apart, so that a rollout can take all its action products in one go.
        self.latent = nn.Linear(latent_dim, config.width)
        self.action = nn.Linear(action_dim, config.width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth - 1))
        self.out = nn.Linear(config.width, latent_dim)
        self.link = LINKS[config.link]

    def forward(self, latent_BTKD: Tensor, action_BTA: Tensor) -> Tensor:
        """Entry t is the latent that follows frame t when action block t leaves it."""
        check_window(latent_BTKD, action_BTA, tokens=1, context=None)
        features = F.silu(self.latent(latent_BTKD) + self.action(action_BTA)[:, :, None])
        for layer in self.hidden:
            features = features + F.silu(layer(features))
        predicted_BTKD: Tensor = latent_BTKD + self.out(features)
        return self.link(predicted_BTKD)
