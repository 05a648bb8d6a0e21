"""The feature cache: what it says before it starts, what a kill costs, when it is refused, that it changes nothing."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import WIDTH, save_encoder
from torch import Tensor

from lewm.cli import main
from lewm.data.features import FeatureMeta, Features, ShardFeatures, folder_of
from lewm.data.store import Store
from lewm.data.windows import Windows
from lewm.nets.frozen import FrozenConfig, FrozenEncoder
from lewm.nets.frozen import cache as cache_module
from lewm.nets.frozen.cache import cache_features, encoder_features, features_for, plan_features
from lewm.nets.predictors import RotaryConfig
from lewm.train import model_facts
from lewm.world_model import ModelConfig, WorldModel

FRAME_BYTES = 4 * WIDTH * 4


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder") / "dinov2")


@pytest.fixture
def store(write_store: Callable[..., Store]) -> Store:
    """56 frames in 3 shards (21, 25 and 10), of 8 x 8 pixels."""
    return write_store()


@pytest.fixture
def config(encoder_path: Path) -> FrozenConfig:
    return FrozenConfig(path=str(encoder_path), grid=2)


def fill(store: Store, config: FrozenConfig, dtype: str = "float32", batch: int = 8) -> Features:
    return cache_features(plan_features(store, config, dtype), batch, quiet=True)


def by_hand(store: Store, config: FrozenConfig) -> Tensor:
    encoder = FrozenEncoder(config, 3, 8)
    pixels = np.concatenate([store.pixels(episode) for episode in range(store.num_episodes)])
    return encoder_features(encoder, torch.from_numpy(pixels).movedim(-1, 1))


def contents(features: Features, store: Store) -> np.ndarray:
    out = np.empty((store.num_frames, *features.meta.row), features.meta.dtype)
    features.read(np.arange(store.num_frames), out)
    return out


def test_features_of_every_frame_lie_beside_the_store(store: Store, config: FrozenConfig) -> None:
    features = fill(store, config)
    assert features.folder == folder_of(store, FrozenEncoder(config, 3, 8).key)
    assert sorted(path.name for path in features.folder.iterdir()) == [
        "00000.npy",
        "00001.npy",
        "00002.npy",
        "meta.json",
    ]
    assert features.meta.row == (1, 4, WIDTH) and features.meta.frame_bytes == FRAME_BYTES
    torch.testing.assert_close(
        torch.from_numpy(contents(features, store)), by_hand(store, config), rtol=1e-5, atol=1e-5
    )
    backwards = np.empty((3, 1, 4, WIDTH), np.float32)
    features.read(np.array([55, 20, 21]), backwards)
    assert np.array_equal(backwards, contents(features, store)[[55, 20, 21]])
    assert Store.open(store.path, verify=True).num_frames == 56


def test_half_precision_rounds_and_refuses_what_it_cannot_hold(
    store: Store, config: FrozenConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = fill(store, config, "float16")
    assert half.meta.frame_bytes == FRAME_BYTES // 2
    found = torch.from_numpy(contents(half, store).astype(np.float32))
    torch.testing.assert_close(found, by_hand(store, config), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="holds these features as float16: give --precision float16, or delete"):
        plan_features(store, config, "float32")
    shutil.rmtree(half.folder)
    monkeypatch.setattr(
        cache_module, "encoder_features", lambda encoder, pixels: torch.full((len(pixels), 1, 4, WIDTH), 7e4)
    )
    with pytest.raises(
        ValueError, match=r"features of frames 0\.\.7 .* beyond what float16 holds: use --precision float32"
    ):
        fill(store, config, "float16")
    monkeypatch.setattr(
        cache_module, "encoder_features", lambda encoder, pixels: torch.full((len(pixels), 1, 4, WIDTH), torch.nan)
    )
    with pytest.raises(ValueError, match="are not finite"):
        fill(store, config, "float32")


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Count the frames of every call of the encoder; die in call `stop_at`."""
    calls, real = [], cache_module.encoder_features

    def features(encoder: FrozenEncoder, pixels: Tensor) -> Tensor:
        if stop_at is not None and len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(len(pixels))
        return real(encoder, pixels)

    monkeypatch.setattr(cache_module, "encoder_features", features)
    return calls


