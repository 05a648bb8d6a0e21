"""How far an imagined future drifts from what happened, by horizon: in latent space, and in the state's own units.

Beside the model stands "no change", which keeps the last latent it saw: a model that does no better has learned no
dynamics. Shapes: N clips, H horizon in blocks, S state entries, D flattened latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm.data.windows import Windows
from lewm.probes import fit_linear, state_targets
from lewm.progress import Stage
from lewm.study.bootstrap import Estimate, means, written
from lewm.study.figures import aligned, band, canvas, save
from lewm.study.probes import LATENT, latent_feature
from lewm.study.subject import CHUNK, Subject, pick_windows, read_frames
from lewm.world_model import WorldModel

PROBE_FRAMES = 5_000
"""Training frames the probe that decodes states is fitted on, and held-out ones for the variance."""
LATENT_ERROR = "latent"


@dataclass(frozen=True)
class RolloutConfig:
    """Which futures are imagined."""

    horizon: int = 10
    """Blocks imagined; shorter where the recordings are."""
    history: int = 1
    """Frames the predictor is given first."""
    clips: int = 500
    """Clips of held-out episodes."""
    seed: int = 0
    """Of the clips and the resamples."""

    def __post_init__(self) -> None:
        for name in ("horizon", "history", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout: {name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class RolloutRow:
    """The error of one quantity after one number of blocks."""

    task: str
    quantity: str
    """latent, or a state entry that a linear probe decodes from latents."""
    unit: str
    """latent: mean squared error over the variance of held-out latents, so that guessing the mean scores 1 and an
    unrelated frame 2. state: root mean squared error in the entry's units, angles in radians and wrapped."""
    blocks: int
    """Blocks ahead."""
    steps: int
    """Environment steps ahead."""
    clips: int
    """Clips it is averaged over."""
    error: Estimate | None
    """Of the imagined latent."""
    no_change: Estimate | None
    """Of the last latent seen."""
    encoded: Estimate | None
    """Of the latent encoded from the true frame: 0 for latents, the probe's own error for a state entry."""


