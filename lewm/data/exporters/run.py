"""`lewm export`: a store in a foreign format, whole or not at all."""

from dataclasses import replace
from pathlib import Path

from lewm.data.building import built_beside
from lewm.data.exporters import EXPORTERS
from lewm.data.exporters.exporter import ExportConfig, Exporter, Progress
from lewm.data.store import Store


def export_store(store: Store, out: Path, config: ExportConfig, progress: Progress | None = None) -> Path:
    """Write `store` to `out`, which must not exist; a failed export leaves nothing there, and what a killed one left
    is removed. `progress` hears how many of how many episodes are written.

    Raises ValueError for a format or codec that is not known or that cannot hold the store, FileExistsError.
    """
    exporter, config = _checked(out, config)
    if out.exists():
        raise FileExistsError(f"{out} is there: remove it, or choose another --out")
    with built_beside(out, "exporting") as building:
        exporter.write(store, building, config, progress or (lambda done, total: None))
    return out


def _checked(out: Path, config: ExportConfig) -> tuple[Exporter, ExportConfig]:
    if config.format not in EXPORTERS:
        raise ValueError(f"format is {config.format!r}; there are {', '.join(EXPORTERS)}")
    exporter = EXPORTERS[config.format]
    codec = config.codec or exporter.codecs[0]
    if codec not in exporter.codecs:
        raise ValueError(f"codec is {codec!r}; {config.format} has {', '.join(exporter.codecs)}")
    if exporter.suffixes and out.suffix not in exporter.suffixes:
        raise ValueError(f"{out} must end in {' or '.join(exporter.suffixes)}: {config.format} is one file")
    return exporter, replace(config, codec=codec)
