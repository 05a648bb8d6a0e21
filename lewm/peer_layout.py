"""How stable-worldmodel and le-wm lay out a LeWM checkpoint: the sections of its config.json, the names of its tensors.

Understood are the names that transformers gave its ViT before version 5 and since, the wrappers of torch.compile
(`_orig_mod.`), of data parallel training (`module.`) and of a trainer (`model.`, or a `state_dict` entry), and the
class names of both projects.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lewm.nets.encoders import ViTConfig
from lewm.nets.predictors import AdaLNConfig
from lewm.schema import SchemaError, build
from lewm.world_model import ModelConfig, WorldModel

S = TypeVar("S")

VIT_EPS, PREDICTOR_EPS = 1e-12, 1e-5
"""Layer norm constants of transformers' ViT and of torch, which the source's modules leave at their defaults."""
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, layers and heads behind `encoder.size`."""
CLASSES = {
    "": ("LeWM", "JEPA"),
    "encoder": ("vit_hf",),
    "predictor": ("Predictor", "ARPredictor"),
    "action_encoder": ("Embedder",),
    "projector": ("MLP",),
    "pred_proj": ("MLP",),
}
"""Last word of `_target_` in each section of config.json."""
RENAMED = (
    (r"^encoder\.encoder\.layer\.", "encoder.layers."),
    (r"attention\.attention\.(query|key|value)\.", lambda found: f"attention.{found[1][0]}_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"^(encoder\.layers\.\d+\.)intermediate\.dense\.", r"\1mlp.fc1."),
    (r"^(encoder\.layers\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
)
"""Names of transformers' ViT before version 5, and since."""
_VIT, _BLOCK = "encoder.layers.#", "predictor.transformer.layers.#"
SOURCES = {
    "encoder.embed": ("encoder.embeddings.patch_embeddings.projection",),
    "encoder.cls": ("encoder.embeddings.cls_token",),
    "encoder.position": ("encoder.embeddings.position_embeddings",),
    "encoder.blocks.#.attention_norm": (f"{_VIT}.layernorm_before",),
    "encoder.blocks.#.attention.qkv": tuple(f"{_VIT}.attention.{part}_proj" for part in "qkv"),
    "encoder.blocks.#.attention.out": (f"{_VIT}.attention.o_proj",),
    "encoder.blocks.#.mlp_norm": (f"{_VIT}.layernorm_after",),
    "encoder.blocks.#.mlp.up": (f"{_VIT}.mlp.fc1",),
    "encoder.blocks.#.mlp.down": (f"{_VIT}.mlp.fc2",),
    "encoder.norm": ("encoder.layernorm",),
    "encoder.projector.up": ("projector.net.0",),
    "encoder.projector.norm": ("projector.net.1",),
    "encoder.projector.down": ("projector.net.3",),
    "predictor.action.0": ("action_encoder.patch_embed",),
    "predictor.action.1": ("action_encoder.embed.0",),
    "predictor.action.3": ("action_encoder.embed.2",),
    "predictor.position_TKD": ("predictor.pos_embedding",),
    "predictor.transformer.blocks.#.attention_norm": (f"{_BLOCK}.attn.norm",),
    "predictor.transformer.blocks.#.attention.qkv": (f"{_BLOCK}.attn.to_qkv",),
    "predictor.transformer.blocks.#.attention.out": (f"{_BLOCK}.attn.to_out.0",),
    "predictor.transformer.blocks.#.mlp_norm": (f"{_BLOCK}.mlp.net.0",),
    "predictor.transformer.blocks.#.mlp.up": (f"{_BLOCK}.mlp.net.1",),
    "predictor.transformer.blocks.#.mlp.down": (f"{_BLOCK}.mlp.net.4",),
    "predictor.transformer.modulation": ("predictor.transformer.layers.*.adaLN_modulation.1",),
    "predictor.transformer.norm": ("predictor.transformer.norm",),
    "predictor.projector.up": ("pred_proj.net.0",),
    "predictor.projector.norm": ("pred_proj.net.1",),
    "predictor.projector.down": ("pred_proj.net.3",),
}
"""Our modules and parameters, and the source's that fill them: # is the number of the block, * every block in turn."""
UNREAD = re.compile(r"sigreg\.|encoder\.embeddings\.mask_token$|encoder\.pooler\.")
"""Tensors that no answer of the source depends on: the loss's constants, the token of masked training, the pooler."""


@dataclass(frozen=True)
class _Encoder:
    """Arguments of the ViT; `pretrained` and `use_mask_token` matter to training only."""

    patch_size: int
    image_size: int
    size: str = "tiny"
    pretrained: bool = False
    use_mask_token: bool = True
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    layer_norm_eps: float = VIT_EPS


@dataclass(frozen=True)
class _Predictor:
    """Arguments of the predictor; lewm applies one dropout where the source has `dropout` and `emb_dropout`."""

    num_frames: int
    depth: int
    heads: int
    mlp_dim: int
    input_dim: int
    hidden_dim: int
    output_dim: int | None = None
    dim_head: int = 64
    dropout: float = 0.0
    emb_dropout: float = 0.0


@dataclass(frozen=True)
class _Actions:
    """Arguments of the action encoder."""

    input_dim: int
    emb_dim: int = 10
    smoothed_dim: int = 10
    mlp_scale: int = 4


@dataclass(frozen=True)
class _Projector:
    """Arguments of either projector."""

    input_dim: int
    hidden_dim: int
    output_dim: int | None = None
    norm_fn: Any = None
    act_fn: Any = None

    def __post_init__(self) -> None:
        for name, expected in (("norm_fn", "BatchNorm1d"), ("act_fn", "GELU")):
            given = getattr(self, name)
            said = given.get("_target_") if isinstance(given, dict) else given
            if said is not None and str(said).rsplit(".", 1)[-1] != expected:
                raise ValueError(f"{name} is {said}; lewm's projector has a {expected} there")


def _section(cls: type[S], config: dict[str, Any], name: str, where: str) -> S:
    """One part of config.json."""
    if not isinstance(config.get(name), dict):
        raise SchemaError(f"{where}: section {name!r} is missing; this is not the config.json of a LeWM")
    _check_class(config[name], name, where)
    return build(cls, {k: v for k, v in config[name].items() if k not in ("_target_", "_partial_")}, where, name)


def _check_class(section: dict[str, Any], name: str, where: str) -> None:
    target = section.get("_target_")
    if target is not None and str(target).rsplit(".", 1)[-1] not in CLASSES[name]:
        raise SchemaError(
            f"{where}: {name + '.' if name else ''}_target_ is {target}; only {' or '.join(CLASSES[name])} can be "
            "imported"
        )


def describe(config: Any, where: str, frame_skip: int, action_dim: int) -> tuple[ModelConfig, int]:
    """The architecture that config.json states, and the size of its pictures.

    Raises SchemaError for a config.json that states another model, or other action blocks than
    frame_skip x action_dim.
    """
    if not isinstance(config, dict):
        raise SchemaError(f"{where}: the config.json of a LeWM is a mapping, not {type(config).__name__}")
    if "encoder" not in config and isinstance(config.get("model"), dict):
        config = config["model"]
    _check_class(config, "", where)
    vit = _section(_Encoder, config, "encoder", where)
    net = _section(_Predictor, config, "predictor", where)
    action = _section(_Actions, config, "action_encoder", where)
    projector = _section(_Projector, config, "projector", where)
    pred_proj = _section(_Projector, config, "pred_proj", where)
    if vit.size not in SIZES:
        raise SchemaError(f"{where}: encoder.size is {vit.size!r}; it must be one of {', '.join(SIZES)}")
    width, layers, heads = SIZES[vit.size]
    width, layers = vit.hidden_size or width, vit.num_hidden_layers or layers
    mlp_width = vit.intermediate_size or 4 * width
    if mlp_width % width:
        raise SchemaError(f"{where}: encoder.intermediate_size is {mlp_width}; it must be a multiple of {width}")
    if action.input_dim != frame_skip * action_dim:
        raise SchemaError(
            f"{where}: action_encoder.input_dim is {action.input_dim}, but {action_dim} action entries times frame "
            f"skip {frame_skip} is {frame_skip * action_dim}; correct --frame-skip or the action statistics"
        )
    encoder = ViTConfig(
        latent_dim=net.input_dim,
        patch=vit.patch_size,
        layers=layers,
        heads=vit.num_attention_heads or heads,
        width=width,
        mlp_ratio=mlp_width // width,
        projector_hidden=projector.hidden_dim,
        norm_eps=vit.layer_norm_eps,
    )
    predictor = AdaLNConfig(
        history=net.num_frames,
        layers=net.depth,
        heads=net.heads,
        head_dim=net.dim_head,
        mlp_hidden=net.mlp_dim,
        dropout=net.dropout,
        action_smoothed=action.smoothed_dim,
        action_hidden=action.mlp_scale * action.emb_dim,
        projector_hidden=pred_proj.hidden_dim,
        norm_eps=PREDICTOR_EPS,
    )
    return ModelConfig(encoder, predictor, frame_skip=frame_skip), vit.image_size


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The source's tensors under the names that its modules have today, without those that nothing reads.

    Raises ValueError for a file that is not a state dict of plain tensors.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files and pickled objects each raise something else
        raise ValueError(
            f"{path} cannot be read as plain tensors, and nothing else is opened because it could run code: save the "
            f"model's state_dict() instead ({str(error).splitlines()[0]})"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise ValueError(f"{path} is not a mapping of names to tensors; save the model's state_dict()")
    tensors: dict[str, Tensor] = {}
    for key, value in loaded.items():
        name = _plain_name(key)
        if name in tensors:
            raise ValueError(f"{path}: tensor {name} is there twice, once as {key}; save one model's state_dict()")
        if not UNREAD.match(name):
            tensors[name] = value
    return tensors


def _plain_name(key: str) -> str:
    words = [word for word in key.split(".") if word != "_orig_mod"]
    while len(words) > 1 and words[0] in ("model", "module"):
        words.pop(0)
    name = ".".join(words)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def convert(tensors: dict[str, Tensor], model: WorldModel, path: Path) -> dict[str, Tensor]:
    """The state dict of `model`: each entry is one of the source's tensors, or several of them one below the other.

    Raises ValueError naming the first tensor that is missing, left over, of another shape or not finite.
    """
    layers = len(model.predictor.transformer.blocks)  # type: ignore[union-attr, arg-type]
    wanted = {ours: sources(ours, layers) for ours in model.state_dict()}
    needed = {name for names in wanted.values() for name in names}
    if missing := [name for names in wanted.values() for name in names if name not in tensors]:
        raise ValueError(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all): config.json describes more")
    if extra := sorted(tensors.keys() - needed):
        raise ValueError(f"{path}: config.json describes no model with tensor {extra[0]} ({len(extra)} such in all)")
    converted = {}
    for ours, value in model.state_dict().items():
        parts = [tensors[name] for name in wanted[ours]]
        part_shape = (value.shape[0] // len(parts), *value.shape[1:]) if value.ndim else value.shape
        for name, part in zip(wanted[ours], parts):
            if _dims(part.shape) != _dims(part_shape):
                raise ValueError(
                    f"{path}: tensor {name} has shape {tuple(part.shape)}; config.json needs {tuple(part_shape)}, "
                    "axes of one entry aside"
                )
            if not part.isfinite().all():
                raise ValueError(f"{path}: tensor {name} holds NaN or infinity; this training diverged, take another")
        converted[ours] = torch.cat([part.reshape(part_shape) for part in parts]) if value.ndim else parts[0]
    return converted


def sources(ours: str, layers: int) -> list[str]:
    """Names of the source's tensors that make up one entry of our state dict."""
    number = re.search(r"blocks\.(\d+)\.", ours)
    module, leaf = re.sub(r"blocks\.\d+\.", "blocks.#.", ours), ""
    if module not in SOURCES:
        module, _, leaf = module.rpartition(".")
        leaf = "." + leaf
    names = [name.replace("#", number[1] if number else "#") + leaf for name in SOURCES[module]]
    return [name.replace("*", str(i)) for name in names for i in range(layers if "*" in name else 1)]


def _dims(shape: Sequence[int]) -> list[int]:
    """A shape as it is compared: a convolution's weight as a matrix, axes of one entry left out."""
    flat = (shape[0], math.prod(shape[1:])) if len(shape) == 4 else shape
    return [entries for entries in flat if entries != 1]
