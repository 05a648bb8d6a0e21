"""`lewm compare encoders`: frozen encoders and one trained end to end, on the same recordings and goals.

Every row is pretrained if it asks for that, its features are cached, a predictor is trained on them, and it is probed,
imagined with and planned with. Resumable: every stage finds what an earlier call finished.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm import config, pipeline
from lewm.checkpoint import Checkpoint, load
from lewm.compare.objectives import plan_with
from lewm.compare.objectives_rows import Success
from lewm.compare.shared import check_names, leaves, pick_rows, read_comparison, refuse_others, words
from lewm.config import RunConfig
from lewm.data.store import Store
from lewm.evaluate.timing import hardware, keep_time, kept_times, time_plans
from lewm.nets.frozen import FrozenConfig, frozen_in
from lewm.nets.frozen.cache import cache_features, plan_features
from lewm.pretrain import config as pretraining
from lewm.pretrain.loop import pretrain
from lewm.schema import build, read_json, read_rows, write_json
from lewm.study import probes, rollout
from lewm.study.bootstrap import Estimate
from lewm.study.subject import Subject, make_subject, read_frames
from lewm.tables import markdown

PROBES = probes.ProbesConfig(frames=8_000, test_frames=3_000, steps=1_000)
"""What factors are read out with."""
IMAGINED = 5
"""Blocks that futures are imagined for."""


@dataclass(frozen=True)
class EncoderRow:
    """One encoder."""

    name: str
    """Name in the table, and of the row's folder."""
    pretrain: str | None = None
    """Pretraining run (a shipped name or a YAML file) whose encoder is frozen; null for rows without one."""
    pretrain_set: dict[str, Any] = field(default_factory=dict)
    """Keys of the pretraining run that are changed, by dotted name."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the run that are changed, by dotted name; the path of a pretrained encoder is filled in."""


@dataclass(frozen=True)
class EncodersConfig:
    """A comparison."""

    run: str
    """Run that all rows start from: a shipped name or a YAML file."""
    rows: tuple[EncoderRow, ...]
    """What is compared."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the run that are changed in every row, by dotted name."""

    def __post_init__(self) -> None:
        check_names(self.rows)


@dataclass(frozen=True)
class EncoderResult:
    """What was measured of one encoder, on held-out episodes."""

    task: str
    encoder: str
    """Name of the row."""
    seed: int
    """Of the training, the held-out split and the goals."""
    tokens: int
    """Tokens per frame."""
    width: int
    """Numbers per token."""
    trained_parameters: int
    """Of the world model; heads not counted."""
    frozen_parameters: int
    """Of the encoder that is not trained with it."""
    pretrain_steps: int
    """0 for an encoder without pretraining."""
    pretrain_cpu_minutes: float | None
    """CPU time of the pretraining; None without one."""
    cache_cpu_minutes: float | None
    """CPU time of computing all features once; None for a trained encoder."""
    train_steps: int
    train_cpu_minutes: float
    """CPU time of training the world model and its heads."""
    linear_r2: dict[str, Estimate | None]
    """Of a linear probe by state factor (angles as cosine and sine); None for one that does not vary."""
    mlp_r2: dict[str, Estimate | None]
    """The same for an MLP."""
    latent_error: tuple[float, ...]
    """Mean squared error of imagined latents after 1, 2, ... blocks over the latents' variance: within a row only."""
    state_error: dict[str, tuple[float, ...]]
    """Root mean squared error of what a linear probe decodes from imagined latents, in the state's units, by entry and
    blocks ahead; empty for latents too wide to be decoded."""
    success: tuple[Success, ...]
    """Every planner on every goal set."""
    plan_ms_p50: tuple[float, ...]
    """Milliseconds per plan, frames to action, one problem at a time, in the order of `success`."""
    threads: int
    """Torch threads while timing."""
    hardware: str
    torch: str


def load_config(name: str | Path) -> EncodersConfig:
    """A comparison by path or shipped name. Raises FileNotFoundError, and SchemaError naming the key."""
    return read_comparison(EncodersConfig, "encoders", name)


def compare_encoders(
    comparison: EncodersConfig, names: Sequence[str], out: Path, device: torch.device, overrides: Sequence[str] = ()
) -> list[EncoderResult]:
    """Make and measure the rows of these names (all for none); finished ones in `out` are kept.

    overrides: further changes of every row's run. Raises ValueError for an unknown name, SchemaError for a wrong key,
    and RuntimeError for a finished row of other settings.
    """
    rows = pick_rows(comparison.rows, names)
    runs = {row.name: _run_of(comparison, row, out, overrides) for row in rows}
    for row in rows:
        _claim(row, runs[row.name], out / row.name)
    results = []
    for row in rows:
        path = out / row.name / "row.json"
        if not path.exists():
            print(f"== {runs[row.name].task}, {row.name}")
            store = pipeline.record(runs[row.name], out / "data", processes=1)
            write_json(asdict(_measure(row, runs[row.name], store, out / row.name, device)), path)
        results.append(build(EncoderResult, read_json(path), str(path)))
        (out / "table.md").write_text(table(results) + "\n")
    return results


