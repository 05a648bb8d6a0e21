"""Imagined futures at little more than the price of their matrix products: what `WorldModel.rollout` gives, faster.

Three moments of work. Once per model (`prepare`): scalings and normalisations fold into the weights. Once per plan
(`begin`): what all candidates share. Per call: every action goes through one product, then each frame is visited once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.cost_to_go import CostToGo
from lewm.nets.predictors import MLPPredictor
from lewm.planning.fast_affine import Affine
from lewm.planning.fast_distance import FastCostToGo
from lewm.planning.fast_loop import Rollout
from lewm.planning.fast_tokens import FastAC, FastDinoWM
from lewm.planning.fast_transformer import FastTransformer
from lewm.world_model import WorldModel


class FastRollout(Protocol):
    """A predictor made ready for planning."""

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """The futures of one situation: T frames, the last one now, and the T - 1 raw action blocks between them."""


@dataclass(frozen=True)
class FastMLP:
    """`MLPPredictor` with the scaling of actions and the first bias folded into the product of all actions."""

    action: Affine
    latent: Affine
    """Its bias is zero."""
    hidden: tuple[Affine, ...]
    out: Affine
    link: Callable[[Tensor], Tensor]

    @staticmethod
    def of(model: WorldModel) -> "FastMLP":
        """Fold a model with an mlp predictor."""
        mlp, like = model.predictor, model.action_mean_A
        assert isinstance(mlp, MLPPredictor)
        latent, action = Affine.of(mlp.latent), Affine.of(mlp.action)
        action = Affine(action.weight_IO, latent.bias_O).standardising(model.action_mean_A, model.action_std_A)
        latent = Affine(latent.weight_IO, torch.zeros_like(latent.bias_O))
        hidden = tuple(Affine.of(layer).like(like) for layer in mlp.hidden if isinstance(layer, nn.Linear))
        return FastMLP(action.like(like), latent.like(like), hidden, Affine.of(mlp.out).like(like), mlp.link)

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """See `FastRollout`; only the last frame matters."""
        now_B1D = latent_BTKD[:, -1]
        shared_B1W = self.latent(now_B1D)

        def rollout(action_BNHA: Tensor) -> list[Tensor]:
            action_HBNW = self.action(action_BNHA.movedim(2, 0))
            B, N = action_BNHA.shape[:2]
            latent_RD, latents = now_B1D.expand(-1, N, -1).flatten(0, 1), []
            for step, action_BNW in enumerate(action_HBNW):
                if step:
                    features_RW = torch.addmm(action_BNW.flatten(0, 1), latent_RD, self.latent.weight_IO)
                else:
                    features_RW = (action_BNW + shared_B1W).flatten(0, 1)
                features_RW = F.silu(features_RW)
                for layer in self.hidden:
                    features_RW = features_RW + F.silu(layer(features_RW))
                latent_RD = torch.addmm(latent_RD + self.out.bias_O, features_RW, self.out.weight_IO)
                latent_RD = self.link(latent_RD)
                latents.append(latent_RD.view(B, N, 1, -1))
            return latents

        return rollout


FAST_PREDICTORS: dict[str, Callable[[WorldModel], FastRollout]] = {
    "mlp": FastMLP.of,
    "adaln": FastTransformer.of_adaln,
    "rotary": FastTransformer.of_rotary,
    "ac": FastAC.of,
    "dino_wm": FastDinoWM.of,
}
"""How each row of `PREDICTORS` is made ready."""


@dataclass(frozen=True)
class FastModel:
    """A world model and its cost-to-go head made ready for planning: a copy of their weights as they are now."""

    rollout: FastRollout
    head: FastCostToGo | None


@torch.no_grad()
def prepare(model: WorldModel, head: CostToGo | None = None) -> FastModel:
    """Fold a trained model for planning; do it again when its weights change.

    Raises ValueError for a model in training mode, whose dropout and batch statistics cannot be folded, and for one
    with a latent variable, which has to be drawn in every block.
    """
    if model.variable is not None:
        raise ValueError(
            "prepare: this model has a latent variable, and the fast rollout draws none; plan with the model's own "
            "rollout (GoalCost without fast)"
        )
    for name, module in (("world model", model), ("cost-to-go head", head)):
        if module is not None and module.training:
            raise ValueError(f"prepare: the {name} is in training mode, which cannot be folded; call .eval() first")
    rollout = FAST_PREDICTORS[model.config.predictor.name](model)
    return FastModel(rollout, None if head is None else FastCostToGo.of(head))
