"""`lewm bench data`: every store gives the same windows, rows say what was measured; no time is asserted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lewm.bench import data as module
from lewm.bench import data_memory, data_recording
from lewm.bench.data import SPEC, Amount, as_clips, batches, bench_data, bench_size, table, take_turns, warm
from lewm.bench.data_memory import Reading, bench_memory, in_child, write_noise
from lewm.bench.data_recording import Recording, bench_recording, timed
from lewm.bench.data_stores import STORES, Kind, Picks, open_native
from lewm.cli import main
from lewm.data.collect import CollectConfig, collect
from lewm.data.store import Store
from lewm.data.windows import Windows, batch_indices

CPU = torch.device("cpu")
TINY = Amount(sizes=(32,), episodes=3, steps=30, rounds=1, seconds=0.0, batch=4)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = CollectConfig(episodes=3, steps=24, noise=0.3, shard_episodes=2)
    return collect(config, "push_t", {"size": 32}, tmp_path_factory.mktemp("recorded") / "data")


def name(kind: Kind) -> str:
    return f"{kind.store}-{kind.codec}-{kind.resident}"


@pytest.mark.parametrize("kind", STORES, ids=name)
def test_every_store_gives_the_same_windows(kind: Kind, recorded: Store, tmp_path: Path) -> None:
    """All of them, up to the last frames of the last episode; a lossy one shows the right frame, not its neighbour."""
    if kind.resident == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if kind.store == "lance":
        pytest.importorskip("lance", reason="pylance is not part of the extras")
    windows = Windows(recorded, SPEC, resident="disk")
    device = torch.device("cuda") if kind.resident == "gpu" else CPU
    read = kind.open(kind.make(recorded, tmp_path / "x"), recorded, SPEC, device)
    picks = Picks(np.arange(len(windows)), *windows.locate(np.arange(len(windows))))
    pixels, actions = as_clips(read(picks))
    for window, (episode, start) in enumerate(zip(picks.episode_B.tolist(), picks.start_B.tolist())):
        frames = recorded.pixels(episode)
        if not kind.lossy:
            np.testing.assert_array_equal(pixels[window], frames[start : start + 16 : 5])
        blocks = recorded.actions(episode)[start : start + 15].reshape(3, 10)
        np.testing.assert_array_equal(actions[window], blocks)
    if kind.lossy:
        offsets = {}
        for offset in (-1, 0, 1):
            shifted = [
                recorded.pixels(e)[np.clip(s + np.arange(0, 16, 5) + offset, 0, 24)].astype(int)
                for e, s in zip(picks.episode_B, picks.start_B)
            ]
            offsets[offset] = np.abs(pixels - np.stack(shifted)).mean()
        assert offsets[0] < 4 and min(offsets, key=lambda offset: offsets[offset]) == 0


def test_a_row_for_every_store_and_size() -> None:
    threads = torch.get_num_threads()
    rows = bench_data(replace(TINY, sizes=(32, 48)), threads=1, device=CPU)
    assert torch.get_num_threads() == threads
    assert [(r.size, r.store, r.codec, r.resident) for r in rows] == [
        (size, k.store, k.codec, k.resident) for size in (32, 48) for k in STORES
    ]
    raw = {r.size: r for r in rows if (r.store, r.codec, r.resident) == ("native", "raw", "disk")}
    for row in rows:
        assert (row.frames, row.frame_skip, row.batch, row.rounds, row.threads) == (4, 5, 4, 1, 1)
        if row.note:
            assert row.windows_per_s is row.slower is row.bytes_per_frame is row.pixel_error is None
            continue
        assert row.windows_per_s is not None and row.windows_per_s > 0 and row.bytes_per_frame is not None
        assert row.slower == raw[row.size].windows_per_s / row.windows_per_s
        assert row.pixel_error == 0 or row.codec in ("jpeg", "av1")
    noted = {(r.store, r.resident): r.note for r in rows if r.note}
    assert noted.keys() <= {("native", "gpu"), ("lance", "disk")}
    assert noted[("native", "gpu")] == "the device is cpu; it needs a CUDA one"
    assert 32 * 32 * 3 < raw[32].bytes_per_frame < 1.1 * 32 * 32 * 3
    (blosc,) = (r for r in rows if r.codec == "blosc" and r.size == 32)
    assert blosc.bytes_per_frame is not None and blosc.bytes_per_frame < 0.5 * raw[32].bytes_per_frame
    text = table(rows)
    assert len(text.splitlines()) == len(rows) + 6 and "it needs a CUDA one" in text and "1.0x" in text


def shifted(path: Path, store: Store, spec: Any, device: torch.device) -> Callable[[Picks], Any]:
    read = open_native(path, store, spec, device, "disk")
    return lambda picks: read(replace(picks, index_B=picks.index_B ^ 1))


def dimmed(path: Path, store: Store, spec: Any, device: torch.device) -> Callable[[Picks], Any]:
    read = open_native(path, store, spec, device, "disk")

    def dim(picks: Picks) -> Any:
        pixels, actions = as_clips(read(picks))
        return pixels // 2, actions

    return dim


@pytest.mark.parametrize("open, lossy, expected", [(shifted, False, "other windows"), (dimmed, False, "grey levels")])
def test_a_store_that_gives_something_else_is_refused(
    open: Callable[..., Any], lossy: bool, expected: str, recorded: Store, tmp_path: Path
) -> None:
    wrong = replace(STORES[0], store="wrong", open=open, lossy=lossy)
    with pytest.raises(ValueError, match=f"wrong raw.*{expected}"):
        bench_size(recorded, 32, tmp_path, TINY, CPU, (STORES[0], wrong), lambda: None)


def test_a_lossy_store_may_differ_a_little_and_not_a_lot(recorded: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="grey levels"):
        bench_size(recorded, 32, tmp_path, TINY, CPU, (replace(STORES[0], open=dimmed, lossy=True),), lambda: None)


def test_stores_take_turns_and_begin_at_the_same_windows(recorded: Store) -> None:
    windows, seen = Windows(recorded, SPEC, resident="disk"), []
    readers = {
        STORES[0]: lambda picks: seen.append(("a", picks.index_B.tolist())),
        STORES[1]: lambda picks: seen.append(("b", picks.index_B.tolist())),
    }
    speeds = take_turns(readers, windows, replace(TINY, rounds=2))
    assert [who for who, _ in seen] == ["a", "b", "a", "b"] and speeds.keys() == readers.keys()
    assert seen[0][1] == seen[1][1] == batch_indices(0, 0, len(windows), 4).tolist() != seen[2][1]


def test_speed_is_windows_over_time_of_the_middle_round(recorded: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds in which a batch of 4 takes 1, 4 and 2 seconds, reading for 3 seconds: 12, 4 and 8 windows."""
    windows, now, turn = Windows(recorded, SPEC, resident="disk"), [0.0], []
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def read(picks: Picks) -> None:
        first = batch_indices(len(turn), 0, len(windows), 4).tolist() == picks.index_B.tolist()
        turn.extend([None] * first)
        now[0] += (1.0, 4.0, 2.0)[len(turn) - 1]

    speeds = take_turns({STORES[0]: read}, windows, replace(TINY, rounds=3, seconds=3.0))
    assert speeds[STORES[0]] == pytest.approx(np.median([12 / 3, 4 / 4, 8 / 4]))


