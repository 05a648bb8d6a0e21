"""What the HDF5 formats share: telling an HDF5 file, opening it, and the entries of its datasets."""

from pathlib import Path
from typing import Any

from lewm.data.importers.arrays import Entry
from lewm.data.importers.recording import extra

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do; needs no library."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def open_hdf5(path: Path) -> Any:
    """Open for reading, with the compression filters of `hdf5plugin` (Blosc, Zstandard, ...) at hand.

    Raises ImportError saying how to install what is missing, ValueError when the file cannot be read.
    """
    extra("hdf5plugin", "hdf5plugin")
    try:
        return extra("h5py", "h5py").File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5 ({error}); copy it again") from error


def entries_of(group: Any, prefix: str = "") -> dict[str, Entry]:
    """Entries of the datasets of a group that have rows; strings and the like are left out."""
    return {
        prefix + name: Entry(item.shape[0], item.shape[1:], item.dtype)
        for name, item in group.items()
        if getattr(item, "shape", ()) and item.dtype.kind in "biuf"
    }
