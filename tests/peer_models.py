"""Small LeWMs in stable-worldmodel's layout (every number from a formula) and in ours, and the peer to ask."""

import importlib.util
import json
import math
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lewm.checkpoint import Origin, save_checkpoint
from lewm.import_model import DataFacts
from lewm.nets.encoders import ViTConfig
from lewm.nets.predictors import AdaLNConfig
from lewm.peer import Peer, PeerError
from lewm.world_model import ModelConfig, ModelFacts, WorldModel

BATCH_NORM = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}
SMALL: dict[str, Any] = {
    "_target_": "stable_worldmodel.wm.lewm.LeWM",
    "encoder": {
        "_target_": "stable_pretraining.backbone.utils.vit_hf",
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 7,
        "image_size": 14,
        "pretrained": False,
        "use_mask_token": False,
    },
    "predictor": {
        "_target_": "stable_worldmodel.wm.lewm.module.Predictor",
        "num_frames": 3,
        "input_dim": 8,
        "hidden_dim": 8,
        "output_dim": 8,
        "depth": 2,
        "heads": 2,
        "dim_head": 4,
        "mlp_dim": 16,
        "dropout": 0.1,
        "emb_dropout": 0.0,
    },
    "action_encoder": {
        "_target_": "stable_worldmodel.wm.lewm.module.Embedder",
        "input_dim": 4,
        "emb_dim": 8,
        "smoothed_dim": 6,
    },
    "projector": {
        "_target_": "stable_worldmodel.wm.lewm.module.MLP",
        "input_dim": 12,
        "output_dim": 8,
        "hidden_dim": 16,
        "norm_fn": BATCH_NORM,
    },
    "pred_proj": {
        "_target_": "stable_worldmodel.wm.lewm.module.MLP",
        "input_dim": 8,
        "output_dim": 8,
        "hidden_dim": 16,
        "norm_fn": BATCH_NORM,
    },
}
"""config.json of a LeWM with 2 + 2 layers, in stable-worldmodel's words."""
FACTS = DataFacts("two_room", (-1.0, -1.0), (1.0, 1.0), (0.1, -0.2), (0.5, 2.0), frame_skip=2)


