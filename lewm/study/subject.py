"""What a study looks at: a checkpoint, recordings, and which of their episodes its training did not see.

Shapes: N frames or clips, D features, S state entries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm.checkpoint import Checkpoint, check_recordings, load, split_of
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Batch, Windows
from lewm.progress import Stage
from lewm.world_model import WorldModel

CHUNK = 256
"""Frames encoded at once."""
UNKNOWN_SPLIT = 0.2
"""Share of the episodes that is held out where the checkpoint does not say which ones its training saw."""


@dataclass(frozen=True)
class Subject:
    """A model and its recordings."""

    checkpoint: Checkpoint
    store: Store
    train_ids: NDArray[np.int64]
    """Episodes the model was trained on."""
    held_ids: NDArray[np.int64]
    """Episodes it has not seen: everything is measured on these."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know."""

    @property
    def model(self) -> WorldModel:
        """The world model, in eval mode."""
        return self.checkpoint.model

    @property
    def task(self) -> str:
        """Name of the recorded task."""
        return self.store.meta.task


def open_subject(checkpoint: Path, data: Path, device: str = "cpu") -> Subject:
    """Open both and split the episodes as the training did. Raises ValueError when they do not belong together."""
    return make_subject(load(checkpoint, device), Store.open(data))


def make_subject(checkpoint: Checkpoint, store: Store) -> Subject:
    """See `open_subject`."""
    origin = checkpoint.origin
    check_recordings(checkpoint, store)
    notes = []
    if not origin.held_out:
        notes.append(
            f"the checkpoint does not say which episodes its training saw; {100 * UNKNOWN_SPLIT:.0f} % of them are "
            "held out of the probes, but the model may know them"
        )
        train_ids, held_ids = split_episodes(store.num_episodes, UNKNOWN_SPLIT, origin.seed)
    else:
        train_ids, held_ids = split_of(checkpoint, store)
    return Subject(checkpoint, store, train_ids, held_ids, tuple(notes))


def pick_windows(windows: Windows, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """About `count` window numbers, equally many of each episode; one each of as many episodes where there are more."""
    episode_W, _ = windows.locate(np.arange(len(windows)))
    ids, first, room = np.unique(episode_W, return_index=True, return_counts=True)
    chosen = np.sort(rng.permutation(len(ids))[:count])
    each = max(1, round(count / len(ids)))
    picked = [first[i] + rng.permutation(room[i])[:each] for i in chosen]
    return np.sort(np.concatenate(picked))


@torch.no_grad()
def encode(model: WorldModel, batch: Batch) -> Tensor:
    """latent_BTD of clips, tokens side by side, on the CPU."""
    return model.encode(batch.pixels_BTCYX, batch.proprio_BTP).flatten(2).float().cpu()


Feature = Callable[[Batch], Tensor]
"""Clips of one frame -> features_BD, on the CPU."""


@dataclass(frozen=True)
class Frames:
    """Single frames of some episodes."""

    features: dict[str, Tensor]
    """Name -> features_ND."""
    state_NS: Tensor
    """Their states, on the CPU."""
    episode_N: NDArray[np.int64]
    """Their episodes."""

    def keep(self, kept_N: NDArray[np.bool_]) -> "Frames":
        """Some of them."""
        rows = torch.from_numpy(np.flatnonzero(kept_N))
        return Frames({name: x[rows] for name, x in self.features.items()}, self.state_NS[rows], self.episode_N[kept_N])


def read_frames(
    subject: Subject,
    episodes: NDArray[np.int64],
    features: Mapping[str, Feature],
    count: int | None,
    rng: np.random.Generator,
    title: str,
    quiet: bool = False,
) -> Frames:
    """Features of about `count` frames, equally many of each episode; None takes all that are `frame_skip` apart."""
    config = subject.model.config
    windows = Windows(subject.store, config.window(1), episodes, "disk", subject.model.device)
    if count is None:
        _, start_W = windows.locate(np.arange(len(windows)))
        index_N = np.flatnonzero(start_W % config.frame_skip == 0)
    else:
        index_N = pick_windows(windows, count, rng)
    found: dict[str, list[Tensor]] = {name: [] for name in features}
    states = []
    with Stage(title, len(index_N), "frames", quiet) as stage:
        for part in np.array_split(index_N, -(-len(index_N) // CHUNK)):
            batch = windows.batch(part)
            for name, feature in features.items():
                found[name].append(feature(batch))
            states.append(batch.state_BTS[:, 0].cpu())
            stage.update(len(part))
    return Frames(
        {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(states), windows.locate(index_N)[0]
    )
