"""Windows against a brute-force reading of the same episodes, from disk and from RAM."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_recordings import LENGTHS, make_episode, make_meta

from lewm.data.stacking import stack_frames
from lewm.data.store import Store
from lewm.data.windows import Windows, WindowSpec, batch_indices, free_memory
from lewm.data.writer import StoreWriter


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path: Path = tmp_path_factory.mktemp("windows") / "s"
    with StoreWriter(path, make_meta()) as writer:
        writer.write((make_episode(i, n) for i, n in enumerate(LENGTHS)), shard_episodes=2)
    return Store.open(path)


def brute_force(spec: WindowSpec, episodes: list[int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every window by plain loops: pixels (T, C, Y, X), action blocks (T - 1, A), states (T, S)."""
    found = []
    for number in episodes:
        episode = make_episode(number, LENGTHS[number])
        for start in range(len(episode.pixels)):
            times = [start + t * spec.frame_skip for t in range(spec.length)]
            if times[-1] >= len(episode.pixels):
                continue
            pixels = []
            for time in times:
                history = [max(time - k * spec.stack_stride, 0) for k in reversed(range(spec.frame_stack))]
                pixels.append(np.concatenate([episode.pixels[h].transpose(2, 0, 1) for h in history]))
            blocks = [episode.actions[time : time + spec.frame_skip].ravel() for time in times[:-1]]
            found.append(
                (np.stack(pixels), np.array(blocks).reshape(len(blocks), spec.frame_skip * 2), episode.states[times])
            )
    return found


specs = st.builds(
    WindowSpec,
    length=st.integers(1, 4),
    frame_skip=st.integers(1, 4),
    frame_stack=st.integers(1, 3),
    stack_stride=st.integers(1, 4),
)
subsets = st.lists(st.sampled_from(range(5)), min_size=1, max_size=5, unique=True)


@settings(max_examples=60, deadline=None)
@given(spec=specs, episodes=subsets, resident=st.sampled_from(["disk", "ram"]), seed=st.integers(0, 99))
def test_windows_equal_brute_force(store, spec, episodes, resident, seed):
    expected = brute_force(spec, episodes)
    if not expected:
        with pytest.raises(ValueError, match="no episode is long enough"):
            Windows(store, spec, np.array(episodes), resident)
        return
    windows = Windows(store, spec, np.array(episodes), resident)
    assert len(windows) == len(expected)
    index_B = np.random.default_rng(seed).integers(0, len(windows), 9)
    batch = windows.batch(index_B)
    assert (batch.pixels_BTCYX.dtype, batch.action_BTA.dtype, batch.state_BTS.dtype) == (
        torch.uint8,
        torch.float32,
        torch.float32,
    )
    for slot, index in enumerate(index_B):
        pixels, action, state = expected[index]
        np.testing.assert_array_equal(batch.pixels_BTCYX[slot].numpy(), pixels)
        np.testing.assert_array_equal(batch.action_BTA[slot].numpy(), action)
        np.testing.assert_array_equal(batch.state_BTS[slot].numpy(), state)
    np.testing.assert_array_equal(batch.index_B.numpy(), index_B)


@pytest.mark.parametrize("resident", ["disk", "ram"])
def test_no_window_crosses_an_episode(store, resident):
    windows = Windows(store, WindowSpec(length=3, frame_skip=2, frame_stack=2, stack_stride=3), resident=resident)
    batch = windows.batch(np.arange(len(windows)))
    episode_BTK = batch.pixels_BTCYX[:, :, ::3, 0, 0]
    assert (episode_BTK == episode_BTK[:, :1, :1]).all()
    assert (batch.action_BTA.unflatten(-1, (2, 2))[..., 0] == batch.state_BTS[:, :1, :1]).all()
    np.testing.assert_array_equal(batch.action_BTA[:, :, 1], batch.state_BTS[:, :-1, 1])  # block t leaves frame t
    episode_B, start_B = windows.locate(np.arange(len(windows)))
    np.testing.assert_array_equal(episode_B, batch.state_BTS[:, 0, 0])
    np.testing.assert_array_equal(start_B, batch.state_BTS[:, 0, 1])


def test_stacking_repeats_the_first_frame_oldest_first(store):
    windows = Windows(store, WindowSpec(length=1, frame_stack=3, stack_stride=2), np.array([1]), "ram")
    time_BK = windows.batch(np.arange(6)).pixels_BTCYX[:, 0, 1::3, 0, 0]
    assert time_BK.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 5]]


