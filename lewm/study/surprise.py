"""Violation of expectation: is the model surprised by what cannot happen, and only then?

Surprise is the error of predicting the next latent from the frames before it and the action, over its mean in unaltered
clips, so that 1 is as usual. LeWM (arXiv 2603.19312) finds teleports surprising and changes of colour hardly.
Shapes: B clips, T frames a block apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm.data.windows import Windows
from lewm.planning.observation import measured_in
from lewm.progress import Stage
from lewm.study.bootstrap import Estimate, auroc, means, written
from lewm.study.events import COLOUR, FROZEN, TELEPORT, UNALTERED, Clip, Film, Filmed, colour_factors, open_task
from lewm.study.figures import aligned, band, canvas, dots, named_rows, save
from lewm.study.subject import Subject, pick_windows
from lewm.world_model import WorldModel

ENCODED = 32
"""Clips encoded at once."""


@dataclass(frozen=True)
class SurpriseConfig:
    """Which clips, and when something happens in them."""

    clips: int = 200
    """Clips of held-out episodes."""
    before: int = 4
    """Blocks before the event."""
    after: int = 4
    """Blocks after the one in which it is seen."""
    seed: int = 0
    """Of the clips, the events and the resamples."""

    def __post_init__(self) -> None:
        if self.clips < 2 or self.before < 1 or self.after < 0:
            raise ValueError(
                f"surprise: clips is {self.clips}, before {self.before}, after {self.after}; they must be at least 2, "
                "1 and 0"
            )


@dataclass(frozen=True)
class SurpriseRow:
    """One kind of event."""

    task: str
    event: str
    """unaltered; teleport (the state is another, the actions go on); frozen (the picture stands still while the actions
    go on); or the colour of one thing."""
    clips: int
    """Clips in which the event changes the picture at once."""
    unchanged: int
    """Clips left out because it does not: nothing moved that could freeze, or the thing is out of sight."""
    auroc: Estimate | None
    """Probability that the surprise at the event exceeds that of one of the same clips, unaltered, at the same block:
    0.5 chance, 1 always told apart."""
    blocks: tuple[int, ...]
    """Blocks from the event; at 0 it is first seen."""
    surprise: tuple[Estimate | None, ...]
    """Mean surprise at each of them."""
    reason: str
    """Why it could not be measured; empty where it was."""


@dataclass(frozen=True)
class Surprised:
    """The study's result."""

    rows: tuple[SurpriseRow, ...]
    notes: tuple[str, ...]


def measure(subject: Subject, config: SurpriseConfig, quiet: bool = False) -> Surprised:
    """Alter held-out clips and score every block. Raises ValueError for recordings shorter than a clip."""
    model, store = subject.model, subject.store
    length = config.before + config.after + 1
    windows = Windows(store, model.config.window(length), subject.held_ids, "disk", model.device)
    index_N = pick_windows(windows, config.clips, np.random.default_rng(config.seed))
    action_BTA = windows.batch(index_N).action_BTA
    episode_B, start_B = windows.locate(index_N)
    clips = [Clip(int(episode), int(start)) for episode, start in zip(episode_B, start_B, strict=True)]
    task, reason = open_task(store)
    film = Film(store, task, model.config, clips, length, config.before, config.seed)
    events, skipped = kinds(film, reason)
    notes = [*subject.notes]
    if task is not None and (apart := film.difference_from_recorded()) > 1:
        notes.append(f"drawn pictures differ from the recorded ones by {apart:.1f} grey levels of 256 on average")
    plain = film.unaltered()
    error_BT = errors(model, plain, action_BTA)
    usual = float(error_BT.mean())
    if usual == 0:
        raise ValueError(
            "surprise: the model's error in unaltered clips is 0, so there is no usual level to compare to"
        )
    blocks = tuple(range(1 - config.before, length - config.before))
    scores = Scores(subject.task, episode_B, error_BT / usual, config.before - 1, blocks, config.seed)
    rows = [scores.plain_row()]
    with Stage("alter", len(events), "events", quiet) as stage:
        for name, make in events.items():
            filmed = make()
            rows.append(
                scores.row(name, errors(model, filmed, action_BTA) / usual, differs(plain, filmed, config.before))
            )
            stage.update()
    if task is not None:
        task.close()
    rows += [SurpriseRow(subject.task, name, 0, 0, None, blocks, (), why) for name, why in skipped.items()]
    return Surprised(tuple(rows), tuple(notes))


def kinds(film: Film, reason: str) -> tuple[Mapping[str, Callable[[], Filmed]], Mapping[str, str]]:
    """The events that can be filmed, and why the others cannot."""
    events: dict[str, Callable[[], Filmed]] = {FROZEN: film.frozen}
    if film.task is None:
        return events, {TELEPORT: reason, f"{COLOUR} things": reason}
    events = {TELEPORT: film.teleported} | events
    colours = colour_factors(film.task)
    for name in colours:
        events[f"{COLOUR} {name}"] = partial(film.recoloured, name)
    return events, {} if colours else {f"{COLOUR} things": "the task has no factor of variation that is a colour"}


def differs(plain: Filmed, altered: Filmed, event: int) -> NDArray[np.bool_]:
    """Which clips look different at the event."""
    changed_B: NDArray[np.bool_] = (
        (plain.pixels_BTCYX[:, event] != altered.pixels_BTCYX[:, event]).flatten(1).any(1).numpy()
    )
    return changed_B


