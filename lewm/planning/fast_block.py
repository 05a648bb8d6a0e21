"""One modulated transformer block made ready for planning, and the attention of a new frame over those before it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import Block, rotate
from lewm.planning.fast_affine import Affine, normalise

KeyValue = tuple[Tensor, Tensor]
"""Key and value of one frame, (B, N, K, heads, head_dim) each; N is 1 where all candidates share them."""
Attend = Callable[[Tensor, list[KeyValue]], Tensor]
"""Query of one frame (B, N, K, heads, head_dim) and the frames it sees to (B, N, K, heads x head_dim)."""


def attend_one(query_BN1hd: Tensor, seen: list[KeyValue]) -> Tensor:
    """Attention of one token over a few, entry by entry.

    For a handful of keys a CPU spends longer on calling matrix products than on the products (0.6 to 0.9 ms against 1.7
    to 2.0 ms with 16 heads of 64 and 300 candidates).
    """
    weights = torch.stack([(query_BN1hd * key).sum(-1, keepdim=True) for key, _ in seen]).softmax(0)
    mixed = weights[0] * seen[0][1]
    for weight, (_, value) in zip(weights[1:], seen[1:], strict=True):
        mixed.addcmul_(weight, value)
    return mixed.flatten(-2)


def attend_many(query_BNKhd: Tensor, seen: list[KeyValue]) -> Tensor:
    """Attention of tokens over those of several frames."""
    shape = query_BNKhd.shape
    key, value = (torch.cat([pair[i].expand(-1, shape[1], -1, -1, -1) for pair in seen], 2) for i in (0, 1))
    query, key, value = (x.flatten(0, 1).transpose(1, 2) for x in (query_BNKhd, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return mixed.transpose(1, 2).flatten(2).unflatten(0, shape[:2])


@dataclass(frozen=True)
class FastBlock:
    """A modulated `Block` with its inner layer norms and the scale of its queries folded away.

    Its methods take F frames in order, (F, B, N, K, width); `seen` holds the frames before them and grows by them.
    """

    modulation: Affine
    """Condition to shift, 1 + scale, gate of the attention, then of the MLP."""
    project: Affine
    """Query, key, value, and what a token that sees itself alone adds: value and output map as one."""
    out: Affine
    up: Affine
    down: Affine
    inner_eps: float | None
    """Added to the variance in the layer norm that follows the modulated one; None where there is none."""
    heads: int
    attend: Attend

    @staticmethod
    def of(block: Block, modulation: Affine, like: Tensor, attend: Attend) -> "FastBlock":
        """Fold a block. modulation: its share of the stack's."""
        width, attention = len(modulation.bias_O) // 6, block.attention
        bias_O = modulation.bias_O.clone()
        for scale in (1, 4):
            bias_O[scale * width : (scale + 1) * width] += 1
        inner, out = attention.heads * attention.head_dim, Affine.of(attention.out)
        qkv = Affine.of(attention.qkv).normed(block.attention_norm)
        query, value = qkv.columns(0, inner), qkv.columns(2 * inner, 3 * inner)
        parts = (query.scaled(attention.head_dim**-0.5), qkv.columns(inner, 3 * inner), value.then(out))
        project = Affine(torch.cat([p.weight_IO for p in parts], 1), torch.cat([p.bias_O for p in parts]))
        return FastBlock(
            modulation=Affine(modulation.weight_IO, bias_O).like(like),
            project=project.like(like),
            out=out.like(like),
            up=Affine.of(block.mlp.up).normed(block.mlp_norm).like(like),
            down=Affine.of(block.mlp.down).like(like),
            inner_eps=block.attention_norm.eps if isinstance(block.attention_norm, nn.LayerNorm) else None,
            heads=attention.heads,
            attend=attend,
        )

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.out.weight_IO.shape[0]

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """`lewm.nets.blocks.modulate`, then the inner layer norm where there is one; `scale` is around 1."""
        x = torch.addcmul(shift, normalise(x), scale)
        return x if self.inner_eps is None else normalise(x, self.inner_eps)

    def remember(self, normed: Tensor, rotary: Tensor | None, seen: list[KeyValue]) -> None:
        """Only let frames be seen: they ask nothing."""
        self._append(self.project.columns(self.inner, 3 * self.inner)(normed), rotary, seen)

    def mix(self, normed: Tensor, rotary: Tensor | None, seen: list[KeyValue], keep: bool) -> Tensor:
        """What each frame takes from itself and those before it.

        rotary: the angles of the frames, as `rotate` takes them. keep: whether a later call will look at `seen`.
        """
        if seen or normed.shape[3] > 1:
            return self.out(self._mix(normed, rotary, seen))
        # A single token that sees itself alone needs no query, and no separate output map.
        inner, end = self.inner, len(self.project.bias_O)
        if not keep and len(normed) == 1:
            return self.project.columns(3 * inner, end)(normed)
        projected = self.project.columns(inner, end)(normed[:1])
        self._append(projected[..., : 2 * inner], None, seen)  # the first place turns nothing
        alone = projected[..., 2 * inner :]
        if len(normed) == 1:
            return alone
        others = self._mix(normed[1:], None if rotary is None else rotary[:, 1:], seen)
        return torch.cat([alone, self.out(others)])

    def mlp(self, normed: Tensor) -> Tensor:
        """Up, GELU, down."""
        return self.down(F.gelu(self.up(normed)))

    def _mix(self, normed: Tensor, rotary: Tensor | None, seen: list[KeyValue]) -> Tensor:
        projected = self.project.columns(0, 3 * self.inner)(normed)
        query = projected[..., : self.inner].unflatten(-1, (self.heads, -1))
        query = query if rotary is None else rotate(query, rotary)
        before = len(seen)
        self._append(projected[..., self.inner :], rotary, seen)
        mixed = [self.attend(asked, seen[: before + i]) for i, asked in enumerate(query, 1)]
        return torch.stack(mixed) if len(mixed) > 1 else mixed[0][None]

    def _append(self, pair: Tensor, rotary: Tensor | None, seen: list[KeyValue]) -> None:
        key, value = pair.unflatten(-1, (2, self.heads, -1)).unbind(-3)
        seen.extend(zip(key if rotary is None else rotate(key, rotary), value, strict=True))
