"""Time and memory of one step of every objective, and SIGReg against its formula written out, in the same run.

A step is the forward and the backward pass on random latents: no encoder, no optimiser. Sizes grow one at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lewm.bench.measure import Cost, Step, measure
from lewm.data.windows import Batch
from lewm.evaluate.timing import hardware, load_average, torch_threads, where_measured
from lewm.nets.encoders import ConvConfig
from lewm.objectives import OBJECTIVES, ObjectiveConfig, SigRegConfig, build_objective
from lewm.objectives.sigreg import random_slices, sigreg
from lewm.progress import Stage
from lewm.world_model import ModelConfig, ModelFacts, WorldModel

FRAMES, SIZE = 4, 32
"""Frames T per clip, and their height and width in pixels, for objectives that look at pixels."""
KNOTS, LAST_KNOT = 17, 3.0
"""The grid of SIGReg's preset `lejepa`."""
CONFIGS: dict[str, Any] = {config.name: config for config in (kind() for kind in get_args(ObjectiveConfig))}
SETTINGS: dict[str, dict[str, Any]] = {"whitening": {"epsilon": 1e-3}}
"""What differs from an objective's defaults: without it, whitening refuses latents that are wider than the batch."""
BESIDE = {
    "whitening": "epsilon 0.001; running statistics",
    "rdmreg": "drawing the target samples",
    "ema": "the teacher's pass over the frames",
    "infonce": "finding frames that show the same",
    "data2vec": "the teacher's pass over the frames",
    "cjepa": "the teacher's pass over the frames",
    "pldm": "inverse dynamics",
    "reconstruction": "decoding encoded and predicted frames",
}
"""What a step does beside scoring latents."""


@dataclass(frozen=True)
class Grid:
    """Sizes to measure: a base, and values that replace one entry of it at a time."""

    base: tuple[int, int, int]
    """n clips, latent width d, slices."""
    n: tuple[int, ...]
    d: tuple[int, ...]
    slices: tuple[int, ...]


FULL = Grid((128, 192, 1024), n=(32, 512), d=(48, 768), slices=(256, 4096))
QUICK = Grid((32, 48, 256), n=(64,), d=(96,), slices=(512,))


@dataclass(frozen=True)
class ObjectiveRow:
    """One objective at one size."""

    objective: str
    part: Literal["statistic", "objective"]
    """The anti-collapse statistic alone (SIGReg, beside its formula written out), or the whole objective."""
    n: int
    """Clips; with one token per frame also the samples of one statistic."""
    d: int
    slices: int | None
    frames: int
    forward_backward_ms: float
    """Median over `repeats` steps, after one that is not timed."""
    peak_mb: float
    """Most memory (10^6 bytes) that a step held at once beyond its inputs, gradients included."""
    plain_ms: float | None
    plain_peak_mb: float | None
    ratio: float | None
    """plain_ms / forward_backward_ms."""
    memory_ratio: float | None
    """plain_peak_mb / peak_mb."""
    gradient_error: float | None
    """Norm of the difference to the plain gradient of the latents, relative to that gradient's."""
    includes: str
    repeats: int
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the benchmark began: what else the machine was doing; None if unknown."""
    torch: str


def plain_sigreg(latent_BTKD: Tensor, generator: torch.Generator, config: SigRegConfig) -> Tensor:
    """SIGReg (preset `lejepa`, one statistic per time step) as its papers write it: what ours is measured against.

    Autograd through one cosine and one sine per sample, slice and knot (LeJEPA, algorithm 1; LeWM, section 3).
    """
    sample_TND = latent_BTKD.transpose(0, 1).flatten(1, 2)
    projected_TNS = sample_TND @ random_slices(generator, latent_BTKD.shape[3], config.slices).to(sample_TND)
    knot_Q = torch.linspace(0, LAST_KNOT, KNOTS, dtype=sample_TND.dtype, device=sample_TND.device)
    gaussian_Q = torch.exp(-knot_Q.square() / 2)
    trapezoid_Q = torch.full_like(knot_Q, 2 * LAST_KNOT / (KNOTS - 1))  # twice: for the knots below zero
    trapezoid_Q[[0, -1]] /= 2
    wave_TNSQ = projected_TNS[..., None] * knot_Q
    error_TSQ = (wave_TNSQ.cos().mean(1) - gaussian_Q).square() + wave_TNSQ.sin().mean(1).square()
    return (error_TSQ @ (trapezoid_Q * gaussian_Q)).mean() * sample_TND.shape[1]


def statistic_steps(n: int, d: int, slices: int, device: torch.device) -> list[Step]:
    """SIGReg alone and `plain_sigreg`, each on its own copy of the same latents and with the same slices."""
    config = SigRegConfig(slices=slices)
    latent = _normal((n, FRAMES, 1, d), 0).to(device)

    def step(statistic: Callable[[Tensor, torch.Generator, SigRegConfig], Tensor]) -> Step:
        leaf = latent.clone().requires_grad_()
        return Step(lambda: statistic(leaf, torch.Generator().manual_seed(1), config), [leaf])

    return [step(sigreg), step(plain_sigreg)]


def objective_step(config: Any, n: int, d: int, device: torch.device) -> Step:
    """A whole objective on random latents and one prediction of them, for a small model and n clips of noise."""
    facts = ModelFacts(SIZE, (-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.5,) * 3, (0.25,) * 3)
    # Weights are left to torch's generator: neither time nor memory depends on them.
    model = WorldModel(ModelConfig(ConvConfig(latent_dim=d)), facts).to(device)
    objective = build_objective(config, model).to(device)
    batch = _noise(n, model.action_dim, device)
    latent = _normal((n, FRAMES, 1, d), 0).to(device).requires_grad_()
    predicted = _normal((n, FRAMES - 1, 1, d), 1).to(device).requires_grad_()

    def loss() -> Tensor:
        total: Tensor = objective(latent, (predicted,), batch, torch.Generator().manual_seed(1)).total
        return total

    return Step(loss, [latent, predicted, *objective.parameters()])


def cells(grid: Grid) -> list[tuple[int, int, int]]:
    """(n, d, slices) of every measurement: the base, then what grows, one at a time."""
    n, d, slices = grid.base
    sizes = [(n, d, slices), *((more, d, slices) for more in grid.n), *((n, more, slices) for more in grid.d)]
    return sizes + [(n, d, more) for more in grid.slices]


def configured(name: str, slices: int) -> Any:
    """An objective's configuration as it is measured: its defaults, `SETTINGS`, and slices if it has any."""
    config = replace(CONFIGS[name], **SETTINGS.get(name, {}))
    return replace(config, slices=slices) if hasattr(config, "slices") else config