def test_windows_come_in_training_order_without_end(recorded: Store) -> None:
    windows = Windows(recorded, SPEC, resident="disk")
    several = batches(windows, 3, 16)
    for step in range(4):
        picks = next(several)
        assert picks.index_B.tolist() == batch_indices(3, step, len(windows), 16).tolist()
        assert picks.start_B.tolist() == windows.locate(picks.index_B)[1].tolist()


def test_warming_reads_every_byte(recorded: Store, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(3_000_000))
    (tmp_path / "a" / "d").write_bytes(bytes(5))
    assert warm(tmp_path / "a") == 3_000_005 and warm(tmp_path / "a" / "d") == 5
    with pytest.raises(ValueError, match="batch is 0"):
        Amount(batch=0)
    with pytest.raises(ValueError, match="sizes is empty"):
        Amount(sizes=())


def test_recording_speed_of_tasks_and_renderers() -> None:
    rows = bench_recording(
        Recording(tasks=("two_room",), processes=(1,), sizes=(32, 40), episodes=3, steps=4, shard_episodes=1)
    )
    assert [(r.renderer, r.size) for r in rows] == [("painter", 32), ("painter", 40), ("camera", 32), ("camera", 40)]
    for row in rows[:2]:
        assert row.frames == 15 and row.policy == "expert" and not row.note and row.processes == 1
        assert row.frames_per_s is not None and row.start_s is not None and min(row.frames_per_s, row.start_s) > 0
        assert row.bytes_per_frame is not None and row.size**2 * 3 < row.bytes_per_frame < 1.5 * row.size**2 * 3
    for row in rows[2:]:
        assert row.frames_per_s is row.bytes_per_frame is None and "TwoRoom has no renderer 'camera'" in row.note
    text = data_recording.table(rows)
    assert len(text.splitlines()) == 1 + 4 + 4 and "expert" in text and "no renderer" in text


