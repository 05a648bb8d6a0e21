"""`lewm audit`: what is wrong with a recording, before anybody trains on it; one row of `AUDITS` per check."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lewm.data.audit_pictures import brightness, duplicates, frozen
from lewm.data.audit_probe import actions_fit
from lewm.data.audit_sample import AuditConfig, Finding, Progress, Sample, read_sample
from lewm.data.audit_values import (
    action_range,
    autocorrelation,
    constant,
    coverage,
    lengths,
    movement,
    non_finite,
)
from lewm.data.store import Store

AUDITS: dict[str, Callable[[Sample], Finding]] = {
    "non_finite": non_finite,
    "constant": constant,
    "lengths": lengths,
    "duplicates": duplicates,
    "action_range": action_range,
    "autocorrelation": autocorrelation,
    "coverage": coverage,
    "movement": movement,
    "brightness": brightness,
    "frozen": frozen,
    "actions_fit": actions_fit,
}
"""Name -> check."""


@dataclass(frozen=True)
class Audit:
    """What an audit found, and how much it looked at."""

    looked_at: str
    """One line that says so."""
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The worst of all verdicts."""
        verdicts = {finding.verdict for finding in self.findings}
        return next(v for v in ("bad", "look", "good") if v in verdicts)


def audit(store: Store, config: AuditConfig | None = None, progress: Progress | None = None) -> Audit:
    """Run every check; where no episode is free of NaN only the one that says so.

    `progress` is called with (clips of pictures read, clips in all).
    """
    sample = read_sample(store, config or AuditConfig(), progress)
    checks = list(AUDITS.values()) if sample.episodes else [non_finite]
    pictures = len({clip.episode for clip in sample.clips})
    looked_at = (
        f"the numbers of all {store.num_episodes} episodes, and the pictures of {sample.steps} of their "
        f"{store.num_frames - store.num_episodes} steps ({pictures} episodes)"
    )
    return Audit(looked_at, tuple(check(sample) for check in checks))


def table(result: Audit) -> str:
    """The findings as text: verdict, check, what was found, what to do."""
    lines = [f"looked at {result.looked_at}", ""]
    for finding in result.findings:
        lines.append(f"{finding.verdict:<5} {finding.name:<16} {finding.found}")
        if finding.do:
            lines.append(f"{'':<22} -> {finding.do}")
    return "\n".join([*lines, "", f"verdict {result.verdict}: {_counted(result.findings)}"])


def _counted(findings: Sequence[Finding]) -> str:
    count = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in ("good", "look", "bad"))