@pytest.mark.parametrize(("save_every", "repeated"), [(0.0, 0), (1e9, 8)])
def test_a_killed_computation_goes_on_behind_its_last_safe_point(
    save_every: float, repeated: int, store: Store, config: FrozenConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after frames 21 + 8: with a safe point after every batch nothing is repeated, else the shard's batch."""
    wanted = by_hand(store, config)
    monkeypatch.setattr(cache_module, "SAVE_EVERY", save_every)
    counted(monkeypatch, stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        fill(store, config)
    plan = plan_features(store, config, "float32")
    assert plan.left == 56 - 29 + repeated
    with pytest.raises(ValueError, match=r"has features of \d+ of 25 frames in shard 00001 .* it goes on there"):
        Features(store, plan.folder)
    monkeypatch.undo()
    calls = counted(monkeypatch)
    features = fill(store, config)
    assert sum(calls) == plan.left
    torch.testing.assert_close(torch.from_numpy(contents(features, store)), wanted, rtol=1e-5, atol=1e-5)
    calls.clear()
    fill(store, config)
    assert calls == []


def test_rows_behind_the_safe_point_may_be_half_written(store: Store, config: FrozenConfig) -> None:
    features = fill(store, config)
    wanted, path = contents(features, store), features.folder / "00001.npy"
    meta = features.meta.with_shard(replace(features.meta.shards[1], done=8))
    cache_module.write_features_meta(features.folder, meta)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3 * FRAME_BYTES - 7)
    assert np.array_equal(contents(fill(store, config), store), wanted)
    path.unlink()
    assert np.array_equal(contents(fill(store, config), store), wanted)


def test_it_says_what_it_takes_and_refuses_a_disk_without_the_room(
    store: Store, config: FrozenConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = plan_features(store, config, "float16").describe()
    assert f"1 picture(s) x 4 tokens x {WIDTH}, float16: {FRAME_BYTES // 2:,} bytes per frame" in text
    assert "1.08e-05 GB for 56 frames" in text and "left       56 frames" in text
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=56 * FRAME_BYTES - 1))
    with pytest.raises(ValueError, match=rf"56 frames of {FRAME_BYTES} bytes need .* GB free: make room, or take"):
        plan_features(store, config, "float32")
    assert not (store.path / "features").exists()
    assert plan_features(store, config, "float16").left == 56


# Who may use it.


def model_of(store: Store, config: FrozenConfig, stack: int = 1, stride: int = 1, **more: object) -> WorldModel:
    torch.manual_seed(0)
    spec = ModelConfig(config, RotaryConfig(width=8, layers=1, heads=2), 2, stack, stride, **more)
    return WorldModel(spec, model_facts(store, spec)).eval()


def test_stale_and_foreign_features_are_refused(
    store: Store, config: FrozenConfig, write_store, tmp_path: Path
) -> None:
    encoder = FrozenEncoder(config, 3, 8)
    assert features_for(encoder, store) is None
    with pytest.raises(ValueError, match=r"no features of this encoder \(none are cached\): run `lewm cache-features"):
        features_for(encoder, store, "cached")
    folder = fill(store, config).folder
    assert features_for(encoder, store).meta.encoder == config.path
    assert features_for(encoder, store, "live") is None
    other = FrozenEncoder(replace(config, grid=1), 3, 8)
    assert features_for(other, store) is None
    with pytest.raises(ValueError, match=r"\(those cached have grid 2, it has 1\)"):
        features_for(other, store, "cached")
    weights = FrozenEncoder(replace(config, path=str(save_encoder("dinov2", tmp_path / "other", seed=1))), 3, 8)
    assert features_for(weights, store) is None
    with pytest.raises(ValueError, match=r"\(those cached have weights_sha256 [0-9a-f]{12}, it has [0-9a-f]{12}\)"):
        features_for(weights, store, "cached")
    with pytest.raises(ValueError, match="the encoder is trained, so there are none"):
        features_for(torch.nn.Identity(), store, "cached")
    features = folder.parent
    features.rename(tmp_path / "kept")
    shutil.rmtree(store.path)
    anew = write_store(lengths=(7, 12, 3, 20, 8))  # the last shard is another
    (tmp_path / "kept").rename(anew.path / "features")
    with pytest.raises(ValueError, match=r"is stale: shard 00002 of .* was recorded anew since; run `lewm cache-"):
        features_for(encoder, anew)
    plan = plan_features(anew, config, "float32")
    assert plan.left == 9
    wanted = by_hand(anew, config)
    torch.testing.assert_close(torch.from_numpy(contents(fill(anew, config), anew)), wanted, rtol=1e-5, atol=1e-5)
    assert features_for(encoder, anew) is not None


