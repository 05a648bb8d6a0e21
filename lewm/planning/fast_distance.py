"""The cost-to-go head made ready for planning: its goal half once per plan, its latent half in one product."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.cost_to_go import CostToGo
from lewm.planning.fast_affine import Affine


@dataclass(frozen=True)
class FastCostToGo:
    """`CostToGo` with its scaling folded and its first layer split: [z, g, z - g] W = z (W1 + W3) + g (W2 - W3)."""

    latent: Affine
    """Its bias is zero: it travels with the goal."""
    goal: Affine
    layers: tuple[Affine, ...]

    @staticmethod
    def of(head: CostToGo) -> "FastCostToGo":
        """Fold a trained head."""
        first, *layers = [Affine.of(layer) for layer in head.net if isinstance(layer, nn.Linear)]
        latent_IO, goal_IO, difference_IO = first.weight_IO.chunk(3)
        latent = Affine(latent_IO + difference_IO, first.bias_O).standardising(head.mean_D, head.std_D)
        goal = Affine(goal_IO - difference_IO, latent.bias_O).standardising(head.mean_D, head.std_D)
        latent = Affine(latent.weight_IO, torch.zeros_like(latent.bias_O))
        return FastCostToGo(
            latent.like(head.mean_D), goal.like(head.mean_D), tuple(layer.like(head.mean_D) for layer in layers)
        )

    def begin(self, goal_BKD: Tensor) -> Callable[[Tensor], Tensor]:
        """The distance from latent_HBNKD to the goals, distance_HBN in blocks."""
        goal_B1W = self.goal(goal_BKD.flatten(1))[:, None]

        def distance(latent_HBNKD: Tensor) -> Tensor:
            latent_HBNF = latent_HBNKD.flatten(-2)
            product_RW = latent_HBNF.flatten(0, -2) @ self.latent.weight_IO
            hidden = F.silu(product_RW.unflatten(0, latent_HBNF.shape[:-1]) + goal_B1W)
            for layer in self.layers[:-1]:
                hidden = F.silu(layer(hidden))
            return F.softplus(self.layers[-1](hidden)).squeeze(-1)

        return distance
