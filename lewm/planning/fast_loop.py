"""The loop of every fast rollout that looks back: each frame is visited once, until the window slides.

Keys and values of the frames behind are kept while the window stays where it is. Once it slides its frames are visited
again, because a kept frame has seen others than the window's and, with learned positions, stood elsewhere. Frames
before the present are the same for all candidates; they are visited once per plan.
"""

import itertools
from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

Rollout = Callable[[Tensor], list[Tensor]]
"""action_BNHA to the H latents after its blocks, latent_BNKD each; differentiable by the actions."""


class Seen(Protocol):
    """The frames that one block has seen."""

    def __len__(self) -> int:
        """How many."""

    def copy(self: "S") -> "S":
        """The same frames, for one of several futures."""


S = TypeVar("S", bound=Seen)


class FrameNet(Protocol[S]):
    """A predictor whose frames are visited one after the other; S is what its blocks remember of them."""

    @property
    def context(self) -> int:
        """Most frames in a window."""

    @property
    def together(self) -> bool:
        """Whether frames visited again go through the blocks as one. A GPU prefers fewer, larger products; a CPU's
        cache holds one frame of all candidates, hardly three."""

    def nothing_seen(self) -> list[S]:
        """Per block the frames seen: none."""

    def embed(self, latent: Tensor) -> Tensor:
        """What a frame (B, N, K, D) is, before it has a place and an action."""

    def conditions(self, action_BNTA: Tensor) -> list[Tensor]:
        """What all raw actions become, in products over all of them; times first."""

    def visit(self, frames: list[Tensor], conditions: list[Tensor], seen: list[S], keep: bool, ask: bool) -> Tensor:
        """Let embedded frames follow those already `seen` in the window.

        Returns what `out` needs of the last one; without `ask` nothing of use. keep: whether `seen` is used again.
        """

    def out(self, token: Tensor, latent: Tensor, conditions: list[Tensor]) -> Tensor:
        """The next latent, from what the visit gave, the last frame's latent and its conditions."""


def follow(net: FrameNet[S], latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
    """The futures of one situation: T frames, the last one now, and the T - 1 raw action blocks between them."""
    behind = latent_BTKD.shape[1] - 1
    embedded = [net.embed(latent_BKD[:, None]) for latent_BKD in latent_BTKD.unbind(1)]
    past = net.conditions(past_BTA[:, None])
    # The window may begin at any frame before the present, once it slides.
    kept = {}
    for start in range(max(0, behind + 1 - net.context), behind):
        kept[start] = net.nothing_seen()
        net.visit(embedded[start:behind], [c[start:] for c in past], kept[start], keep=True, ask=False)
    now_B1KD = latent_BTKD[:, None, -1]

    def rollout(action_BNHA: Tensor) -> list[Tensor]:
        conditions, horizon = net.conditions(action_BNHA), action_BNHA.shape[2]
        frames, seen, previous = [embedded[-1]], net.nothing_seen(), -1
        latents: list[Tensor] = []
        for step in range(horizon):
            start, following = (max(0, behind + 1 + s - net.context) for s in (step, step + 1))
            fresh = step
            if start != previous:
                seen = [layer.copy() for layer in kept[start]] if start in kept else net.nothing_seen()
                fresh, previous = max(0, start - behind), start
            bounds = [fresh, step + 1] if net.together else range(fresh, step + 2)
            for first, last in itertools.pairwise(bounds):
                now = last == step + 1
                keep = not now or (start == following and step + 1 < horizon)
                token = net.visit(frames[first:last], [c[first:last] for c in conditions], seen, keep, ask=now)
            latent = latents[-1] if latents else now_B1KD
            latents.append(net.out(token, latent, [c[step] for c in conditions]))
            if step + 1 < horizon:
                frames.append(net.embed(latents[-1]))
        return latents

    return rollout
