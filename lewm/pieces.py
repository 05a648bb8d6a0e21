"""Rollouts over a recorded clip that start anew from encoded frames every few steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from lewm.nets.variable import Followed
from lewm.world_model import WorldModel


def roll_in_pieces(
    model: WorldModel, latent_BTKD: Tensor, action_BTA: Tensor, history: int, steps: int | None
) -> Tensor:
    """Predictions of all frames of a clip but the first, each at most `steps` blocks after an encoded frame.

    A rollout sees `history` encoded frames; the first frames of the clip, which have fewer before them, are predicted
    from those. steps: None is one rollout to the end of the clip.
    """

    def roll(latent_BTKD: Tensor, action_BTA: Tensor) -> tuple[Tensor, ...]:
        seen, past = latent_BTKD[:, :history], action_BTA[:, : history - 1]
        return (model.rollout(seen, past, action_BTA[:, None, history - 1 :])[:, 0],)

    (rolled_BTKD,) = in_pieces(roll, [latent_BTKD], [action_BTA], history, steps or latent_BTKD.shape[1])
    if history == 1:
        return rolled_BTKD
    forced_BTKD = model.predict(latent_BTKD[:, : history - 1], action_BTA[:, : history - 1])
    return torch.cat([forced_BTKD, rolled_BTKD], 1)


def follow_in_pieces(
    model: WorldModel,
    latent_BTKD: Tensor,
    action_BTA: Tensor,
    noise_BTV: Tensor,
    history: int,
    steps: int | None,
) -> Followed:
    """The same for a model with a latent variable, see `WorldModel.follow`."""
    if steps is None:
        return model.follow(latent_BTKD, action_BTA, history, noise_BTV)

    def follow(latent_BTKD: Tensor, action_BTA: Tensor, noise_BTV: Tensor) -> tuple[Tensor, ...]:
        followed = model.follow(latent_BTKD, action_BTA, history, noise_BTV)
        return tuple(x_BT[:, history - 1 :] for x_BT in followed.parts())

    rolled = in_pieces(follow, [latent_BTKD], [action_BTA, noise_BTV], history, steps)
    if history == 1:
        return Followed(*rolled)
    before = slice(history - 1)
    given = model.follow(latent_BTKD[:, :history], action_BTA[:, before], history, noise_BTV[:, before])
    return Followed(*(torch.cat(pair, 1) for pair in zip(given.parts(), rolled, strict=True)))


def in_pieces(
    function: Callable[..., tuple[Tensor, ...]], frames: list[Tensor], blocks: list[Tensor], history: int, steps: int
) -> tuple[Tensor, ...]:
    """What `function` answers for every piece of a clip, in the order of the clip.

    frames: tensors (B, T, ...) with an entry per frame; blocks: (B, T - 1, ...), per block between frames. A piece is
    `history` frames that are given and the `steps` frames after them; the next piece begins `steps` frames later, and
    the last may be shorter. function: takes the frames and blocks of pieces, as many as there are, as its batch, and
    answers with tensors that have one entry per frame after the given ones. The results are (B, T - history, ...).
    """
    length = frames[0].shape[1] - history
    whole, rest = divmod(length, steps)
    groups = [([i * steps for i in range(whole)], steps)] if whole else []
    groups += [([whole * steps], rest)] if rest else []
    found: list[tuple[Tensor, ...]] = []
    for starts, count in groups:
        cut = [_cut(x, starts, history + count) for x in frames] + [
            _cut(x, starts, history + count - 1) for x in blocks
        ]
        answers = function(*cut)
        found.append(tuple(answer.unflatten(0, (-1, len(starts))).flatten(1, 2) for answer in answers))
    return tuple(torch.cat(parts, 1) for parts in zip(*found, strict=True))


def _cut(x_BT: Tensor, starts: list[int], length: int) -> Tensor:
    """Pieces of a clip, those of one clip one behind the other: (B x pieces, length, ...)."""
    return torch.stack([x_BT[:, start : start + length] for start in starts], 1).flatten(0, 1)
