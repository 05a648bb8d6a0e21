"""Everybody's recordings: one foreign format per file, and the table of them."""

from lewm.data.importers import lance, lerobot, minari, npz, ogbench, robomimic, stable_worldmodel, videos, zarr_store
from lewm.data.importers.recording import Choice, Importer, Recording

IMPORTERS: dict[str, Importer] = {
    "npz": npz.IMPORTER,
    "swm_hdf5": stable_worldmodel.IMPORTER,
    "lance": lance.IMPORTER,
    "robomimic": robomimic.IMPORTER,
    "zarr": zarr_store.IMPORTER,
    "minari": minari.IMPORTER,
    "ogbench": ogbench.IMPORTER,
    "lerobot": lerobot.IMPORTER,
    "videos": videos.IMPORTER,
}
"""Format name -> how to recognise and open it. The first that recognises a place reads it."""
