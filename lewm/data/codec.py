"""Encoding of single frames: png and webp are lossless, jpeg is lossy and used only when asked for."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Codec = Literal["raw", "png", "jpeg", "webp"]
JPEG_QUALITY = 95
WEBP_LOSSLESS = 101  # OpenCV: any quality above 100 means lossless


def encode_frame(frame_YXC: NDArray[np.uint8], codec: Codec) -> NDArray[np.uint8]:
    """Bytes of one uint8 frame (Y, X, C) in the codec; the RGB pictures of several cameras become one, side by side."""
    import cv2

    options = {
        "png": (".png", []),
        "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]),
        "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, WEBP_LOSSLESS]),
    }
    if codec not in options:
        raise ValueError(f"codec {codec!r} does not encode frames: choose one of {list(options)}")
    suffix, parameters = options[codec]
    done, encoded = cv2.imencode(suffix, cv2.cvtColor(side_by_side(frame_YXC), cv2.COLOR_RGB2BGR), parameters)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a frame of shape {frame_YXC.shape} as {codec}: use codec raw")
    return encoded.reshape(-1)


def decode_frame(encoded: NDArray[np.uint8], out_YXC: NDArray[np.uint8]) -> None:
    """Decode one frame into `out_YXC` (uint8); ValueError when it is damaged or of another size."""
    import cv2

    frame = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if frame is None:
        raise ValueError("cannot be decoded")
    height, width, channels = out_YXC.shape
    cameras = channels // 3
    if frame.shape != (height, width * cameras, 3):
        raise ValueError(f"has shape {frame.shape}, meta.json says {(height, width * cameras, 3)}")
    if cameras == 1:
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=out_YXC)
    else:
        out_YXC[:] = one_behind_another(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8), cameras)


def one_behind_another(picture_YXC: NDArray[np.uint8], cameras: int) -> NDArray[np.uint8]:
    """The frame (Y, X, 3 V) of a picture (Y, V X, 3) with V cameras side by side."""
    return np.concatenate(np.split(picture_YXC, cameras, axis=1), axis=2)


def side_by_side(frame_YXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One RGB picture (..., Y, V X, 3) of a frame (..., Y, X, 3 V) of V cameras, first camera on the left."""
    cameras = frame_YXC.shape[-1] // 3
    return frame_YXC if cameras == 1 else np.concatenate(np.split(frame_YXC, cameras, axis=-1), axis=-2)
