"""Video files that grow episode by episode, in the codecs that exporters offer."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.packet import Packet


@dataclass(frozen=True)
class VideoCodec:
    """How PyAV is asked for a codec."""

    encoder: str
    """FFmpeg's name of the encoder."""
    pixels: str
    """Pixel format; yuv420p halves the resolution of colours and wants even sides."""
    crf: int
    """Constant rate factor; 0 is lossless in H.264 of RGB pixels."""
    preset: str
    """Speed of the encoder."""


VIDEO_CODECS = {
    "av1": VideoCodec("libsvtav1", "yuv420p", 30, "8"),
    "h264": VideoCodec("libx264", "yuv420p", 18, "veryfast"),
    "lossless": VideoCodec("libx264rgb", "rgb24", 0, "veryfast"),
}
"""Name -> codec. `lossless` is H.264 of RGB pixels: exact, and read by FFmpeg, but by few browsers."""


class VideoWriter:
    """One MP4 file of equally spaced frames. Use it as a context manager.

    Raises ValueError when this PyAV lacks the encoder, or the pictures do not suit it.
    """

    def __init__(
        self,
        file: Path,
        codec: str,
        rate: Fraction,
        size: tuple[int, int],
        crf: int | None = None,
        gop: int | None = None,
    ) -> None:
        """Frames of `size` (height, width), `rate` a second; every `gop`-th a key frame (None: the codec decides)."""
        import av
        from av.video.stream import VideoStream

        how = VIDEO_CODECS[codec]
        check_video(codec, size, crf)
        os.environ.setdefault("SVT_LOG", "1")  # else its encoder writes a page about itself to stderr
        file.parent.mkdir(parents=True, exist_ok=True)
        options = {"crf": str(how.crf if crf is None else crf), "preset": how.preset}
        self._container = av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"})
        stream = self._container.add_stream(how.encoder, rate=rate, options=options | ({"g": str(gop)} if gop else {}))
        assert isinstance(stream, VideoStream)  # every one of VIDEO_CODECS is
        self._stream = stream
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = how.pixels
        self.frames = 0
        self._coded = self._bytes = 0

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()

    def add(self, pictures: Iterable[NDArray[np.uint8]]) -> None:
        """Append RGB pictures (Y, X, 3)."""
        import av

        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            with nullcontext() if self._stream.codec_context.is_open else same_scheduling():
                self._mux(self._stream.encode(frame))
            self.frames += 1

    def size_with(self, frames: int) -> float:
        """About how many bytes the file will have when so many frames more are added; 0 while nothing is known."""
        return self._bytes / max(self._coded, 1) * (self.frames + frames)

    def close(self) -> None:
        """Write what the encoder still holds and finish the file."""
        if self.frames:
            self._mux(self._stream.encode())
            self.frames = 0
        self._container.close()

    def _mux(self, packets: Iterable["Packet[Any]"]) -> None:
        for packet in packets:
            self._coded += 1
            self._bytes += packet.size
            self._container.mux(packet)


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Give this thread, and those that start meanwhile, the scheduling that this one has now.

    SVT-AV1 opened by root makes itself and its caller real-time (SCHED_FIFO, 99), and every later thread inherits that:
    one that waits by spinning then keeps a core from all other programs, and from those it waits for.
    """
    if sys.platform != "linux":  # nowhere else does it ask for that
        yield
        return
    policy, parameter, others = os.sched_getscheduler(0), os.sched_getparam(0), _threads()
    try:
        yield
    finally:
        for thread in (threading.get_native_id(), *(_threads() - others)):
            with suppress(ProcessLookupError):  # it has ended
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameter)


def _threads() -> set[int]:
    """Numbers of this process's threads, those of libraries included."""
    return {int(thread.name) for thread in Path("/proc/self/task").iterdir()}


def check_video(codec: str, size: tuple[int, int], crf: int | None = None) -> None:
    """Raise ValueError unless this PyAV can encode pictures of `size` (height, width) in the codec."""
    import av

    how = VIDEO_CODECS[codec]
    try:
        av.codec.Codec(how.encoder, "w")
    except ValueError as error:
        raise ValueError(f"this PyAV has no encoder {how.encoder}: choose another codec than {codec}") from error
    if how.pixels == "yuv420p" and (size[0] % 2 or size[1] % 2):
        raise ValueError(f"codec {codec} wants even sides, the pictures are {size[0]} x {size[1]}: use codec lossless")
    if crf is not None and (codec == "lossless" or (codec == "h264" and crf > 51)):
        raise ValueError(f"crf is {crf}; h264 takes 0 to 51, av1 0 to 63, lossless none")


def frame_rate(control_dt: float) -> Fraction:
    """Frames per second of one frame every `control_dt` seconds; 1/30 s is 30 although 1/30 is no binary number."""
    return Fraction(1.0 / control_dt).limit_denominator(1_000_000)