def load_rows(path: Path) -> list[EncoderResult]:
    """Rows that `lewm compare encoders --json` wrote. Raises SchemaError naming what does not fit."""
    return read_rows(EncoderResult, path, "give a file that `lewm compare encoders --json` wrote")


def _run_of(comparison: EncodersConfig, row: EncoderRow, out: Path, overrides: Sequence[str]) -> RunConfig:
    run = config.load(comparison.run, [*words(comparison.set | row.set), *overrides])
    if row.pretrain is None:
        return run
    pretraining.load(row.pretrain, words(row.pretrain_set))  # refuse a wrong key before any work
    if not isinstance(run.model.encoder, FrozenConfig):
        raise ValueError(
            f"row {row.name} pretrains an encoder, but its model.encoder is {run.model.encoder.name}: set it to "
            "{name: frozen, grid: 4}"
        )
    encoder = replace(run.model.encoder, path=str(out / row.name / "pretrain" / "encoder"))
    return replace(run, model=replace(run.model, encoder=encoder))


def _claim(row: EncoderRow, run: RunConfig, folder: Path) -> None:
    """Keep the settings of a row, or refuse a folder that was begun with others."""
    ours, path = leaves({"row": asdict(row), "run": asdict(run)}), folder / "settings.json"
    if path.exists():
        refuse_others(folder, ours, leaves(read_json(path)))
    write_json(ours, path)


def _measure(row: EncoderRow, run: RunConfig, store: Store, folder: Path, device: torch.device) -> EncoderResult:
    """Pretrain, cache, train, probe, imagine, plan."""
    steps, frozen_parameters = 0, 0
    if row.pretrain is not None:
        prerun = pretraining.load(row.pretrain, words(row.pretrain_set))
        steps = prerun.train.steps
        with keep_time(folder, "pretrain"):
            pretrain(prerun, store, folder / "pretrain", device)
    if isinstance(run.model.encoder, FrozenConfig):
        with keep_time(folder, "cache"):
            cache_features(plan_features(store, run.model.encoder, "float16", device))
    checkpoint = load(pipeline.fit(run, store, folder, device), str(device))
    model, frozen = checkpoint.model, frozen_in(checkpoint.model.encoder)
    if frozen is not None:
        frozen_parameters = sum(p.numel() for p in frozen.backbone.net.parameters())
    subject = make_subject(checkpoint, store)
    linear, mlp = _probe(subject)
    imagined = rollout.measure(subject, rollout.RolloutConfig(horizon=IMAGINED)).rows
    errors: dict[str, list[float]] = {}
    for each in imagined:
        errors.setdefault(each.quantity, []).append(each.error.value if each.error is not None else float("nan"))
    latent = tuple(errors.pop(rollout.LATENT_ERROR))
    success, times = _plan(run, checkpoint, store, folder)
    spent = {stage: times.cpu_seconds / 60 for stage, times in kept_times(folder).items()}
    return EncoderResult(
        task=run.task,
        encoder=row.name,
        seed=run.train.seed,
        tokens=model.tokens,
        width=model.latent_dim,
        trained_parameters=sum(p.numel() for p in model.parameters()),
        frozen_parameters=frozen_parameters,
        pretrain_steps=steps,
        pretrain_cpu_minutes=spent.get("pretrain"),
        cache_cpu_minutes=spent.get("cache"),
        train_steps=run.train.steps,
        train_cpu_minutes=spent["train"],
        linear_r2=linear,
        mlp_r2=mlp,
        latent_error=latent,
        state_error={name: tuple(values) for name, values in errors.items()},
        success=success,
        plan_ms_p50=times,
        threads=run.evaluate.threads,
        hardware=hardware(),
        torch=torch.__version__,
    )


def _plan(
    run: RunConfig, checkpoint: Checkpoint, store: Store, folder: Path
) -> tuple[tuple[Success, ...], tuple[float, ...]]:
    """Success and median milliseconds per plan; outcomes that `folder` has are kept, times are always taken."""
    success, times, how = [], [], run.evaluate
    for reached, manifest, policy in plan_with(run, checkpoint, store, folder):
        success.append(reached)
        timed = time_plans(policy, manifest, how.timed_plans, how.threads, checkpoint.model.device.type)
        times.append(timed.plan_ms_p50)
    return tuple(success), tuple(times)


