"""Any of our own encoders, frozen: that of a checkpoint of `lewm train`, and the folder that `lewm pretrain` wrote."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lewm.nets.frozen.backbone import Backbone, Preprocess, forward
from lewm.nets.frozen.folder import weight_files, weights_sha256
from lewm.nets.pretrained import load_pretrained_encoder
from lewm.schema import build


def open_own(family: str, folder: Path, raw: Mapping[str, Any], size: int | None) -> Backbone:
    """See `Opener`. A frame must be one moment: refused with one sentence for stacked frames and for a frozen one."""
    from lewm.nets.encoders import ENCODERS, build_encoder  # which has a row for frozen encoders

    config_path = folder / "config.json"
    try:
        model, facts, name = raw["model"], raw["facts"], raw["model"]["encoder"]["name"]
        mean, std, trained = tuple(facts["pixel_mean"]), tuple(facts["pixel_std"]), int(facts["size"])
    except KeyError as error:
        raise ValueError(f"{config_path} has no {error}: copy the checkpoint again") from error
    if name == "frozen":
        raise ValueError(f"{folder} has a frozen encoder itself: give that one, encoder.path in {config_path}")
    if name not in ENCODERS:
        raise ValueError(f"{config_path}: encoder {name!r} is unknown; there are {', '.join(ENCODERS)}")
    if model.get("frame_stack", 1) != 1:
        raise ValueError(f"{folder} encodes {model['frame_stack']} stacked frames at once: frozen it must see one")
    if size not in (None, trained):
        raise ValueError(f"encoder.size is {size}; the encoder of {folder} only sees {trained} pixels: leave it out")
    config: Any = build(ENCODERS[name][0], model["encoder"], str(config_path), "model.encoder")
    net: nn.Module = build_encoder(config, len(mean), trained)
    net.load_state_dict(_tensors(folder, "model.encoder." + "picture." * bool(model.get("proprio"))))
    tokens, width = int(net.tokens), int(net.latent_dim)  # type: ignore[arg-type]
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{folder}: its encoder gives {tokens} tokens per frame, which is no square of patches")
    return Backbone(
        family,
        net.float().eval().requires_grad_(False),
        forward,
        math.isqrt(tokens),
        width,
        Preprocess(trained, mean, std, "bilinear"),
        weights_sha256(folder),
    )


def open_pretrained(family: str, folder: Path, raw: Mapping[str, Any], size: int | None) -> Backbone:
    """See `Opener`. Pictures are normalised by the statistics of the recordings it was pretrained on."""
    net = load_pretrained_encoder(folder)
    about = net.about
    if size not in (None, about.size):
        raise ValueError(f"encoder.size is {size}; the encoder of {folder} only sees {about.size} pixels: leave it out")
    preprocess = Preprocess(about.size, about.pixel_mean, about.pixel_std, "bilinear")
    return Backbone(family, net.float(), forward, net.side, net.width, preprocess, weights_sha256(folder))


def _tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint below a prefix, without it."""
    (path,) = weight_files(folder)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): copy the checkpoint again") from error
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
