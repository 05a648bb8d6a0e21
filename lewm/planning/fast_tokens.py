"""The predictors of token grids (ac, dino_wm) made ready for planning: plain blocks, action tokens or entries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import Block, rotate
from lewm.nets.predictors import ACPredictor, DinoWMPredictor
from lewm.nets.predictors.ac import OUTPUT_EPS, join_measured
from lewm.planning.fast_affine import Affine, normalise
from lewm.planning.fast_cache import FrameCache
from lewm.planning.fast_loop import Rollout, follow
from lewm.planning.fast_transformer import angles
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class PlainBlock:
    """An unmodulated `Block` with its layer norms and the scale of its queries folded away."""

    project: Affine
    """Query, key and value."""
    out: Affine
    up: Affine
    down: Affine
    eps: tuple[float, float]
    """Added to the variance before attention and before the MLP."""
    heads: int

    @staticmethod
    def of(block: nn.Module, like: Tensor, neighbours: bool) -> "PlainBlock":
        """Fold a block. neighbours: whether features i and i + half of a query or key shall stand side by side."""
        assert isinstance(block, Block)
        attention = block.attention
        norm, mlp_norm = block.attention_norm, block.mlp_norm
        assert isinstance(norm, nn.LayerNorm) and isinstance(mlp_norm, nn.LayerNorm)
        inner = attention.heads * attention.head_dim
        qkv = Affine.of(attention.qkv).normed(norm)
        parts = (qkv.columns(0, inner).scaled(attention.head_dim**-0.5), qkv.columns(inner, 3 * inner))
        project = Affine(torch.cat([p.weight_IO for p in parts], 1), torch.cat([p.bias_O for p in parts]))
        if neighbours:
            column = torch.arange(3 * inner, device=like.device).view(3, attention.heads, 2, -1)
            column = torch.cat([column[:2].transpose(-1, -2).flatten(), column[2].flatten()])
            project = Affine(project.weight_IO[:, column], project.bias_O[column])
        return PlainBlock(
            project=project.like(like),
            out=Affine.of(attention.out).like(like),
            up=Affine.of(block.mlp.up).normed(mlp_norm).like(like),
            down=Affine.of(block.mlp.down).like(like),
            eps=(norm.eps, mlp_norm.eps),
            heads=attention.heads,
        )

    def ask(self, x: Tensor, rotary: Tensor | None, seen: FrameCache) -> Tensor:
        """Queries (F, B, N, L, heads, head_dim) of F frames (F, B, N, L, width), which are then seen."""
        inner = self.out.weight_IO.shape[0]
        projected = self.project(normalise(x, self.eps[0]))
        asked = turn(projected[..., : 2 * inner].unflatten(-1, (2 * self.heads, -1)), rotary)
        query, key = asked.chunk(2, -2)
        for pair in zip(key, projected[..., 2 * inner :].unflatten(-1, (self.heads, -1)), strict=True):
            seen.append(*pair)
        return query

    def rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What follows attention."""
        x = self.out(mixed).add_(x)
        return self.down(F.gelu(self.up(normalise(x, self.eps[1])))).add_(x)


def turn(x: Tensor, rotary: Tensor | None) -> Tensor:
    """Rotate by a table: of neighbours where it is complex, a third of the time; of halves where it is not."""
    if rotary is None:
        return x
    if not rotary.is_complex():
        return rotate(x, rotary)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotary[0]
    return torch.view_as_real(turned).flatten(-2)


