"""Keys and values of the frames that one block has seen, where frames are grids of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor


class FrameCache:
    """Frames in the order they came. Those of all candidates lie in one buffer, made for `frames`, so that a new frame
    copies nothing but itself; where gradients are wanted they are joined for every question instead.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.buffers: tuple[Tensor, Tensor] | None = None
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def copy(self) -> "FrameCache":
        """Another cache with the same frames, for one of several futures; before any candidate's frame has come."""
        assert self.buffers is None
        copied = FrameCache(self.frames)
        copied.pairs, copied.count = list(self.pairs), self.count
        return copied

    def append(self, key_BNLhd: Tensor, value_BNLhd: Tensor) -> None:
        """The next frame; N is 1 where all candidates share it."""
        if self.buffers is None and (key_BNLhd.shape[1] == 1 or key_BNLhd.requires_grad):
            self.pairs.append((key_BNLhd, value_BNLhd))
        else:
            self._write(key_BNLhd, value_BNLhd)
        self.count += 1

    def attend(self, query_BNLhd: Tensor, frames: int) -> Tensor:
        """What tokens take from the first `frames` frames, (B, N, L, heads x head_dim); queries are scaled already."""
        B, N = query_BNLhd.shape[:2]
        if self.buffers is None:
            seen = [[x.expand(-1, N, -1, -1, -1) for x in pair] for pair in self.pairs[:frames]]
            key, value = (torch.cat(parts, 2).flatten(0, 1).transpose(1, 2) for parts in zip(*seen, strict=True))
        else:
            tokens = self.buffers[0].shape[2] // self.frames * frames
            key, value = (buffer[:, :, :tokens] for buffer in self.buffers)
        mixed = F.scaled_dot_product_attention(query_BNLhd.flatten(0, 1).transpose(1, 2), key, value, scale=1.0)
        return mixed.transpose(1, 2).flatten(2).unflatten(0, (B, N))

    def _write(self, *pair: Tensor) -> None:
        """Into the buffers (B x N, heads, frames x L, head_dim), the frames that all candidates share before it."""
        B, N, L, heads, head_dim = pair[0].shape
        if self.buffers is None:
            shape = (B * N, heads, self.frames * L, head_dim)
            self.buffers = (pair[0].new_empty(shape), pair[1].new_empty(shape))
            for place, shared in enumerate(self.pairs):
                self._put(place, [x.expand(-1, N, -1, -1, -1) for x in shared])
            self.pairs = []
        self._put(self.count, pair)

    def _put(self, place: int, pair: "list[Tensor] | tuple[Tensor, ...]") -> None:
        assert self.buffers is not None
        L = pair[0].shape[2]
        for buffer, x in zip(self.buffers, pair, strict=True):
            buffer[:, :, place * L : (place + 1) * L] = x.flatten(0, 1).transpose(1, 2)
