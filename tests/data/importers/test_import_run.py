"""`import_recording`: what is refused, what is left out, what the store says, and that a failure leaves nothing."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import make_minari, make_robomimic, make_swm_hdf5, make_zarr, toy_episodes

from lewm.data.importers import IMPORTERS
from lewm.data.importers.recording import Choice, Importer, Recording
from lewm.data.importers.run import ImportConfig, import_recording, open_recording, recognise, resize
from lewm.data.store import Store
from lewm.data.writer import Episode

EPISODES = toy_episodes()


def recording_of(episodes: list[Episode], **facts: object) -> Recording:
    def read(number: int) -> Episode:
        if len(episodes[number].pixels) == 0:
            raise ValueError(f"toy.bin, episode {number}: no frames")
        return episodes[number]

    recording = Recording(
        source="toy toy.bin",
        episodes=len(episodes),
        cameras=("main",),
        action_dim=2,
        state_names=("x", "y", "z"),
        actions=lambda number: read(number).actions,
        read=read,
        control_dt=0.1,
    )
    return replace(recording, **facts)


def broken(number: int) -> list[Episode]:
    return [replace(e, pixels=e.pixels[:0]) if i == number else e for i, e in enumerate(EPISODES)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """Import a recording that is given as an object; further arguments are fields of the ImportConfig."""

    def run(recording: Recording, **config: object) -> Store:
        monkeypatch.setitem(IMPORTERS, "toy", Importer("toy", lambda path: False, lambda path, choice: recording))
        return import_recording(tmp_path, tmp_path / "out", ImportConfig(format="toy", **config)).store

    return run


def test_bounds_are_those_that_occur(run: Callable[..., Store]) -> None:
    """By hand: episode 2 ends with action 3, (20 + 3 + 0.25) / 100; episode 0 begins with 0."""
    meta = run(recording_of(EPISODES)).meta
    assert meta.action_low == pytest.approx((0.0, 0.0025))
    assert meta.action_high == pytest.approx((0.23, 0.2325))


def test_bounds_are_found_among_the_episodes_that_are_taken(run: Callable[..., Store]) -> None:
    assert run(recording_of(EPISODES), episodes=1).meta.action_high == pytest.approx((0.04, 0.0425))


def test_declared_bounds_go_before_what_occurs_and_given_ones_before_these(run: Callable[..., Store]) -> None:
    recording = recording_of(EPISODES, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    meta = run(recording, action_high=(2.0, 3.0)).meta
    assert (meta.action_low, meta.action_high) == ((-1.0, -1.0), (2.0, 3.0))


def test_bounds_the_wrong_way_round_are_refused(run: Callable[..., Store], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"action_low is \(1.0, 0.0\).*no lower bound may be above"):
        run(recording_of(EPISODES), action_low=(1.0, 0.0))
    assert not list(tmp_path.iterdir())


def test_the_meta_says_where_it_comes_from(run: Callable[..., Store]) -> None:
    recording = recording_of(EPISODES, task="Lift", angle_names=("z",))
    meta = run(recording, state_names=("a", "b", "z"), control_dt=0.05).meta
    assert (meta.task, meta.control_dt, meta.state_names, meta.angle_names) == ("Lift", 0.05, ("a", "b", "z"), ("z",))
    assert meta.provenance.source == "toy toy.bin"
    assert [policy.name for policy in meta.provenance.policies] == ["toy toy.bin"]


def test_the_task_may_be_named(run: Callable[..., Store]) -> None:
    meta = run(recording_of(EPISODES, task="Lift"), task="two_room", settings={"size": 32}).meta
    assert (meta.task, meta.settings) == ("two_room", {"size": 32})


def test_frames_are_averaged_to_the_size(run: Callable[..., Store]) -> None:
    """A quarter of each side: every new pixel is the mean of 4 x 4 old ones."""
    noise = np.random.default_rng(0).integers(0, 256, EPISODES[1].pixels.shape, np.uint8)
    store = run(recording_of([EPISODES[0], replace(EPISODES[1], pixels=noise)]), size=8)
    assert store.meta.frame == (8, 8, 3)
    means = noise.reshape(8, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    assert np.abs(store.pixels(1) - means).max() <= 0.5


def test_every_camera_is_resized_by_itself() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 12, 6), np.uint8)
    both = resize(pixels, 8)
    for camera in (slice(0, 3), slice(3, 6)):
        np.testing.assert_array_equal(both[..., camera], resize(pixels[..., camera], 8))


def test_frames_of_two_sizes_need_one(run: Callable[..., Store], tmp_path: Path) -> None:
    mixed = [EPISODES[0], replace(EPISODES[1], pixels=EPISODES[1].pixels[:, :16]), EPISODES[2]]
    with pytest.raises(ValueError, match=r"episode 1: frames are \(16, 32, 3\).*give --size"):
        run(recording_of(mixed))
    assert not list(tmp_path.iterdir())
    assert run(recording_of(mixed), size=16).meta.frame == (16, 16, 3)


@pytest.mark.parametrize("number", range(3))
def test_a_broken_episode_is_refused(run: Callable[..., Store], tmp_path: Path, number: int) -> None:
    with pytest.raises(ValueError, match=f"toy.bin, episode {number}: no frames; mend it.*--broken skip"):
        run(recording_of(broken(number)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", range(3))
def test_a_broken_episode_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    recording = recording_of(broken(number), notes=("filter keys are not kept",))
    monkeypatch.setitem(IMPORTERS, "toy", Importer("toy", lambda path: False, lambda path, choice: recording))
    imported = import_recording(tmp_path, tmp_path / "out", ImportConfig(format="toy", broken="skip"))
    assert imported.skipped == (f"toy.bin, episode {number}: no frames",)
    assert imported.notes == ("filter keys are not kept",)
    kept = [episode for i, episode in enumerate(EPISODES) if i != number]
    assert imported.store.num_episodes == 2
    for new, episode in enumerate(kept):
        np.testing.assert_array_equal(imported.store.pixels(new), episode.pixels)


def test_when_all_are_broken_nothing_is_made(run: Callable[..., Store], tmp_path: Path) -> None:
    nothing = [replace(e, pixels=e.pixels[:0]) for e in EPISODES]
    with pytest.raises(ValueError, match=r"no episode of toy toy.bin can be read; the first: toy.bin, episode 0"):
        run(recording_of(nothing), broken="skip")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_break_an_episode(run: Callable[..., Store], tmp_path: Path) -> None:
    actions = EPISODES[1].actions.copy()
    actions[2, 1] = np.nan
    episodes = [EPISODES[0], replace(EPISODES[1], actions=actions), EPISODES[2]]
    with pytest.raises(ValueError, match=r"toy.bin, episode 1: actions hold NaN"):
        run(recording_of(episodes))
    assert not list(tmp_path.iterdir())
    store = run(recording_of(episodes), broken="skip")
    assert store.num_episodes == 2
    assert store.meta.action_high == pytest.approx((0.23, 0.2325))


def test_an_episode_of_one_frame_is_broken(run: Callable[..., Store]) -> None:
    e = EPISODES[1]
    short = replace(e, pixels=e.pixels[:1], actions=e.actions[:0], states=e.states[:1])
    with pytest.raises(ValueError, match="episode 1: no action leads from one of its 1 frames"):
        run(recording_of([EPISODES[0], short]))
    assert run(recording_of([short, EPISODES[0]]), broken="skip").num_episodes == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(run: Callable[..., Store], tmp_path: Path, error: type[BaseException]) -> None:
    recording = recording_of(EPISODES)

    def read(number: int) -> Episode:
        if number == 2:
            assert (tmp_path / "out.importing" / "out" / "meta.json").exists()
            raise error
        return EPISODES[number]

    with pytest.raises(error):
        run(replace(recording, read=read), shard_episodes=1)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_import_left_is_removed(run: Callable[..., Store], tmp_path: Path) -> None:
    left = tmp_path / "out.importing" / "out"
    left.mkdir(parents=True)
    (left / "meta.json").write_text("{")
    assert run(recording_of(EPISODES)).num_episodes == 3
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_somebody_elses_folder_is_left_alone(run: Callable[..., Store], tmp_path: Path) -> None:
    (tmp_path / "out.importing").mkdir()
    (tmp_path / "out.importing" / "thesis.txt").write_text("long")
    with pytest.raises(FileExistsError, match="in the way"):
        run(recording_of(EPISODES))
    assert (tmp_path / "out.importing" / "thesis.txt").read_text() == "long"


def test_out_may_be_an_empty_folder_but_no_other(run: Callable[..., Store], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(recording_of(EPISODES)).num_episodes == 3
    with pytest.raises(FileExistsError, match="is not empty: choose another --out"):
        run(recording_of(EPISODES))


def test_a_recording_that_names_no_time_step_needs_one(run: Callable[..., Store], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"toy toy.bin does not say how long an action lasts: give --control-dt"):
        run(recording_of(EPISODES, control_dt=None))
    assert not list(tmp_path.iterdir())


def test_as_many_state_names_as_states(run: Callable[..., Store]) -> None:
    with pytest.raises(ValueError, match="2 state names for the 3 entries of a state"):
        run(recording_of(EPISODES), state_names=("a", "b"))


def test_progress_counts_every_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = recording_of(broken(1))
    monkeypatch.setitem(IMPORTERS, "toy", Importer("toy", lambda path: False, lambda path, choice: recording))
    seen: list[tuple[int, int]] = []
    config = ImportConfig(format="toy", broken="skip")
    import_recording(tmp_path, tmp_path / "out", config, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_places_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"in no format that is recognised; name it with --format: npz, swm_hdf5"):
        recognise(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x89HDF\r\n\x1a\njunk", b"{"])
@pytest.mark.parametrize("name", ["data.npz", "data.h5", "data.hdf5", "metadata.json", "data.lance", "data"])
def test_no_importer_recognises_or_trips_over_junk(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path, tmp_path / name):
        assert [other for other, importer in IMPORTERS.items() if importer.recognises(place)] == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "hdf4", "format is 'hdf4'; there are npz"),
        ("size", 4, "at least 8 pixels"),
        ("episodes", 0, "at least 1"),
        ("shard_episodes", 0, "at least 1"),
        ("control_dt", 0.0, "positive number of seconds"),
    ],
)
def test_config_is_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImportConfig(**{field: value})


def test_choice_defaults_take_the_usual() -> None:
    assert ImportConfig().choice == Choice()


def make_lance_folder(folder: Path) -> tuple[Path, list[Episode]]:
    (folder / "toy.lance" / "_versions").mkdir(parents=True)
    return folder / "toy.lance", []


@pytest.mark.parametrize(
    ("name", "module", "make", "message"),
    [
        ("swm_hdf5", "h5py", make_swm_hdf5, r"h5py is needed .* pip install 'lewm\[import\]'"),
        ("swm_hdf5", "hdf5plugin", make_swm_hdf5, r"hdf5plugin is needed .* pip install 'lewm\[import\]'"),
        ("robomimic", "h5py", make_robomimic, r"h5py is needed .* pip install 'lewm\[import\]'"),
        ("zarr", "zarr", make_zarr, r"zarr is needed .* pip install 'lewm\[import\]'"),
        ("minari", "minari", make_minari, r"minari is needed .* pip install 'lewm\[import\]'"),
        ("lance", "lance", make_lance_folder, "pylance is needed .* pip install pylance"),
    ],
)
def test_a_library_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, make: object, message: str
) -> None:
    path, _ = make(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        open_recording(path, ImportConfig())
    with pytest.raises(ImportError, match=message):
        open_recording(path, ImportConfig(format=name))


def test_the_table_loads_no_library_of_a_format() -> None:
    heavy = "{'h5py', 'hdf5plugin', 'zarr', 'minari', 'lance', 'pyarrow', 'av', 'torch', 'gymnasium'}"
    code = f"import sys, lewm.data.importers; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
