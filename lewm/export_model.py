"""Our weights as a checkpoint of somebody else's: a LeWM in stable-worldmodel's layout, the import's way back."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lewm.nets.encoders import ViTConfig
from lewm.nets.predictors import AdaLNConfig
from lewm.peer_layout import sources
from lewm.world_model import WorldModel


def export_model(model: WorldModel, where: str, folder: Path) -> None:
    """Write weights.pt and config.json into `folder`. Raises what `peer_layout` does."""
    config, tensors = peer_layout(model, where)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.save(tensors, folder / "weights.pt")


def peer_layout(model: WorldModel, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a model of ours as stable-worldmodel lays them out: the inverse of the import.

    The layer norms of its predictor have PREDICTOR_EPS, whatever ours have. Raises ValueError, which `where` starts,
    for a model that is not its LeWM.
    """
    encoder, predictor = _check_lewm(model, where)
    blocks = len(model.predictor.transformer.blocks)  # type: ignore[union-attr, arg-type]
    width, action_dim = encoder.latent_dim, model.action_dim
    norm = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}
    config = {
        "_target_": "stable_worldmodel.wm.lewm.LeWM",
        "encoder": {
            "_target_": "stable_pretraining.backbone.utils.vit_hf",
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.layers,
            "num_attention_heads": encoder.heads,
            "intermediate_size": encoder.mlp_ratio * encoder.width,
            "layer_norm_eps": encoder.norm_eps,
            "patch_size": encoder.patch,
            "image_size": model.facts.size,
            "pretrained": False,
            "use_mask_token": False,
        },
        "predictor": {
            "_target_": "stable_worldmodel.wm.lewm.module.Predictor",
            "num_frames": predictor.history,
            "input_dim": width,
            "hidden_dim": width,
            "output_dim": width,
            "depth": predictor.layers,
            "heads": predictor.heads,
            "dim_head": predictor.head_dim,
            "mlp_dim": predictor.mlp_hidden,
            "dropout": predictor.dropout,
            "emb_dropout": predictor.dropout,
        },
        "action_encoder": {
            "_target_": "stable_worldmodel.wm.lewm.module.Embedder",
            "input_dim": action_dim,
            "smoothed_dim": predictor.action_smoothed or action_dim,
            "emb_dim": width,
            "mlp_scale": predictor.action_hidden // width,
        },
        "projector": {
            "_target_": "stable_worldmodel.wm.lewm.module.MLP",
            "input_dim": encoder.width,
            "hidden_dim": encoder.projector_hidden,
            "output_dim": width,
            "norm_fn": norm,
        },
        "pred_proj": {
            "_target_": "stable_worldmodel.wm.lewm.module.MLP",
            "input_dim": width,
            "hidden_dim": predictor.projector_hidden,
            "output_dim": width,
            "norm_fn": norm,
        },
    }
    tensors = {}
    for ours, value in model.state_dict().items():
        names = sources(ours, blocks)
        for name, part in zip(names, value.chunk(len(names)) if value.ndim else (value,)):
            tensors[name] = part.detach().cpu().contiguous()
    # What it has as convolutions, and the axis of problems before its positions.
    for name, shape in {
        "encoder.embeddings.patch_embeddings.projection.weight": (encoder.width, 3, encoder.patch, encoder.patch),
        "action_encoder.patch_embed.weight": (-1, action_dim, 1),
        "predictor.pos_embedding": (1, predictor.history, width),
    }.items():
        tensors[name] = tensors[name].reshape(shape)
    return config, tensors


def _check_lewm(model: WorldModel, where: str) -> tuple[ViTConfig, AdaLNConfig]:
    """Encoder and predictor of a LeWM. Raises ValueError naming the first setting that makes it another model."""
    encoder, predictor = model.config.encoder, model.config.predictor
    settings: list[tuple[str, object, object]] = [
        ("encoder.name", encoder.name, "vit"),
        ("predictor.name", predictor.name, "adaln"),
        ("frame_stack", model.config.frame_stack, 1),
        ("proprio", list(model.config.proprio), []),
        ("variable", model.config.variable, None),
    ]
    if isinstance(encoder, ViTConfig) and isinstance(predictor, AdaLNConfig):
        width = encoder.latent_dim
        settings += [
            ("encoder.link", encoder.link, "identity"),
            ("encoder.batch_norm", encoder.batch_norm, False),
            ("predictor.action_hidden", predictor.action_hidden, max(1, predictor.action_hidden // width) * width),
        ]
        # With one head as wide as the latent its attention has no output layer.
        if predictor.heads == 1 and predictor.head_dim == width:
            settings.append(("predictor.heads", 1, "2 or more"))
    for name, value, theirs in settings:
        if value != theirs:
            raise ValueError(
                f"{where} has model.{name} {value}, which LeWM in stable-worldmodel cannot be (there {theirs}): only a "
                "model of encoder vit and predictor adaln on single pictures can; train one with "
                "`lewm demo two_room_lewm`"
            )
    if model.facts.channels != 3:
        raise ValueError(
            f"{where} sees {model.facts.channels // 3} cameras, which LeWM in stable-worldmodel does not: train a "
            "model on one"
        )
    assert isinstance(encoder, ViTConfig) and isinstance(predictor, AdaLNConfig)
    return encoder, predictor