@torch.no_grad()
def errors(model: WorldModel, filmed: Filmed, action_BTA: Tensor) -> NDArray[np.float64]:
    """error_BT: mean squared error of each of the T - 1 predictions, in the latent entries that the picture shows."""
    found = []
    for first in range(0, len(action_BTA), ENCODED):
        part = slice(first, first + ENCODED)
        pixels = filmed.pixels_BTCYX[part].to(model.device)
        proprio = None
        if model.facts.proprio:
            measured = measured_in(model, [*np.concatenate(filmed.state_BTS[part])])
            assert measured is not None
            proprio = torch.from_numpy(measured).to(model.device).unflatten(0, pixels.shape[:2])
        latent_BTKD = model.encode(pixels, proprio)
        apart = model.pictured(one_step(model, latent_BTKD, action_BTA[part]) - latent_BTKD[:, 1:])
        found.append(apart.double().square().mean((2, 3)).cpu())
    error_BT: NDArray[np.float64] = torch.cat(found).numpy()
    return error_BT


def one_step(model: WorldModel, latent_BTKD: Tensor, action_BTA: Tensor) -> Tensor:
    """What the model expects after each of the first T - 1 frames, given the latest `context` of the true ones."""
    frames, context = latent_BTKD.shape[1], model.context
    if context == 1 or frames - 1 <= context:
        return model.predict(latent_BTKD[:, :-1], action_BTA)
    windows = [slice(max(0, end - context), end) for end in range(1, frames)]
    return torch.stack([model.predict(latent_BTKD[:, w], action_BTA[:, w])[:, -1] for w in windows], 1)


@dataclass(frozen=True)
class Scores:
    """The surprise of unaltered clips, to compare altered ones with."""

    task: str
    episode_B: NDArray[np.int64]
    plain_BT: NDArray[np.float64]
    """Their surprise at every block."""
    at: int
    """The block in which an event is first seen."""
    blocks: tuple[int, ...]
    seed: int

    def plain_row(self) -> SurpriseRow:
        """The unaltered clips themselves."""
        curve = means(self.plain_BT, self.episode_B, self.seed)
        return SurpriseRow(self.task, UNALTERED, len(self.plain_BT), 0, None, self.blocks, tuple(curve), "")

    def row(self, event: str, surprise_BT: NDArray[np.float64], changed_B: NDArray[np.bool_]) -> SurpriseRow:
        """One kind of event, on the clips that it changes."""
        count, unchanged = int(changed_B.sum()), int((~changed_B).sum())
        episode_B = self.episode_B[changed_B]
        if len(np.unique(episode_B)) < 2:
            why = f"it changes the picture in {count} of {len(changed_B)} clips, too few for an interval"
            return SurpriseRow(self.task, event, count, unchanged, None, self.blocks, (), why)
        curve = means(surprise_BT[changed_B], episode_B, self.seed)
        # The same clips unaltered: those in which something moves are harder to predict than others.
        usual_B = self.plain_BT[changed_B, self.at]
        told = auroc(surprise_BT[changed_B, self.at], usual_B, episode_B, episode_B, self.seed)
        return SurpriseRow(self.task, event, count, unchanged, told, self.blocks, tuple(curve), "")


def plot(found: Surprised, path: Path) -> None:
    """Left the mean surprise around the event, right the AUROC of every kind with its interval."""
    rows = [row for row in found.rows if row.surprise]
    events = [row for row in rows if row.event != UNALTERED]
    figure = canvas(10.0, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = {row.event: f"C{i}" for i, row in enumerate(events)} | {UNALTERED: "black"}
    for row in rows:
        band(left, row.blocks, row.surprise, colours[row.event], row.event)
    left.axvline(0, color="0.7", linewidth=0.8, linestyle=":")
    left.set(yscale="log", xlabel="blocks from the event (0: first seen)", ylabel="surprise (1 as usual)")
    left.set_title("mean surprise")
    left.grid(alpha=0.3)
    left.legend(fontsize="small", frameon=False)
    for height, row in enumerate(events):
        dots(right, [row.auroc], [height], colours[row.event])
    right.axvline(0.5, color="0.7", linewidth=0.8, linestyle=":")
    right.set(xlim=(-0.03, 1.03), xlabel="AUROC against unaltered clips (0.5 chance)")
    named_rows(right, [row.event for row in events])
    right.set_title("told apart at the event")
    figure.suptitle(f"{rows[0].task}: violation of expectation, {rows[0].clips} held-out clips")
    save(figure, path)


def table(rows: Sequence[SurpriseRow]) -> str:
    """Aligned text; what could not be measured says why."""
    lines: list[Sequence[str]] = [("event", "clips", "unchanged", "AUROC", "surprise at the event", "last block")]
    for row in rows:
        if row.surprise:
            at, last = row.surprise[row.blocks.index(0)], row.surprise[-1]
            cells = (str(row.clips), str(row.unchanged), written(row.auroc), written(at, 2), written(last, 2))
            lines.append((row.event, *cells))
    skipped = [f"{row.event}: not measured, {row.reason}" for row in rows if row.reason]
    return "\n".join([aligned(lines), *skipped])
