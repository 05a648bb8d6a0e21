"""What every importer gives: an opened, counted foreign recording whose episodes are read one by one."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lewm.data.meta import Column
from lewm.data.writer import Episode


@dataclass(frozen=True)
class Choice:
    """What to take from a foreign recording. Every name is the source's own; empty means the format's usual one."""

    cameras: tuple[str, ...] = ()
    """Picture entries, in the order of the channels; empty: all of them."""
    action: str = ""
    """The entry that holds the actions."""
    state: tuple[str, ...] = ()
    """Entries whose numbers, side by side, become the state; empty: the usual one, or no state where there is none."""
    columns: tuple[str, ...] = ()
    """Other number entries to keep as extra columns."""


@dataclass(frozen=True)
class Recording:
    """A foreign recording, opened and checked as far as its headers go.

    Episodes come with T + 1 frames and T actions at the size they were recorded; action t leaves frame t. A format with
    as many actions as frames loses its last action, which leads nowhere.
    """

    source: str
    """Format and place, for the provenance."""
    episodes: int
    """How many there are."""
    cameras: tuple[str, ...]
    """Names of the cameras, as identifiers, in the order of the channels."""
    action_dim: int
    """Numbers in an action."""
    state_names: tuple[str, ...]
    """One name per number of a state; empty without states."""
    actions: Callable[[int], NDArray[np.float32]]
    """Actions (T, a) of an episode, as `read` gives them, without its pictures: bounds are found in a first pass."""
    read: Callable[[int], Episode]
    """One episode. Raises ValueError naming the file and the episode when something is missing or does not add up."""
    columns: tuple[Column, ...] = ()
    """Extra columns that `read` fills."""
    control_dt: float | None = None
    """Seconds per action, where the source says so."""
    action_low: tuple[float, ...] | None = None
    """Smallest action the source declares; None: whatever occurs."""
    action_high: tuple[float, ...] | None = None
    """Largest action the source declares."""
    task: str = ""
    """The source's own name for the task, if it has one."""
    angle_names: tuple[str, ...] = ()
    """State entries known to be angles in radians."""
    notes: tuple[str, ...] = ()
    """What the source holds and the import leaves out, one sentence each."""


@dataclass(frozen=True)
class Importer:
    """One row of the table."""

    what: str
    """One line for `lewm import --help`."""
    recognises: Callable[[Path], bool]
    """Whether this file or folder is in the format; reads no more than names and headers and never raises for a foreign
    file."""
    open: Callable[[Path, Choice], Recording]
    """Open it. Raises ValueError naming the entry that is missing and those that are there."""


def pick(name: str, names: list[str], usual: tuple[str, ...], what: str, where: Path) -> str:
    """The entry called `name`, or else the first usual one that is there.

    Raises ValueError naming all entries when it is not there.
    """
    for wanted in (name,) if name else usual:
        if wanted in names:
            return wanted
    wanted = repr(name) if name else " or ".join(map(repr, usual))
    raise ValueError(f"{where} has no {what} {wanted}; it has {', '.join(names) or 'nothing'}: name one of these")


def identifier(name: str) -> str:
    """A source's entry name as an identifier: `observation.images.top` becomes `observation_images_top`."""
    cleaned = "".join(c if c.isalnum() and c.isascii() else "_" for c in name).strip("_")
    return cleaned if cleaned and not cleaned[0].isdigit() else f"_{cleaned}"


def numbered(name: str, width: int) -> tuple[str, ...]:
    """Names for the numbers of an entry: `qpos` of width 2 is qpos_0, qpos_1; of width 1 just qpos."""
    clean = identifier(name)
    return (clean,) if width == 1 else tuple(f"{clean}_{i}" for i in range(width))


def join_cameras(pictures: list[NDArray[np.uint8]], where: str) -> NDArray[np.uint8]:
    """Frames (T, Y, X, 3) of several cameras as one array (T, Y, X, 3 V).

    Raises ValueError when their sizes or lengths differ.
    """
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"{where}: its cameras give frames of shapes {sorted(shapes)}; choose cameras of one size")
    return pictures[0] if len(pictures) == 1 else np.concatenate(pictures, axis=-1)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what libraries raise over a damaged or incomplete file into a ValueError that begins with `where`."""
    try:
        yield
    except (ValueError, OSError, KeyError, IndexError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
        message = str(error) or type(error).__name__
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from error


def extra(module: str, package: str) -> ModuleType:
    """An optional library; ImportError says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is needed to read this format: pip install 'lewm[import]'") from error
