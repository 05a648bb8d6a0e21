"""A preview shows whole episodes: every camera, every step, and the numbers that belong to it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from toy_recordings import make_episode, make_meta

from lewm.data import preview as module
from lewm.data.preview import preview_video, text_strip
from lewm.data.store import Store
from lewm.data.writer import StoreWriter
from lewm.video import BACKGROUND, CAPTION, GAP


def decode(path: Path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], float(stream.average_rate)


def test_every_step_of_the_chosen_episodes(write_store: Callable[..., Store], tmp_path: Path) -> None:
    store, heard = write_store(size=16), []
    path = preview_video(store, tmp_path / "p.mp4", [3, 0], progress=lambda *each: heard.append(each))
    frames, rate = decode(path)
    assert len(frames) == (20 + 1) + (7 + 1) and heard == [(1, 2), (2, 2)]
    assert rate == 10  # one action lasts 0.1 s
    wanted = np.concatenate([store.pixels(3), store.pixels(0)])
    for shown, picture in zip(frames, wanted):
        seen = shown[CAPTION : CAPTION + 256, GAP : GAP + 256].reshape(16, 16, 16, 16, 3).mean((1, 3))
        assert np.abs(seen - picture).mean() < 12  # yuv420p


def test_cameras_stand_side_by_side_below_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = replace(make_meta(size=16), frame=(16, 16, 6), cameras=("front", "wrist"))
    episode = make_episode(0, 3, size=16)
    pixels = np.concatenate([np.full_like(episode.pixels, 40), np.full_like(episode.pixels, 200)], -1)
    with StoreWriter(tmp_path / "s", meta) as writer:
        writer.write([replace(episode, pixels=pixels)])
    captions: list[list[str]] = []
    panels = module.panels
    monkeypatch.setattr(module, "panels", lambda p, c, least: captions.append(list(c)) or panels(p, c, least))
    frames, _ = decode(preview_video(Store.open(tmp_path / "s"), tmp_path / "p.mp4", [0], fps=7, least=64))
    left = frames[0][CAPTION + 8 : CAPTION + 56, GAP + 8 : GAP + 56]
    right = frames[0][CAPTION + 8 : CAPTION + 56, 2 * GAP + 64 + 8 : 2 * GAP + 64 + 56]
    assert abs(left.mean() - 40) < 3 and abs(right.mean() - 200) < 3
    assert captions == [["front", "wrist"]] * 4


def test_the_numbers_are_those_of_the_step(
    write_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store()
    said: list[tuple[str, list[tuple[str, float]]]] = []

    def strip(title: str, entries: list[tuple[str, float]], width: int) -> np.ndarray:
        said.append((title, list(entries)))
        return text_strip(title, entries, width)

    monkeypatch.setattr(module, "text_strip", strip)
    preview_video(store, tmp_path / "p.mp4", [2])
    assert [title for title, _ in said] == [f"episode 2  step {t} of 3" for t in range(4)]
    assert said[1][1] == [("action[0]", 2), ("action[1]", 1), ("x", 2), ("y", 1)]
    assert np.isnan([value for _, value in said[3][1][:2]]).all() and said[3][1][2:] == [("x", 2), ("y", 3)]


def test_the_strip_has_one_height_and_fits_its_width() -> None:
    names = ("shoulder_velocity", "x", "y", "z", "elbow")
    strips = [text_strip("episode 1", [(n, value) for n in names], 400) for value in (0.0, -1.2345e30, np.nan)]
    assert {strip.shape for strip in strips} == {strips[0].shape} and strips[0].shape[0] % 2 == 0
    assert all((strip[:, -2:] == BACKGROUND).all() for strip in strips)
    assert len({strip.tobytes() for strip in strips}) == 3
    narrow = text_strip("", [(n, 0.0) for n in names], 60)
    assert narrow.shape[0] > strips[0].shape[0] and narrow.shape[1] == 60


def test_refusals(write_store: Callable[..., Store], tmp_path: Path) -> None:
    store = write_store()
    with pytest.raises(IndexError, match=r"episode 5 is not in .*: it has episodes 0\.\.4"):
        preview_video(store, tmp_path / "p.mp4", [0, 5])
    with pytest.raises(ValueError, match="give at least one episode"):
        preview_video(store, tmp_path / "p.mp4", [])
    with pytest.raises(ValueError, match="fps is 0, it must be at least 1"):
        preview_video(store, tmp_path / "p.mp4", [0], fps=0)
    assert not (tmp_path / "p.mp4").exists()


@pytest.mark.parametrize("control_dt, rate", [(0.02, 50), (0.001, 60), (5.0, 1)])
def test_real_time_within_what_players_show(control_dt: float, rate: int, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", replace(make_meta(size=16), control_dt=control_dt)) as writer:
        writer.write([make_episode(0, 3, size=16)])
    assert decode(preview_video(Store.open(tmp_path / "s"), tmp_path / "p.mp4", [0], least=32))[1] == rate
