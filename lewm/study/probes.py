"""Which physical quantities a latent holds: linear and MLP probes of every state factor on held-out episodes.

Beside the model's latent the same probes read fresh weights of the same network, and the picture itself, shrunk. A
factor that these hold as well is no achievement of training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lewm.data.windows import Batch
from lewm.probes import fit_linear, fit_mlp, state_targets
from lewm.progress import Stage
from lewm.study.bootstrap import Estimate, r2, written
from lewm.study.figures import aligned, canvas, dots, named_rows, save
from lewm.study.subject import Feature, Frames, Subject, encode, read_frames
from lewm.train import build_model
from lewm.world_model import WorldModel

MOST_FEATURES = 2048
"""Wider latents, such as those of many tokens, are projected to so many random directions."""
LATENT, FRESH, PICTURE = "latent", "random encoder", "pixels"
LINEAR, MLP, HALF = "linear", "mlp", "mlp, half the episodes"
FLOORS = {PICTURE: 0.05}
"""Smallest spread a feature is scaled up from, where it is not nothing: a cell of the picture that hardly ever changed
would otherwise be hundreds of its deviations away where it does."""
COLOURS = {LATENT: "C0", FRESH: "C1", PICTURE: "0.45"}


@dataclass(frozen=True)
class ProbesConfig:
    """How much a probe sees and learns."""

    frames: int = 20_000
    """Frames of training episodes that probes are fitted on."""
    test_frames: int = 5_000
    """Frames of held-out episodes that they are scored on."""
    steps: int = 2_000
    """Steps of 512 frames that an MLP takes."""
    seed: int = 0
    """Of the frames, the fresh weights, the MLPs and the resamples."""

    def __post_init__(self) -> None:
        for name in ("frames", "test_frames", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"probes: {name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class ProbeRow:
    """One factor, read out of one kind of features by one kind of probe."""

    task: str
    factor: str
    """State entry; an angle is two factors, its cosine and its sine."""
    features: str
    """latent, random encoder (the same network, never trained) or pixels (the picture shrunk to 16 x 16 or 8 x 8)."""
    probe: str
    """linear (ridge regression), mlp (two hidden layers), or that mlp fitted on half of the training episodes: where it
    does as well, more recordings would not help."""
    r2: Estimate | None
    """Share of the factor's variance that is explained; None where the factor never changes."""
    width: int
    """Numbers the probe reads."""
    fit_frames: int
    """Frames it was fitted on."""
    test_frames: int
    """Frames it was scored on."""


@dataclass(frozen=True)
class Probed:
    """The study's result."""

    rows: tuple[ProbeRow, ...]
    notes: tuple[str, ...]


def latent_feature(model: WorldModel, seed: int = 0) -> Feature:
    """Flattened latents, at most `MOST_FEATURES` wide."""
    width = model.tokens * model.latent_dim
    if width <= MOST_FEATURES:
        return lambda batch: encode(model, batch)[:, 0]
    generator = torch.Generator().manual_seed(seed)
    project_DP = torch.randn(width, MOST_FEATURES, generator=generator) / width**0.5
    return lambda batch: encode(model, batch)[:, 0] @ project_DP


def picture_feature(batch: Batch) -> Tensor:
    """The picture with its stacked frames, area means over 16 x 16 cells (8 x 8 with many channels), in [0, 1]."""
    pixels_BCYX = batch.pixels_BTCYX[:, 0].float() / 255
    cells = 16 if pixels_BCYX.shape[1] <= 6 else 8
    return F.interpolate(pixels_BCYX, (cells, cells), mode="area").flatten(1).cpu()


def fresh_model(model: WorldModel, seed: int) -> WorldModel:
    """The same network with weights that never saw data."""
    fresh = build_model(model.config, model.facts, seed)
    return fresh.to(model.device).eval().requires_grad_(False)


def measure(subject: Subject, config: ProbesConfig, quiet: bool = False) -> Probed:
    """Fit on training episodes, score on held-out ones. Raises ValueError for recordings without states."""
    names, angles = tuple(subject.store.meta.state_names), tuple(subject.store.meta.angle_names)
    if not names:
        raise ValueError(f"probes: {subject.store.path} holds no states, so there is nothing to probe for")
    rng = np.random.default_rng(config.seed)
    features: Mapping[str, Feature] = {
        LATENT: latent_feature(subject.model, config.seed),
        FRESH: latent_feature(fresh_model(subject.model, config.seed), config.seed),
        PICTURE: picture_feature,
    }
    fit = read_frames(subject, subject.train_ids, features, config.frames, rng, "read to fit", quiet)
    test = read_frames(subject, subject.held_ids, features, config.test_frames, rng, "read to score", quiet)
    return Probed(tuple(score(fit, test, names, angles, config, subject.task, quiet)), subject.notes)


