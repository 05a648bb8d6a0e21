"""The modulated causal transformers (adaln, rotary) made ready for planning."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import Block, CausalTransformer
from lewm.nets.predictors import AdaLNPredictor, RotaryPredictor
from lewm.planning.fast_affine import Affine, normalise
from lewm.planning.fast_block import FastBlock, KeyValue, attend_many, attend_one
from lewm.planning.fast_loop import Rollout, follow
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class FastTransformer:
    """An adaln or rotary predictor with scalings, normalisations and the query scale folded into its weights."""

    context: int
    condition: tuple[Affine, ...]
    """Raw action block to condition: maps with a SiLU after each."""
    token: Affine | None
    """Latent to token; None is the identity."""
    position_TKD: Tensor
    """Added to the tokens, by place in the window."""
    rotary: Tensor | None
    """Angles by place in the window, as `rotate` takes them."""
    blocks: tuple[FastBlock, ...]
    last: tuple[Affine, ...]
    """Normalised token to latent: maps with a GELU between."""
    out_eps: float
    """Added to the variance in the last layer norm."""
    residual: bool
    """Whether the output is added to the latent it came from."""
    link: Callable[[Tensor], Tensor]
    """Last step."""
    together: bool
    """See `FrameNet`."""

    @staticmethod
    def of_adaln(model: WorldModel) -> "FastTransformer":
        """Fold a model with an adaln predictor."""
        net, like = model.predictor, model.action_mean_A
        assert isinstance(net, AdaLNPredictor)
        kernel, up, down = _linears(net.action)
        projector = net.projector
        first = Affine.of(projector.up).normed(net.transformer.norm).batch_normed(projector.norm)
        return FastTransformer(
            context=net.context,
            condition=_condition([kernel.then(up), down], model),
            token=None,
            position_TKD=net.position_TKD.detach().clone(),
            rotary=None,
            blocks=_blocks(net.transformer, net.tokens, like),
            last=(first.like(like), Affine.of(projector.down).like(like)),
            out_eps=net.transformer.norm.eps,
            residual=False,
            link=net.link,
            together=like.is_cuda,
        )

    @staticmethod
    def of_rotary(model: WorldModel) -> "FastTransformer":
        """Fold a model with a rotary predictor."""
        net, like = model.predictor, model.action_mean_A
        assert isinstance(net, RotaryPredictor)
        position_KD = like.new_zeros(net.tokens, 1) if net.token_KD is None else net.token_KD.detach().clone()
        return FastTransformer(
            context=net.context,
            condition=_condition(_linears(net.action), model),
            token=Affine.of(net.embed).like(like),
            position_TKD=position_KD.expand(net.context, -1, -1),
            rotary=angles(net.table(net.context), net.context),
            blocks=_blocks(net.transformer, net.tokens, like),
            last=(Affine.of(net.out).normed(net.transformer.norm).like(like),),
            out_eps=net.transformer.norm.eps,
            residual=True,
            link=net.link,
            together=like.is_cuda,
        )

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """See `FastRollout`."""
        return follow(self, latent_BTKD, past_BTA)

    def nothing_seen(self) -> list[list[KeyValue]]:
        """See `FrameNet`."""
        return [[] for _ in self.blocks]

    def embed(self, latent: Tensor) -> Tensor:
        """See `FrameNet`."""
        return latent if self.token is None else self.token(latent)

    def conditions(self, action_BNTA: Tensor) -> list[Tensor]:
        """Per block the modulations (T, B, N, 1, 6 width) of all actions."""
        condition = action_BNTA.movedim(2, 0)[..., None, :]
        for affine in self.condition:
            condition = F.silu(affine(condition))
        return [block.modulation(condition) for block in self.blocks]

    def visit(
        self, frames: list[Tensor], conditions: list[Tensor], seen: list[list[KeyValue]], keep: bool, ask: bool
    ) -> Tensor:
        """See `FrameNet`; conditions are the modulations, and the answer is the last frame's normalised tokens."""
        place, count = len(seen[0]), len(frames)
        placed = [
            frame + position for frame, position in zip(frames, self.position_TKD[place : place + count], strict=True)
        ]
        x = torch.stack(torch.broadcast_tensors(*placed)) if count > 1 else placed[0][None]
        rotary = None if self.rotary is None else self.rotary[:, place : place + count]
        for index, block in enumerate(self.blocks):
            shift, scale, *rest = conditions[index].chunk(6, -1)
            normed = block.modulate(x, shift, scale)
            if block is self.blocks[-1]:
                silent = count - ask
                if silent:
                    block.remember(normed[:silent], None if rotary is None else rotary[:, :silent], seen[index])
                if not ask:
                    break
                x, normed, *rest = (frame[silent:] for frame in (x, normed, *rest))
                rotary = None if rotary is None else rotary[:, silent:]
            gate, mlp_shift, mlp_scale, mlp_gate = rest
            x = torch.addcmul(x, gate, block.mix(normed, rotary, seen[index], keep))
            x = torch.addcmul(x, mlp_gate, block.mlp(block.modulate(x, mlp_shift, mlp_scale)))
        return normalise(x[-1], self.out_eps) if ask else x

    def out(self, token: Tensor, latent: Tensor, conditions: list[Tensor]) -> Tensor:
        """See `FrameNet`."""
        for affine in self.last[:-1]:
            token = F.gelu(affine(token))
        out = self.last[-1](token)
        return self.link(latent + out if self.residual else out)


def angles(table: Tensor, frames: int) -> Tensor:
    """A table of rotations (2 or 4, frames x L, half) by place in the window: (2 or 4, frames, 1, 1, L, 1, half)."""
    return table.unflatten(1, (frames, -1))[:, :, None, None, :, None]


def _linears(layers: nn.Module) -> list[Affine]:
    return [Affine.of(layer) for layer in layers.children() if isinstance(layer, nn.Linear)]


def _condition(maps: list[Affine], model: WorldModel) -> tuple[Affine, ...]:
    """Maps of scaled action blocks as maps of raw ones."""
    first = maps[0].standardising(model.action_mean_A, model.action_std_A)
    return tuple(affine.like(model.action_mean_A) for affine in (first, *maps[1:]))


def _blocks(stack: CausalTransformer, tokens: int, like: Tensor) -> tuple[FastBlock, ...]:
    modulation = Affine.of(stack.modulation)
    share = len(modulation.bias_O) // len(stack.blocks)
    attend = attend_one if tokens == 1 and not like.is_cuda else attend_many
    return tuple(
        FastBlock.of(block, modulation.columns(i * share, (i + 1) * share), like, attend)
        for i, block in enumerate(stack.blocks)
        if isinstance(block, Block)
    )
