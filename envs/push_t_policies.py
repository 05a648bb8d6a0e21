"""Scripted pushers of PushT: one chooses pushes at random, one greedily by how a quasi-static slider will move."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.policies import clip_action
from envs.push_t_shape import GYRATION2, OUTLINE_82, REACH, gap, outline, turn

Array = NDArray[np.float64]

CLEARANCE = 0.012  # distance from the block at which a push begins, arena sides
ARRIVED = 0.02  # distance from there at which the disc turns to push
LOST = 0.03  # gap at which a push is over
POINTS_P2, NORMALS_P2 = outline(per_edge=5)


@dataclass
class Push:
    """Go to a point beside the block, then straight on in one direction."""

    point_2: Array
    """Where to touch, on the outline, in the block's frame."""
    normal_2: Array
    """Outward normal there, in the block's frame."""
    heading: float
    """Angle from the inward normal to the push's direction, rad."""
    length: float
    """Way of the disc in contact, arena sides."""
    speed: float
    """Share of the largest move per step."""


class Pusher:
    """Carries out pushes one after another: round the block to where the push begins, then the push itself."""

    def __init__(self, radius: float, max_move: float) -> None:
        self.radius, self.max_move = radius, max_move
        self._contour_K2 = contour(radius)

    def begin(self, push: Push) -> None:
        """Take up a push; it ends when its way is done, contact is lost or after 40 steps."""
        self._push, self._pushing = push, False
        self._way_left, self._steps_left = push.length, 40

    def over(self, state_S: Array) -> bool:
        """Whether the push has ended."""
        lost = self._pushing and gap(state_S[:2], state_S[2:]) > self.radius + LOST
        return bool(lost or self._way_left < 1e-3 or self._steps_left <= 0)

    def act(self, state_S: Array) -> NDArray[np.float32]:
        """The next action of the push."""
        push, agent_2, block_3 = self._push, state_S[:2], state_S[2:]
        self._steps_left -= 1
        start_2 = standoff(push.point_2, push.normal_2, block_3, self.radius)
        if not self._pushing and np.hypot(*(start_2 - agent_2)) > ARRIVED:
            return self.towards(state_S, start_2)
        self._pushing = True
        step = min(push.speed * self.max_move, self._way_left)
        self._way_left -= step
        # Aiming beyond the point, as the block carries it along, corrects what noise and sliding have added.
        onward_2 = turn(-push.normal_2, block_3[2] + push.heading)
        contact_2 = start_2 - CLEARANCE * turn(push.normal_2, block_3[2])
        return self._move(contact_2 + step * onward_2 - agent_2)

    def towards(self, state_S: Array, target_2: Array) -> NDArray[np.float32]:
        """An action towards a free place, round the block when it is in the way."""
        return self._move(detour(state_S, target_2, self._contour_K2, self.radius) - state_S[:2])

    def _move(self, way_2: Array) -> NDArray[np.float32]:
        return clip_action(way_2 / max(self.max_move, float(np.abs(way_2).max())))


class RandomPushes:
    """Pushes random places of the block in random directions, over random lengths, at random speeds."""

    def __init__(self, radius: float, max_move: float) -> None:
        self._pusher = Pusher(radius, max_move)

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._pusher.begin(self._choose(state_S))

    def act(self, state_S: Array) -> NDArray[np.float32]:
        if self._pusher.over(state_S):
            self._pusher.begin(self._choose(state_S))
        return self._pusher.act(state_S)

    def _choose(self, state_S: Array) -> Push:
        rng = self._rng
        free_P = reachable(state_S[2:], self._pusher.radius)
        wanted_P = free_P & inward(state_S[2:])
        few = rng.choice(np.flatnonzero(wanted_P if wanted_P.any() else free_P), 3)
        starts_2 = standoff(POINTS_P2[few], NORMALS_P2[few], state_S[2:], self._pusher.radius)
        which = few[np.hypot(*(starts_2 - state_S[:2]).T).argmin()]
        return Push(
            POINTS_P2[which], NORMALS_P2[which], rng.uniform(-0.6, 0.6), rng.uniform(0.06, 0.4), rng.uniform(0.4, 1.0)
        )


