"""The causal transformers (adaln, rotary) made ready for planning: every frame is visited once.

Keys and values of the frames behind are kept while the window stays where it is. Once it slides its frames are visited
again, because a kept frame has seen others than the window's and, with learned positions, stood elsewhere. Frames
before the present are the same for all candidates; they are visited once per plan.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import Block, CausalTransformer, rotary_table
from lewm.nets.predictors import AdaLNPredictor, RotaryPredictor
from lewm.planning.fast_affine import Affine, normalise
from lewm.planning.fast_block import FastBlock, KeyValue, attend_many, attend_one
from lewm.world_model import WorldModel

Rollout = Callable[[Tensor], list[Tensor]]
"""action_BNHA to the H latents after its blocks, latent_BNKD each; differentiable by the actions."""


@dataclass(frozen=True)
class FastTransformer:
    """An adaln or rotary predictor with scalings, normalisations and the query scale folded into its weights."""

    context: int
    condition: tuple[Affine, ...]
    """Raw action block to condition: maps with a SiLU after each."""
    embed: Affine | None
    """Latent to token; None is the identity."""
    position_TKD: Tensor
    """Added to the tokens, by place in the window."""
    rotary: Tensor | None
    """Angles by place in the window, as `rotate` takes them."""
    blocks: tuple[FastBlock, ...]
    out: tuple[Affine, ...]
    """Normalised token to latent: maps with a GELU between."""
    out_eps: float
    """Added to the variance in the last layer norm."""
    residual: bool
    """Whether the output is added to the latent it came from."""
    link: Callable[[Tensor], Tensor]
    """Last step."""
    together: bool
    """Whether frames visited again go through the blocks as one. A GPU prefers fewer, larger products; a CPU's cache
    holds one frame of all candidates, hardly three."""

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
            embed=None,
            position_TKD=net.position_TKD.detach().clone(),
            rotary=None,
            blocks=_blocks(net.transformer, net.tokens, like),
            out=(first.like(like), Affine.of(projector.down).like(like)),
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
        table = rotary_table(torch.arange(net.context, device=like.device), net.head_dim)
        return FastTransformer(
            context=net.context,
            condition=_condition(_linears(net.action), model),
            embed=Affine.of(net.embed).like(like),
            position_TKD=net.token_KD.detach().clone().expand(net.context, -1, -1),
            rotary=table[:, :, None, None, None, None],
            blocks=_blocks(net.transformer, net.tokens, like),
            out=(Affine.of(net.out).normed(net.transformer.norm).like(like),),
            out_eps=net.transformer.norm.eps,
            residual=True,
            link=net.link,
            together=like.is_cuda,
        )

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """See `FastRollout`."""
        behind = latent_BTKD.shape[1] - 1
        embedded = [self._embed(latent_BKD)[:, None] for latent_BKD in latent_BTKD.unbind(1)]
        past = self._modulations(past_BTA[:, None])
        # The window may begin at any frame before the present, once it slides.
        kept = {}
        for start in range(max(0, behind + 1 - self.context), behind):
            kept[start] = self._nothing_seen()
            self._visit(embedded[start:behind], [m[start:] for m in past], kept[start], keep=True, ask=False)
        now_B1KD = latent_BTKD[:, None, -1]

        def rollout(action_BNHA: Tensor) -> list[Tensor]:
            modulations, horizon = self._modulations(action_BNHA), action_BNHA.shape[2]
            frames, seen, previous = [embedded[-1]], self._nothing_seen(), -1
            latents: list[Tensor] = []
            for step in range(horizon):
                start, following = (max(0, behind + 1 + s - self.context) for s in (step, step + 1))
                fresh = step
                if start != previous:
                    seen = [list(layer) for layer in kept[start]] if start in kept else self._nothing_seen()
                    fresh, previous = max(0, start - behind), start
                bounds = [fresh, step + 1] if self.together else range(fresh, step + 2)
                for first, last in itertools.pairwise(bounds):
                    now = last == step + 1
                    keep = not now or (start == following and step + 1 < horizon)
                    token = self._visit(frames[first:last], [m[first:last] for m in modulations], seen, keep, ask=now)
                latents.append(self._out(token, latents[-1] if latents else now_B1KD))
                if step + 1 < horizon:
                    frames.append(self._embed(latents[-1]))
            return latents

        return rollout

    def _nothing_seen(self) -> list[list[KeyValue]]:
        return [[] for _ in self.blocks]

    def _embed(self, latent: Tensor) -> Tensor:
        return latent if self.embed is None else self.embed(latent)

    def _modulations(self, action_BNTA: Tensor) -> list[Tensor]:
        """Per block the modulations (T, B, N, 1, 6 width) of all actions."""
        condition = action_BNTA.movedim(2, 0)[..., None, :]
        for affine in self.condition:
            condition = F.silu(affine(condition))
        return [block.modulation(condition) for block in self.blocks]

    def _visit(
        self, frames: list[Tensor], modulations: list[Tensor], seen: list[list[KeyValue]], keep: bool, ask: bool
    ) -> Tensor:
        """Let frames (each (B, N, K, width)) follow those already `seen` in the window.

        Returns the last one's normalised token; without `ask` nothing of use. keep: whether `seen` is used again.
        """
        place, count = len(seen[0]), len(frames)
        placed = [
            frame + position for frame, position in zip(frames, self.position_TKD[place : place + count], strict=True)
        ]
        x = torch.stack(torch.broadcast_tensors(*placed)) if count > 1 else placed[0][None]
        rotary = None if self.rotary is None else self.rotary[:, place : place + count]
        for index, block in enumerate(self.blocks):
            shift, scale, *rest = modulations[index].chunk(6, -1)
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

    def _out(self, token: Tensor, latent: Tensor) -> Tensor:
        """The next latent, from the last frame's normalised token and its latent."""
        for affine in self.out[:-1]:
            token = F.gelu(affine(token))
        out = self.out[-1](token)
        return self.link(latent + out if self.residual else out)


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
