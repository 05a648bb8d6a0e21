"""Clips in which something impossible happens: held-out recordings, filmed again with one change at one frame.

All pictures are drawn by the task, the unaltered ones too, so that codec and renderer are the same on both sides. Where
there is no task to draw with, the recorded pictures serve, and only what needs no drawing can be done.
Shapes: B clips, T frames a block apart, S state entries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import envs
from envs.picture_factors import PICTURE_FACTORS
from envs.variation import Factor, Value
from lewm.data.stacking import channels_first, history_index
from lewm.data.store import Store
from lewm.evaluate.worlds import recorded_world
from lewm.world_model import ModelConfig

TELEPORT, FROZEN, COLOUR, UNALTERED = "teleport", "frozen", "colour of", "unaltered"
LIGHT = "warmth"
"""The factor of a task that has no colours of its own: a light with more red and less blue."""
TRIES = 20
"""Draws of a place to teleport to that is not where the recording is already."""

NOTHING: Mapping[str, Value] = {}
"""No factor changed."""

Picture = NDArray[np.uint8]
Draw = Callable[[int], Picture]
"""Raw frame of the episode -> its picture."""


@dataclass(frozen=True)
class Clip:
    """Where a clip begins in the recordings."""

    episode: int
    start: int
    """Raw frame of its first frame."""


@dataclass(frozen=True)
class Filmed:
    """Clips as a model sees them, and the true states behind them."""

    pixels_BTCYX: Tensor
    state_BTS: NDArray[np.float64]


def open_task(store: Store) -> tuple[envs.GoalEnv | None, str]:
    """The recorded task, or None and why its states cannot be drawn."""
    if not store.meta.state_names:
        return None, "the recordings hold no states to draw or to set"
    try:
        return envs.make(store.meta.task, **store.meta.settings), ""
    except (ValueError, ImportError) as error:
        return None, f"the task cannot be made here ({error})"


def colour_factors(task: envs.GoalEnv) -> dict[str, Factor]:
    """The task's own colours; without any, the colour of the light; nothing for a task that has no factors at all."""
    own = {name: f for name, f in task.factors.items() if name not in PICTURE_FACTORS and _is_colour(f)}
    return own or {name: f for name, f in task.factors.items() if name == LIGHT}


def _is_colour(factor: Factor) -> bool:
    return factor.acts == "picture" and factor.allowed == ((0, 0, 0), (255, 255, 255))