@dataclass(frozen=True)
class Stack:
    """Blocks one after the other, the rotations of their queries and keys, and the last layer norm's constant."""

    blocks: tuple[PlainBlock, ...]
    context: int
    rotary: Tensor | None
    """By place in the window, as `turn` takes them."""
    out_eps: float

    @staticmethod
    def of(blocks: nn.ModuleList, norm: nn.LayerNorm, context: int, rotary: Tensor | None, like: Tensor) -> "Stack":
        """Fold the blocks; the norm's weights belong to the map that follows. rotary: see `angles`."""
        neighbours = rotary is not None and len(rotary) == 2
        if rotary is not None:
            rotary = torch.complex(*rotary.to(like))[None] if neighbours else rotary.to(like)
        return Stack(tuple(PlainBlock.of(block, like, neighbours) for block in blocks), context, rotary, norm.eps)

    def nothing_seen(self) -> list[FrameCache]:
        """Per block the frames seen: none."""
        return [FrameCache(self.context) for _ in self.blocks]

    def __call__(self, x: Tensor, seen: list[FrameCache], ask: bool, first: int = 0) -> Tensor:
        """Frames (F, B, N, L, width) that follow those seen; the last one's normalised tokens from `first` on.

        Without `ask` they are only seen, and what comes out is of no use.
        """
        place = len(seen[0])
        rotary = None if self.rotary is None else self.rotary[:, place : place + len(x)]
        for block, before in zip(self.blocks[:-1], seen):
            query = block.ask(x, rotary, before)
            mixed = [before.attend(asked, place + i) for i, asked in enumerate(query, 1)]
            x = block.rest(x, torch.stack(mixed) if len(mixed) > 1 else mixed[0][None])
        last, before = self.blocks[-1], seen[-1]
        query = last.ask(x, rotary, before)
        if not ask:
            return x
        asked, x = query[-1][..., first:, :, :], x[-1][..., first:, :]
        return normalise(last.rest(x, before.attend(asked, place + len(query))), self.out_eps)


@dataclass(frozen=True)
class FastAC:
    """An ac predictor: every frame is its action, what was measured, and its patches; only what is wanted comes out."""

    context: int
    together: bool
    """See `FrameNet`."""
    sizes: tuple[int, int, int]
    """Latent entries of the picture, of the state, of the camera."""
    action: Affine
    """Raw action block to its token."""
    change: Affine | None
    """Raw action block to the change of the state, where that is integrated."""
    measured: tuple[Affine | None, Affine | None]
    """State and camera to their tokens."""
    patch: Affine
    stack: Stack
    last: Affine
    """Normalised token to patch."""
    state: Affine | None
    """Normalised token to the change of the state, where that is predicted."""
    normalised: bool
    """Whether patches are layer-normed."""
    link: Callable[[Tensor], Tensor]

    @staticmethod
    def of(model: WorldModel) -> "FastAC":
        """Fold a model with an ac predictor."""
        net, like = model.predictor, model.action_mean_A
        assert isinstance(net, ACPredictor)

        def fold(layer: nn.Linear | None, *, actions: bool = False, normed: bool = False) -> Affine | None:
            if layer is None:
                return None
            affine = Affine.of(layer).normed(net.norm) if normed else Affine.of(layer)
            if actions:
                affine = affine.standardising(model.action_mean_A, model.action_std_A)
            return affine.like(like)

        action, patch, last = fold(net.action, actions=True), fold(net.embed), fold(net.out, normed=True)
        assert action is not None and patch is not None and last is not None
        return FastAC(
            context=net.context,
            together=like.is_cuda,
            sizes=(net.picture_dim, net.states, net.measured - net.states),
            action=action,
            change=fold(net.change, actions=True),
            measured=(fold(net.state), fold(net.extrinsics)),
            patch=patch,
            stack=Stack.of(net.blocks, net.norm, net.context, angles(net.table(net.context), net.context), like),
            last=last,
            state=fold(net.state_out, normed=True),
            normalised=net.normalised,
            link=net.link,
        )

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """See `FastRollout`."""
        return follow(self, latent_BTKD, past_BTA)

    def nothing_seen(self) -> list[FrameCache]:
        """See `FrameNet`."""
        return self.stack.nothing_seen()

    def conditions(self, action_BNTA: Tensor) -> list[Tensor]:
        """See `FrameNet`: action tokens (T, B, N, 1, width), changes of the state (T, B, N, S)."""
        action_TBNA = action_BNTA.movedim(2, 0)
        token = self.action(action_TBNA)[..., None, :]
        return [token] if self.change is None else [token, self.change(action_TBNA)]

    def embed(self, latent: Tensor) -> Tensor:
        """See `FrameNet`: all tokens of a frame but the action's."""
        picture, *measured = latent.split(self.sizes, -1)
        leading = [affine(x[..., :1, :]) for affine, x in zip(self.measured, measured) if affine is not None]
        return torch.cat([*leading, self.patch(picture)], -2)

    def visit(
        self, frames: list[Tensor], conditions: list[Tensor], seen: list[FrameCache], keep: bool, ask: bool
    ) -> Tensor:
        """See `FrameNet`; the answer is the last frame's normalised tokens, those of measurements first."""
        joined = []
        for frame, action in zip(frames, conditions[0], strict=True):
            candidates = max(frame.shape[1], action.shape[1])
            joined.append(torch.cat([x.expand(-1, candidates, -1, -1) for x in (action, frame)], 2))
        x = torch.stack(torch.broadcast_tensors(*joined)) if len(joined) > 1 else joined[0][None]
        return self.stack(x, seen, ask, self._unasked)

    def out(self, token: Tensor, latent: Tensor, conditions: list[Tensor]) -> Tensor:
        """See `FrameNet`."""
        leading = 1 + sum(affine is not None for affine in self.measured) - self._unasked
        picture = self.last(token[..., leading:, :])
        if self.normalised:
            picture = normalise(picture, OUTPUT_EPS)
        picture = self.link(picture)
        if not sum(self.sizes[1:]):
            return picture
        _, state, camera = latent[..., 0, :].split(self.sizes, -1)
        if self.state is not None:
            state = state + self.state(token[..., 0, :])
        elif self.change is not None:
            state = state + conditions[1]
        return join_measured(picture, torch.cat([state, camera.expand(*picture.shape[:2], -1)], -1))

    @property
    def _unasked(self) -> int:
        """Tokens at the front of a frame whose way through the last block nobody asks for."""
        return 1 if self.state is not None else 1 + sum(affine is not None for affine in self.measured)


