"""What is written whole or not at all: built beside its place, then renamed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def built_beside(out: Path, doing: str) -> Iterator[Path]:
    """The path in a folder `OUT.doing` at which to build a file or a folder; it becomes `out`, an empty folder or
    nothing until then, and a failure leaves nothing of it.

    What a killed call left is removed. Raises FileExistsError where the folder holds anything else.
    """
    home = out.with_name(f"{out.name}.{doing}")
    building = home / out.name
    if home.exists():
        if not home.is_dir() or any(path != building for path in home.iterdir()):
            raise FileExistsError(
                f"{home} is in the way, and not what a killed call left: move it, or choose another --out"
            )
        shutil.rmtree(home)
    home.mkdir(parents=True)
    try:
        yield building
        if out.is_dir():
            out.rmdir()
        building.rename(out)
    finally:
        shutil.rmtree(home, ignore_errors=True)
