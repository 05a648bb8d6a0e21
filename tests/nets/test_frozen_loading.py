"""What a frozen encoder cannot be loaded from, and says so: wrong paths, weights, sizes, libraries; the hub."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_encoders import SIZE, WIDTH, frames, model_of, refuses, save_encoder
from torch import nn
from toy_models import FACTS

from lewm.nets.encoders import build_encoder
from lewm.nets.frozen import FrozenConfig, FrozenEncoder
from lewm.nets.predictors import MLPConfig
from lewm.schema import SchemaError, build
from lewm.world_model import ModelConfig, WorldModel


def test_a_path_that_holds_no_encoder(saved: Callable[[str], Path], tmp_path: Path) -> None:
    refuses(ValueError, r"encoder\.path is empty", "")
    refuses(FileNotFoundError, "which is no folder here and no hub name", tmp_path / "nowhere")
    refuses(FileNotFoundError, r"config\.json is missing", tmp_path)
    folder = save_encoder("dinov2", tmp_path / "e")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "resnet"}))
    refuses(ValueError, r"model_type is 'resnet'; a frozen encoder is one of vjepa2, dinov2", folder)
    (folder / "config.json").write_text("{")
    refuses(ValueError, "is not JSON", folder)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("Cannot find the requested files.\nMore.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refuses(
        FileNotFoundError, r"cannot be had from the hub \(Cannot find the requested files\)", "facebook/dinov2-small"
    )


def test_a_hub_name_is_downloaded_without_pickles_and_code(
    monkeypatch: pytest.MonkeyPatch, saved: Callable[[str], Path]
) -> None:
    import fnmatch

    import huggingface_hub

    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.extend([name, allow_patterns])
        return str(saved("dinov2"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert build_encoder(FrozenConfig(path="facebook/dinov2-small"), 3, SIZE).latent_dim == WIDTH
    name, patterns = asked
    wanted = ["config.json", "preprocessor_config.json", "video_preprocessor_config.json", "model.safetensors"]
    assert name == "facebook/dinov2-small"
    for file in (*wanted, "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns), file
    for file in ("pytorch_model.bin", "modeling.py", "model.pt"):
        assert not any(fnmatch.fnmatch(file, pattern) for pattern in patterns), file


def test_weights_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_encoder("dinov2", tmp_path / "e")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "layernorm.weight"}, file, {"format": "pt"})
    refuses(ValueError, r": 1 tensors of the Dinov2Model .* such as layernorm\.weight", folder)
    save_file(tensors | {"layernorm.weight": torch.ones(7)}, file, {"format": "pt"})
    refuses(ValueError, r": 1 tensors of the Dinov2Model .* another shape, such as layernorm\.weight", folder)
    file.write_bytes(file.read_bytes()[:100])
    refuses(ValueError, "its weights cannot be read", folder)
    file.rename(folder / "pytorch_model.bin")
    refuses(FileNotFoundError, r"model\.safetensors is missing.*pytorch_model\.bin may run code", folder)


def test_weights_in_several_files(saved: Callable[[str], Path], tmp_path: Path) -> None:
    import transformers

    library = transformers.Dinov2Model.from_pretrained(saved("dinov2"))
    library.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    pixels = frames()[:, None]
    torch.testing.assert_close(model_of(tmp_path).encode(pixels), model_of(saved("dinov2")).encode(pixels))
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    refuses(FileNotFoundError, r"is missing, which model\.safetensors\.index\.json names", tmp_path)


def test_wrong_sizes(saved: Callable[[str], Path]) -> None:
    refuses(ValueError, r"size is 33; .* sees patches of 8 pixels: take a multiple", saved("dinov2"), size=33)
    refuses(ValueError, r"size is 48; .*\(vjepa2\) only sees 32 pixels: leave it out", saved("vjepa2"), size=48)
    refuses(ValueError, r"grid is 5; .* gives 4 x 4 tokens .* choose 1\.\.4", saved("dinov2"), grid=5)
    with pytest.raises(ValueError, match="sees pictures of 3 channels, and frames have 4"):
        build_encoder(FrozenConfig(path=str(saved("dinov2"))), 4, SIZE)
    with pytest.raises(SchemaError, match=r"encoder: grid is 0; it must be at least 1"):
        build(ModelConfig, {"encoder": {"name": "frozen", "grid": 0}}, "run.yaml")
    with pytest.raises(ValueError, match="tokens per frame and this predictor reads one"):
        WorldModel(ModelConfig(FrozenConfig(path=str(saved("dinov2"))), MLPConfig()), FACTS)


def test_a_missing_library_and_one_that_is_too_old(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    folders = [saved("dinov2"), saved("dinov3_vit")]
    old = type("old", (), {"__version__": "4.53.0", "utils": transformers.utils})
    monkeypatch.setitem(sys.modules, "transformers", old)
    refuses(ImportError, r"transformers 4\.53\.0 has no DINOv3ViTModel: pip install -U transformers", folders[1])
    monkeypatch.setitem(sys.modules, "transformers", None)
    refuses(ImportError, r"needs transformers: pip install 'lewm\[frozen\]'", folders[0])


def test_loading_is_silent_and_leaves_the_librarys_logging_as_it_was(
    saved: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before, folder = (logging.get_verbosity(), logging.is_progress_bar_enabled()), saved("vit_mae")
    capfd.readouterr()
    encoder = build_encoder(FrozenConfig(path=str(folder)), 3, SIZE)
    assert isinstance(encoder, FrozenEncoder) and isinstance(encoder.backbone.net, nn.Module)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
