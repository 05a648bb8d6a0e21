"""Physical understanding: what a world model knows of its world, measured on held-out episodes. Command `lewm study`.

Every study is a file here with a config, `measure` (subject in, frozen rows out), `plot` and `table`; adding one is
that file, a row of `STUDIES` and its options in `lewm.commands.study`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lewm.study import probes, ranking, rollout, straightness, surprise


@dataclass(frozen=True)
class Study:
    """One row of the table."""

    config: type
    """Its settings, a frozen dataclass."""
    measure: Callable[..., Any]
    """(subject, config, quiet) -> result, with `rows` and `notes`."""
    plot: Callable[..., None]
    """(result, path): writes the PNG."""
    table: Callable[..., str]
    """rows -> text."""
    row: type
    """A frozen dataclass: what the JSON holds a list of."""


STUDIES: Mapping[str, Study] = {
    "probes": Study(probes.ProbesConfig, probes.measure, probes.plot, probes.table, probes.ProbeRow),
    "surprise": Study(surprise.SurpriseConfig, surprise.measure, surprise.plot, surprise.table, surprise.SurpriseRow),
    "straightness": Study(
        straightness.StraightnessConfig,
        straightness.measure,
        straightness.plot,
        straightness.table,
        straightness.StraightnessRow,
    ),
    "ranking": Study(ranking.RankingConfig, ranking.measure, ranking.plot, ranking.table, ranking.RankingRow),
    "rollout": Study(rollout.RolloutConfig, rollout.measure, rollout.plot, rollout.table, rollout.RolloutRow),
}
"""Name -> study."""
