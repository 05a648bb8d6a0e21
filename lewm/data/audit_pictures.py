"""Checks of an audit that look at pictures: frozen, black or empty ones, repeated episodes."""

import hashlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from lewm.data.audit_sample import Clip, Finding, Sample, Verdict

MOVED = 0.02
"""Change of a state entry in one step, in standard deviations, that a picture should show: a third of a pixel at 64."""
ACTED = 0.05
"""Size of an action, as a share of its range, that should show where no states were recorded."""
FROZEN_LOOK, FROZEN_BAD = 0.05, 0.3
"""Share of such steps with the same picture: slow or blocked motion gives a few, a camera that hangs gives many."""
DARK, BRIGHT = 8.0, 247.0
"""Mean of a picture (0 to 255) that is as good as black or white."""
EMPTY = 2.0
"""Standard deviation within a picture that shows a single colour."""
EMPTY_BAD = 0.02
"""Share of such pictures that is more than a camera warming up."""
DUPLICATE_BAD = 0.01
"""Share of repeated episodes from which a held-out split keeps little apart."""


def frozen(sample: Sample) -> Finding:
    """Pictures that stay the same while something moves."""
    moving = [_moving(sample, clip) for clip in sample.clips]
    same_V = np.concatenate([clip.same_nV[moves] for clip, moves in zip(sample.clips, moving)])
    by = "the state moves" if sample.store.meta.state_dim else "there is an action"
    if not len(same_V):
        do = "check that the actions were executed"
        return Finding("frozen", "look", {"steps": 0.0}, f"there is no step in which {by}", do)
    share_V = same_V.mean(axis=0)
    worst = int(share_V.argmax())
    share, camera = float(share_V[worst]), sample.store.meta.cameras[worst]
    numbers = {"steps": float(len(same_V)), **dict(zip(sample.store.meta.cameras, share_V.tolist()))}
    found = f"in {share:.1%} of the {len(same_V)} steps in which {by}, camera {camera} shows the picture before"
    verdict: Verdict = "good" if share <= FROZEN_LOOK else "look" if share <= FROZEN_BAD else "bad"
    do = "a camera hangs, or pictures come slower than actions: record at the camera's rate, or drop such episodes"
    return Finding("frozen", verdict, numbers, found, "" if verdict == "good" else do)


def brightness(sample: Sample) -> Finding:
    """Black, white and empty pictures."""
    mean_V = np.concatenate([clip.brightness_nV for clip in sample.clips])
    flat_V = np.concatenate([clip.contrast_nV for clip in sample.clips]) < EMPTY
    kinds = {"black": mean_V < DARK, "white": mean_V > BRIGHT, "empty": flat_V}
    numbers = {name: float(kind.mean(axis=0).max()) for name, kind in kinds.items()}
    share_V = np.logical_or.reduce(list(kinds.values())).mean(axis=0)
    numbers["unusable"] = share = float(share_V.max())
    if share == 0:
        return Finding("brightness", "good", numbers, f"none of {len(mean_V)} frames is black, white or empty")
    parts = ", ".join(f"{name} {numbers[name]:.1%}" for name in kinds)
    found = (
        f"camera {sample.store.meta.cameras[int(share_V.argmax())]} shows nothing in {share:.1%} of its frames: {parts}"
    )
    do = "look at them with `lewm preview`; cut them off where a camera warms up, else mend the renderer"
    return Finding("brightness", "look" if share <= EMPTY_BAD else "bad", numbers, found, do)


def duplicates(sample: Sample) -> Finding:
    """Episodes that are there twice: same actions, same first and last picture."""
    by_action: dict[bytes, list[int]] = defaultdict(list)
    for episode, actions in zip(sample.episodes, sample.actions):
        by_action[hashlib.sha256(actions.tobytes()).digest()].append(episode)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for digest, episodes in by_action.items():
        for episode in episodes if len(episodes) > 1 else ():
            length = int(sample.store.episodes["length"][episode])
            ends = sample.store.pixels(episode, [0, length])
            groups[digest + hashlib.sha256(ends.tobytes()).digest()].append(episode)
    repeated = [episodes for episodes in groups.values() if len(episodes) > 1]
    count = sum(len(episodes) - 1 for episodes in repeated)
    numbers = {"episodes": float(count)}
    if not count:
        return Finding("duplicates", "good", numbers, f"all {len(sample.episodes)} episodes differ")
    share = count / len(sample.episodes)
    pairs = ", ".join(" = ".join(map(str, episodes[:3])) for episodes in repeated[:3])
    found = f"{count} episodes ({share:.1%}) repeat another one, such as {pairs}"
    do = "held-out episodes are then trained on: record with another seed, or merge each recording only once"
    return Finding("duplicates", "look" if share <= DUPLICATE_BAD else "bad", numbers, found, do)


def _moving(sample: Sample, clip: Clip) -> NDArray[np.bool_]:
    """(n,) whether something should be seen to move in each step of a clip."""
    meta = sample.store.meta
    if meta.state_dim:
        change_nS, std_S = np.abs(sample.changes(clip.states_nS)), np.array(meta.statistics.state_std)
        return np.asarray(((change_nS > MOVED * std_S) & (change_nS > 0)).any(axis=1))
    span_A = np.array(meta.action_high) - np.array(meta.action_low)
    return np.asarray((np.abs(clip.actions_nA) > ACTED * span_A).any(axis=1))
