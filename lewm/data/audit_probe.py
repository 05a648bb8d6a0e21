"""The check of an audit that asks whether the pictures follow from the actions, by a quick linear probe."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lewm.data.audit_sample import Clip, Finding, Sample

SHIFTS = (-2, -1, 0, 1, 2)
"""Steps by which actions are moved against the pictures; 0 is as recorded."""
EXPLAINS = 0.03
"""R2 above that of shuffled actions from which the probe sees the actions; Reacher's torques reach 0.1 to 0.2."""
ROWS_LEAST, ROWS_MOST = 1_000, 50_000
"""Steps the probe needs (twelve per feature of one camera), and those it takes at most."""
SAME = 1e-6
"""Spread of an action below which it does not vary: rounding of float32."""
RIDGE = 0.01
"""Weight penalty, for standardised features."""
FAINT = 0.3
"""Features that vary less than this share of the one that varies most are not scaled up to it: they are rounding."""
SCORED = 3
"""Every third episode scores the probe, the others fit it."""


@dataclass(frozen=True)
class Rows:
    """Steps of all clips, one row each."""

    motion_RF: NDArray[np.float64]
    """Motion in the step and in the step before."""
    news_RA: dict[int, NDArray[np.float64]]
    """By shift: what is new in the action of that later (or earlier) step."""
    scored_R: NDArray[np.bool_]
    """Which rows score the probe."""


def actions_fit(sample: Sample) -> Finding:
    """Whether the motion in the pictures tells the actions: as recorded better than shifted or shuffled.

    The probe reads what is new in an action: the part that the action before it does not predict, so that neighbours
    are told apart however long actions keep a direction. Motion can tell the news of past actions, never of later
    ones: the latest action it tells is the one that leaves the frame.
    """
    rows = gather(sample.clips)
    if rows is None:
        found = f"not checked: the probe needs {ROWS_LEAST} steps of several episodes with actions that vary"
        return Finding("actions_fit", "look", {}, found, "look at more episodes with --all, or record more")
    r2 = {shift: score(rows.motion_RF, news_RA, rows.scored_R) for shift, news_RA in rows.news_RA.items()}
    shuffled = score(rows.motion_RF, np.random.default_rng(0).permutation(rows.news_RA[0]), rows.scored_R)
    numbers = {f"r2_shift_{shift:+d}" if shift else "r2": value for shift, value in r2.items()}
    numbers |= {"r2_shuffled": shuffled, "steps": float(len(rows.scored_R))}
    floor = max(max(shuffled, 0.0) + EXPLAINS, max(r2.values()) / 2)
    found = f"motion tells {max(r2[0], 0.0):.0%} of what is new in an action"
    told = [shift for shift in SHIFTS if r2[shift] >= floor]
    if not told:
        do = (
            "check with `lewm preview` that actions and pictures belong together; a world that answers slowly or out "
            "of the picture looks like this too"
        )
        return Finding("actions_fit", "bad", numbers, f"{found}, no more than of shuffled or shifted ones", do)
    latest = told[-1]
    if latest != 0:
        steps, side, mend = abs(latest), *(("later", "earlier") if latest > 0 else ("earlier", "later"))
        found += f" and {r2[latest]:.0%} of that recorded {steps} {side}: actions look shifted by {steps}"
        do = f"action t must be the one that leaves frame t: move the actions {steps} {mend} and import again"
        return Finding("actions_fit", "bad", numbers, found, do)
    return Finding("actions_fit", "good", numbers, f"{found}, {max(shuffled, 0.0):.0%} of shuffled ones")


def gather(clips: tuple[Clip, ...]) -> Rows | None:
    """The steps that have enough before and after them; None where they are too few or no action varies."""
    steps_in_all = sum(len(clip.motion_nF) for clip in clips)
    chosen = [clip for clip in clips[:: max(1, math.ceil(steps_in_all / ROWS_MOST))] if len(clip.actions_nA) > 1]
    if not chosen:
        return None
    place = {episode: number for number, episode in enumerate(sorted({clip.episode for clip in chosen}))}
    motion, scored = [], []
    news: dict[int, list[NDArray[np.float64]]] = {shift: [] for shift in SHIFTS}
    for clip, news_nA in zip(chosen, innovations([clip.actions_nA for clip in chosen])):
        steps = np.arange(1 - SHIFTS[0], len(clip.actions_nA) - SHIFTS[-1])
        motion.append(np.concatenate([clip.motion_nF[steps], clip.motion_nF[steps - 1]], 1))
        for shift in SHIFTS:
            news[shift].append(news_nA[steps + shift - 1])
        scored.append(np.full(len(steps), place[clip.episode] % SCORED == SCORED - 1))
    scored_R, news_RA = np.concatenate(scored), {shift: np.concatenate(parts) for shift, parts in news.items()}
    if len(scored_R) < ROWS_LEAST or not scored_R.any() or all(np.ptp(news_RA[0], axis=0) <= SAME):
        return None
    return Rows(np.concatenate(motion).astype(np.float64), news_RA, scored_R)


def innovations(actions: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Per episode (T - 1, a): actions 1 to T - 1 less what a linear prediction from the action before them gives."""
    before, after = (np.concatenate([part[cut] for part in actions]) for cut in (slice(None, -1), slice(1, None)))
    with_one = np.concatenate([before, np.ones((len(before), 1), np.float32)], 1).astype(np.float64)
    weight = np.linalg.lstsq(with_one, after.astype(np.float64), rcond=None)[0]
    return np.split(after - with_one @ weight, np.cumsum([len(part) - 1 for part in actions])[:-1])


def score(feature_RF: NDArray[np.float64], target_RA: NDArray[np.float64], scored_R: NDArray[np.bool_]) -> float:
    """R2 of a ridge regression on the rows it was not fitted on, over all targets that vary, each in its own scale."""
    fit_RF, fit_RA = feature_RF[~scored_R], target_RA[~scored_R]
    varies_A = np.ptp(fit_RA, axis=0) > SAME
    scale_F = np.maximum(fit_RF.std(0), FAINT * fit_RF.std(0).max())
    x_RF = (feature_RF - fit_RF.mean(0)) / np.where(scale_F > 0, scale_F, 1)
    y_RA = ((target_RA - fit_RA.mean(0)) / np.where(varies_A, fit_RA.std(0), 1))[:, varies_A]
    x, y = x_RF[~scored_R], y_RA[~scored_R]
    gram_FF = x.T @ x / len(x) + RIDGE * np.eye(x.shape[1])
    weight_FA = np.linalg.solve(gram_FF, x.T @ y / len(x))
    error_RA = y_RA[scored_R] - x_RF[scored_R] @ weight_FA
    return float(1 - np.square(error_RA).sum() / np.square(y_RA[scored_R]).sum())
