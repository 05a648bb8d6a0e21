"""The architectures of frozen encoders, told apart by `model_type` in their config.json: one row each.

Every row reads the tokens of the patches alone: CLS and register tokens are dropped, the final LayerNorm is kept.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from lewm.nets.frozen.backbone import HALF, IMAGENET, Backbone, Opener, Preprocess, read_preprocess, square
from lewm.nets.frozen.folder import require_transformers, weights_sha256
from lewm.nets.frozen.own import open_own, open_pretrained
from lewm.nets.pixels import Resample

Read = Callable[[Any, Tensor], Tensor]
LOADING = {
    "local_files_only": True,
    "use_safetensors": True,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,  # they are named and refused afterwards, in one sentence
}


def _after_cls(net: Any, pixels_BCYX: Tensor) -> Tensor:
    """DINOv2 and DINOv3: drop CLS and, where there are any, register tokens."""
    special = 1 + getattr(net.config, "num_register_tokens", 0)
    token_BKD: Tensor = net(pixel_values=pixels_BCYX).last_hidden_state[:, special:]
    return token_BKD


def _vit(net: Any, pixels_BCYX: Tensor) -> Tensor:
    """A plain ViT: drop CLS; positions are interpolated to another picture size."""
    token_BKD: Tensor = net(pixel_values=pixels_BCYX, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    return token_BKD


def _no_cls(net: Any, pixels_BCYX: Tensor) -> Tensor:
    """I-JEPA and SigLIP have no CLS token."""
    token_BKD: Tensor = net(pixel_values=pixels_BCYX, interpolate_pos_encoding=True).last_hidden_state
    return token_BKD


def _mae(net: Any, pixels_BCYX: Tensor) -> Tensor:
    """MAE with nothing masked; the noise it shuffles its tokens by is rising, so that they keep their order."""
    patches = (pixels_BCYX.shape[-1] // square(net.config.patch_size, "patch_size")) ** 2
    noise_BK = torch.arange(patches, device=pixels_BCYX.device, dtype=torch.float32).expand(len(pixels_BCYX), -1)
    found = net(pixel_values=pixels_BCYX, noise=noise_BK, interpolate_pos_encoding=True)
    token_BKD: Tensor = found.last_hidden_state[:, 1:]
    return token_BKD


def _vjepa2(net: Any, pixels_BCYX: Tensor) -> Tensor:
    """V-JEPA 2: the frame fills its tubelet, then a LayerNorm without parameters follows (V-JEPA 2-AC, section 3)."""
    clip_BTCYX = pixels_BCYX[:, None].expand(-1, net.config.tubelet_size, -1, -1, -1)
    token_BKD: Tensor = net(pixel_values_videos=clip_BTCYX, skip_predictor=True).last_hidden_state
    return F.layer_norm(token_BKD, token_BKD.shape[-1:])


@dataclass(frozen=True)
class Transformers:
    """A row for an architecture of the transformers library."""

    model: str
    """Its class."""
    read: Read
    """(network, normalised pixels) -> tokens of the patches."""
    scaling: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    """Mean and std of its pixels, where its preprocessing file does not say."""
    resample: Resample = "bilinear"
    """Likewise."""
    size_key: str = "image_size"
    """Where its configuration says what size it was trained at."""
    resizable: bool = True
    """Whether it takes pictures of another size, by interpolating its positions."""
    unused: str = ""
    """A part that is loaded and thrown away."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from those of its config.json."""

    def __call__(self, family: str, folder: Path, raw: Mapping[str, Any], size: int | None) -> Backbone:
        """See `Opener`."""
        sha, net = weights_sha256(folder), self._load(folder)
        config = net.config
        trained, patch = square(getattr(config, self.size_key), self.size_key), square(config.patch_size, "patch_size")
        preprocess = read_preprocess(folder, Preprocess(trained, *self.scaling, self.resample))
        wanted = size or (preprocess.size if self.resizable else trained)
        if wanted % patch or wanted < patch:
            raise ValueError(f"encoder.size is {wanted}; {folder} sees patches of {patch} pixels: take a multiple")
        if wanted != trained and not self.resizable:
            raise ValueError(f"encoder.size is {wanted}; {folder} ({family}) only sees {trained} pixels: leave it out")
        preprocess = replace(preprocess, size=wanted)
        return Backbone(family, net, self.read, wanted // patch, int(config.hidden_size), preprocess, sha)

    def _load(self, folder: Path) -> Any:
        transformers = require_transformers()
        kind = getattr(transformers, self.model, None)
        if kind is None:
            raise ImportError(
                f"transformers {transformers.__version__} has no {self.model}: pip install -U transformers"
            )
        try:
            with quietly(transformers):
                net, found = kind.from_pretrained(folder, **LOADING, **self.options)
        except (RuntimeError, OSError, ValueError, SafetensorError) as error:  # damaged files
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder}: its weights cannot be read ({reason}): copy it again") from error
        unfit = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
        if wrong := sorted({*found["missing_keys"], *unfit}):
            raise ValueError(
                f"{folder}: {len(wrong)} tensors of the {self.model} that config.json describes are missing among its "
                f"weights or of another shape, such as {wrong[0]}: copy it again, whole"
            )
        if self.unused:
            setattr(net, self.unused, nn.Identity())
        return net.float().eval().requires_grad_(False)


@contextlib.contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and its report of tensors that are not needed; what it misses is checked."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


SIGLIP = Transformers("SiglipVisionModel", _no_cls, HALF, "bicubic")
FROZEN_FAMILIES: dict[str, Opener] = {
    "vjepa2": Transformers("VJEPA2Model", _vjepa2, size_key="crop_size", resizable=False, unused="predictor"),
    "dinov2": Transformers("Dinov2Model", _after_cls, resample="bicubic"),
    "dinov2_with_registers": Transformers("Dinov2WithRegistersModel", _after_cls, resample="bicubic"),
    "dinov3_vit": Transformers("DINOv3ViTModel", _after_cls),
    "ijepa": Transformers("IJepaModel", _no_cls),
    "vit_mae": Transformers("ViTMAEModel", _mae, options={"mask_ratio": 0.0}),
    "vit": Transformers("ViTModel", _vit, HALF, options={"add_pooling_layer": False}),
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "lewm-checkpoint": open_own,
    "lewm-encoder": open_pretrained,
}
"""`model_type` of transformers' config.json, or `format` of ours, to what opens it."""