class Film:
    """Draws clips of T frames with an event at frame `event`, or none."""

    def __init__(
        self,
        store: Store,
        task: envs.GoalEnv | None,
        config: ModelConfig,
        clips: Sequence[Clip],
        length: int,
        event: int,
        seed: int,
    ) -> None:
        self.store, self.task, self.config = store, task, config
        self.clips, self.length, self.event, self.seed = clips, length, event, seed
        self.skip = config.frame_skip
        self.states = {c.episode: store.states(c.episode).astype(np.float64) for c in clips}
        self.worlds = {} if task is None else {number: recorded_world(task, store, number) for number in self.states}
        self.drawn: dict[tuple[int, int], Picture] = {}

    def unaltered(self) -> Filmed:
        """What was recorded."""
        return self._film([self._as_recorded(clip) for clip in self.clips], [self._true(clip) for clip in self.clips])

    def frozen(self) -> Filmed:
        """From the event on, the picture of the block before it again and again, while the actions go on."""
        draws = []
        for clip in self.clips:
            last, recorded = clip.start + (self.event - 1) * self.skip, self._as_recorded(clip)
            draws.append(lambda raw, last=last, recorded=recorded: recorded(min(raw, last)))
        return self._film(draws, [self._true(clip) for clip in self.clips])

    def teleported(self) -> Filmed:
        """At the event the state is that of another episode, and the recorded actions go on from there."""
        draws, states = [], []
        for number, clip in enumerate(self.clips):
            at = clip.start + self.event * self.skip
            after_TS = self._after_teleport(clip, at, np.random.default_rng((self.seed, number)))
            recorded = self._as_recorded(clip)

            def draw(
                raw: int, at: int = at, clip: Clip = clip, after: NDArray[np.float64] = after_TS, known: Draw = recorded
            ) -> Picture:
                return known(raw) if raw < at else self._picture(clip, after[raw - at])

            draws.append(draw)
            states.append(np.concatenate([self._true(clip)[: self.event], after_TS[:: self.skip]]))
        return self._film(draws, states)

    def recoloured(self, name: str) -> Filmed:
        """From the event on, one factor of the world has a value from its shifted range, another one in every clip."""
        draws, factor = [], colour_factors(self._task)[name]
        for number, clip in enumerate(self.clips):
            value = factor.draw(np.random.default_rng((self.seed, number)), "shifted")
            at, recorded = clip.start + self.event * self.skip, self._as_recorded(clip)

            def draw(
                raw: int, at: int = at, clip: Clip = clip, recorded: Draw = recorded, value: Value = value
            ) -> Picture:
                return recorded(raw) if raw < at else self._picture(clip, self._state(clip, raw), {name: value})

            draws.append(draw)
        return self._film(draws, [self._true(clip) for clip in self.clips])

    def difference_from_recorded(self) -> float:
        """Mean absolute difference of a drawn picture from the recorded one, grey levels of 256, over first frames."""
        apart = []
        for clip in self.clips:
            recorded = self.store.pixels(clip.episode, [clip.start])[0]
            apart.append(np.abs(self._as_recorded(clip)(clip.start).astype(np.float64) - recorded).mean())
        return float(np.mean(apart))

    @property
    def _task(self) -> envs.GoalEnv:
        if self.task is None:
            raise ValueError("this event needs the task to draw with, and there is none")
        return self.task

    def _as_recorded(self, clip: Clip) -> Draw:
        """Pictures of the recorded states; each is drawn once."""

        def draw(raw: int) -> Picture:
            key = (clip.episode, raw)
            if key not in self.drawn:
                recorded = self.task is None
                self.drawn[key] = (
                    self.store.pixels(clip.episode, [raw])[0]
                    if recorded
                    else self._picture(clip, self._state(clip, raw))
                )
            return self.drawn[key]

        return draw

    @contextmanager
    def _world(self, clip: Clip, changes: Mapping[str, Value]) -> Iterator[envs.GoalEnv]:
        """The task in the world that the clip was recorded in, some of its factors changed."""
        values = {**self.worlds[clip.episode], **changes}
        if values:
            self._task.vary(values)
        try:
            yield self._task
        finally:
            if values:
                self._task.vary({})

    def _picture(self, clip: Clip, state_S: NDArray[np.float64], changes: Mapping[str, Value] = NOTHING) -> Picture:
        with self._world(clip, changes) as task:
            return task.goal_image(state_S)

    def _state(self, clip: Clip, raw: int) -> NDArray[np.float64]:
        return self.states[clip.episode][raw]

    def _true(self, clip: Clip) -> NDArray[np.float64]:
        """The recorded states at the T frames."""
        stop = clip.start + (self.length - 1) * self.skip + 1
        return self.states[clip.episode][clip.start : stop : self.skip]

    def _after_teleport(self, clip: Clip, at: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """states (1 + steps, S) from the event on."""
        others = [episode for episode in self.states if episode != clip.episode] or [clip.episode]
        here = self.states[clip.episode][at]
        steps = (self.length - 1 - self.event) * self.skip
        action_TA = self.store.actions(clip.episode)[at : at + steps].astype(np.float64)
        with self._world(clip, NOTHING) as task:
            for _ in range(TRIES):
                states = self.states[others[int(rng.integers(len(others)))]]
                there = states[int(rng.integers(len(states)))]
                if not bool(task.is_success(here, there)):
                    break
            return np.concatenate([there[None], task.simulate(there, action_TA[None])[0]]) if steps else there[None]

    def _film(self, draws: Sequence[Draw], states: Sequence[NDArray[np.float64]]) -> Filmed:
        """Stack every frame with its history, as training did."""
        config, clips = self.config, []
        for clip, draw in zip(self.clips, draws, strict=True):
            raw_T = clip.start + np.arange(self.length) * self.skip
            index_TK = history_index(raw_T, 0, config.frame_stack, config.stack_stride)
            frames_TKYXC = np.stack([[draw(int(raw)) for raw in stack] for stack in index_TK])
            clips.append(channels_first(torch.from_numpy(frames_TKYXC).unbind(1)))
        return Filmed(torch.stack(clips), np.stack(states))
