"""stable-worldmodel's HDF5: both index names, cameras, and an index that is checked against the rows."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from recordings import make_swm_hdf5, toy_episodes
from test_importers import assert_holds

from lewm.data.importers.recording import Choice
from lewm.data.importers.run import ImportConfig, import_recording
from lewm.data.importers.stable_worldmodel import open_swm, recognises


@pytest.mark.parametrize("index", ["episode_idx", "ep_idx"])
@pytest.mark.parametrize("blosc", [True, False])
def test_either_index_name_and_compression(tmp_path: Path, index: str, blosc: bool) -> None:
    path, episodes = make_swm_hdf5(tmp_path, index, blosc)
    assert_holds(import_recording(path, tmp_path / "out", ImportConfig(control_dt=0.1)).store, episodes)


def test_a_folder_with_the_one_file(tmp_path: Path) -> None:
    path, _ = make_swm_hdf5(tmp_path)
    assert recognises(tmp_path)
    assert open_swm(tmp_path, Choice()).episodes == 3
    (tmp_path / "other.hdf5").write_bytes(path.read_bytes())
    assert not recognises(tmp_path)


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def test_proprio_stands_in_for_the_state(tmp_path: Path) -> None:
    path, episodes = make_swm_hdf5(tmp_path)
    assert open_swm(path, Choice()).state_names == ("state_0", "state_1", "state_2")
    edit(path, lambda file: file.pop("state"))
    recording = open_swm(path, Choice(columns=("step_idx",)))
    assert recording.state_names == ("proprio",)
    np.testing.assert_array_equal(recording.read(1).states, episodes[1].states[:, :1])
    np.testing.assert_array_equal(recording.read(1).extra["step_idx"], np.arange(8))


def test_several_cameras(tmp_path: Path) -> None:
    path, _ = make_swm_hdf5(tmp_path)
    episodes = toy_episodes(cameras=2)

    def change(file: h5py.File) -> None:
        del file["pixels"]
        file["pixels.front"] = np.concatenate([e.pixels[..., :3] for e in episodes])
        file["pixels.side"] = np.concatenate([e.pixels[..., 3:] for e in episodes])

    edit(path, change)
    store = import_recording(path, tmp_path / "out", ImportConfig(control_dt=0.1)).store
    assert store.meta.cameras == ("pixels_front", "pixels_side")
    assert_holds(store, episodes)


def set_value(name: str, at: int | slice, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][at] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("ep_offset", 1, 7), "episode 1: ep_offset says it begins at row 7 .* before it end at row 6"),
        (set_value("ep_len", 1, 9), "episode 2: ep_offset says it begins at row 14 .* before it end at row 15"),
        (set_value("ep_len", 1, 0), "episode 1: .* has 0 rows"),
        (set_value("ep_len", 2, 9), "episode 2: episode_idx|episode 2: .* ends at row 19"),
        (set_value("episode_idx", 8, 0), "episode 1: ep_offset and ep_len give it rows 6 to 13, episode_idx gives"),
        (set_value("episode_idx", 5, 1), "episode 0: ep_offset and ep_len give it rows 0 to 5, episode_idx gives"),
        (set_value("episode_idx", slice(6, 14), 0), "episode 0: ep_offset and ep_len give it rows 0 to 5, episode_idx"),
        (
            set_value("episode_idx", slice(14, 19), 1),
            "episode 1: ep_offset and ep_len give it rows 6 to 13, episode_idx",
        ),
        (set_value("step_idx", 9, 7), "episode 1: frames are missing: step_idx goes from 2 to 7"),
        (set_value("action", 8, np.nan), "episode 1: actions hold NaN"),
        (lambda file: file.pop("ep_offset"), "has no ep_offset; it has"),
        (
            lambda file: file["pixels"].resize(15, axis=0),
            "episode 2: pixels ends at row 15, the episode needs rows 14 to 18",
        ),
    ],
)
def test_an_index_that_does_not_fit_the_rows(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    path, _ = make_swm_hdf5(tmp_path)
    with h5py.File(path, "r+") as file:
        pixels = file["pixels"][:]
        del file["pixels"]
        file.create_dataset("pixels", data=pixels, maxshape=(None, *pixels.shape[1:]), chunks=(1, *pixels.shape[1:]))
    edit(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        import_recording(path, tmp_path / "out", ImportConfig(format="swm_hdf5", control_dt=0.1))
    assert "toy.h5" in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["toy.h5"]


def test_rows_that_no_episode_owns_are_said(tmp_path: Path) -> None:
    """A recording that was killed has columns longer than its last complete episode."""
    path, episodes = make_swm_hdf5(tmp_path)

    def change(file: h5py.File) -> None:
        for name in ("ep_len", "ep_offset"):
            kept = file[name][:2]
            del file[name]
            file[name] = kept

    edit(path, change)
    imported = import_recording(path, tmp_path / "out", ImportConfig(control_dt=0.1))
    assert_holds(imported.store, episodes[:2])
    assert imported.notes == ("rows 14 to 18 belong to no episode and are not taken: a recording was cut off there",)


def test_a_cut_off_file_is_named(tmp_path: Path) -> None:
    path, _ = make_swm_hdf5(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"toy.h5 cannot be read as HDF5 .*copy it again"):
        open_swm(path, Choice())
