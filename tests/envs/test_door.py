"""Door: what the line and the coin do, what stays hidden, and that states survive being stored."""

import numpy as np
import pytest

import envs
from envs.door import COINS, Door, toss

DOOR = Door()  # rooms x <= 0.41 and x >= 0.59, passage y in [0.20, 0.40], line at 0.65, arena [0.05, 0.95]
OPENS, CLOSES = 2 / COINS, 1 / COINS  # what their next toss does, checked below


def go(state: tuple[float, ...], *moves: tuple[float, float]) -> np.ndarray:
    """The state after moves in arena sides."""
    return DOOR.simulate(state, np.array([moves]) / 0.05)[0, -1]


def test_the_coins_used_here_do_what_their_names_say() -> None:
    """By hand: k -> (678789 k + 373475) mod 2^20 is 3688 for 1 and 682477 for 2; open from 2^19 = 524288 on."""
    assert toss(np.array([OPENS, CLOSES])).tolist() == [682_477 / COINS, 3_688 / COINS]


@pytest.mark.parametrize("door", [0.0, 1.0])
def test_crossing_the_line_redraws_the_door_either_way(door: float) -> None:
    for here, move in ((0.64, 0.03), (0.66, -0.03)):
        for coin, expected in ((OPENS, 1.0), (CLOSES, 0.0)):
            end = go((0.2, here, door, coin), (0.0, move))
            np.testing.assert_allclose(end[:2], (0.2, here + move))
            assert end[2] == expected
            assert end[3] == toss(np.array(coin))


@pytest.mark.parametrize("door", [0.0, 1.0])
def test_away_from_the_line_nothing_is_drawn(door: float) -> None:
    for here, move in ((0.6, 0.04), (0.7, -0.04), (0.64, 0.01)):  # the last stops on the line, which is its lower side
        assert go((0.2, here, door, OPENS), (0.0, move))[2:].tolist() == [door, OPENS]


def test_a_closed_door_is_a_wall_and_an_open_one_is_not() -> None:
    moves = ((0.05, 0.01),) * 8
    np.testing.assert_allclose(go((0.35, 0.25, 0.0, 0.0), *moves)[:2], (0.41, 0.33), atol=1e-12)
    np.testing.assert_allclose(go((0.35, 0.25, 1.0, 0.0), *moves)[:2], (0.75, 0.33), atol=1e-12)
    np.testing.assert_allclose(go((0.65, 0.3, 0.0, 0.0), *((-0.05, 0.0),) * 8)[:2], (0.59, 0.3), atol=1e-12)


def test_the_coin_is_fair_and_has_no_memory() -> None:
    """Over all coins: one cycle, half of them open, and sixteen patterns of four redraws are equally frequent."""
    coin = np.arange(COINS) / COINS
    opened = []
    for _ in range(4):
        coin = toss(coin)
        opened.append(coin >= 0.5)
    assert len(np.unique(coin)) == COINS
    pattern = sum(bit.astype(int) << i for i, bit in enumerate(opened))
    np.testing.assert_allclose(np.bincount(pattern, minlength=16) / COINS, 1 / 16, atol=1e-3)


def test_the_picture_shows_the_door_and_not_the_coin() -> None:
    shown, other = DOOR.goal_image([0.2, 0.5, 0.0, 0.0]), DOOR.goal_image([0.2, 0.5, 0.0, 0.5])
    assert np.array_equal(shown, other)
    changed = (DOOR.goal_image([0.2, 0.5, 1.0, 0.0]) != shown).any(-1)
    rows, columns = np.nonzero(changed)  # the opening: x in [0.46, 0.54], y in [0.15, 0.45] of a 64-pixel picture
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (35, 54, 29, 34)


def test_states_survive_being_stored_as_float32() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        state = DOOR._draw_state(rng).astype(np.float32).astype(np.float64)
        DOOR.set_state(state)
        assert DOOR.state[2:].tolist() == state[2:].tolist()
    DOOR.set_state([np.float32(0.41) + 3e-8, 0.3, 0.0, 0.0])  # rounded into the closed door
    assert DOOR.state[0] == DOOR._room.wall_left