@dataclass(frozen=True)
class FastDinoWM:
    """A dino_wm predictor: what the action adds to every token comes from one product."""

    context: int
    together: bool
    """See `FrameNet`."""
    action: Affine
    """Raw action block to the entries appended to every token."""
    position_TKD: Tensor
    stack: Stack
    scale_D: Tensor
    shift_D: Tensor
    """Of the last layer norm, for the entries that come out."""
    link: Callable[[Tensor], Tensor]

    @staticmethod
    def of(model: WorldModel) -> "FastDinoWM":
        """Fold a model with a dino_wm predictor."""
        net, like = model.predictor, model.action_mean_A
        assert isinstance(net, DinoWMPredictor)
        return FastDinoWM(
            context=net.context,
            together=like.is_cuda,
            action=Affine.of(net.action).standardising(model.action_mean_A, model.action_std_A).like(like),
            position_TKD=net.position_TKD.detach().clone(),
            stack=Stack.of(net.blocks, net.norm, net.context, None, like),
            scale_D=net.norm.weight.detach()[: net.latent_dim].clone(),
            shift_D=net.norm.bias.detach()[: net.latent_dim].clone(),
            link=net.link,
        )

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """See `FastRollout`."""
        return follow(self, latent_BTKD, past_BTA)

    def nothing_seen(self) -> list[FrameCache]:
        """See `FrameNet`."""
        return self.stack.nothing_seen()

    def conditions(self, action_BNTA: Tensor) -> list[Tensor]:
        """See `FrameNet`: entries of the actions, (T, B, N, 1, entries)."""
        return [self.action(action_BNTA.movedim(2, 0))[..., None, :]]

    def embed(self, latent: Tensor) -> Tensor:
        """See `FrameNet`: a token is the latent itself."""
        return latent

    def visit(
        self, frames: list[Tensor], conditions: list[Tensor], seen: list[FrameCache], keep: bool, ask: bool
    ) -> Tensor:
        """See `FrameNet`; the answer is the last frame's normalised tokens."""
        place = len(seen[0])
        joined = []
        for i, (frame, action) in enumerate(zip(frames, conditions[0], strict=True)):
            candidates = max(frame.shape[1], action.shape[1])
            parts = frame.expand(-1, candidates, -1, -1), action.expand(-1, candidates, frame.shape[2], -1)
            joined.append(torch.cat(parts, -1) + self.position_TKD[place + i])
        x = torch.stack(torch.broadcast_tensors(*joined)) if len(joined) > 1 else joined[0][None]
        return self.stack(x, seen, ask)

    def out(self, token: Tensor, latent: Tensor, conditions: list[Tensor]) -> Tensor:
        """See `FrameNet`."""
        return self.link(torch.addcmul(self.shift_D, token[..., : len(self.scale_D)], self.scale_D))
