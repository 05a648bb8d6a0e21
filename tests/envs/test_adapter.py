"""Foreign environments: state in attributes, actions, success rules, and what is refused when they are made."""

import math
from typing import Any

import foreign
import gymnasium
import numpy as np
import pytest

import envs
from envs.adapter import AdaptedEnv, make_goal_env
from envs.adapter.known import KNOWN
from envs.adapter.success import Success

STATE = {"attributes": ["angle", "speed"], "angles": ["angle"]}
SUCCESS = {"entries": ["angle"], "tolerance": 0.1}


def adapt(name: str = "Cart", **settings: Any) -> AdaptedEnv:
    made = {"size": 32, "state": STATE, "success": SUCCESS} | settings
    env = make_goal_env(f"foreign/{name}-v0", **made)
    assert isinstance(env, AdaptedEnv)
    return env


# State ----------------------------------------------------------------------------------------------------------------


def test_simulation_is_the_formula() -> None:
    """speed <- 0.9 speed + 0.02 u, angle <- angle + speed, where -1..1 stands for u = -1..3."""
    env = adapt()
    action_T = np.array([1.0, -1.0, 0.0, 0.5, -0.25])
    speed, angle, expected = 0.3, 3.0, []
    for action in action_T:
        speed = 0.9 * speed + 0.02 * (1.0 + 2.0 * action)
        angle += speed
        expected.append([(angle + math.pi) % (2 * math.pi) - math.pi, speed])
    np.testing.assert_allclose(env.simulate([3.0, 0.3], action_T[None, :, None])[0], expected, rtol=0, atol=1e-7)
    env.set_state([3.0, 0.3])
    for action in action_T:
        env.advance([action])
    np.testing.assert_allclose(env.state, expected[-1], rtol=0, atol=1e-7)
    assert env.state[0] < -1.0  # it turned past pi, and its episode ended long ago


def test_own_name_of_a_task_and_its_settings() -> None:
    env = envs.make("gym:foreign/Cart-v0", size=32, state=STATE, success=SUCCESS, make_kwargs={"damping": 0.5})
    assert env.simulate([0.0, 1.0], np.full((1, 1, 1), -0.5))[0, 0, 1] == 0.5
    assert env.settings == {
        "size": 32,
        "success": [{"entries": ["angle"], "tolerance": 0.1, "norm": "max"}],
        "state": {"attributes": ["angle", "speed"], "names": [], "angles": ["angle"], "constants": {}},
        "camera": None,
        "flags": {},
        "hide": [],
        "scatter": 50,
        "control_dt": 0.05,
        "make_kwargs": {"damping": 0.5},
    }
    with pytest.raises(ValueError, match=r"no setting 'sise', did you mean 'size'\?"):
        envs.make("gym:foreign/Cart-v0", sise=32)


def test_attributes_keep_their_types() -> None:
    where = {"attributes": ["speed", "angle", "single", "pair", "cell", "listed", "deep.zero"]}
    env = adapt("Kinds", state=where, success={"entries": ["angle"], "tolerance": 0.1})
    entries = ("single:0", "single:1", "pair:0", "pair:1", "cell", "listed", "deep.zero")
    assert env.state_names == ("speed", "angle", *entries)
    env.set_state([0.0, 0.1, 1 / 3, 2 / 3, 0.7, 0.8, 4.4, 0.9, 1.5])
    inner: Any = env._live.env.unwrapped
    assert inner.single.dtype == np.float32 and inner.pair == (0.7, 0.8) and type(inner.cell) is int
    assert inner.listed == [0.9] and inner.deep.zero.shape == ()
    np.testing.assert_array_equal(env.state[1:], [0.1, np.float32(1 / 3), np.float32(2 / 3), 0.7, 0.8, 4.0, 0.9, 1.5])
    present = env.state
    env.check_state(np.zeros(9))  # asks about another state
    assert np.array_equal(env.state, present)


def test_constants_are_put_back_before_every_step() -> None:
    env = adapt("Hidden", state=STATE | {"constants": {"steps": 7}})
    np.testing.assert_allclose(env.simulate([0.0, 0.0], np.full((1, 2, 1), -0.5))[0, :, 1], [0.0063, 0.01197])


