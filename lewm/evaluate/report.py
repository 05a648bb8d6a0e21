"""The report: one HTML file that shows how often, how fast, and why not. Failures come first.

`report_run` traces a finished evaluation and writes it; `rebuild_report` writes it again from a run's files, without
the model or the recordings.
"""

import json
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from lewm import __version__
from lewm.checkpoint import Checkpoint, load
from lewm.data.inspect import describe
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows
from lewm.evaluate.evaluate import Evaluated
from lewm.evaluate.logged import Measured, load_logged
from lewm.evaluate.manifest import Manifest, save_manifest
from lewm.evaluate.methods import PlanConfig
from lewm.evaluate.report_cards import make_cards
from lewm.evaluate.report_figures import (
    Line,
    chart,
    finite,
    interval_bar,
    linear,
    logarithmic,
    milliseconds,
    share,
    time_bars,
)
from lewm.evaluate.results import ResultRow
from lewm.evaluate.significance import Verdict, Verdicts, legend, verdicts
from lewm.evaluate.statistics import wilson
from lewm.evaluate.trace import FrameBank, LatentMap, Trace, load_traces, pick, save_traces, trace_problems
from lewm.probes import probe_model
from lewm.schema import read_json

TRACED = 3
"""Episodes shown per goal set and planning method."""
BINS = 5
"""Most points of a success-by-distance curve."""
SERIES = 10
"""Colours of report_style.css; methods beyond them share."""


