"""Checks of an audit that look at numbers: actions, states and extra columns."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lewm.data.audit_sample import Finding, Sample, Verdict, entry_name

SAME = 1e-6
"""Relative spread below which a column is constant: what is left is rounding of float32."""
AT_BOUND = 0.5
"""Share of actions at a bound from which a model sees mostly two values of that entry."""
USED = 0.5
"""Share of the allowed range below which a planner will mostly propose actions that were never recorded."""
OUTSIDE = 1e-3
"""How far outside its bounds an action may lie, as a share of their distance: rounding of other libraries."""
LAGS = (1, 2, 5, 10)
"""Steps between two actions that are compared."""
WHITE = 0.2
"""Correlation of neighbouring actions below which five of them mostly cancel: their sum is 2.4 instead of 5 wide."""
STUCK = 0.95
"""Correlation over ten steps above which an episode is nearly one action."""
LEADING = 4
"""State entries whose coverage is looked at, the first that vary."""
BINS = 10
"""Cells per state entry: 100 for a pair, so that 1,000 states could fill them ten times."""
OCCUPIED = 0.25
"""Share of the cells of a pair, as a mean over pairs; a circle or a diagonal path fills less than this."""
EVEN = 0.5
"""Entropy of an entry's histogram over its largest possible one; half of it is about three of ten cells."""
MOVES = 1e-3
"""Change of an entry in one step, as a share of its range, that counts as a move: below it, contact solvers jitter."""
TOUCHED = 0.05
"""Share of steps in which something must move for a model to learn what moves it."""
BLOCK, BLOCKS = 5, 3
"""Steps per block and blocks in the shortest window worth training on."""


def non_finite(sample: Sample) -> Finding:
    """NaN and infinite numbers."""
    numbers = {name: float(count) for name, count in sample.broken.items()}
    if not numbers:
        return Finding("non_finite", "good", {}, "all numbers are finite")
    left_out = sample.store.num_episodes - len(sample.episodes)
    found = (
        f"{sum(sample.broken.values())} numbers are NaN or infinite ({', '.join(sample.broken)}; the first in "
        f"{sample.first_broken}); the {left_out} episodes that hold them are left out of the other checks"
    )
    return Finding("non_finite", "bad", numbers, found, "record or import again without these episodes (--broken skip)")


def constant(sample: Sample) -> Finding:
    """Entries that never change."""
    groups = {"action": np.concatenate(sample.actions), "state": np.concatenate(sample.states)}
    for column in sample.store.meta.columns:
        rows = [sample.store.column(column.name, episode) for episode in sample.episodes]
        groups[column.name] = np.concatenate([row.reshape(len(row), -1) for row in rows])
    still = {key: np.flatnonzero(_is_constant(values)) for key, values in groups.items()}
    names = [entry_name(sample.store, key, int(entry)) for key, entries in still.items() for entry in entries]
    if not names:
        return Finding("constant", "good", {"entries": 0.0}, "every action, state and extra entry varies")
    numbers = {"entries": float(len(names))}
    found = f"{', '.join(names)} never change{'s' if len(names) == 1 else ''}"
    if len(still["action"]) == sample.store.meta.action_dim:
        return Finding(
            "constant", "bad", numbers, found, "nothing can be learned about actions that do not vary: record others"
        )
    do = "leave them out when importing, or record something in which they vary; a planner searches over every action"
    return Finding("constant", "look", numbers, found, do)


def action_range(sample: Sample) -> Finding:
    """How much of the allowed range actions use, and how often they sit at its ends."""
    actions, meta = np.concatenate(sample.actions).astype(np.float64), sample.store.meta
    low, high = np.array(meta.action_low), np.array(meta.action_high)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    at_bound = ((actions <= low + SAME * span) | (actions >= high - SAME * span)).mean(axis=0)
    used = (actions.max(axis=0) - actions.min(axis=0)) / span
    outside = ((actions < low - OUTSIDE * span) | (actions > high + OUTSIDE * span)).any(axis=1).mean()
    numbers = {"at_bound": float(at_bound.max()), "used": float(used.min()), "outside": float(outside)}
    found = f"{at_bound.max():.1%} of the values of action[{at_bound.argmax()}] sit at a bound, the most of any entry"
    if outside > 0:
        found = f"{outside:.1%} of the actions lie outside the bounds {low.tolist()} to {high.tolist()}"
        do = "plans stay inside the bounds: import again with the true --action-low and --action-high"
        return Finding("action_range", "bad", numbers, found, do)
    if at_bound.max() > AT_BOUND:
        do = "if a controller saturates, record with less gain or noise: the model sees few actions in between"
        return Finding("action_range", "look", numbers, found, do)
    if used.min() < USED:
        found = f"action[{used.argmin()}] uses {used.min():.1%} of the range between its bounds"
        do = "a planner proposes the whole range: record larger actions, or import with the bounds that occur"
        return Finding("action_range", "look", numbers, found, do)
    return Finding("action_range", "good", numbers, f"{found}; every entry uses {used.min():.1%} of its range or more")


def autocorrelation(sample: Sample) -> Finding:
    """Whether actions keep a direction from step to step."""
    correlation = {lag: lagged_correlation(sample.actions, lag) for lag in LAGS}
    known = {lag: value for lag, value in correlation.items() if value is not None}
    numbers = {f"lag_{lag}": value for lag, value in known.items()}
    if LAGS[0] not in known:
        found = "the actions do not vary, or every episode has a single one"
        return Finding("autocorrelation", "look", numbers, found, "record actions that vary within an episode")
    found = "correlation of actions " + ", ".join(f"{lag} apart {value:.2f}" for lag, value in known.items())
    if known[LAGS[0]] < WHITE:
        do = (
            "actions like white noise cancel within a block, so little moves, and the steady actions a planner tries "
            "were never seen: record with a correlated or an expert policy"
        )
        return Finding("autocorrelation", "look", numbers, found, do)
    if known.get(LAGS[-1], 0.0) > STUCK:
        do = "an episode is nearly one action: record policies that change their mind, or add noise"
        return Finding("autocorrelation", "look", numbers, found, do)
    return Finding("autocorrelation", "good", numbers, found)


