"""Everybody's recordings: one foreign format per file, and the table of them."""

from lewm.data.importers import npz
from lewm.data.importers.recording import Choice, Importer, Recording

IMPORTERS: dict[str, Importer] = {
    "npz": npz.IMPORTER,
}
"""Format name -> how to recognise and open it. The first that recognises a place reads it."""