def test_the_agents_stacking_is_that_of_training(store):
    frames = list(store.pixels(1))
    windows = Windows(store, WindowSpec(length=1, frame_stack=3, stack_stride=2), np.array([1]), "disk")
    recorded = windows.batch(np.arange(13)).pixels_BTCYX[:, 0]
    for now in range(13):
        assert torch.equal(stack_frames(frames[: now + 1], 3, 2), recorded[now])
    batched = stack_frames([np.stack([frame, frame]) for frame in frames], 3, 2)
    assert batched.shape == (2, 9, 8, 8) and torch.equal(batched[1], recorded[-1])
    assert torch.equal(stack_frames([frames[4]], 3, 2), torch.from_numpy(frames[4]).permute(2, 0, 1).repeat(3, 1, 1))
    with pytest.raises(ValueError, match="frames is empty"):
        stack_frames([], 3, 2)


def test_encoded_stores_give_the_same_windows(write_store, store):
    index_B = np.array([0, 5, 17, 3])
    spec = WindowSpec(length=2, frame_skip=3, frame_stack=2)
    wanted = Windows(store, spec, resident="ram").batch(index_B).pixels_BTCYX
    encoded = write_store(codec="png")
    for resident in ("disk", "ram"):
        assert torch.equal(Windows(encoded, spec, resident=resident).batch(index_B).pixels_BTCYX, wanted)


def test_auto_takes_ram_when_it_fits_and_disk_when_not(store, monkeypatch):
    size = store.num_frames * 8 * 8 * 3
    monkeypatch.setattr("lewm.data.windows.free_memory", lambda: 2 * size)
    assert Windows(store, WindowSpec(2)).resident == "ram"
    monkeypatch.setattr("lewm.data.windows.free_memory", lambda: 2 * size - 2)
    assert Windows(store, WindowSpec(2)).resident == "disk"


def test_free_memory_is_plausible():
    assert 2**20 < free_memory() < 2**46


def test_bad_requests_are_refused(store):
    with pytest.raises(ValueError, match="frame_skip is 0, it must be at least 1"):
        WindowSpec(2, frame_skip=0)
    with pytest.raises(ValueError, match=r"needs 25 actions, the longest episode has 20"):
        Windows(store, WindowSpec(length=6, frame_skip=5))
    with pytest.raises(ValueError, match=r"episodes 0\.\.5: the store has episodes 0\.\.4"):
        Windows(store, WindowSpec(2), np.array([0, 5]))
    with pytest.raises(ValueError, match="at least one episode id"):
        Windows(store, WindowSpec(2), np.array([], np.int64))
    with pytest.raises(ValueError, match="resident is 'gpu' but the device is cpu"):
        Windows(store, WindowSpec(2), resident="gpu")
    with pytest.raises(ValueError, match="choose one of auto, disk, ram, gpu"):
        Windows(store, WindowSpec(2), resident="tape")
    windows = Windows(store, WindowSpec(2))
    with pytest.raises(IndexError, match=rf"window 0\.\.{len(windows)} is outside 0\.\.{len(windows) - 1}"):
        windows.batch(np.array([0, len(windows)]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), windows=st.integers(1, 60), batch=st.integers(1, 80), epochs=st.integers(1, 3))
def test_every_epoch_reads_every_window_once(seed, windows, batch, epochs):
    steps = -(-windows * epochs // batch)
    read = np.concatenate([batch_indices(seed, step, windows, batch) for step in range(steps)])
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(read[epoch * windows : (epoch + 1) * windows]), np.arange(windows))


def test_what_a_step_reads_depends_on_seed_and_step_only():
    later = batch_indices(1, 40, 1000, 64)
    for step in range(40):
        batch_indices(1, step, 1000, 64)
    np.testing.assert_array_equal(later, batch_indices(1, 40, 1000, 64))
    assert not np.array_equal(later, batch_indices(2, 40, 1000, 64))
    assert not np.array_equal(batch_indices(1, 0, 64, 64), batch_indices(1, 1, 64, 64))  # epochs differ in order
    with pytest.raises(ValueError, match="step -1 at least 0"):
        batch_indices(0, -1, 10, 2)


@pytest.mark.gpu
def test_gpu_residence_gives_the_same_windows(store):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    spec, index_B = WindowSpec(length=3, frame_skip=2, frame_stack=2), np.array([4, 0, 11])
    wanted = Windows(store, spec, resident="disk").batch(index_B)
    for resident in ("auto", "gpu", "ram", "disk"):
        windows = Windows(store, spec, resident=resident, device="cuda")
        assert resident != "auto" or windows.resident == "gpu"
        batch = windows.batch(index_B)
        for name in ("pixels_BTCYX", "action_BTA", "state_BTS", "index_B"):
            assert getattr(batch, name).device.type == "cuda"
            assert torch.equal(getattr(batch, name).cpu(), getattr(wanted, name))
