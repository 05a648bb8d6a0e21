"""The contract of every importer: recognised by itself alone, exact, and nothing left of what cannot be read."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from recordings import CASES, Case

from lewm.data.importers import IMPORTERS
from lewm.data.importers.recording import Choice
from lewm.data.importers.run import ImportConfig, import_recording, open_recording, recognise
from lewm.data.store import Store
from lewm.data.writer import Episode


def test_every_importer_has_a_case() -> None:
    assert set(CASES) == set(IMPORTERS)


@pytest.fixture(params=IMPORTERS)
def name(request: pytest.FixtureRequest) -> str:
    needs = CASES[request.param].needs
    if needs and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


def config_of(case: Case, **more: object) -> ImportConfig:
    return ImportConfig(choice=case.choice, **{**case.config, **more})


def assert_holds(store: Store, episodes: list[Episode], lossy: float = 0.0) -> None:
    assert store.num_episodes == len(episodes)
    for number, episode in enumerate(episodes):
        pixels = store.pixels(number)
        assert pixels.shape == episode.pixels.shape
        difference = np.abs(pixels.astype(int) - episode.pixels).mean(axis=(1, 2, 3))
        assert difference.max() <= lossy, f"episode {number}: a picture differs by {difference.max():.2f} on average"
        np.testing.assert_array_equal(store.actions(number), episode.actions)
        np.testing.assert_array_equal(store.states(number), episode.states)


def test_is_recognised_by_its_own_importer_alone(name: str, case: Case, tmp_path: Path) -> None:
    path, _ = case.make(tmp_path)
    assert [other for other, importer in IMPORTERS.items() if importer.recognises(path)] == [name]
    assert recognise(path) == name


def test_imports_what_was_recorded(case: Case, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path, episodes = case.make(tmp_path / "source")
    imported = import_recording(path, tmp_path / "out", config_of(case, shard_episodes=2))
    assert_holds(Store.open(tmp_path / "out", verify=True), episodes, case.lossy)
    assert imported.skipped == ()
    assert imported.store.meta.action_dim == episodes[0].actions.shape[1]
    assert path.name.removesuffix(".npz") in imported.store.meta.provenance.source


def test_actions_of_the_first_pass_are_those_that_are_read(case: Case, tmp_path: Path) -> None:
    path, episodes = case.make(tmp_path)
    recording = open_recording(path, config_of(case))
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(recording.actions(number), episode.actions)


def test_episodes_may_be_read_in_any_order(case: Case, tmp_path: Path) -> None:
    path, episodes = case.make(tmp_path)
    recording = open_recording(path, config_of(case))
    for number in (2, 0, 1, 1):
        read = recording.read(number)
        np.testing.assert_array_equal(read.states, episodes[number].states)
        assert np.abs(read.pixels.astype(int) - episodes[number].pixels).mean() <= case.lossy


def test_a_damaged_episode_is_named_and_nothing_remains(case: Case, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path, _ = case.make(tmp_path / "source")
    case.spoil(path)
    with pytest.raises(ValueError, match=r"episode 1\b") as caught:
        import_recording(path, tmp_path / "out", config_of(case))
    assert path.stem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["source"]


def test_a_missing_entry_is_named_with_those_that_are_there(name: str, case: Case, tmp_path: Path) -> None:
    path, _ = case.make(tmp_path)
    with pytest.raises(ValueError, match="no actions 'flight'") as caught:
        open_recording(path, ImportConfig(format=name, choice=Choice(action="flight")))
    assert "action" in str(caught.value).split("it has")[1]