def test_the_clock_of_a_recording_starts_with_the_first_shard_of_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, shards of 5: shards end 4, 5, 8 and 10 seconds after the begin, the clock runs from 5 to 10."""
    now = [100.0]

    def fake(config: CollectConfig, task: str, settings: Any, path: Path, processes: int, progress: Any) -> str:
        for done, second in ((0, 1.0), (5, 4.0), (10, 5.0), (15, 8.0), (20, 10.0)):
            now[0] = 100.0 + second
            progress(done, 20)
        return "store"

    monkeypatch.setattr(data_recording, "collect", fake)
    monkeypatch.setattr(data_recording, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    config = CollectConfig(episodes=20, steps=9, shard_episodes=5)
    assert timed(config, "two_room", {}, tmp_path, 2) == ("store", (10 * 10 / 5.0, 5.0))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"tasks": ("chess",)}, "task 'chess' is unknown"),
        ({"processes": (0,)}, "must be 1 or more"),
        ({"sizes": ()}, "sizes is empty"),
        ({"episodes": 20}, "must be more than 20"),
    ],
)
def test_recordings_that_cannot_be(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Recording(**options)


def test_a_store_larger_than_the_limit_is_read_from_disk_and_does_not_fit_into_ram(tmp_path: Path) -> None:
    """Three times the limit: a private copy of it would break the limit, which the second process shows."""
    limit = 32
    size = write_noise(tmp_path / "s", 3 * limit * 1e6)
    assert 96e6 <= size < 98e6
    disk, ram = (in_child(tmp_path / "s", resident, limit) for resident in ("disk", "ram"))
    windows = len(Windows(Store.open(tmp_path / "s"), SPEC, resident="disk"))
    assert disk.ended == "read whole" and windows - 64 < disk.windows <= windows
    assert disk.grown_mb < limit < 96 < disk.mapped_mb and disk.peak_rss_mb > disk.begin_mb
    assert ram.windows == 0 and "allocate" in ram.ended


def test_a_child_that_dies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the process that reads from disk ended with 1: .*meta\.json"):
        in_child(tmp_path, "disk", 32)
    with pytest.raises(ValueError, match="--limit-mb is 5, it must be at least 32"):
        bench_memory(5)


def test_the_memory_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    read = Reading(640, 12.5, 150.0, 2.0, 700.0, 860.0, "read whole")
    monkeypatch.setattr(data_memory, "write_noise", lambda path, size: made.append(size) or int(size))
    monkeypatch.setattr(data_memory, "in_child", lambda path, resident, limit_mb: read)
    rows = bench_memory(200)
    assert made == [600e6] and [(r.resident, r.store_mb, r.limit_mb) for r in rows] == [
        ("disk", 600, 200),
        ("ram", 600, 200),
    ]
    text = data_memory.table(rows)
    assert "store of 600 MB, 200 MB of private memory" in text and text.count("read whole") == 2
    assert {"resident", "windows_per_s", "grown_mb", "mapped_mb", "peak_rss_mb", "ended", "load"} <= vars(
        rows[0]
    ).keys()


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "rows.json"
    monkeypatch.setattr(module, "QUICK", TINY)
    monkeypatch.setattr(module.bench_data, "__defaults__", (STORES[:2],))
    main(["bench", "data", "--quick", "--sizes", "40", "--batch", "2", "--device", "cpu", "--json", str(file)])
    assert "native   raw    disk       40" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert len(rows) == 2 and rows[0]["batch"] == 2
    assert {"store", "codec", "size", "windows_per_s", "bytes_per_frame"} <= rows[0].keys()
    words = ["--tasks", "two_room", "--processes", "1", "--json", str(file)]
    main(["bench", "data", "--recording", "--quick", *words])
    assert "two_room" in capsys.readouterr().out and json.loads(file.read_text())[0]["frames_per_s"] > 0


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--limit-mb", "100"], "--limit-mb does nothing for reading; leave it out"),
        (["--recording", "--batch", "3"], "--batch does nothing for recording"),
        (["--memory", "--tasks", "two_room"], "--tasks does nothing for memory"),
        (["--memory", "--limit-mb", "1"], "--limit-mb is 1, it must be at least 32"),
        (["--recording", "--memory"], "not allowed with argument --recording"),
        (["--rounds", "0"], "rounds is 0, it must be at least 1"),
        (["--recording", "--processes", "0"], "it must be 1 or more each"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "data", *words])
    assert stopped.value.code in (1, 2)
    error = capsys.readouterr().err
    assert expected in error.splitlines()[-1] and "Traceback" not in error
