"""Videos that show what an agent saw, wanted and imagined: captioned pictures side by side, written as H.264."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

PANEL = 256
"""Smallest height and width of a picture in a video, in pixels; smaller ones are enlarged without smoothing."""
CAPTION, GAP = 28, 8
BACKGROUND, INK = 24, 230


def enlarge(picture_YXC: np.ndarray, least: int = PANEL) -> np.ndarray:
    """Repeat pixels by the smallest whole factor that makes both sides at least `least`."""
    factor = max(1, math.ceil(least / min(picture_YXC.shape[:2])))
    return picture_YXC.repeat(factor, 0).repeat(factor, 1)


def panels(pictures: Sequence[np.ndarray], captions: Sequence[str], least: int = PANEL) -> np.ndarray:
    """One video frame (Y, X, 3): equally sized uint8 pictures (Y, X, 3) side by side, each below its caption.

    Height and width are even, as the codec wants them. Raises ValueError when a picture is not uint8 colour, the
    pictures differ in size, or there is not one caption per picture.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions; give one caption to each picture")
    for picture, caption in zip(pictures, captions, strict=True):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape != (*pictures[0].shape[:2], 3):
            raise ValueError(
                f"picture {caption!r} is {picture.dtype} of shape {picture.shape}; all must be uint8 (Y, X, 3) of one "
                f"size, here {pictures[0].shape}"
            )
    large = [enlarge(picture, least) for picture in pictures]
    high, wide = large[0].shape[:2]
    canvas = np.full((CAPTION + high + GAP, GAP + len(large) * (wide + GAP), 3), BACKGROUND, np.uint8)
    for number, (picture, caption) in enumerate(zip(large, captions, strict=True)):
        left = GAP + number * (wide + GAP)
        canvas[CAPTION : CAPTION + high, left : left + wide] = picture
        cv2.putText(canvas, caption, (left, CAPTION - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (INK,) * 3, 1, cv2.LINE_AA)
    return np.pad(canvas, ((0, canvas.shape[0] % 2), (0, canvas.shape[1] % 2), (0, 0)), "edge")


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int = 10) -> Path:
    """Encode uint8 RGB frames (Y, X, 3), all of one even size, as H.264 in yuv420p, which every browser plays.

    The file appears under its name only when it is complete. Raises ValueError for no frame, or one that does not fit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    shape: tuple[int, ...] | None = None
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
            for frame in frames:
                if shape is None:
                    shape = frame.shape
                    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"
                if frame.dtype != np.uint8 or frame.shape != shape or shape[2:] != (3,) or shape[0] % 2 or shape[1] % 2:
                    raise ValueError(
                        f"{path.name}: a frame is {frame.dtype} of shape {frame.shape}; it must be uint8 (Y, X, 3) "
                        f"with even sides, like the first one, {shape}"
                    )
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if shape is None:
                raise ValueError(f"{path.name}: there are no frames to write; give at least one")
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_panels(path: Path, rows: Iterable[Sequence[np.ndarray]], captions: Sequence[str], fps: int = 10) -> Path:
    """A video of captioned pictures side by side; every row of pictures is one frame."""
    return write_video(path, (panels(row, captions) for row in rows), fps)
