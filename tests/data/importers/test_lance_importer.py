"""Lance tables: what is checked beyond the contract of all importers."""

from pathlib import Path

import numpy as np
import pytest
from recordings import make_lance

from lewm.data.importers.lance import open_lance
from lewm.data.importers.recording import Choice

lance = pytest.importorskip("lance", reason="pylance is not part of the extras", exc_type=ImportError)


def test_state_comes_from_the_usual_column(tmp_path: Path) -> None:
    path, _ = make_lance(tmp_path)
    assert open_lance(path, Choice()).state_names == ("state_0", "state_1", "state_2")
    assert open_lance(tmp_path, Choice()).episodes == 3


def test_rows_of_an_episode_stand_together(tmp_path: Path) -> None:
    path, _ = make_lance(tmp_path)
    table = lance.dataset(str(path)).to_table()
    lance.write_dataset(table.take(np.r_[0:6, 6:10, 14:19, 10:14]), str(path), mode="overwrite")
    recording = open_lance(path, Choice())
    recording.read(0)
    with pytest.raises(ValueError, match=r"toy.lance, episode 1: the rows with episode_idx 1 do not stand together"):
        recording.read(1)


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    import pyarrow as pa

    path, _ = make_lance(tmp_path)
    table = lance.dataset(str(path)).to_table()
    blobs = table["pixels"].to_pylist()
    blobs[8] = b"no jpeg"
    table = table.set_column(table.schema.get_field_index("pixels"), "pixels", pa.array(blobs, pa.binary()))
    lance.write_dataset(table, str(path), mode="overwrite")
    with pytest.raises(ValueError, match=r"toy.lance, episode 1: pixels, frame 2 is no picture that OpenCV can decode"):
        open_lance(path, Choice()).read(1)


def test_a_table_without_its_index_is_refused(tmp_path: Path) -> None:
    path, _ = make_lance(tmp_path)
    table = lance.dataset(str(path)).to_table().drop_columns(["step_idx"])
    lance.write_dataset(table, str(path), mode="overwrite")
    with pytest.raises(ValueError, match=r"has 19 rows and the columns .*; it needs episode_idx and step_idx"):
        open_lance(path, Choice())