def test_drawn_states_show_both_doors_and_none_inside_a_closed_one() -> None:
    states = np.array([DOOR._draw_state(np.random.default_rng(seed)) for seed in range(400)])
    inside = (states[:, 0] > 0.41) & (states[:, 0] < 0.59)
    assert inside.any() and (states[inside, 2] == 1).all()
    assert 0.4 < states[:, 2].mean() < 0.6


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((0.5, 0.3, 0.0, 0.0), r"\(0.5, 0.3\) is inside the closed door.*x <= 0.41 or x >= 0.59"),
        ((0.5, 0.8, 1.0, 0.0), r"is inside a wall"),
        ((0.2, 0.5, 0.5, 0.0), r"the door is 0.5, but must be 0 \(closed\) or 1 \(open\)"),
        ((0.2, 0.5, 1.0, 1.0), r"the coin is 1, but must be a multiple of 2\^-20 in \[0, 1\)"),
        ((0.2, 0.5, 1.0, 0.3), r"the coin is 0.3"),
    ],
)
def test_impossible_states_are_refused(state: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DOOR.set_state(state)
    Door().set_state([0.5, 0.3, 1.0, 0.0])


def test_the_line_must_not_close_the_door_on_the_disc() -> None:
    for line_y in (0.44, 0.95):
        with pytest.raises(ValueError, match=r"line_y is .*, but must be in \(0.45, 0.95\)"):
            envs.make("door", line_y=line_y)
    assert envs.make("door", line_y=0.8).settings["line_y"] == 0.8


def test_distance_ignores_door_and_coin() -> None:
    states = np.array([[0.2, 0.3, door, coin] for door in (0.0, 1.0) for coin in (0.0, 0.5)])
    np.testing.assert_allclose(DOOR.distance(states[:, None], states), 0.0)
    np.testing.assert_allclose(DOOR.distance([0.2, 0.3, 0.0, 0.0], [0.8, 0.3, 1.0, 0.5]), 0.6)
    assert DOOR.region(states).tolist() == [0, 0, 0, 0] and DOOR.region([0.8, 0.3, 0.0, 0.0]) == 1


def test_the_expert_tries_until_the_door_opens_and_walks_through() -> None:
    """Without noise it ends within 0.03 of targets in the other room; nothing else would get it there."""
    policy, crossed, tries = DOOR.make_policy("expert", noise=0.0), 0, []
    for seed in range(40):
        DOOR.set_state([0.2, 0.5, 0.0, np.random.default_rng(seed).integers(COINS) / COINS])
        policy.reset(np.random.default_rng(seed), DOOR.state)
        policy._target_2 = np.array([0.8, 0.3])  # type: ignore[attr-defined]
        coins = {DOOR.state[3]}
        for _ in range(89):
            DOOR.advance(policy.act(DOOR.state))
            coins.add(DOOR.state[3])
            if DOOR.distance(DOOR.state, [0.8, 0.3, 0.0, 0.0]) < 0.03:
                crossed += 1
                break
        tries.append(len(coins) - 1)
    assert crossed >= 38  # of 40
    assert min(tries) == 2 and max(tries) >= 6  # up and down again: the door lies below the line


def test_recordings_hold_redraws() -> None:
    """About a sixth of the blocks of five steps, with the noise of the shipped run."""
    policy, redrawn = DOOR.make_policy("expert", noise=0.5), []
    for seed in range(40):
        _, info = DOOR.reset(seed=seed)
        policy.reset(np.random.default_rng(seed), info["state"])
        coins = [DOOR.state[3]]
        for _ in range(80):
            DOOR.advance(policy.act(DOOR.state))
            coins.append(DOOR.state[3])
        redrawn.append((np.diff(coins) != 0).reshape(16, 5).any(1).mean())
    assert 0.1 < np.mean(redrawn) < 0.3