def bench_objectives(grid: Grid, threads: int, repeats: int, device: torch.device) -> list[ObjectiveRow]:
    """SIGReg beside its plain formula, then every row of the table of objectives, at every size of the grid.

    Raises ValueError for no repeats.
    """
    if repeats < 1:
        raise ValueError(f"--repeats is {repeats}; time at least one step per row")
    unsliced = replace(grid, slices=())
    sized = {name: cells(grid if hasattr(CONFIGS[name], "slices") else unsliced) for name in OBJECTIVES}
    load = load_average()
    rows = []
    with (
        torch_threads(threads),
        Stage("bench objectives", len(cells(grid)) + sum(map(len, sized.values())), "rows") as stage,
    ):
        finish = partial(_row, repeats=repeats, threads=threads, device=device, load=load)
        for n, d, slices in cells(grid):
            steps = statistic_steps(n, d, slices, device)
            ours, plain = measure(steps, repeats, device)
            rows.append(finish("sigreg", "statistic", (n, d, slices), ours, plain, _gradient_error(*steps)))
            stage.update()
        for name, sizes in sized.items():
            for n, d, slices in sizes:
                config = configured(name, slices)
                (cost,) = measure([objective_step(config, n, d, device)], repeats, device)
                rows.append(finish(name, "objective", (n, d, getattr(config, "slices", None)), cost, None, None))
                stage.update()
    return rows


def table(rows: list[ObjectiveRow]) -> str:
    """The rows as aligned text: ours against the plain formula, then every objective."""
    lines = [
        "SIGReg alone against its formula written out, the same latents and slices",
        f"{'n':>5} {'d':>5} {'slices':>6} {'ms':>9} {'plain ms':>9} {'faster':>7} {'MB':>8} {'plain MB':>9}"
        f" {'smaller':>8} {'gradient error':>15}",
    ]
    for r in rows:
        if r.part == "statistic":
            lines.append(
                f"{r.n:>5} {r.d:>5} {r.slices:>6} {r.forward_backward_ms:>9.2f} {r.plain_ms:>9.2f} {r.ratio:>6.1f}x"
                f" {r.peak_mb:>8.2f} {r.plain_peak_mb:>9.2f} {r.memory_ratio:>7.1f}x {r.gradient_error:>15.1e}"
            )
    lines += ["", f"{'objective':<15} {'n':>5} {'d':>5} {'slices':>6} {'ms':>9} {'MB':>8}  includes"]
    for r in rows:
        if r.part == "objective":
            lines.append(
                f"{r.objective:<15} {r.n:>5} {r.d:>5} {r.slices or '':>6} {r.forward_backward_ms:>9.2f}"
                f" {r.peak_mb:>8.2f}  {r.includes}"
            )
    first = rows[0]
    lines += [
        "",
        f"forward + backward, median of {first.repeats}; MB: most that was allocated at once beyond the inputs; "
        f"{FRAMES} frames per clip, pictures of {SIZE} x {SIZE}",
        where_measured(first),
    ]
    return "\n".join(lines)


def _row(
    objective: str,
    part: Literal["statistic", "objective"],
    size: tuple[int, int, int | None],
    ours: Cost,
    plain: Cost | None,
    error: float | None,
    repeats: int,
    threads: int,
    device: torch.device,
    load: float | None,
) -> ObjectiveRow:
    what = ["the statistic" if part == "statistic" else "all terms"]
    if size[2] is not None:
        what.append("drawing the slices")
    if part == "objective" and objective in BESIDE:
        what.append(BESIDE[objective])
    return ObjectiveRow(
        objective,
        part,
        *size,
        FRAMES,
        ours.ms,
        ours.peak_mb,
        plain.ms if plain else None,
        plain.peak_mb if plain else None,
        plain.ms / ours.ms if plain else None,
        plain.peak_mb / ours.peak_mb if plain else None,
        error,
        "; ".join(what),
        repeats,
        threads,
        device.type,
        hardware(),
        load,
        torch.__version__,
    )


def _gradient_error(ours: Step, plain: Step) -> float:
    got, expected = ours.leaves[0].grad, plain.leaves[0].grad
    if got is None or expected is None:
        return math.nan
    return ((got - expected).norm() / expected.norm()).item()


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _noise(n: int, action_dim: int, device: torch.device) -> Batch:
    """Clips of random pictures and actions."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (n, FRAMES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    action = torch.randn(n, FRAMES - 1, action_dim, generator=generator)
    # Clips that start far apart, so that none counts as another's neighbour.
    parts = (pixels, action, torch.zeros(n, FRAMES, 2), 1000 * torch.arange(n))
    return Batch(*(part.to(device) for part in parts))
