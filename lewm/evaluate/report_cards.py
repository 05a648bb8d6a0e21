"""The cards of a report: one traced episode each, as pictures, four small charts and the sentences beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

import envs
from lewm.evaluate.manifest import Manifest
from lewm.evaluate.report_figures import Line, chart, finite, latent_chart, linear, picture
from lewm.evaluate.trace import LatentMap, Trace

COLUMNS = 21
"""Most frames shown of one episode."""


def make_cards(
    traces: Sequence[Trace], manifests: Mapping[str, Manifest], styles: Mapping[str, str], latent_map: LatentMap | None
) -> list[dict[str, Any]]:
    """One dict per trace for the template: failures first, then by goal set and method as in the tables."""
    order = {name: i for i, name in enumerate([*manifests, *styles])}
    cards = []
    for trace in sorted(traces, key=lambda t: (t.success, order[t.goals], order.get(t.method, 0))):
        manifest = manifests[trace.goals]
        problem = manifest.problems[trace.problem]
        style = styles.get(trace.method, "s0")
        cards.append(
            {
                "trace": trace,
                "style": style,
                "goal": picture(trace.goal_frame),
                "columns": film_strip(trace),
                "horizon": trace.imagined_RHYXC.shape[1],
                "start_distance": problem.distance,
                "closest": float(min(problem.distance, trace.distance_T.min(initial=np.inf))),
                "source": _source(problem.episode, problem.start, problem.goal_episode, problem.goal),
                "replans": len(trace.planned_R),
                "distance": distance_chart(trace, problem.distance, success_distance(manifest), style),
                "cost": cost_chart(trace, style),
                "spread": spread_chart(trace, style),
                "latent": None if latent_map is None else latent_path(trace, latent_map, style),
                "share": 0.0 if latent_map is None else float(latent_map.share_2.sum()),
            }
        )
    return cards


def _source(episode: int, start: int, goal_episode: int, goal: int) -> str:
    same = goal_episode == episode
    return f"episode {episode}, frame {start} to {goal}{'' if same else f' of episode {goal_episode}'}"


def success_distance(manifest: Manifest) -> float:
    """The threshold of the manifest's test: the goal is met below it."""
    task = envs.make(manifest.task, **manifest.settings)
    distance = manifest.goals.tolerance * float(task.success_distance)
    task.close()
    return distance


def film_strip(trace: Trace) -> list[dict[str, Any]]:
    """Columns of pictures: the frame seen, what the plan in force imagined for then, the end of a plan made then."""
    horizon = trace.imagined_RHYXC.shape[1]
    count = len(trace.seen_FYXC)
    columns = []
    for frame in np.unique(np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int)).tolist():
        plan = int(np.searchsorted(trace.planned_R, frame, side="left")) - 1
        ahead = frame - int(trace.planned_R[plan]) - 1 if plan >= 0 else -1
        made = np.flatnonzero(trace.planned_R == frame)
        imagined = trace.imagined_RHYXC[plan, ahead] if 0 <= ahead < horizon else None
        end = trace.imagined_RHYXC[made[0], -1] if len(made) and horizon > 1 else None
        columns.append(
            {
                "step": int(trace.seen_step_F[frame]),
                "seen": picture(trace.seen_FYXC[frame]),
                "imagined": None if imagined is None else picture(imagined),
                "end": None if end is None else picture(end),
            }
        )
    return columns


def distance_chart(trace: Trace, start: float, solved_below: float, style: str) -> Markup:
    """True distance to the goal after every environment step."""
    y = np.concatenate([[start], trace.distance_T])
    steps = np.arange(len(y))
    marks = trace.seen_step_F[trace.planned_R].tolist()
    x_axis = linear("environment step", steps.astype(float), zero=True, whole=True)
    y_axis = linear("distance to goal", finite(y, [solved_below]), zero=True)
    return chart([Line(steps, y, style)], x_axis, y_axis, "distance to the goal", threshold=solved_below, marks=marks)


def cost_chart(trace: Trace, style: str) -> Markup:
    """Cost of every plan; the bar reaches from the best first guess to the best candidate of the search."""
    steps = trace.seen_step_F[trace.planned_R].astype(float)
    low, high = trace.best_cost_RI.min(1), trace.best_cost_RI[:, 0]
    known = np.isfinite(low) & np.isfinite(high) & np.isfinite(trace.cost_R)
    y_axis = linear("cost of the plan", finite(trace.cost_R, low, high), zero=True)
    x_axis = linear("environment step", np.array([0.0, float(trace.steps)]), zero=True, whole=True)
    line = Line(steps[known], trace.cost_R[known], style, low[known], high[known], dots=2.5)
    return chart([line], x_axis, y_axis, "cost of the plans")


def spread_chart(trace: Trace, style: str) -> Markup:
    """Search std per iteration: a thin line per plan, the median in bold."""
    iterations = np.arange(1, trace.spread_RI.shape[1] + 1)
    thin = [Line(iterations, spread, f"{style} thin") for spread in trace.spread_RI]
    bold = Line(iterations, np.median(trace.spread_RI, 0), style, dots=2.5)
    x_axis = linear("iteration of the search", iterations.astype(float), whole=True)
    y_axis = linear("spread of candidates", finite(trace.spread_RI), zero=True)
    return chart([*thin, bold], x_axis, y_axis, "spread of the candidates")


def latent_path(trace: Trace, latent_map: LatentMap, style: str) -> Markup:
    """Seen path, imagined rollouts and the goal on the map of recorded latents."""
    seen_F2 = latent_map.project(trace.latent_FD)
    start_R12 = latent_map.project(trace.latent_RD)[:, None]
    rollout_RP2 = np.concatenate([start_R12, latent_map.project(trace.imagined_latent_RHD)], 1)
    return latent_chart(latent_map.cloud_F2, seen_F2, rollout_RP2, latent_map.project(trace.goal_latent_D), style)
