"""Folders of videos with tables: which frame a row belongs to, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lerobot_layout import write_mp4
from recordings import LENGTHS, make_videos, toy_episodes

from lewm.data.importers.recording import Choice
from lewm.data.importers.run import ImportConfig, import_recording, open_recording


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_videos(tmp_path)[0]


def change(file: Path, edit: Callable[[list[str]], list[str]]) -> None:
    file.write_text("\n".join(edit(file.read_text().splitlines())) + "\n")


def test_names_come_from_the_header_and_time_from_the_video(folder: Path, tmp_path: Path) -> None:
    store = import_recording(folder, tmp_path / "out", ImportConfig()).store
    assert store.meta.state_names == ("a", "b", "c")
    assert store.meta.cameras == ("main",)
    assert store.meta.control_dt == 0.1
    assert store.meta.action_high == pytest.approx((0.23, 0.2325))  # the last row's 99 leads nowhere


def test_a_row_per_action(folder: Path) -> None:
    for number in range(3):
        change(folder / f"run{number}.csv", lambda lines: [",".join(line.split(",")[:2]) for line in lines[:-1]])
    recording = open_recording(folder, ImportConfig(choice=Choice(columns=("action_y",))))
    assert recording.columns[0].per == "action"
    for number, episode in enumerate(toy_episodes()):
        read = recording.read(number)
        np.testing.assert_array_equal(read.actions, episode.actions)
        np.testing.assert_array_equal(read.pixels, episode.pixels)
        np.testing.assert_array_equal(np.float32(read.extra["action_y"]), episode.actions[:, 1])
        assert read.states.shape == (LENGTHS[number] + 1, 0)


def test_an_entry_is_a_column_or_all_that_begin_with_its_name(folder: Path) -> None:
    choice = Choice(action="state_b", state=("action", "state_c"), columns=("state_a",))
    recording = open_recording(folder, ImportConfig(choice=choice))
    assert recording.state_names == ("x", "y", "state_c")
    assert [(c.name, c.shape) for c in recording.columns] == [("state_a", ())]
    read, episode = recording.read(0), toy_episodes()[0]
    np.testing.assert_array_equal(read.actions[:, 0], episode.states[:-1, 1])
    np.testing.assert_array_equal(read.states[:, 2], episode.states[:, 2])
    np.testing.assert_array_equal(read.extra["state_a"], episode.states[:, 0])


def test_several_cameras(folder: Path) -> None:
    episodes = toy_episodes(cameras=2)
    for number, episode in enumerate(episodes):
        (folder / f"run{number}.mp4").unlink()
        write_mp4(folder / f"run{number}.wrist.mp4", episode.pixels[..., 3:])
        write_mp4(folder / f"run{number}.top.mp4", episode.pixels[..., :3])
    assert open_recording(folder, ImportConfig()).cameras == ("top", "wrist")
    np.testing.assert_array_equal(open_recording(folder, ImportConfig()).read(1).pixels, episodes[1].pixels)
    wrist = open_recording(folder, ImportConfig(choice=Choice(cameras=("wrist",))))
    np.testing.assert_array_equal(wrist.read(1).pixels, episodes[1].pixels[..., 3:])


def cut_rows(count: int) -> Callable[[Path], None]:
    return lambda folder: change(folder / "run1.csv", lambda lines: lines[:count])


def cell(row: int, column: int, text: str) -> Callable[[Path], None]:
    def edit(lines: list[str]) -> list[str]:
        cells = lines[row].split(",")
        cells[column] = text
        return [*lines[:row], ",".join(cells), *lines[row + 1 :]]

    return lambda folder: change(folder / "run1.csv", edit)


def slow(folder: Path) -> None:
    write_mp4(folder / "run1.mp4", toy_episodes()[1].pixels, fps=9)


WHERE = r"run1\.csv, episode 1: "
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "rows": (
        cut_rows(7),
        WHERE + r"run1\.mp4 has 8 frames and the table 6 rows; there must be as many, or one frame more",
    ),
    "states": (cut_rows(8), WHERE + "state has 7 rows where 8 are needed"),
    "more rows": (
        lambda folder: change(folder / "run1.csv", lambda lines: [*lines[:-1], *lines[-2:]]),
        WHERE + r"run1\.mp4 has 8 frames and the table 9 rows",
    ),
    "cell": (cell(3, 1, "left"), WHERE + "'action_y' in row 3 holds 'left', which is no number"),
    "gap": (cell(3, 1, ""), WHERE + "'action_y' in row 3 holds '', which is no number"),
    "width": (cell(3, 1, "0,0"), WHERE + "row 3 of the table has 6 cells for 5 columns"),
    "header": (cell(0, 1, "speed"), WHERE + r"a row of action has shape \(1,\), in the first episode it has \(2,\)"),
    "rate": (slow, WHERE + r"run1\.mp4 has 9 frames per second, in episode 0 it is 10"),
    "video": (lambda folder: (folder / "run1.mp4").unlink(), WHERE + "it has no video of camera main; it has none"),
    "size": (
        lambda folder: write_mp4(folder / "run1.mp4", toy_episodes(size=48)[1].pixels) and None,
        r"episode 1: frames are \(48, 48, 3\), those before \(32, 32, 3\); give --size",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_add_up_is_said(damage: str, folder: Path, tmp_path: Path) -> None:
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        import_recording(folder, tmp_path / "out", ImportConfig())
    assert [item.name for item in tmp_path.iterdir()] == [folder.name]


def test_a_video_without_a_table_is_refused(folder: Path) -> None:
    (folder / "run2.csv").unlink()
    with pytest.raises(ValueError, match=r"run2\.mp4 has no table beside it: its actions must be in run2\.csv"):
        open_recording(folder, ImportConfig())


def test_a_folder_of_tables_alone_is_not_recognised(folder: Path) -> None:
    for file in folder.glob("*.mp4"):
        file.unlink()
    with pytest.raises(ValueError, match="is in no format that is recognised"):
        open_recording(folder, ImportConfig())
