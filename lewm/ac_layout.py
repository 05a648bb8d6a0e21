"""How V-JEPA 2-AC lays out the weights of its predictor, and what they become in ours.

Two things differ. Its rotations turn neighbouring features, ours the two halves of a head: queries and keys are put
in that order, which changes no product. It reads raw actions and states, ours scaled ones: that folds into the maps.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lewm.nets.measured import MeasuredEncoder
from lewm.nets.predictors import ACPredictor
from lewm.world_model import WorldModel

SOURCES = {
    "embed": "predictor_embed",
    "action": "action_encoder",
    "state": "state_encoder",
    "extrinsics": "extrinsics_encoder",
    "blocks.#.attention_norm": "predictor_blocks.#.norm1",
    "blocks.#.attention.qkv": "predictor_blocks.#.attn.qkv",
    "blocks.#.attention.out": "predictor_blocks.#.attn.proj",
    "blocks.#.mlp_norm": "predictor_blocks.#.norm2",
    "blocks.#.mlp.up": "predictor_blocks.#.mlp.fc1",
    "blocks.#.mlp.down": "predictor_blocks.#.mlp.fc2",
    "norm": "predictor_norm",
    "out": "predictor_proj",
}
"""Our modules and theirs; # is the number of the block."""
WRAPPERS = ("module", "backbone", "predictor", "_orig_mod")
"""What may stand before a name: data parallel training, the hub's model, an encoder beside, torch.compile."""


def read_ac_tensors(path: Path) -> dict[str, Tensor]:
    """The predictor's tensors under their plain names, from a .safetensors file or a .pt of plain tensors.

    A .pt of the release holds an encoder and an optimiser beside; only its `predictor` is kept. Raises
    FileNotFoundError, and ValueError for a file that is no mapping of names to tensors; nothing in it is executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the .safetensors or .pt file of a V-JEPA 2-AC predictor")
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files and pickled objects each raise something else
        raise ValueError(
            f"{path} cannot be read as plain tensors, and nothing else is opened because it could run code: save the "
            f"predictor's state_dict() instead ({str(error).splitlines()[0]})"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("predictor"), dict):
        loaded = loaded["predictor"]
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise ValueError(f"{path} is not a mapping of names to tensors; save the predictor's state_dict()")
    tensors: dict[str, Tensor] = {}
    for key, value in loaded.items():
        words = key.split(".")
        while len(words) > 1 and words[0] in WRAPPERS:
            words.pop(0)
        tensors[".".join(words)] = value
    return {name: value for name, value in tensors.items() if not name.startswith("encoder.")}


def load_ac_tensors(tensors: dict[str, Tensor], model: WorldModel, path: Path) -> None:
    """Give the ac predictor of `model` the weights of V-JEPA 2-AC, so that it answers as they do to raw input.

    Raises ValueError for a model they do not fit: another predictor, or naming the first tensor that is missing, left
    over, of another shape or not finite. The camera's encoder is left out where the model has no camera token.
    """
    net = model.predictor
    if not isinstance(net, ACPredictor):
        raise ValueError(f"the model's predictor is {model.config.predictor.name}; weights of V-JEPA 2-AC need ac")
    if net.state_out is not None:
        raise ValueError(
            "model.predictor.state is predicted, which V-JEPA 2-AC has no weights for; train a model with integrated"
        )
    own = net.state_dict()
    wanted = {name: _source(name) for name in own if not name.startswith("change.")}
    if missing := [theirs for theirs in wanted.values() if theirs not in tensors]:
        raise ValueError(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all): the model describes more")
    unread = () if net.extrinsics is not None else ("extrinsics_encoder.weight", "extrinsics_encoder.bias")
    if extra := sorted(tensors.keys() - set(wanted.values()) - set(unread)):
        hint = ": name the robot's state in model.proprio" if extra[0].startswith("state_encoder") else ""
        raise ValueError(f"{path}: the model has no place for tensor {extra[0]} ({len(extra)} such in all){hint}")
    converted = {}
    for ours, theirs in wanted.items():
        value = tensors[theirs]
        if value.shape != own[ours].shape:
            raise ValueError(
                f"{path}: tensor {theirs} has shape {tuple(value.shape)}; the model needs {tuple(own[ours].shape)}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{path}: tensor {theirs} holds NaN or infinity; this training diverged, take another")
        converted[ours] = _halved(value, net) if ".qkv." in ours else value.to(own[ours])
    _fold_scaling(converted, model, net)
    net.load_state_dict(converted)


def _source(ours: str) -> str:
    """Name of their tensor that fills one of ours."""
    module, _, leaf = ours.rpartition(".")
    number = re.search(r"blocks\.(\d+)\.", module)
    theirs = SOURCES[re.sub(r"blocks\.\d+\.", "blocks.#.", module)]
    return f"{theirs.replace('#', number[1] if number else '#')}.{leaf}"


def _halved(qkv: Tensor, net: ACPredictor) -> Tensor:
    """Rows of query, key and value; features (2i, 2i + 1) of every query and key go to (i, i + half)."""
    rows = torch.arange(len(qkv)).view(3, -1, net.head_dim)
    turned = torch.cat([rows[..., 0::2], rows[..., 1::2]], -1)
    return qkv[torch.stack([turned[0], turned[1], rows[2]]).flatten()]


def _fold_scaling(converted: dict[str, Tensor], model: WorldModel, net: ACPredictor) -> None:
    """Their maps of raw actions and measurements as maps of scaled ones, and the state's change as that of a sum."""
    _reading(converted, "action", model.action_mean_A, model.action_std_A)
    if not net.measured:
        return
    encoder = model.encoder
    assert isinstance(encoder, MeasuredEncoder)
    if not isinstance(encoder.embed, torch.nn.Identity) or encoder.angle_P.any():
        raise ValueError(
            "V-JEPA 2-AC reads measurements as they are: set model.proprio_width to null and measure no angles of the "
            "task's state (an extra column holds plain numbers)"
        )
    if net.change is not None:
        if model.action_dim != net.states:
            raise ValueError(
                f"an action block has {model.action_dim} entries and the state {net.states}; integrating needs as many"
            )
        std_S = encoder.std_P[: net.states]
        converted["change.weight"] = torch.diag(model.action_std_A / std_S)
        converted["change.bias"] = model.action_mean_A / std_S
        _reading(converted, "state", encoder.mean_P[: net.states], std_S)
    if net.extrinsics is not None:
        _reading(converted, "extrinsics", encoder.mean_P[net.states :], encoder.std_P[net.states :])


def _reading(converted: dict[str, Tensor], name: str, mean: Tensor, std: Tensor) -> None:
    """The map of raw numbers as a map of (raw - mean) / std."""
    weight = converted[f"{name}.weight"]
    converted[f"{name}.bias"] = converted[f"{name}.bias"] + weight @ mean
    converted[f"{name}.weight"] = weight * std