def lagged_correlation(actions: tuple[NDArray[np.float32], ...], lag: int) -> float | None:
    """Correlation of actions `lag` steps apart within episodes, mean over the entries that vary; None where none does.

    The mean and the variance are those of all actions together, so that an episode of one action counts as steady.
    """
    together = np.concatenate(actions).astype(np.float64)
    mean, variance = together.mean(axis=0), together.var(axis=0)
    varying = ~_is_constant(together)
    centred = [(episode - mean)[:, varying] for episode in actions]
    products = [episode[:-lag] * episode[lag:] for episode in centred if len(episode) > lag]
    if not products or not varying.any():
        return None
    return float((np.concatenate(products).mean(axis=0) / variance[varying]).mean())


def coverage(sample: Sample) -> Finding:
    """How evenly the recorded states fill their own range."""
    states, meta = np.concatenate(sample.states).astype(np.float64), sample.store.meta
    entries = np.flatnonzero(~_is_constant(states))[:LEADING].tolist()
    if not entries:
        return Finding("coverage", "good", {}, "not checked: there are no states, or none varies")
    cells = {entry: _cells(states[:, entry], bool(sample.angles_S[entry])) for entry in entries}
    evenness = {f"evenness {meta.state_names[entry]}": _evenness(cell) for entry, cell in cells.items()}
    occupied = {
        f"occupied {meta.state_names[a]}, {meta.state_names[b]}": len(np.unique(BINS * cells[a] + cells[b])) / BINS**2
        for a, b in combinations(entries, 2)
    }
    mean, least = float(np.mean(list(occupied.values()) or [1.0])), min(evenness, key=lambda name: evenness[name])
    found = f"entropy of {least.removeprefix('evenness ')} is {evenness[least]:.2f} of an even spread"
    if occupied:
        found = f"pairs of state entries occupy {mean:.0%} of a {BINS} x {BINS} grid over what occurs; the {found}"
    verdict: Verdict = "good" if mean >= OCCUPIED and evenness[least] >= EVEN else "look"
    do = "the model will know a few paths only: record from more starts, to more goals, or with more noise"
    return Finding("coverage", verdict, evenness | occupied, found, "" if verdict == "good" else do)


def movement(sample: Sample) -> Finding:
    """How often each state entry moves: something that is only moved by contact moves seldom."""
    names = sample.store.meta.state_names
    if not names:
        return Finding("movement", "good", {}, "not checked: there are no states")
    states, changes = (
        np.concatenate(sample.states).astype(np.float64),
        np.concatenate([sample.changes(episode) for episode in sample.states]),
    )
    span = np.where(sample.angles_S, 2 * np.pi, np.ptp(states, axis=0))
    share = (np.abs(changes) > MOVES * np.maximum(span, np.finfo(np.float32).tiny)).mean(axis=0)
    numbers = dict(zip(names, share.tolist()))
    fixed = [name for name in names if numbers[name] == 0]
    moving = {name: value for name, value in numbers.items() if name not in fixed}
    if not moving:
        do = "check that the states are those of the pictures, and that the actions were executed"
        return Finding("movement", "bad", numbers, "no state entry moves within an episode", do)
    least = min(moving, key=lambda name: moving[name])
    found = f"{least} moves in {moving[least]:.1%} of the steps, the least of the entries that move"
    found += f"; fixed within an episode: {', '.join(fixed)}" if fixed else ""
    if moving[least] >= TOUCHED:
        return Finding("movement", "good", numbers, found)
    do = "the model will hardly see what moves it: record a policy that touches it more often"
    return Finding("movement", "look", numbers, found, do)


def lengths(sample: Sample) -> Finding:
    """Whether episodes are long enough for a window."""
    length, need = sample.store.episodes["length"], BLOCK * BLOCKS
    short = float((length < need).mean())
    numbers = {"shortest": float(length.min()), "median": float(np.median(length)), "longest": float(length.max())}
    numbers["too_short"] = short
    found = f"episodes have {length.min()} to {length.max()} actions, median {np.median(length):g}"
    if short == 0:
        return Finding("lengths", "good", numbers, found)
    found += f"; {short:.1%} have fewer than {need}, which is {BLOCKS} blocks of {BLOCK}"
    if short == 1:
        return Finding("lengths", "bad", numbers, found, "record longer episodes, or train with a smaller frame_skip")
    do = "short episodes give no window and are not trained on: fine if they are few"
    return Finding("lengths", "look", numbers, found, do)


def _is_constant(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Per entry; an array without rows has no constant entry."""
    if not len(values):
        return np.zeros(values.shape[1], bool)
    return np.ptp(values, axis=0) <= SAME * np.maximum(np.abs(values).max(axis=0), 1e-12)


def _cells(values: NDArray[np.float64], angle: bool) -> NDArray[np.int64]:
    """The cell of each value, 0 to BINS - 1: of its range, or of the whole turn for an angle."""
    if angle:
        share = (values % (2 * np.pi)) / (2 * np.pi)
    else:
        share = (values - values.min()) / np.ptp(values)
    return np.minimum((BINS * share).astype(np.int64), BINS - 1)


def _evenness(cells: NDArray[np.int64]) -> float:
    """Entropy of a histogram over its largest value: 0 for one cell, 1 for all alike."""
    share = np.bincount(cells, minlength=BINS) / len(cells)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / np.log(BINS))