class Expert:
    """Brings the block and then the disc to random poses, drawn anew when reached or after 150 steps.

    A slider with viscous friction that is pushed along the inward normal f at c, both from its centre of mass, moves by
    the twist (f, c x f / gyration^2): the push chosen leaves the least error after its best length.
    """

    def __init__(self, draw_state: Callable[[np.random.Generator], Array], radius: float, max_move: float) -> None:
        self._draw_state = draw_state
        self._pusher = Pusher(radius, max_move)

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._choose_goal(state_S)

    def act(self, state_S: Array) -> NDArray[np.float32]:
        self._steps_left -= 1
        if self._steps_left < 0:
            self._choose_goal(state_S)
        if self._block_arrived(state_S):
            if np.hypot(*(self.goal_S[:2] - state_S[:2])) > 0.01:
                return self._pusher.towards(state_S, self.goal_S[:2])
            self._choose_goal(state_S)
        if self._pusher.over(state_S):
            self._pusher.begin(self._choose(state_S))
        return self._pusher.act(state_S)

    def _choose_goal(self, state_S: Array) -> None:
        self.goal_S = self._draw_state(self._rng)
        self._speed = self._rng.uniform(0.5, 1.0)
        self._steps_left = 150
        self._pusher.begin(self._choose(state_S))

    def _error(self, state_S: Array) -> Array:
        """What is missing in (x, y, gyration radius * angle)."""
        turned = (self.goal_S[4] - state_S[4] + np.pi) % (2 * np.pi) - np.pi
        return np.append(self.goal_S[2:4] - state_S[2:4], np.sqrt(GYRATION2) * turned)

    def _block_arrived(self, state_S: Array) -> bool:
        return bool(np.sqrt((self._error(state_S) ** 2).sum()) < 0.004)

    def _choose(self, state_S: Array) -> Push:
        block_3, gyration = state_S[2:], np.sqrt(GYRATION2)
        force_P2 = turn(-NORMALS_P2, block_3[2])
        arm_P2 = turn(POINTS_P2, block_3[2])
        torque_P = (arm_P2[:, 0] * force_P2[:, 1] - arm_P2[:, 1] * force_P2[:, 0]) / gyration
        twist_P3 = np.column_stack([force_P2, torque_P]) / (1.0 + torque_P[:, None] ** 2)  # per length of the push
        error_3 = self._error(state_S)
        length_P = np.clip((twist_P3 @ error_3) / (twist_P3**2).sum(-1), 0.0, 0.25)
        left_P = np.sqrt(((error_3 - length_P[:, None] * twist_P3) ** 2).sum(-1))
        starts_P2 = standoff(POINTS_P2, NORMALS_P2, block_3, self._pusher.radius)
        way_P = np.hypot(*(starts_P2 - state_S[:2]).T)
        cost_P = left_P + 0.05 * way_P + np.where(reachable(block_3, self._pusher.radius), 0.0, 10.0)
        best = int(cost_P.argmin())
        return Push(POINTS_P2[best], NORMALS_P2[best], 0.0, max(float(length_P[best]), 0.004), self._speed)


class NearBlock:
    """Straight moves between random places around the block, whatever lies between."""

    def __init__(self, radius: float, max_move: float) -> None:
        self._radius, self._max_move = radius, max_move

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._choose_target(state_S)

    def act(self, state_S: Array) -> NDArray[np.float32]:
        self._steps_left -= 1
        if self._steps_left < 0 or np.hypot(*(self._target_2 - state_S[:2])) < 0.02:
            self._choose_target(state_S)
        move_2 = self._target_2 - state_S[:2]
        return clip_action(move_2 / max(self._max_move, float(np.abs(move_2).max())))

    def _choose_target(self, state_S: Array) -> None:
        place_2 = state_S[2:4] + self._rng.uniform(-1.5 * REACH, 1.5 * REACH, 2)
        self._target_2 = np.clip(place_2, self._radius, 1.0 - self._radius)
        self._steps_left = 20