def test_a_drawn_state_is_a_reset_and_some_steps() -> None:
    assert max(abs(adapt(scatter=0).reset(seed=seed)[1]["state"][1]) for seed in range(10)) == 0.0
    speeds = [adapt(scatter=30).reset(seed=seed)[1]["state"][1] for seed in range(10)]
    assert np.abs(speeds).max() > 0.05
    with pytest.raises(RuntimeError, match=r"200 drawn goals are all met by the start: lower success"):
        adapt(scatter=0, success={"entries": ["speed"], "tolerance": 0.1}).reset(seed=0)


def test_resets_that_draw_globally_are_reproducible_and_leave_the_generator_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.uniform(size=3)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    states = [adapt("GloballySeeded").reset(seed=1)[1]["state"] for _ in range(2)]
    assert np.array_equal(states[0], states[1])
    assert np.array_equal(np.random.uniform(size=3), expected)  # noqa: NPY002


def test_what_a_reset_draws_beside_the_state_stays_as_it_was() -> None:
    env = adapt("Varied")
    push_TA = np.ones((10, 1))
    before = env.simulate([0.0, 1.0], push_TA[None])[0]
    for seed in range(3):
        env.reset(seed=seed)
        env.set_state([0.0, 1.0])
        for action in push_TA:
            env.advance(action)
        assert np.array_equal(env.state, before[-1])
        assert np.array_equal(env.simulate([0.0, 1.0], push_TA[None])[0], before)


def test_pictures_are_the_environments_own_squeezed() -> None:
    env = adapt(size=45)
    env.set_state([0.5, 0.0])
    raw = env._live.env.render()
    assert isinstance(raw, np.ndarray) and raw.shape == (40, 90, 3)
    picture = env.goal_image([0.5, 0.0])
    assert picture.shape == (45, 45, 3) and picture.flags.c_contiguous and picture.flags.owndata
    columns = raw[15].astype(float).reshape(45, 2, 3).mean(1)  # two pixels of a row that is alike all over the bar
    np.testing.assert_allclose(picture[18], columns, atol=1)
    before = env.render()
    env.goal_image([-0.8, 0.0])
    assert np.array_equal(env.render(), before)


# Actions --------------------------------------------------------------------------------------------------------------


def test_the_largest_entry_is_chosen() -> None:
    env = adapt("Choosing")
    inner: Any = env._live.env.unwrapped
    assert env.action_names == ("choose_0", "choose_1", "choose_2")
    for action, chosen in (([0.1, 0.3, -1], 6), ([-0.9, -0.8, -0.7], 7), ([1, 1, 1], 5), ([0, 5, 9], 6)):
        env.advance(action)  # 5 and 9 are clipped to 1, and the first of equals wins
        assert inner.chosen == chosen
    policy = env.make_policy("random", noise=0.0)
    policy.reset(np.random.default_rng(0), env.state)
    choices = np.argmax([policy.act(env.state) for _ in range(300)], axis=1)
    assert (np.bincount(choices, minlength=3) > 70).all()


def test_boxes_of_any_shape_and_bounds() -> None:
    from envs.adapter.actions import ActionMap

    low = np.array([[0.0, -2.0], [1.0, 0.1]], np.float32)
    actions = ActionMap(gymnasium.spaces.Box(low, low + np.float32([[512.0, 4.0], [0.0, 0.3]])), "mine")
    assert actions.names == ("action_0", "action_1", "action_2", "action_3")
    np.testing.assert_allclose(actions.native(np.array([0.0, 0.5, 0.7, -1.0])), [[256.0, 1.0], [1.0, 0.1]])
    unit = ActionMap(gymnasium.spaces.Box(-1.0, 1.0, (3,)), "mine", ("x", "y", "z"))
    assert unit.names == ("x", "y", "z")
    some = np.array([0.1, -0.7, 1.0])
    assert np.array_equal(unit.native(some), some.astype(np.float32))  # not a bit is lost
    assert unit.native(some).dtype == np.float32


# Success --------------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_rule_are_one_distance() -> None:
    parts = [
        {"entries": ["x", "y"], "tolerance": 20.0, "norm": "euclidean"},
        {"entries": ["turn"], "tolerance": 0.5},
    ]
    rule = Success(parts, ("x", "turn", "y", "speed"), {"turn"}, set())
    goal = np.zeros(4)
    assert rule.below == 20.0
    assert rule.distance(np.array([3.0, 0.0, 4.0, 9.0]), goal) == 5.0
    # 0.25 rad is half its tolerance: as far as 10 of 20; 6.2 rad is 0.0832 the short way round
    np.testing.assert_allclose(rule.distance(np.array([3.0, 0.25, 4.0, 0.0]), goal), 10.0)
    np.testing.assert_allclose(rule.distance(np.array([0.0, 6.2, 0.0, 0.0]), goal), (2 * math.pi - 6.2) * 40.0)
    chebyshev = Success([parts[0] | {"norm": "max"}], ("x", "turn", "y", "speed"), {"turn"}, set())
    assert chebyshev.distance(np.array([3.0, 0.0, 4.0, 9.0]), goal) == 4.0


