"""Every check finds exactly the defect that was put into a good recording, and nothing in the good one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from toy_recordings import make_episode, make_meta

from lewm.data.audit import AUDITS, Audit, audit, table
from lewm.data.audit_pictures import duplicates
from lewm.data.audit_sample import AuditConfig, Finding, read_sample
from lewm.data.audit_values import lagged_correlation
from lewm.data.collect import CollectConfig, collect
from lewm.data.meta import Column, Statistics
from lewm.data.store import Store
from lewm.data.writer import Episode, StoreWriter

EPISODES, STEPS = 40, 40
ALL = AuditConfig(episodes=None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = CollectConfig(episodes=EPISODES, steps=STEPS, noise=0.5)
    return collect(config, "two_room", {"size": 32}, tmp_path_factory.mktemp("good") / "data")


@pytest.fixture(scope="module")
def episodes(good: Store) -> list[Episode]:
    return [Episode(good.pixels(i), good.actions(i), good.states(i), seed=i) for i in range(EPISODES)]


@pytest.fixture
def write(good: Store, tmp_path: Path) -> Callable[..., Store]:
    """A store of changed episodes in the layout of the good one."""

    def write(episodes: list[Episode], **meta: object) -> Store:
        layout = replace(good.meta, **{"shards": (), "statistics": Statistics(), **meta})
        with StoreWriter(tmp_path / "spoiled", layout) as writer:
            writer.write(episodes)
        return Store.open(tmp_path / "spoiled")

    return write


def findings(store: Store, config: AuditConfig = ALL) -> dict[str, Finding]:
    return {finding.name: finding for finding in audit(store, config).findings}


def wrong(found: dict[str, Finding]) -> dict[str, str]:
    """Everything that is not good."""
    return {name: finding.verdict for name, finding in found.items() if finding.verdict != "good"}


def only(found: dict[str, Finding], name: str, verdict: str) -> Finding:
    """The finding that alone is not good; it says what to do."""
    assert wrong(found) == {name: verdict}, table(Audit("", tuple(found.values())))
    assert found[name].do
    return found[name]


def test_a_good_recording_is_good_everywhere(good: Store) -> None:
    heard: list[tuple[int, int]] = []
    result = audit(good, progress=lambda done, total: heard.append((done, total)))
    assert [finding.name for finding in result.findings] == list(AUDITS)
    assert wrong({f.name: f for f in result.findings}) == {} and result.verdict == "good"
    assert all(f.found and not f.do for f in result.findings)
    assert heard[-1] == (EPISODES, EPISODES)
    assert f"pictures of {EPISODES * STEPS} of their {EPISODES * STEPS} steps (40 episodes)" in result.looked_at
    text = table(result)
    assert "verdict good: 11 good, 0 look, 0 bad" in text and all(name in text for name in AUDITS)


def test_how_much_is_read_is_asked_for_and_said(good: Store) -> None:
    result = audit(good, AuditConfig(episodes=5, steps=30))
    assert "pictures of 150 of their 1600 steps (5 episodes)" in result.looked_at
    clips = read_sample(good, AuditConfig(episodes=5, steps=30)).clips
    assert [(clip.episode, clip.start) for clip in clips] == [(0, 0), (10, 2), (20, 5), (29, 8), (39, 10)]
    assert result.findings[-1].verdict == "look" and "not checked" in result.findings[-1].found  # 125 rows of 1,000
    with pytest.raises(ValueError, match="episodes is 0, it must be at least 1"):
        AuditConfig(episodes=0)
    with pytest.raises(ValueError, match="steps is 0"):
        AuditConfig(steps=0)


def poke(store: Store, file: str, row: int, value: float) -> None:
    """Write a number where only a broken program would."""
    array = np.load(store.path / "shards" / "00000" / file, mmap_mode="r+")
    array[row, 0] = value
    array.flush()


def test_numbers_that_are_not_finite(write: Callable[..., Store], episodes: list[Episode]) -> None:
    store = write(episodes)
    poke(store, "action.npy", 3 * STEPS + 7, np.nan)
    poke(store, "state.npy", 5 * (STEPS + 1), np.inf)
    found = only(findings(store), "non_finite", "bad")
    assert found.numbers == {"action[0]": 1, "state.x": 1}
    assert "2 numbers are NaN or infinite" in found.found and "episode 3: action[0], row 7" in found.found
    assert "the 2 episodes" in found.found


def test_nothing_else_is_said_of_a_store_of_nan(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", make_meta()) as writer:
        writer.write([make_episode(0, 20)])
    store = Store.open(tmp_path / "s")
    poke(store, "action.npy", 0, np.nan)
    assert wrong(findings(store)) == {"non_finite": "bad"} and len(findings(store)) == 1


def test_entries_that_never_change(write: Callable[..., Store], episodes: list[Episode]) -> None:
    reward = Column("reward", "action")
    still = [
        replace(e, states=np.c_[e.states, np.full(STEPS + 1, 0.3, np.float32)], extra={"reward": np.zeros(STEPS)})
        for e in episodes
    ]
    store = write(still, state_names=("x", "y", "lamp"), columns=(reward,))
    found = only(findings(store), "constant", "look")
    assert found.found == "state.lamp, reward never change" and found.numbers == {"entries": 2}


def test_actions_that_never_change(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = findings(write([replace(e, actions=np.full_like(e.actions, 0.5)) for e in episodes]))
    assert found["constant"].verdict == "bad" and "action[0], action[1] never change" in found["constant"].found
    assert found["autocorrelation"].verdict == "look" and "do not vary" in found["autocorrelation"].found
    assert "not checked" in found["actions_fit"].found


def cut(episode: Episode, steps: int) -> Episode:
    return replace(
        episode,
        pixels=episode.pixels[: steps + 1],
        actions=episode.actions[:steps],
        states=episode.states[: steps + 1],
    )


def test_episodes_that_are_too_short(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = only(findings(write([cut(e, 14 if i < 10 else STEPS) for i, e in enumerate(episodes)])), "lengths", "look")
    assert found.numbers == {"shortest": 14, "median": 40, "longest": 40, "too_short": 0.25}
    assert "14 to 40 actions, median 40; 25.0% have fewer than 15" in found.found


def test_only_short_episodes_are_bad(write: Callable[..., Store], episodes: list[Episode]) -> None:
    assert findings(write([cut(e, 14) for e in episodes]))["lengths"].verdict == "bad"


def test_repeated_episodes(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = only(findings(write([*episodes, episodes[7], episodes[7]])), "duplicates", "bad")
    assert found.numbers == {"episodes": 2} and "such as 7 = 40 = 41" in found.found


def test_the_same_actions_elsewhere_are_no_repetition(tmp_path: Path) -> None:
    first, second = make_episode(0, 20), make_episode(1, 20)
    alike = replace(second, actions=first.actions)
    with StoreWriter(tmp_path / "s", make_meta()) as writer:
        writer.write([first, alike] + [make_episode(i, 3) for i in range(2, 199)] + [first])
    finding = duplicates(read_sample(Store.open(tmp_path / "s"), AuditConfig(episodes=1)))
    assert finding.numbers == {"episodes": 1} and finding.verdict == "look"  # one of 200
    assert "0 = 199" in finding.found


def scaled(episodes: list[Episode], change: Callable[[np.ndarray], np.ndarray]) -> list[Episode]:
    return [replace(e, actions=change(e.actions).astype(np.float32)) for e in episodes]


def test_bounds_that_are_never_reached(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = only(findings(write(scaled(episodes, lambda a: 0.4 * a))), "action_range", "look")
    assert found.numbers["used"] == pytest.approx(0.4, abs=0.01) and "of the range between its bounds" in found.found


def test_actions_at_their_bounds(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = findings(write(scaled(episodes, lambda a: np.where(np.abs(a) < 0.1, a, np.sign(a)))))["action_range"]
    share = np.mean([[np.abs(e.actions) >= 0.1] for e in episodes], axis=(0, 1, 2)).max()
    assert found.verdict == "look" and found.numbers["at_bound"] == pytest.approx(share) and share > 0.5


def test_actions_outside_their_bounds(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = only(findings(write(episodes, action_low=(-0.9, -1.0), action_high=(1.0, 1.0))), "action_range", "bad")
    outside = np.concatenate([e.actions[:, 0] < -0.9 - 1.9e-3 for e in episodes]).mean()
    assert found.numbers["outside"] == pytest.approx(outside) and "outside the bounds [-0.9, -1.0]" in found.found


def test_actions_like_white_noise(tmp_path: Path) -> None:
    config = CollectConfig(episodes=EPISODES, steps=STEPS, policies={"random": 1.0}, noise=0.0)
    found = findings(collect(config, "two_room", {"size": 32}, tmp_path / "data"))
    assert abs(only(found, "autocorrelation", "look").numbers["lag_1"]) < 0.2
    assert found["actions_fit"].numbers["r2"] > 0.7  # the probe does not need correlated actions


def test_one_action_per_episode(write: Callable[..., Store], episodes: list[Episode]) -> None:
    stuck = [replace(e, actions=np.repeat(e.actions[:1], STEPS, 0)) for e in episodes]
    found = findings(write(stuck))["autocorrelation"]
    assert found.verdict == "look" and found.numbers["lag_10"] == pytest.approx(1, abs=0.02)


def test_correlation_of_an_autoregressive_process() -> None:
    """a_t = 0.8 a_t-1 + noise has correlation 0.8 ** lag."""
    rng, value, actions = np.random.default_rng(0), np.zeros(2), []
    for _ in range(40_000):
        value = 0.8 * value + 0.6 * rng.standard_normal(2)
        actions.append(value)
    series = (np.array(actions, np.float32),)
    assert_allclose([lagged_correlation(series, lag) or 0 for lag in (1, 2, 5)], [0.8, 0.64, 0.32768], atol=0.02)
    assert lagged_correlation((np.zeros((5, 1), np.float32),), 1) is None
    assert lagged_correlation((series[0][:2],), 2) is None


def test_states_on_one_path(write: Callable[..., Store], episodes: list[Episode]) -> None:
    line = np.linspace(0, 1, STEPS + 1, dtype=np.float32)
    found = findings(write([replace(e, states=np.stack([line, line], 1)) for e in episodes]))["coverage"]
    assert found.verdict == "look" and found.numbers["occupied x, y"] == 0.1  # the diagonal of 10 x 10
    assert found.numbers["evenness x"] == pytest.approx(1, abs=0.01)


def test_states_in_few_places(write: Callable[..., Store], episodes: list[Episode]) -> None:
    """Half at 0 and half at 1: the entropy is log 2 of at most log 10."""
    ends = (np.arange(STEPS + 1) % 2).astype(np.float32)
    ends[-1] = np.float32(0.999)  # as many of each
    states = [replace(e, states=np.stack([ends, e.states[:, 1]], 1)) for e in episodes]
    found = findings(write(states))["coverage"]
    assert found.verdict == "look" and found.numbers["evenness x"] == pytest.approx(np.log10(2), abs=1e-3)


def test_an_angle_is_covered_and_moves_across_its_seam(write: Callable[..., Store], episodes: list[Episode]) -> None:
    """A tenth of a turn, half below pi and half above -pi: two of ten cells, and small steps only."""
    swing = np.pi + 0.3 * np.sin(np.arange(STEPS + 1))
    wrapped = ((swing + np.pi) % (2 * np.pi) - np.pi).astype(np.float32)
    turning = [replace(e, states=np.c_[e.states, wrapped]) for e in episodes]
    store = write(turning, state_names=("x", "y", "turn"), angle_names=("turn",))
    found = findings(store)
    assert found["coverage"].numbers["evenness turn"] == pytest.approx(np.log10(2), abs=0.01)
    changes = read_sample(store, AuditConfig(episodes=1)).changes(turning[0].states)
    assert_allclose(changes[:, 2], np.diff(swing), atol=1e-5)


def block(moving: float) -> Callable[[Episode], Episode]:
    """A third state entry that moves in that share of the steps."""

    def add(episode: Episode) -> Episode:
        steps = np.arange(1, STEPS + 1) % round(1 / moving) == 0
        place = episode.seed / EPISODES + 0.2 * np.concatenate([[0], np.cumsum(steps)])
        return replace(episode, states=np.c_[episode.states, place.astype(np.float32)])

    return add


def test_something_that_is_hardly_touched(write: Callable[..., Store], episodes: list[Episode]) -> None:
    store = write(list(map(block(0.025), episodes)), state_names=("x", "y", "block"))
    found = only(findings(store), "movement", "look")
    assert found.numbers["block"] == 0.025 and "block moves in 2.5% of the steps" in found.found


def test_something_that_is_touched_often_enough(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = findings(write(list(map(block(0.1), episodes)), state_names=("x", "y", "block")))
    assert found["movement"].verdict == "good" and found["movement"].numbers["block"] == 0.1


def test_a_goal_in_the_state_is_no_block(write: Callable[..., Store], episodes: list[Episode]) -> None:
    goals = [replace(e, states=np.c_[e.states, np.full(STEPS + 1, e.seed, np.float32)]) for e in episodes]
    found = findings(write(goals, state_names=("x", "y", "goal")))
    assert wrong(found) == {} and "fixed within an episode: goal" in found["movement"].found


def test_states_that_stand_still(write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = findings(write([replace(e, states=np.repeat(e.states[:1], STEPS + 1, 0)) for e in episodes]))
    assert found["movement"].verdict == "bad" and found["frozen"].verdict == "look"
    assert "no step in which the state moves" in found["frozen"].found


def spoil(episode: Episode, frames: slice, value: int, channels: slice = slice(0, 3)) -> Episode:
    pixels = episode.pixels.copy()
    pixels[frames, ..., channels] = value
    return replace(episode, pixels=pixels)


@pytest.mark.parametrize("value, name", [(0, "black"), (255, "white"), (100, "empty")])
def test_pictures_that_show_nothing(
    value: int, name: str, write: Callable[..., Store], episodes: list[Episode]
) -> None:
    spoiled = [spoil(e, slice(0, 3 if e.seed < 20 else 1), value) for e in episodes]
    found = only(findings(write(spoiled)), "brightness", "bad")
    share = 80 / (EPISODES * (STEPS + 1))
    assert (
        found.numbers[name] == found.numbers["unusable"] == pytest.approx(share)
        and f"{name} {share:.1%}" in found.found
    )


def test_a_few_black_pictures_are_worth_a_look(write: Callable[..., Store], episodes: list[Episode]) -> None:
    spoiled = [spoil(e, slice(0, int(e.seed < 20)), 0) for e in episodes]
    assert "1.2% of its frames" in only(findings(write(spoiled)), "brightness", "look").found


def test_the_second_camera_is_looked_at_too(write: Callable[..., Store], episodes: list[Episode]) -> None:
    double = [replace(e, pixels=np.concatenate([e.pixels, e.pixels], -1)) for e in episodes]
    dark = [spoil(e, slice(0, 20), 0, slice(3, 6)) for e in double]
    found = findings(write(dark, frame=(32, 32, 6), cameras=("front", "wrist")))
    assert found["brightness"].verdict == "bad" and "camera wrist" in found["brightness"].found
    assert found["frozen"].verdict == "bad" and "camera wrist" in found["frozen"].found
    assert found["frozen"].numbers["front"] == 0 and found["actions_fit"].verdict == "good"


def hang(episode: Episode, every: int, still: int) -> Episode:
    """A camera that shows `still` old pictures after each `every`-th one."""
    old = np.arange(STEPS + 1)
    return replace(episode, pixels=episode.pixels[np.where(old % every <= still, old - old % every, old)])


@pytest.mark.parametrize("every, still, verdict", [(10, 1, "look"), (2, 1, "bad")])
def test_a_camera_that_hangs(
    every: int, still: int, verdict: str, write: Callable[..., Store], episodes: list[Episode]
) -> None:
    found = findings(write([hang(e, every, still) for e in episodes]))["frozen"]
    assert found.verdict == verdict and found.numbers["main"] == pytest.approx(still / every, abs=0.01)
    assert "in which the state moves, camera main shows the picture before" in found.found


def test_a_camera_that_hangs_is_seen_without_states(write: Callable[..., Store], episodes: list[Episode]) -> None:
    bare = [replace(hang(e, 2, 1), states=np.zeros((STEPS + 1, 0), np.float32)) for e in episodes]
    found = findings(write(bare, state_names=(), angle_names=()))
    assert wrong(found).keys() >= {"frozen"} and found["frozen"].verdict == "bad"
    assert "in which there is an action" in found["frozen"].found
    assert "not checked" in found["coverage"].found and "not checked" in found["movement"].found


@pytest.mark.parametrize(
    "shift, expected",
    [
        (1, "recorded 1 later: actions look shifted by 1"),
        (-1, "recorded 1 earlier: actions look shifted by 1"),
        (2, "recorded 2 later: actions look shifted by 2"),
    ],
)
def test_shifted_actions(shift: int, expected: str, write: Callable[..., Store], episodes: list[Episode]) -> None:
    found = only(findings(write(scaled(episodes, lambda a: np.roll(a, shift, 0)))), "actions_fit", "bad")
    assert (
        expected in found.found and f"move the actions {abs(shift)} {'earlier' if shift > 0 else 'later'}" in found.do
    )
    assert found.numbers[f"r2_shift_{shift:+d}"] > 0.7 > 0.5 > found.numbers["r2"]


def test_actions_of_another_episode(write: Callable[..., Store], episodes: list[Episode]) -> None:
    swapped = [replace(e, actions=other.actions) for e, other in zip(episodes, [*episodes[1:], episodes[0]])]
    found = only(findings(write(swapped)), "actions_fit", "bad")
    assert "no more than of shuffled or shifted ones" in found.found and found.numbers["r2"] < 0.05


@pytest.mark.parametrize("task, policy, least", [("reacher", "correlated", 0.12), ("push_t", "expert", 0.3)])
def test_the_probe_sees_the_actions_of_other_tasks(task: str, policy: str, least: float, tmp_path: Path) -> None:
    """Measured: 0.24 and 0.51."""
    config = CollectConfig(episodes=40, steps=60, policies={policy: 1.0})
    found = findings(collect(config, task, {"size": 32}, tmp_path / "data"))["actions_fit"]
    assert found.verdict == "good" and found.numbers["r2"] > least and found.numbers["r2_shift_+1"] < 0.03
