"""The summary and the contact sheet show what is really in the store."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from toy_recordings import LENGTHS, make_episode, make_meta

from lewm.data.inspect import contact_sheet, describe
from lewm.data.meta import Column
from lewm.data.store import Store
from lewm.data.writer import StoreWriter


def test_the_summary_holds_the_numbers(write_store):
    text = describe(write_store())
    assert "5, 3-20 actions per episode (mean 10.2), 56 frames" in text
    assert "8 x 8 RGB, raw; one action lasts 0.1 s" in text
    assert re.search(r"state\.y +0 +20 +", text) and re.search(r"action\[0\] +0 +4 +", text)
    assert re.search(r"expert +1 +0\.3 +5\n", text)
    assert "success    40.0% of 5 episodes" in text and "unfinished" not in text


def test_the_summary_shows_extra_columns_and_an_unfinished_recording(tmp_path):
    provenance = replace(make_meta().provenance, episodes=9)
    meta = replace(make_meta(columns=(Column("reward", "action"),)), provenance=provenance)
    with StoreWriter(tmp_path / "s", meta) as writer:
        writer.write([replace(make_episode(0, 4), extra={"reward": np.arange(4.0)}, success=None)])
    text = describe(Store.open(tmp_path / "s"))
    assert re.search(r"reward +0 +3 +1\.5 +1\.118", text)
    assert "unfinished 1 of 9 episodes" in text and "success" not in text


def test_the_contact_sheet_holds_the_pictures(write_store, tmp_path):
    store = write_store()
    path = contact_sheet(store, tmp_path / "deep" / "sheet.png", episodes=[3, 1], frames=3, size=8)
    sheet = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    width = 8 + 2
    assert sheet.shape == (2 * width, 56 + 3 * width, 3)
    for row, episode in enumerate([3, 1]):
        for column, frame in enumerate([0, LENGTHS[episode] // 2, LENGTHS[episode]]):
            y, x = row * width, 56 + column * width
            np.testing.assert_array_equal(sheet[y : y + 8, x : x + 8], store.pixels(episode)[frame])
    with pytest.raises(IndexError, match="episode 9 is not in"):
        contact_sheet(store, tmp_path / "sheet.png", episodes=[9])
    with pytest.raises(ValueError, match="episodes is 0"):
        contact_sheet(store, tmp_path / "sheet.png", episodes=0)
