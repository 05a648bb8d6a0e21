"""`lewm preview`: a video of chosen episodes, all cameras side by side, with step, action and state as numbers."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lewm.data.store import Store
from lewm.video import BACKGROUND, GAP, INK, PANEL, panels, write_video

Progress = Callable[[int, int], None]

LINE, FONT, SCALE = 18, cv2.FONT_HERSHEY_SIMPLEX, 0.42
"""Height of a line of text in pixels, and its font."""
WIDEST = "-1.23e+04"
"""The longest number that is shown."""
FASTEST = 60
"""Most frames per second that players show."""


def preview_video(
    store: Store,
    path: Path,
    episodes: Sequence[int],
    fps: int | None = None,
    least: int = PANEL,
    progress: Progress | None = None,
) -> Path:
    """Write an MP4 of whole episodes, one after the other, and return its path.

    `fps` defaults to real time, at most 60; `least` is the smallest side of a picture in pixels. `progress` is called
    with (episodes begun, episodes in all). Raises IndexError for an episode that is not there, ValueError for none.
    """
    if not episodes:
        raise ValueError("episodes is empty: give at least one episode")
    if fps is not None and fps < 1:
        raise ValueError(f"fps is {fps}, it must be at least 1")
    rate = fps or min(max(round(1 / store.meta.control_dt), 1), FASTEST)
    return write_video(path, _frames(store, episodes, least, progress), rate)


def _frames(
    store: Store, episodes: Sequence[int], least: int, progress: Progress | None
) -> Iterator[NDArray[np.uint8]]:
    cameras = store.meta.cameras
    captions = ["" if len(cameras) == 1 else name for name in cameras]
    for done, episode in enumerate(episodes):
        actions, states = store.actions(episode), store.states(episode)
        last = np.full((1, actions.shape[1]), np.nan, np.float32)  # no action leaves the last frame
        for step, (action, state) in enumerate(zip(np.concatenate([actions, last]), states)):
            pictures = np.split(store.pixels(episode, [step])[0], len(cameras), axis=-1)
            picture = panels([np.ascontiguousarray(part) for part in pictures], captions, least)
            entries = [*zip((f"action[{i}]" for i in range(len(action))), action), *zip(store.meta.state_names, state)]
            title = f"episode {episode}  step {step} of {len(actions)}"
            yield np.concatenate([picture, text_strip(title, entries, picture.shape[1])])
        if progress:
            progress(done + 1, len(episodes))


def text_strip(title: str, entries: Sequence[tuple[str, float]], width: int) -> NDArray[np.uint8]:
    """A dark strip (y, width, 3), y even, with a title and named numbers below it; NaN is shown as a dash.

    Its height depends on the width and the names only, so that every frame of a video has the same.
    """
    column_width = GAP + max(cv2.getTextSize(f"{name} {WIDEST}", FONT, SCALE, 1)[0][0] for name, _ in entries)
    columns = max(1, (width - GAP) // column_width)
    rows = -(-len(entries) // columns)
    strip = np.full(((rows + 1) * LINE + GAP, width, 3), BACKGROUND, np.uint8)

    def write(text: str, column: int, row: int) -> None:
        place = (GAP + column * column_width, LINE * (row + 1) - 4)
        cv2.putText(strip, text, place, FONT, SCALE, (INK,) * 3, 1, cv2.LINE_AA)

    write(title, 0, 0)
    for number, (name, value) in enumerate(entries):
        text = "-" if np.isnan(value) else f"{value:.3g}"
        write(f"{name} {text}", number % columns, 1 + number // columns)
    return strip
