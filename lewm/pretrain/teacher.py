"""The EMA teacher of masked prediction: a slow copy of the student that sees everything."""

from typing import cast

import torch
from torch import Tensor, nn

from lewm.nets.token_vit import TokenViT, take_tokens
from lewm.objectives.base import ModelView
from lewm.objectives.teacher import Teacher, TeacherConfig, normalised, spread_over_batch


class TokenTeacher(nn.Module):
    """A copy of the encoder that is never trained and follows its parameters (`lewm.objectives.teacher`)."""

    def __init__(self, encoder: TokenViT, config: TeacherConfig) -> None:
        super().__init__()
        holder = nn.Module()
        holder.encoder = encoder
        self.average = Teacher(cast(ModelView, holder), config)

    @property
    def encoder(self) -> TokenViT:
        """The copy."""
        encoder: TokenViT = self.average.model.encoder
        return encoder

    @torch.no_grad()
    def targets(self, clip_BTCYX: Tensor) -> Tensor:
        """target_BSD of all tokens: every supervised level layer-normed without parameters, joined along the width."""
        return torch.cat([normalised(level_BSD) for level_BSD in self.encoder.levels(clip_BTCYX)], -1)

    def watch(self, target: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        """Metrics target_std and prediction_std, which `follow` looks at if a collapse shall end the training."""
        self.average.spread = spreads(target, predicted)
        return self.average.spread

    def follow(self, encoder: TokenViT, progress: float) -> None:
        """Move towards the student; raises RuntimeError at a collapse if so configured."""
        self.average.follow(encoder, progress)


@torch.no_grad()
def spreads(target: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Standard deviation of targets and predictions over all tokens of the batch, averaged over entries."""
    each = {"target_std": target, "prediction_std": predicted}
    return {name: spread_over_batch(x.reshape(len(x), 1, -1, x.shape[-1])) for name, x in each.items()}


def take_groups(x_BSD: Tensor, index_BMP: Tensor) -> Tensor:
    """x_BMPD: of every sample the tokens that each group names."""
    return take_tokens(x_BSD, index_BMP.flatten(1)).unflatten(1, index_BMP.shape[1:])
