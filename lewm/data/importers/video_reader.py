"""Frames of a video file, decoded once from front to back and never by seeking, which lands on the wrong frame in some
files."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class VideoReader:
    """The first video stream of a file, one frame after the other.

    Raises ValueError naming the file when it is not there, damaged, or in a codec that PyAV was built without.
    """

    def __init__(self, file: Path) -> None:
        import av

        self.file = file
        if not file.is_file():
            raise ValueError(f"{file} is not there")
        try:
            self._container = av.open(str(file))
        except av.FFmpegError as error:
            raise ValueError(f"{file} is not a readable video ({error.strerror})") from error
        if not self._container.streams.video:
            self.close()
            raise ValueError(f"{file} holds no video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self.close()
            raise ValueError(f"{file} is in a codec that this PyAV cannot decode: encode it again as H.264 or AV1")
        self._stream.thread_type = "AUTO"
        self.rate: Fraction | None = self._stream.average_rate
        self.size: tuple[int, int] = (self._stream.codec_context.height, self._stream.codec_context.width)
        self._frames = self._decode()
        self._ahead: tuple[float, NDArray[np.uint8]] | None = None

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def peek(self) -> tuple[float, NDArray[np.uint8]] | None:
        """Seconds and picture (Y, X, 3) of the frame that `take` gives next; None behind the last one."""
        if self._ahead is None:
            self._ahead = next(self._frames, None)
        return self._ahead

    def take(self) -> tuple[float, NDArray[np.uint8]] | None:
        """Seconds since the start of the file and picture (Y, X, 3) of the next frame; None behind the last one."""
        frame, self._ahead = self.peek(), None
        return frame

    def packets(self) -> int:
        """How many coded frames the file holds, without decoding them; the reader is used up by it."""
        return sum(packet.size > 0 for packet in self._container.demux(self._stream))

    def _decode(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        import av

        count = 0
        try:
            for frame in self._container.decode(self._stream):
                if frame.is_corrupt or frame.pts is None:
                    raise ValueError(f"{self.file} is damaged at frame {count}")
                picture = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                yield float(frame.pts * (frame.time_base or 0)), picture
                count += 1
        except av.FFmpegError as error:
            raise ValueError(f"{self.file} cannot be decoded at frame {count} ({error.strerror})") from error
