"""The report's drawings: to scale, with round ticks, whole when numbers are missing or flat."""

import base64
import itertools

import cv2
import numpy as np

from lewm.evaluate.report import distance_bins
from lewm.evaluate.report_figures import Line, chart, interval_bar, linear, logarithmic, picture, share, time_bars


def test_distance_bins_cover_every_problem_once_and_in_order() -> None:
    distances = np.random.default_rng(0).random(103)
    bins = distance_bins(distances)
    assert len(bins) == 5 and sorted(np.concatenate(bins).tolist()) == list(range(103))
    assert all(20 <= len(b) <= 21 for b in bins)
    assert all(distances[a].max() < distances[b].min() for a, b in itertools.pairwise(bins))
    assert [b.tolist() for b in distance_bins(np.ones(30))] == [list(range(30))]
    assert [b.tolist() for b in distance_bins(np.array([2.0]))] == [[0]]


def test_axes_have_round_ticks_and_survive_flat_data() -> None:
    axis = linear("x", np.array([0.0, 0.93]), zero=True)
    assert axis.ticks == (0.0, 0.2, 0.4, 0.6, 0.8) and axis.place(0.93) == 1
    assert linear("x", np.array([1.0, 3.0]), whole=True).ticks == (1.0, 2.0, 3.0)
    for flat in (np.array([2.0]), np.zeros(3), np.zeros(0), np.array([-4.0])):
        for zero in (True, False):
            axis = linear("x", flat, zero=zero)
            assert axis.low < axis.high and axis.ticks
    assert logarithmic("ms", np.array([0.02, 130.0])).ticks == (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    assert logarithmic("ms", np.array([0.0])).low > 0


def test_a_chart_breaks_its_line_where_numbers_are_missing() -> None:
    line = Line([0, 1, 2, 3, 4], [0.1, 0.2, np.nan, 0.4, 0.5], dots=2)
    svg = chart([line], linear("x", np.arange(5.0)), share("<y>"), "a title")
    assert svg.count("<polyline") == 2 and svg.count("<circle") == 4 and "&lt;y&gt;" in svg and "nan" not in svg


def test_the_interval_bar_is_to_scale() -> None:
    svg = interval_bar(0.5, 0.25, 0.75)
    assert 'x="30.0" y="3" width="60.0"' in svg and 'x="58.5" y="0" width="3"' in svg
    assert 'x="117.0"' in interval_bar(1.0, 0.98, 1.0) and 'x="0.0"' in interval_bar(0.0, 0.0, 0.1)


def test_time_bars_name_every_method_and_its_time() -> None:
    svg = time_bars([("fast <1>", 0.5, 2.0, 3.0, "s0"), ("slow", 0.0, 130.0, 150.0, "s1")])
    assert "fast &lt;1&gt;" in svg and "2.5, encoder 0.50" in svg and ">130<" in svg


def test_pictures_are_exact_when_small_and_bounded_when_large() -> None:
    def decode(uri: str) -> np.ndarray:
        raw = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
        return cv2.cvtColor(cv2.imdecode(raw, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    plain = np.full((64, 64, 3), (200, 30, 60), np.uint8)
    plain[10:20, 30:40] = (0, 90, 255)
    assert picture(plain).startswith("data:image/png") and np.array_equal(decode(picture(plain)), plain)
    noisy = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    assert decode(picture(noisy)).shape == (96, 64, 3) and len(picture(noisy)) < 12_000