def test_success_is_closer_than_the_tolerance() -> None:
    env = adapt()
    assert env.success_distance == 0.1
    assert env.is_success([3.1, 0.4], [-3.1, 0.0]) and not env.is_success([3.05, 0.0], [-3.1, 0.0])


@pytest.mark.parametrize("pattern", list(KNOWN))
def test_known_rules_name_entries_once(pattern: str) -> None:
    known = KNOWN[pattern]
    for parts in known.success.values():
        named = [name for part in parts for name in part["entries"]]
        assert len(set(named)) == len(named)
        assert known.state is None or set(named) <= set(known.state.names)


@pytest.mark.parametrize(
    ("success", "match"),
    [
        (None, r"success is not given, and no rule is known for foreign/Cart-v0: say which entries have to match, "),
        ("own", r"success is 'own', and no rule is known for .*; the entries are angle, speed\."),
        ([], r"success has no parts: give one, success=\{'entries': \['angle'\], 'tolerance': 0.05\}"),
        ({"entries": ["angel"], "tolerance": 1}, r"names 'angel', did you mean 'angle'\?; the entries of the state"),
        ({"entries": "angle", "tolerance": 1}, r"success.entries is 'angle', but must be a list of names"),
        ({"entries": ["angle"]}, r"but must have entries and a tolerance"),
        ({"entries": ["angle"], "tolerance": 0}, r"success.tolerance is 0, but must be a number above 0"),
        ({"entries": ["angle"], "tolerance": 1, "norm": "l1"}, r"norm is 'l1', but must be one of max, euclidean"),
        ({"entries": ["angle"], "tolerance": 1, "nrom": "max"}, r"no key 'nrom', did you mean 'norm'\?"),
    ],
)
def test_bad_rules(success: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        adapt(success=success)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("Hidden", {}, r"foreign/Hidden-v0 does not repeat itself: 5 equal steps .* end in two different states"),
        ("Unseeded", {}, r"starts elsewhere every time it is reset with seed 0"),
        ("Cart", {"state": None}, r"the state of foreign/Cart-v0 cannot be set: .*Without, state='none' still records"),
        ("ReadOnly", {"state": None}, r"can be read from state but not set .*name the attributes behind it"),
        ("Kinds", {"state": {"attributes": ["text"]}}, r"text is 'word', but must be a number or a flat array"),
        ("Kinds", {"state": {"attributes": ["grid"]}}, r"grid is array.*but must be a number or a flat array"),
        ("Cart", {"state": {"attributes": ["angel"]}}, r"foreign/Cart-v0 has no attribute 'angel'"),
        ("Cart", {"state": {"attributes": "angle"}}, r"state.attributes must be a list of attributes that hold it"),
        ("Cart", {"state": {"atributes": ["angle"]}}, r"no key 'atributes', did you mean 'attributes'\?"),
        ("Cart", {"state": STATE | {"names": ["a"]}}, r"state.names are a, but angle, speed hold 2 numbers: name each"),
        ("Cart", {"state": STATE | {"angles": ["turn"]}}, r"state.angles names \['turn'\], but the entries are angle"),
        ("Cart", {"state": "all"}, r"state is 'all', but the only word for it is 'none'"),
        ("Unbounded", {}, r"actions of foreign/Unbounded-v0 are Box.*, but a plan needs bounds: wrap it in"),
        ("Several", {}, r"actions of .* are MultiDiscrete.*, but must be a Box of floats or Discrete"),
        ("Timeless", {}, r"does not say how long a step lasts: pass control_dt"),
        ("Cart", {"camera": 0}, r"camera, flags and hide are for MuJoCo environments; foreign/Cart-v0 draws itself"),
        ("Cart", {"scatter": -1}, r"scatter is -1, but must be a number of steps, 0 or more"),
        ("Cart", {"control_dt": 0.0}, r"control_dt is 0.0, but must be a number of seconds above 0"),
        ("Cart", {"size": 31}, r"size is 31, but must be an int from 32 to 512"),
        ("Cart", {"make_kwargs": {"damping": np.zeros(2)}}, r"make_kwargs is .* but must be plain data, as JSON holds"),
    ],
)
def test_what_cannot_be_supported_is_said_at_construction(name: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        adapt(name, **settings)


def test_a_time_step_can_be_given() -> None:
    assert adapt("Timeless", control_dt=0.25).control_dt == 0.25


def test_failures_while_making_are_one_sentence() -> None:
    with pytest.raises(RuntimeError, match=r"foreign/Broken-v0 cannot be made with .*: AssertionError: no licence;"):
        adapt("Broken")
    with pytest.raises(RuntimeError, match=r"foreign/Cart-v0 cannot be made with .*'dampin': 1.*TypeError"):
        adapt(make_kwargs={"dampin": 1})
    with pytest.raises(ValueError, match=r"no environment 'foreign/Crat-v0', did you mean 'foreign/Cart-v0'\?; to"):
        adapt("Crat")
    with pytest.raises(ValueError, match=r"unknown task 'cartpole'.* and gym: with the id of any Gymnasium"):
        envs.make("cartpole")


@pytest.mark.parametrize(
    ("id", "module", "install"),
    [
        ("dm_control/nothing-v0", "shimmy", r"lewm\[tasks\]"),
        ("PointMaze_Nowhere-v3", "gymnasium_robotics", r"lewm\[tasks\]"),
        ("cube-nothing-v0", "ogbench", r"lewm\[tasks\]"),
        ("gym_pusht/Nothing-v0", "gym_pusht", "gym-pusht"),
        ("swm/Nothing-v1", "stable_worldmodel", "stable-worldmodel"),
    ],
)
def test_a_missing_package_is_one_sentence(id: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=rf"{id} needs {module} \(.*\): pip install '{install}'"):
        envs.make(f"gym:{id}")


def test_a_module_can_stand_before_the_id() -> None:
    env = envs.make("gym:foreign:foreign/Cart-v0", size=32, state=STATE, success=SUCCESS)
    assert type(env._live.env.unwrapped) is foreign.Cart  # type: ignore[attr-defined]


def test_a_diverged_simulation_and_a_wrong_picture_are_errors() -> None:
    env = adapt("Diverging", state=STATE | {"constants": {}})
    env.set_state([0.0, 0.0])
    with pytest.raises(RuntimeError, match=r"the simulation diverged: \{'angle': .*, 'speed': nan\}"):
        for _ in range(20):
            env.advance([0.0])
            assert np.isfinite(env.state).all()
    with pytest.raises(RuntimeError, match=r"foreign/Grey-v0 draws uint8 of shape \(40, 90\), but render\(\) must"):
        adapt("Grey").render()


# CartPole's physics needs no window -----------------------------------------------------------------------------------


def cart_pole(state: np.ndarray, right: bool) -> list[float]:
    """Barto, Sutton and Anderson's cart and pole without friction (cart 1 kg, pole 0.1 kg, 1 m), one Euler step."""
    x, speed, angle, turn = state
    force = 10.0 if right else -10.0
    sin, cos = math.sin(angle), math.cos(angle)
    push = (force + 0.05 * turn**2 * sin) / 1.1
    turn_rate = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    rate = push - 0.05 * turn_rate * cos / 1.1
    angle = (angle + 0.02 * turn + math.pi) % (2 * math.pi) - math.pi
    return [x + 0.02 * speed, speed + 0.02 * rate, angle, turn + 0.02 * turn_rate]


def test_cart_pole_goes_on_after_it_has_fallen() -> None:
    env = envs.make("gym:CartPole-v1")
    assert env.state_names == ("position", "velocity", "angle", "angular_velocity") and env.angle_names == ("angle",)
    assert env.control_dt == 0.02 and env.success_distance == 0.1
    state = np.array([0.0, 0.0, 0.1, 0.0])
    action_TA = np.array([[0.2, 0.4], [0.9, -0.9], [-0.3, -0.1]] * 30)
    simulated = env.simulate(state, action_TA[None])[0]
    for action, found in zip(action_TA, simulated):
        state = np.array(cart_pole(state, bool(action[1] > action[0])))
        np.testing.assert_allclose(found, state, rtol=0, atol=1e-9)
    assert np.abs(simulated[:, 2]).max() > 1.0


def test_the_start_before_any_reset_is_the_same_everywhere() -> None:
    first, second = adapt(), adapt()
    assert first.home_state == second.home_state == tuple(first.state)