ENCODER = ViTConfig(latent_dim=8, patch=8, layers=2, heads=2, width=12, mlp_ratio=3, projector_hidden=16, norm_eps=1e-9)
PREDICTOR = AdaLNConfig(
    history=2,
    layers=2,
    heads=2,
    head_dim=4,
    mlp_hidden=16,
    action_smoothed=6,
    action_hidden=16,
    projector_hidden=16,
    norm_eps=1e-5,
)
LEWM = ModelConfig(ENCODER, PREDICTOR, frame_skip=2)
LEWM_FACTS = ModelFacts(32, (-1.0, -1.0), (1.0, 1.0), (0.1, -0.2), (0.5, 0.3), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
"""A LeWM of ours, for pictures of 32 pixels."""
TINY_SEARCH = {"candidates": 24, "iterations": 3, "elites": 6, "horizon": 3, "replan_every": 2}


def stirred(config: ModelConfig, facts: ModelFacts = LEWM_FACTS, seed: int = 0) -> WorldModel:
    """A model under which everything matters: fresh gates are zero, fresh norms the identity."""
    model, generator = WorldModel(config, facts).eval().requires_grad_(False), torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            centre = value.ndim == 1 and name.endswith(("weight", "running_var"))
            value.copy_(centre + scale * torch.randn(value.shape, generator=generator).clamp(-3, 3))
    return model


def saved(path: Path, model: WorldModel, task: str = "two_room", size: int = 32) -> Path:
    """The model as a checkpoint of ours."""
    save_checkpoint(path, model, None, Origin(task, {"size": size}, "", (), (), 0.1, 0.25, 0), {"train": {"steps": 7}})
    return path


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of its tensors as stable-worldmodel 0.1.1 and transformers 5 write them."""
    linear: dict[str, tuple[int, int]] = {}
    norms: dict[str, int] = {"encoder.layernorm": 12, "predictor.transformer.norm": 8}
    bare: dict[str, tuple[int, int]] = {}
    for i in range(2):
        vit, block = f"encoder.layers.{i}", f"predictor.transformer.layers.{i}"
        linear |= {f"{vit}.attention.{part}_proj": (12, 12) for part in "qkvo"}
        linear |= {f"{vit}.mlp.fc1": (48, 12), f"{vit}.mlp.fc2": (12, 48)}
        norms |= {f"{vit}.layernorm_before": 12, f"{vit}.layernorm_after": 12}
        bare[f"{block}.attn.to_qkv"] = (24, 8)
        linear |= {f"{block}.attn.to_out.0": (8, 8), f"{block}.mlp.net.1": (16, 8), f"{block}.mlp.net.4": (8, 16)}
        linear[f"{block}.adaLN_modulation.1"] = (48, 8)
        norms |= {f"{block}.attn.norm": 8, f"{block}.mlp.net.0": 8}
    linear |= {"action_encoder.embed.0": (32, 6), "action_encoder.embed.2": (8, 32)}
    linear |= {"projector.net.0": (16, 12), "projector.net.3": (8, 16)}
    linear |= {"pred_proj.net.0": (16, 8), "pred_proj.net.3": (8, 16)}
    found: dict[str, tuple[int, ...]] = {
        "encoder.embeddings.cls_token": (1, 1, 12),
        "encoder.embeddings.position_embeddings": (1, 5, 12),
        "encoder.embeddings.patch_embeddings.projection.weight": (12, 3, 7, 7),
        "encoder.embeddings.patch_embeddings.projection.bias": (12,),
        "action_encoder.patch_embed.weight": (6, 4, 1),
        "action_encoder.patch_embed.bias": (6,),
        "predictor.pos_embedding": (1, 3, 8),
    }
    for name, (out, into) in linear.items():
        found |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    found |= {f"{name}.weight": shape for name, shape in bare.items()}
    for name, width in norms.items():
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name in ("projector.net.1", "pred_proj.net.1"):
        found |= {f"{name}.{part}": (16,) for part in ("weight", "bias", "running_mean", "running_var")}
        found[f"{name}.num_batches_tracked"] = ()
    return found


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a name: a sine wave whose phase is a hash of the name, so that no two are alike."""
    if not shape:
        return torch.tensor(7)
    wave = torch.sin(1.7 * torch.arange(math.prod(shape), dtype=torch.float64) + zlib.crc32(name.encode()) % 997)
    matrix = len(shape) > 1 and name.endswith("weight")
    scale = (2 / math.prod(shape[1:])) ** 0.5 if matrix else 0.3
    centre = len(shape) == 1 and name.endswith(("weight", "running_var"))
    return (centre + scale * wave).reshape(shape).float()


def tensors() -> dict[str, Tensor]:
    """The state dict."""
    return {name: value(name, shape) for name, shape in shapes().items()}


def write_checkpoint(folder: Path, state: Any = None, config: Any = None) -> Path:
    """weights.pt and config.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL if config is None else config))
    torch.save(tensors() if state is None else state, folder / "weights.pt")
    return folder


def pixels() -> Tensor:
    """Three frames, uint8, (1, 3, 3, 14, 14)."""
    return ((37 * torch.arange(3 * 3 * 14 * 14)) % 251).to(torch.uint8).reshape(1, 3, 3, 14, 14)


def normalised(frames: Tensor) -> Tensor:
    """Frames as both projects feed them: divided by 255, then ImageNet's mean and standard deviation."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (frames / 255 - mean[:, None, None]) / std[:, None, None]


def scaled_actions() -> Tensor:
    """Five blocks as the source's action encoder reads them, (1, 5, 4)."""
    return torch.sin(2.3 * torch.arange(20.0)).reshape(1, 5, 4)


def peer_python() -> Path:
    """The interpreter to look for the peer in: LEWM_PEER_PYTHON, or this one."""
    return Path(os.environ.get("LEWM_PEER_PYTHON", sys.executable))


@contextmanager
def open_peer() -> Iterator[Peer]:
    """The peer, running; skips the test where it is not installed."""
    if peer_python() == Path(sys.executable) and importlib.util.find_spec("stable_worldmodel") is None:
        pytest.skip("stable-worldmodel is not installed here; name an interpreter that has it in LEWM_PEER_PYTHON")
    peer = Peer(peer_python(), threads=1)
    try:
        peer.__enter__()
    except PeerError as error:
        pytest.skip(str(error))
    with closing(peer):
        yield peer