def test_damaged_features_are_refused(store: Store, config: FrozenConfig) -> None:
    encoder, features = FrozenEncoder(config, 3, 8), fill(store, config)
    path = features.folder / "00001.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"00001\.npy cannot be read .* delete .* and run `lewm cache-features` again"):
        features_for(encoder, store)
    np.save(path, np.zeros((25, 1, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"holds float32 \(25, 1, 4, 3\) and not float32 \(25, 1, 4, 24\)"):
        features_for(encoder, store)
    path.unlink()
    with pytest.raises(ValueError, match=r"00001\.npy is missing, though meta\.json names it"):
        features_for(encoder, store)
    (features.folder / "meta.json").write_text('{"format": "lewm-features", "version": 2}')
    with pytest.raises(ValueError, match="is not lewm-features 1"):
        features_for(encoder, store)


def test_a_meta_survives_being_written_and_read(tmp_path: Path) -> None:
    meta = FeatureMeta("e", {"grid": 2, "mean": [0.5]}, "float16", 1, 4, 24, (ShardFeatures("00000", "ab", 5, 3),))
    cache_module.write_features_meta(tmp_path, meta)
    assert cache_module.read_features_meta(tmp_path) == meta and asdict(meta)["shards"][0]["done"] == 3


def test_two_computations_at_once_are_refused(store: Store, config: FrozenConfig) -> None:
    plan = plan_features(store, config, "float32")
    plan.folder.mkdir(parents=True)
    lock = cache_module.lock_folder(plan.folder)
    with pytest.raises(RuntimeError, match="is being written by another process: wait for it"):
        cache_features(plan, quiet=True)
    cache_module.os.close(lock)
    assert cache_features(plan, quiet=True).meta.frame_bytes == FRAME_BYTES


@pytest.mark.parametrize("resident", ["disk", "ram"])
@pytest.mark.parametrize("codec", ["raw", "png"])
def test_windows_of_stacked_frames_encode_alike_with_and_without_the_cache(
    resident: str, codec: str, config: FrozenConfig, write_store: Callable[..., Store]
) -> None:
    """Some episodes only, out of order, and windows whose stack reaches before the episode."""
    store = write_store(codec=codec)
    model, episodes = model_of(store, config, stack=3, stride=2), np.array([3, 0, 4])
    features, spec = fill(store, config), model.config.window(3)
    live = Windows(store, spec, episodes, resident)
    cached = Windows(store, spec, episodes, resident, features=features, pictures=False)
    both = Windows(store, spec, episodes, resident, features=features)
    index = np.random.default_rng(0).permutation(len(live))
    batches = [windows.batch(index) for windows in (live, cached, both)]
    assert batches[1].pixels_BTCYX.shape == (len(index), 3, 0, 8, 8)
    assert batches[1].feature_BTPKD.shape == (len(index), 3, 3, 4, WIDTH)
    assert torch.equal(batches[2].pixels_BTCYX, batches[0].pixels_BTCYX)
    latents = [model.encode_batch(batch) for batch in batches]
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(latents[2], latents[1])
    for name in ("action_BTA", "state_BTS", "index_B"):
        assert torch.equal(getattr(batches[1], name), getattr(batches[0], name))


def test_several_cameras_are_pictures_of_one_frame(config: FrozenConfig, tmp_path: Path) -> None:
    from toy_recordings import make_episode, make_meta

    from lewm.data.writer import StoreWriter

    meta = replace(make_meta(), frame=(8, 8, 6), cameras=("left", "right"))
    episode = make_episode(0, 6)
    episode = replace(episode, pixels=np.concatenate([episode.pixels, 255 - episode.pixels], -1))
    with StoreWriter(tmp_path / "two", meta) as writer:
        writer.write([episode])
    store = Store.open(tmp_path / "two")
    features, model = fill(store, config), model_of(store, config, stack=2)
    assert features.meta.row == (2, 4, WIDTH) and model.latent_dim == 4 * WIDTH
    spec = model.config.window(2)
    live, cached = Windows(store, spec), Windows(store, spec, features=features, pictures=False)
    index = np.arange(len(live))
    latents = [model.encode_batch(windows.batch(index)) for windows in (live, cached)]
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-5, atol=1e-5)


def test_measurements_stand_beside_cached_features_too(config: FrozenConfig, store: Store) -> None:
    model, features = model_of(store, config, proprio=("x",), proprio_width=3), fill(store, config)
    spec = model.config.window(2)
    live, cached = Windows(store, spec), Windows(store, spec, features=features, pictures=False)
    index = np.arange(len(live))
    latents = [model.encode_batch(windows.batch(index)) for windows in (live, cached)]
    assert latents[0].shape[-1] == WIDTH + 3
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-5, atol=1e-5)


def test_a_trained_model_takes_no_features(store: Store) -> None:
    from toy_models import toy_model

    with pytest.raises(ValueError, match="encoder is trained, so features of frames are never final"):
        toy_model().encode_features(torch.zeros(1, 2, 1, 4, WIDTH))


def test_the_command_states_the_size_first(
    store: Store, config: FrozenConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cache-features", str(store.path), "--encoder", config.path, "--grid", "2", "--device", "cpu"]
    main(words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("float16: 192 bytes per frame, 1.08e-05 GB for 56 frames") and lines[2].startswith("left")
    features = features_for(FrozenEncoder(config, 3, 8), store, "cached")
    assert features is not None and lines[3] == f"features   {features.folder}"
    main(words)
    assert "left       0 frames" in capsys.readouterr().out
    for bad, message in (["--batch", "0"], "--batch is 0"), (["--grid", "9"], "grid is 9"):
        with pytest.raises(SystemExit):
            main([*words, *bad])
        assert message in capsys.readouterr().err