Reader = Callable[[Tensor], Tensor]


def linear_reader(fit_ND: Tensor, fit_NS: Tensor, floor: float) -> Reader:
    """A ridge regression as a function of features."""
    weight_DS, bias_S = fit_linear(fit_ND, fit_NS, floor=floor)
    return lambda features_MD: features_MD @ weight_DS + bias_S


def score(
    fit: Frames,
    test: Frames,
    names: tuple[str, ...],
    angles: tuple[str, ...],
    config: ProbesConfig,
    task: str = "",
    quiet: bool = True,
) -> list[ProbeRow]:
    """One row per factor, kind of features and probe; the MLP on half of the episodes for the latent alone."""
    half = fit.keep(np.isin(fit.episode_N, np.unique(fit.episode_N)[::2]))
    jobs = [(name, probe, fit) for name in fit.features for probe in (LINEAR, MLP)] + [(LATENT, HALF, half)]
    true_NS, labels = state_targets(test.state_NS.double(), names, angles)
    rows = []
    with Stage("probe", len(jobs), "probes", quiet) as stage:
        for name, probe, sample in jobs:
            target_NS, _ = state_targets(sample.state_NS, names, angles)
            floor = FLOORS.get(name, 1e-6)
            if probe == LINEAR:
                reader = linear_reader(sample.features[name], target_NS, floor)
            else:
                batch = min(512, len(target_NS))
                reader = fit_mlp(
                    sample.features[name], target_NS, config.steps, seed=config.seed, batch=batch, floor=floor
                )
            found_NS = reader(test.features[name]).double()
            width, counts = test.features[name].shape[1], (len(target_NS), len(true_NS))
            for label, estimate in zip(
                labels, r2(found_NS.numpy(), true_NS.numpy(), test.episode_N, config.seed), strict=True
            ):
                rows.append(ProbeRow(task, label, name, probe, estimate, width, *counts))
            stage.update()
    return rows


def plot(probed: Probed, path: Path) -> None:
    """Every factor's R2 with its interval: colour is what was read, full dots are MLPs and hollow ones linear.

    The axis is logarithmic in what is left unexplained, so that 0.9, 0.99 and 0.999 lie apart.
    """
    factors = list(dict.fromkeys(row.factor for row in probed.rows))
    figure = canvas(8.0, 1.7 + 0.55 * len(factors))
    axes = figure.add_subplot()
    for i, name in enumerate(COLOURS):
        for probe in (LINEAR, MLP):
            line = [row for row in probed.rows if (row.features, row.probe) == (name, probe)]
            height = [factors.index(row.factor) - 0.3 + 0.24 * i + 0.1 * (probe == MLP) for row in line]
            left = [unexplained(row.r2) for row in line]
            dots(axes, left, height, COLOURS[name], f"{name}, {probe}", filled=probe == MLP)
    best = min((share.low for row in probed.rows if (share := unexplained(row.r2))), default=1.0)
    axes.set(xscale="log", xlabel="R2 on held-out episodes")
    axes.set_xticks([1 - mark for mark in MARKS], [f"{mark:g}" for mark in MARKS], minor=False)
    axes.minorticks_off()
    axes.set_xlim(1.15 * WORST, min(0.08, 0.8 * best))
    named_rows(axes, factors)
    first = probed.rows[0]
    axes.set_title(
        f"{first.task}: what probes read, fitted on {first.fit_frames} frames, scored on {first.test_frames}"
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    save(figure, path)


MARKS = (-1.0, 0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
WORST, BEST = 2.0, 1e-5
"""Unexplained shares at the edges of the figure; what lies beyond stands on them."""


def unexplained(estimate: Estimate | None) -> Estimate | None:
    """1 - R2, within what the figure shows."""
    if estimate is None:
        return None
    low, value, high = (min(max(1 - r, BEST), WORST) for r in (estimate.high, estimate.value, estimate.low))
    return Estimate(value, low, high, estimate.n)


def table(rows: Sequence[ProbeRow]) -> str:
    """Aligned text: a line per factor, a column per kind of features and probe."""
    factors = list(dict.fromkeys(row.factor for row in rows))
    kinds = list(dict.fromkeys((row.features, row.probe) for row in rows))
    cells: Sequence[tuple[str, ...]] = [
        ("R2 of", *(f"{name}, {probe}" for name, probe in kinds)),
        *((factor, *(_cell(rows, factor, kind) for kind in kinds)) for factor in factors),
    ]
    return aligned(cells)


def _cell(rows: Sequence[ProbeRow], factor: str, kind: tuple[str, str]) -> str:
    (row,) = (r for r in rows if r.factor == factor and (r.features, r.probe) == kind)
    return written(row.r2)
