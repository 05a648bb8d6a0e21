"""Arrays inside a `.npz`: their headers, and their rows read in order without ever holding a whole array."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


@dataclass(frozen=True)
class Header:
    """What the beginning of a stored array says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    """Whether it is stored column by column."""
    start: int
    """Byte at which the numbers begin."""


def headers(file: Path) -> dict[str, Header]:
    """Name -> header of every array. Raises ValueError when the file is no readable archive of arrays."""
    try:
        with ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            return {name: _header(archive, name) for name in names}
    except (OSError, BadZipFile, ValueError) as error:
        raise ValueError(f"{file} is not a readable .npz archive ({error})") from error


class Rows:
    """Rows of one array of an archive, unpacked as far as they are asked for; going back starts from the beginning.

    Raises ValueError for an array that is not stored row by row as plain numbers.
    """

    def __init__(self, file: Path, name: str) -> None:
        with ZipFile(file) as archive:
            self.header = _header(archive, name)
        if self.header.fortran or self.header.dtype.hasobject:
            raise ValueError(
                f"{file}: {name} is not stored row by row as plain numbers; save it again with numpy.savez"
            )
        self.shape = self.header.shape
        self._archive = ZipFile(file)
        self._member = self._archive.open(f"{name}.npy")

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        shape = (stop - start, *self.shape[1:])
        width = int(np.prod(shape[1:], dtype=int)) * self.header.dtype.itemsize
        self._member.seek(self.header.start + start * width)
        data = self._member.read(shape[0] * width)
        if len(data) != shape[0] * width:
            raise ValueError(f"the archive ends within rows {start} to {stop - 1}")
        return np.frombuffer(data, self.header.dtype).reshape(shape)


def _header(archive: ZipFile, name: str) -> Header:
    with archive.open(f"{name}.npy") as member:
        shape, fortran, dtype = _read_header(member)
        return Header(shape, dtype, fortran, member.tell())


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return shape, fortran, dtype
