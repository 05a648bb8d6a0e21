"""A store for other tools: one foreign format per file, and the table of them."""

from lewm.data.exporters import hdf5, lerobot, videos
from lewm.data.exporters.exporter import ExportConfig, Exporter

EXPORTERS: dict[str, Exporter] = {
    "lerobot": lerobot.EXPORTER,
    "hdf5": hdf5.EXPORTER,
    "videos": videos.EXPORTER,
}
"""Format name -> how to write it."""