def standoff(point_2: Array, normal_2: Array, block_3: Array, radius: float) -> Array:
    """Where the disc's centre is when a push of an outline point begins."""
    return np.asarray(block_3[:2] + turn(point_2 + (radius + CLEARANCE) * normal_2, block_3[2]))


def reachable(block_3: Array, radius: float) -> NDArray[np.bool_]:
    """Which outline points have their standoff inside the arena and clear of the block."""
    starts_P2 = standoff(POINTS_P2, NORMALS_P2, block_3, radius)
    inside_P = (np.abs(starts_P2 - 0.5) < 0.5 - radius).all(-1)
    return np.asarray(inside_P & (gap(starts_P2, block_3) > radius + 0.5 * CLEARANCE))


def inward(block_3: Array) -> NDArray[np.bool_]:
    """Which outline points push the block away from walls that are near it."""
    force_P2 = turn(-NORMALS_P2, block_3[2])
    outward_P2 = force_P2 * np.sign(block_3[:2] - 0.5)
    near_2 = np.abs(block_3[:2] - 0.5) > 0.5 - 1.2 * REACH
    return np.asarray(~(near_2 & (outward_P2 > 0.2)).any(-1))


def contour(radius: float) -> Array:
    """Places (K, 2) of the disc around the whole block, in its frame and in order, at a safe distance."""
    away = radius + 1.5 * CLEARANCE
    sides_2 = (POINTS_P2 + away * NORMALS_P2).reshape(len(OUTLINE_82), -1, 2)
    normals_82 = NORMALS_P2.reshape(sides_2.shape)[:, 0]
    bisector_82 = normals_82 + np.roll(normals_82, 1, axis=0)
    ends_82 = OUTLINE_82 + away * bisector_82 / np.hypot(*bisector_82.T)[:, None]
    places_2 = np.concatenate([ends_82[:, None], sides_2], axis=1).reshape(-1, 2)
    return np.asarray(places_2[gap(places_2, np.zeros(3)) > away - 1e-9])


def detour(state_S: Array, target_2: Array, contour_K2: Array, radius: float) -> Array:
    """The target where the straight way there is free, else the farthest place in sight along the block's contour."""
    agent_2, block_3 = state_S[:2], state_S[2:]
    if in_sight(agent_2, target_2[None], block_3, radius)[0]:
        return target_2
    places_K2 = block_3[:2] + turn(contour_K2, block_3[2])
    way_W2 = way_round(places_K2, agent_2, target_2, radius)
    seen_W = in_sight(agent_2, way_W2, block_3, radius)
    return np.asarray(way_W2[np.flatnonzero(seen_W)[-1] if seen_W.any() else 0])


def way_round(places_K2: Array, agent_2: Array, target_2: Array, radius: float) -> Array:
    """The places (W, 2) of a closed contour from the agent to the target: the shorter way that stays in the arena."""
    outside_K = np.abs(places_K2 - 0.5).max(-1) > 0.5 - radius
    far_from_agent_K, far_from_target_K = (
        np.hypot(*(places_K2 - place_2).T) + 10.0 * outside_K for place_2 in (agent_2, target_2)
    )
    first, last, count = int(far_from_agent_K.argmin()), int(far_from_target_K.argmin()), len(places_K2)
    forward_W = np.arange(first, first + (last - first) % count + 1) % count
    backward_W = np.arange(first, first - (first - last) % count - 1, -1) % count
    return places_K2[min(forward_W, backward_W, key=lambda way_W: (outside_K[way_W].any(), len(way_W)))]


def in_sight(agent_2: Array, places_K2: Array, block_3: Array, radius: float) -> NDArray[np.bool_]:
    """Whether the disc can go straight to each place without touching the block (more than it does already)."""
    way_KW2 = agent_2 + np.linspace(0.0, 1.0, 10)[1:, None] * (places_K2[:, None] - agent_2)
    room = min(radius + 0.3 * CLEARANCE, float(gap(agent_2, block_3)))
    return np.asarray(gap(way_KW2, block_3).min(-1) >= room)