def write_report(
    measured: Sequence[Measured],
    traces: Sequence[Trace],
    context: Mapping[str, Any],
    path: Path,
    latent_map: LatentMap | None = None,
    against: str | None = None,
) -> Path:
    """Write the self-contained page. Rows are compared with method `against`, or with the best one of the goal set.

    context: `title`, `commands` (list), `config` and `dataset` (text), `health` (name to number); whatever else it
    holds is listed among the facts. All of it is optional. Raises ValueError when there is nothing to report.
    """
    if not measured:
        raise ValueError("there is no result to report: evaluate at least one method first")
    names = list(dict.fromkeys(m.row.method for m in measured))
    styles = {name: f"s{i % SERIES}" for i, name in enumerate(names)}
    groups: dict[str, list[Measured]] = {}
    for m in measured:
        groups.setdefault(m.row.goals, []).append(m)
    found = verdicts([m.row for m in measured], against)
    special = {"title", "commands", "config", "dataset", "health"}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = page.get_template("report.html.jinja").render(
        title=context.get("title") or f"{measured[0].row.task}: planning to goal images",
        groups=[_group(group, styles, found) for group in groups.values()],
        significance=legend(against),
        legend=[(name, styles[name]) for name in names],
        cards=make_cards(traces, {name: group[0].manifest for name, group in groups.items()}, styles, latent_map),
        failures=sum(not o.success for m in measured if m.row.method in {t.method for t in traces} for o in m.outcomes),
        facts={key: value for key, value in context.items() if key not in special},
        commands=list(context.get("commands", [])),
        texts=[(name, context[name]) for name in ("dataset", "config") if context.get(name)],
        health=dict(context.get("health", {})),
        ms=milliseconds,
        version=__version__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _group(group: Sequence[Measured], styles: Mapping[str, str], found: Verdicts) -> dict[str, Any]:
    """Everything the page says about one goal set."""
    manifest, first = group[0].manifest, group[0]
    rows = [m.row for m in group]
    times = [(r.method, r.encode_ms_p50, max(0.0, r.plan_ms_p50 - r.encode_ms_p50), r.plan_ms_p95) for r in rows]
    return {
        "name": manifest.goals.name,
        "manifest": manifest,
        "what": _describe_goals(manifest),
        "first": first.row,
        "rows": [_row(m.row, found[m.row.goals, m.row.method], styles[m.row.method]) for m in group],
        "reference": found[first.row.goals, first.row.method].reference,
        "by_distance": success_by_distance(group, styles),
        "front": _front(rows, styles),
        "times": time_bars([(*time, styles[time[0]]) for time in times]),
        "timed_on": sorted({f"{r.threads} thread{'s' * (r.threads != 1)} on {r.device}" for r in rows}),
    }


def _describe_goals(manifest: Manifest) -> str:
    goals = manifest.goals
    where = {
        "ahead": f"the goal lies {goals.offset} steps ahead in the same recorded episode",
        "across": "the goal lies later in the same recorded episode, in another region of the task",
        "elsewhere": "the goal is a frame of another recorded episode",
    }[goals.goal]
    harder = []
    if goals.tolerance != 1:
        harder.append(f"within {goals.tolerance:g} of the task's success distance")
    if goals.orientation:
        harder.append("orientation counted where the task has one")
    if goals.hold > 1:
        harder.append(f"held for {goals.hold} steps")
    if goals.shift:
        harder.append(f"in worlds with {', '.join(goals.shift)} shifted")
    return "; ".join([where, *harder, f"{goals.budget} environment steps allowed"])


def _row(row: ResultRow, verdict: Verdict, style: str) -> dict[str, Any]:
    """One line of the headline table."""
    bar = interval_bar(row.success, row.low, row.high, style)
    return {"row": row, "style": style, "bar": bar, "verdict": verdict}


def distance_bins(distances: np.ndarray, bins: int = BINS) -> list[np.ndarray]:
    """Indices of the problems from near to far, in at most `bins` groups of about equal size; ties stay together."""
    edges = np.unique(np.quantile(distances, np.linspace(0, 1, min(bins, max(1, len(distances) // 5)) + 1)))
    which = np.searchsorted(edges[1:-1], distances, side="right")
    return [np.flatnonzero(which == b) for b in range(len(edges) - 1 or 1) if (which == b).any()]


def success_by_distance(group: Sequence[Measured], styles: Mapping[str, str]) -> str:
    """Success against the true distance from start to goal, one line per method, with 95 % intervals."""
    distances = np.array([p.distance for p in group[0].manifest.problems])
    lines, bins = [], distance_bins(distances)
    step = (np.ptp(distances) or 1.0) * 0.012
    for number, m in enumerate(group):
        success = {o.problem: o.success for o in m.outcomes}
        counts = [([success[i] for i in index if i in success]) for index in bins]
        intervals = [wilson(sum(c), len(c)) for c in counts]
        lines.append(
            Line(
                x=[float(np.median(distances[index])) + step * (number - (len(group) - 1) / 2) for index in bins],
                y=[sum(c) / len(c) if c else np.nan for c in counts],
                style=styles[m.row.method],
                low=[low for low, _ in intervals],
                high=[high for _, high in intervals],
                dots=3,
            )
        )
    x = linear("distance from start to goal", finite(distances, *(line.x for line in lines)))
    return chart(lines, x, share("success"), "success by distance", width=340, height=220)


def _front(rows: Sequence[ResultRow], styles: Mapping[str, str]) -> str:
    """Success against milliseconds per plan: up and to the left is better."""
    lines = [
        Line([max(r.plan_ms_p50, 1e-3)], [r.success], styles[r.method], [r.low], [r.high], dots=5, joined=False)
        for r in rows
    ]
    x = logarithmic("milliseconds per plan (p50)", finite(*(line.x for line in lines)))
    return chart(lines, x, share("success"), "success against planning time", width=340, height=220)


def report_run(
    evaluated: Sequence[Evaluated],
    checkpoint_path: Path,
    store: Store | None,
    out: Path,
    count: int = TRACED,
    context: Mapping[str, Any] | None = None,
    against: str | None = None,
) -> Path:
    """Trace `count` problems per goal set and planning method, keep the traces, write `out/report.html`.

    Without a store there are no recorded frames to show imagination with, so the report has no episodes. `context`
    adds to, or replaces, the facts gathered here. `against` as in `write_report`.
    """
    folder = out / "evaluation"
    traces: list[Trace] = []
    latent_map = None
    device = next((e.row.device for e in evaluated if isinstance(e.method, PlanConfig)), "cpu")
    checkpoint = load(checkpoint_path, device)
    if store is not None:
        bank = FrameBank.from_store(store, checkpoint.model)
        latent_map = LatentMap.fit(bank)
        for e in evaluated:
            if isinstance(e.method, PlanConfig):
                traces += trace_problems(e, checkpoint, pick(e, count), bank)
    save_traces(traces, latent_map, folder / "traces")
    for e in evaluated:
        if not (path := folder / f"manifest_{e.manifest.goals.name}.json").exists():
            save_manifest(e.manifest, path)
    gathered = _gather(evaluated, checkpoint, store, out) | dict(context or {})
    (folder / "report.json").write_text(json.dumps(gathered, indent=1) + "\n")
    return write_report(evaluated, traces, gathered, out / "report.html", latent_map, against)


def rebuild_report(run_dir: Path, path: Path | None = None, against: str | None = None) -> Path:
    """Write the report of a finished evaluation again, from its files alone (default `run_dir/report.html`).

    Raises FileNotFoundError or ValueError naming the file that is missing or damaged.
    """
    folder = run_dir / "evaluation"
    measured = load_logged(run_dir)
    facts = folder / "report.json"
    traces, latent_map = load_traces(folder / "traces")
    context = read_json(facts) if facts.is_file() else {}
    return write_report(measured, traces, context, path or run_dir / "report.html", latent_map, against)


def _gather(evaluated: Sequence[Evaluated], checkpoint: Checkpoint, store: Store | None, out: Path) -> dict[str, Any]:
    """The facts of a run that its reader needs to judge it, and to run it again."""
    model, origin, row = checkpoint.model, checkpoint.origin, evaluated[0].row
    header = json.loads((checkpoint.path / "config.json").read_text())
    facts, config_file = out / "evaluation" / "run.json", out / "evaluation" / "config.yaml"
    run = read_json(facts) if facts.is_file() else {}
    commands = [shlex.join(run["command"])] if run.get("command") else []
    commands += [command] if (command := shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])) not in commands else []
    config, count = header["model"], sum(p.numel() for p in model.parameters())
    gathered: dict[str, Any] = {
        "commands": commands,
        "config": config_file.read_text() if config_file.is_file() else "",
        "task": f"{origin.task}, {', '.join(f'{k} {v}' for k, v in origin.settings.items())}",
        "model": f"{config['encoder']['name']} encoder, {config['predictor']['name']} predictor, {count:,} parameters",
        "latent": f"{model.tokens} x {model.latent_dim} per frame, {model.config.frame_skip} env steps per block",
        "hardware": f"{row.hardware} ({platform.system()} {platform.machine()})",
        "software": f"lewm {__version__}, torch {row.torch}, Python {platform.python_version()}",
        "threads while timing": str(row.threads),
        "seed": str(row.seed),
        "code revision": str(header["training"].get("git", run.get("git", "unknown"))),
    }
    if store is not None:
        train, held_out = split_episodes(store.num_episodes, origin.held_out, origin.seed)
        gathered["split"] = f"{len(train)} episodes for training, {len(held_out)} held out for starts and goals"
        gathered |= {"dataset": describe(store), "health": latent_health(checkpoint, store)}
    return gathered


def latent_health(checkpoint: Checkpoint, store: Store, clips: int = 256) -> dict[str, float | None]:
    """Signs of collapse, and what a linear probe reads from the latent, on held-out clips; None where undefined."""
    model, origin = checkpoint.model, checkpoint.origin
    length = min(5, 1 + int(store.episodes["length"].min()) // model.config.frame_skip)
    rng = np.random.default_rng(origin.seed)
    batches = []
    for episodes in split_episodes(store.num_episodes, origin.held_out, origin.seed):
        windows = Windows(store, model.config.window(length), episodes, "disk", model.device)
        batches.append(windows.batch(rng.choice(len(windows), min(clips, len(windows)), replace=False)))
    health = probe_model(model, batches[0], batches[1], origin.state_names, origin.angle_names)
    numbers = {f"linear probe R² of {name}": r2 for name, r2 in health.probe_r2.items()}
    numbers[f"effective rank (of {model.tokens * model.latent_dim})"] = health.effective_rank
    numbers |= {"smallest std of a dimension": health.std_D.min().item(), "mean std": health.std_D.mean().item()}
    errors = {
        f"rollout error after {t} block{'s' * (t > 1)}": e for t, e in enumerate(health.rollout_error_T.tolist(), 1)
    }
    return {n: round(value, 4) if math.isfinite(value) else None for n, value in (numbers | errors).items()}
