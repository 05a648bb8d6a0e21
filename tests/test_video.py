"""Videos: what was written can be decoded again, with the frames, sizes and colours that went in."""

from pathlib import Path

import av
import numpy as np
import pytest

from lewm.video import CAPTION, GAP, PANEL, enlarge, panels, write_panels, write_video

RED, GREEN, BLUE = (200, 30, 30), (30, 180, 60), (40, 60, 200)


def flat(colour: tuple[int, int, int], size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video_decodes_to_what_was_written(tmp_path):
    colours = [RED, GREEN, BLUE, RED, GREEN]
    rows = [(flat(c), flat(BLUE), flat(c)) for c in colours]
    path = write_panels(tmp_path / "deep" / "episode.mp4", rows, ("a", "b", "c"))
    frames = decode(path)
    assert len(frames) == len(colours)
    assert all(f.shape == frames[0].shape and f.shape[0] % 2 == f.shape[1] % 2 == 0 for f in frames)
    for frame, colour in zip(frames, colours, strict=True):
        for number, expected in enumerate((colour, BLUE, colour)):
            centre = frame[CAPTION + PANEL // 2, GAP + number * (PANEL + GAP) + PANEL // 2].astype(int)
            assert np.abs(centre - expected).max() < 16, (number, centre, expected)
    assert [p.name for p in path.parent.iterdir()] == ["episode.mp4"]


def test_it_is_what_browsers_play(tmp_path):
    path = write_panels(tmp_path / "v.mp4", [(flat(RED),)] * 3, ("seen",), fps=5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 5)


@pytest.mark.parametrize("size, shown", [(32, 256), (64, 256), (65, 260), (224, 448), (256, 256), (300, 300)])
def test_small_pictures_are_enlarged_without_smoothing(size, shown):
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    large = enlarge(picture)
    assert large.shape == (shown, shown, 3)
    assert np.array_equal(large[:: shown // size, :: shown // size], picture)


def test_captions_leave_the_pictures_alone():
    frame = panels([flat(RED, 65), flat(GREEN, 65)], ["seen", "goal"])
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    assert (frame[CAPTION : CAPTION + 260, GAP : GAP + 260] == RED).all()
    assert frame[:CAPTION].std() > 0


def test_what_does_not_fit_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="2 pictures and 1 captions"):
        panels([flat(RED), flat(RED)], ["one"])
    with pytest.raises(ValueError, match=r"'goal' is uint8 of shape \(32, 32, 3\)"):
        panels([flat(RED), flat(RED, 32)], ["seen", "goal"])
    with pytest.raises(ValueError, match="float64"):
        panels([flat(RED) / 255], ["seen"])
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match=r"shape \(32, 32, 3\).*\(64, 64, 3\)"):
        write_video(tmp_path / "b.mp4", [flat(RED), flat(RED, 32)])
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "c.mp4", [flat(RED, 33)])
    assert list(tmp_path.iterdir()) == []