@dataclass(frozen=True)
class RolledOut:
    """The study's result."""

    rows: tuple[RolloutRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Imagined:
    """Clips, and what the model made of them, on the CPU."""

    rolled_NHD: Tensor
    """Imagined latents."""
    seen_ND: Tensor
    """The last latent that was given."""
    true_NHD: Tensor
    """Encoded latents of the frames that came."""
    state_NHS: Tensor
    """Their states."""
    episode_N: NDArray[np.int64]


def measure(subject: Subject, config: RolloutConfig, quiet: bool = False) -> RolledOut:
    """Imagine clips of held-out episodes. Raises ValueError for a history the predictor cannot see."""
    model, meta = subject.model, subject.store.meta
    if config.history > model.context:
        raise ValueError(f"rollout: history is {config.history}; this model's predictor sees 1..{model.context} frames")
    longest = int(subject.store.episodes["length"][subject.held_ids].max()) // model.config.frame_skip
    horizon = min(config.horizon, longest - config.history + 1)
    if horizon < 1:
        raise ValueError(
            f"rollout: the longest held-out episode has {longest} blocks, and history {config.history} leaves none to "
            "imagine; lower history or record longer episodes"
        )
    rng = np.random.default_rng(config.seed)
    windows = Windows(
        subject.store, model.config.window(config.history + horizon), subject.held_ids, "disk", model.device
    )
    index_N = pick_windows(windows, config.clips, rng)
    imagined = imagine(model, windows, index_N, config.history, quiet)
    features = {LATENT: latent_feature(model, config.seed)}
    held = read_frames(subject, subject.held_ids, features, PROBE_FRAMES, rng, "read variance", quiet)
    variance = held.features[LATENT].var(0).mean().item()
    rows = latent_rows(imagined, variance, config.seed)
    names, angles = tuple(meta.state_names), tuple(meta.angle_names)
    narrow = imagined.seen_ND.shape[1] == held.features[LATENT].shape[1]
    notes = subject.notes
    if names and narrow:
        fit = read_frames(subject, subject.train_ids, features, PROBE_FRAMES, rng, "read to fit", quiet)
        rows += state_rows(imagined, (fit.features[LATENT], fit.state_NS), names, angles, config.seed)
    elif names:
        notes += ("latents of so many tokens are not decoded to states here",)
    else:
        notes += ("the recordings hold no states, so errors are given in latent space alone",)
    steps = model.config.frame_skip
    return RolledOut(
        tuple(
            RolloutRow(subject.task, quantity, unit, h, h * steps, len(index_N), *three)
            for quantity, unit, h, three in rows
        ),
        notes,
    )


@torch.no_grad()
def imagine(
    model: WorldModel, windows: Windows, index_N: NDArray[np.int64], history: int, quiet: bool = True
) -> Imagined:
    """Roll the model out over windows whose first `history` frames it sees."""
    parts: list[tuple[Tensor, ...]] = []
    with Stage("imagine", len(index_N), "clips", quiet) as stage:
        for part in np.array_split(index_N, -(-len(index_N) // CHUNK)):
            batch = windows.batch(part)
            latent = model.encode(batch.pixels_BTCYX, batch.proprio_BTP)
            seen, past = latent[:, :history], batch.action_BTA[:, : history - 1]
            rolled = model.rollout(seen, past, batch.action_BTA[:, None, history - 1 :])[:, 0]
            flat = (
                rolled.flatten(2),
                seen[:, -1].flatten(1),
                latent[:, history:].flatten(2),
                batch.state_BTS[:, history:],
            )
            parts.append(tuple(x.float().cpu() for x in flat))
            stage.update(len(part))
    rolled_NHD, seen_ND, true_NHD, state_NHS = (torch.cat(column) for column in zip(*parts, strict=True))
    return Imagined(rolled_NHD, seen_ND, true_NHD, state_NHS, windows.locate(index_N)[0])


Three = tuple[Estimate | None, Estimate | None, Estimate | None]
"""Errors of the imagined, the last seen and the encoded latent."""
Measured = tuple[str, str, int, Three]
"""Quantity, unit, blocks ahead, errors."""


def latent_rows(imagined: Imagined, variance: float, seed: int) -> list[Measured]:
    """Mean squared errors over the variance, by horizon."""
    true_NHD = imagined.true_NHD
    of_model = (imagined.rolled_NHD - true_NHD).square().mean(-1) / variance
    of_copy = (imagined.seen_ND[:, None] - true_NHD).square().mean(-1) / variance
    of_truth = torch.zeros_like(of_model)
    curves = [means(e_NH.double().numpy(), imagined.episode_N, seed) for e_NH in (of_model, of_copy, of_truth)]
    return [(LATENT_ERROR, "variance", h + 1, three) for h, three in enumerate(zip(*curves, strict=True))]


def state_rows(
    imagined: Imagined, fit: tuple[Tensor, Tensor], names: tuple[str, ...], angles: tuple[str, ...], seed: int
) -> list[Measured]:
    """Root mean squared errors of decoded states by entry and horizon; `fit` holds latents and states for the probe."""
    fit_ND, fit_NS = fit
    weight_DT, bias_T = fit_linear(fit_ND, state_targets(fit_NS, names, angles)[0])

    def errors(latent_NHD: Tensor) -> Tensor:
        return difference(decode(latent_NHD @ weight_DT + bias_T, names, angles), imagined.state_NHS, names, angles)

    copied_NHD = imagined.seen_ND[:, None].expand_as(imagined.true_NHD)
    found = [errors(latent).double().numpy() for latent in (imagined.rolled_NHD, copied_NHD, imagined.true_NHD)]
    rows: list[Measured] = []
    for s, name in enumerate(names):
        curves = [means(e_NHS[..., s] ** 2, imagined.episode_N, seed, root=True) for e_NHS in found]
        rows += [(name, "state", h + 1, three) for h, three in enumerate(zip(*curves, strict=True))]
    return rows


def decode(target: Tensor, names: tuple[str, ...], angles: tuple[str, ...]) -> Tensor:
    """What `state_targets` made, turned back to states (..., S): an angle from its cosine and sine."""
    columns, at = [], 0
    for name in names:
        if name in angles:
            columns.append(torch.atan2(target[..., at + 1], target[..., at]))
            at += 2
        else:
            columns.append(target[..., at])
            at += 1
    return torch.stack(columns, -1)


def difference(found: Tensor, true: Tensor, names: tuple[str, ...], angles: tuple[str, ...]) -> Tensor:
    """found - true by entry, of angles the shorter way round."""
    turns = torch.tensor([name in angles for name in names])
    apart = found - true
    return torch.where(turns, torch.atan2(apart.sin(), apart.cos()), apart)


def plot(found: RolledOut, path: Path) -> None:
    """A panel for the latent and one per state entry: the model, no change, and what the probe makes of the truth."""
    quantities = list(dict.fromkeys(row.quantity for row in found.rows))[:PANELS]
    columns = min(3, len(quantities))
    figure = canvas(max(5.5, 3.7 * columns), 0.6 + 2.8 * -(-len(quantities) // columns))
    for number, quantity in enumerate(quantities):
        axes = figure.add_subplot(-(-len(quantities) // columns), columns, number + 1)
        rows = [row for row in found.rows if row.quantity == quantity]
        steps = [row.steps for row in rows]
        band(axes, steps, [row.error for row in rows], "C0", "model")
        band(axes, steps, [row.no_change for row in rows], "C3", "no change")
        if quantity != LATENT_ERROR:
            band(axes, steps, [row.encoded for row in rows], "0.45", "true frame, encoded")
        latent = quantity == LATENT_ERROR
        axes.set(title="latent" if latent else quantity, xlabel="environment steps ahead", ylim=(0, None))
        axes.set_ylabel("squared error / variance" if latent else "RMS error, state's units")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{found.rows[0].task}: error of the imagined future, {found.rows[0].clips} held-out clips")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    save(figure, path)


PANELS = 12
"""Most panels of the figure; the rows hold every entry."""


def table(rows: Sequence[RolloutRow]) -> str:
    """Aligned text: the first, the middle and the last horizon of every quantity."""
    most = max(row.blocks for row in rows)
    lines = [("error of", "unit", "steps ahead", "model", "no change", "true frame, encoded")]
    for row in rows:
        if row.blocks in (1, -(-most // 2), most):
            cells = (written(row.error), written(row.no_change), written(row.encoded))
            lines.append((row.quantity, row.unit, str(row.steps), *cells))
    return aligned(lines)