def time_again(comparison: EncodersConfig, out: Path, device: torch.device, overrides: Sequence[str] = ()) -> None:
    """Take the milliseconds per plan of all finished rows in `out` again: on a quieter machine, in one go."""
    for row in comparison.rows:
        folder = out / row.name
        if not (folder / "row.json").exists():
            continue
        run = _run_of(comparison, row, out, overrides)
        _claim(row, run, folder)
        found = build(EncoderResult, read_json(folder / "row.json"), str(folder / "row.json"))
        _, times = _plan(run, load(folder / "checkpoint", str(device)), Store.open(out / "data"), folder)
        again = replace(found, plan_ms_p50=times, hardware=hardware(), torch=torch.__version__)
        write_json(asdict(again), folder / "row.json")


def _probe(subject: Subject) -> tuple[dict[str, Estimate | None], dict[str, Estimate | None]]:
    """R2 by factor of linear and of MLP probes."""
    meta, features = subject.store.meta, {probes.LATENT: probes.latent_feature(subject.model)}
    rng = np.random.default_rng(PROBES.seed)
    fit = read_frames(subject, subject.train_ids, features, PROBES.frames, rng, "read to fit")
    test = read_frames(subject, subject.held_ids, features, PROBES.test_frames, rng, "read to score")
    found = probes.score(fit, test, tuple(meta.state_names), tuple(meta.angle_names), PROBES, meta.task, quiet=False)
    linear, mlp = ({r.factor: r.r2 for r in found if r.probe == probe} for probe in (probes.LINEAR, probes.MLP))
    return linear, mlp


def table(results: Sequence[EncoderResult]) -> str:
    """Markdown: what every encoder costs, what it holds, how far its predictor drifts, and what planning reaches."""
    if not results:
        return "no rows"
    first = results[0]
    plans = [f"{s.goals} {s.method}" for s in first.success]
    blocks = len(first.latent_error)
    parts = [
        f"{first.task}, seed {first.seed}, {first.success[0].n} held-out goals per set. Sizes, and CPU minutes of "
        "pretraining, computing all features once, and training with heads:",
        markdown(
            ["encoder", "tokens", "trained parameters", "frozen parameters", "pretraining", "features", "training"],
            [_costs(x) for x in results],
        ),
        "R2 by state factor, linear probe / MLP:",
        markdown(
            ["encoder", *first.linear_r2],
            [[x.encoder, *(f"{_r2(x.linear_r2[f])} / {_r2(x.mlp_r2[f])}" for f in x.linear_r2)] for x in results],
        ),
        f"What is imagined after 1 and {blocks} blocks: squared error of latents over their variance (1 is guessing "
        "the mean; latents differ between encoders), and root mean squared error of the state read out linearly, in "
        "its units (- for latents too wide to be read out):",
        markdown(
            ["encoder", "latents", *_entries(results)],
            [
                [x.encoder, _drift(x.latent_error), *(_drift(x.state_error.get(name)) for name in _entries(results))]
                for x in results
            ],
        ),
        f"Goals reached in % with their Wilson 95 % intervals, and milliseconds per plan ({first.threads} thread"
        f"{'s' * (first.threads > 1)}, p50):",
        markdown(
            ["encoder", *plans],
            [[x.encoder, *(_reached(s, ms) for s, ms in zip(x.success, x.plan_ms_p50, strict=True))] for x in results],
        ),
    ]
    return "\n\n".join(parts)


def _costs(x: EncoderResult) -> list[str]:
    minutes = [x.pretrain_cpu_minutes, x.cache_cpu_minutes, x.train_cpu_minutes]
    sizes = [f"{x.tokens} x {x.width}", f"{x.trained_parameters:,}", f"{x.frozen_parameters:,}"]
    return [x.encoder, *sizes, *("-" if m is None else f"{m:.1f}" for m in minutes)]


def _r2(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.3f}"


def _entries(results: Sequence[EncoderResult]) -> list[str]:
    """The state's entries, from the rows whose latents could be decoded."""
    return list(dict.fromkeys(name for x in results for name in x.state_error))


def _drift(errors: Sequence[float] | None) -> str:
    return "-" if errors is None else f"{errors[0]:.3f}, {errors[-1]:.3f}"


def _reached(success: Success, plan_ms: float) -> str:
    return f"{100 * success.success:.0f} ({100 * success.low:.0f}-{100 * success.high:.0f}), {plan_ms:.1f} ms"
