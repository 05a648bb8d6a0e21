"""stable-worldmodel and the ViT of transformers as far as `lewm.peer_worker` uses them, written from what they answer.

`install` makes an interpreter that finds them. They do the arithmetic of the originals under the originals' names of
modules and tensors, so that weights in the peer's layout have to fit them; nothing in them knows lewm.
"""

import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VERSION = "0.1.1+standin"
MODULES = {
    "transformers.py": "ViTConfig, ViTModel",
    "stable_worldmodel/__init__.py": "",
    "stable_worldmodel/policy.py": "PlanConfig, WorldModelPolicy",
    "stable_worldmodel/solver/__init__.py": "",
    "stable_worldmodel/solver/cem.py": "CEMSolver",
    "stable_worldmodel/solver/solver.py": "CEMSolver as Solver",
    "stable_worldmodel/wm/__init__.py": "",
    "stable_worldmodel/wm/lewm/__init__.py": "LeWM",
    "stable_worldmodel/wm/lewm/module.py": "MLP, Embedder, Predictor",
}
"""Where the originals keep what; their three outermost packages import what nobody here has, the policy torchvision."""


def install(folder: Path) -> Path:
    """Write the packages into `folder`, and an interpreter beside them that has them; returns its path."""
    for name, what in MODULES.items():
        path = folder / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"from {__name__} import {what}\n" if what else "raise ImportError('not to be imported')\n"
        path.write_text("from torchvision import tv_tensors\n" + text if name.endswith("policy.py") else text)
    about = folder / "packages" / "stable_worldmodel-0.1.1.dist-info" / "METADATA"
    about.parent.mkdir(exist_ok=True)
    about.write_text(f"Metadata-Version: 2.1\nName: stable-worldmodel\nVersion: {VERSION}\n")
    python = folder / "python"
    paths = [str(folder / "packages"), str(Path(__file__).parent)]
    python.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.path[:0] = {paths!r}\n"
        "runpy.run_path(sys.argv[-1], None, '__main__')\n"
    )
    python.chmod(0o755)
    return python


# transformers


class ViTConfig(SimpleNamespace):
    """Keyword arguments."""


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool) -> Tensor:
    """(B, T, heads x width) each: softmax attention, head by head."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    score = split[0] @ split[1].transpose(-1, -2) / split[0].shape[-1] ** 0.5
    if causal:
        score = score.masked_fill(torch.ones_like(score).triu(1).bool(), -torch.inf)
    mixed: Tensor = (score.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)
    return mixed


class ViTModel(nn.Module):
    """Pre-norm ViT with a CLS token, learned positions and a last layer norm."""

    def __init__(self, config: ViTConfig, add_pooling_layer: bool, use_mask_token: bool) -> None:
        super().__init__()
        assert not add_pooling_layer and not use_mask_token
        width, patch = config.hidden_size, config.patch_size
        self.config = config
        self.embeddings = nn.Module()
        self.embeddings.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, (config.image_size // patch) ** 2 + 1, width))
        self.embeddings.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, patch)})
        self.layers = nn.ModuleList(self.layer() for _ in range(config.num_hidden_layers))
        self.layernorm = self.norm()

    def norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.config.hidden_size, eps=self.config.layer_norm_eps)

    def layer(self) -> nn.ModuleDict:
        width, inner = self.config.hidden_size, self.config.intermediate_size
        return nn.ModuleDict(
            {
                "layernorm_before": self.norm(),
                "attention": nn.ModuleDict({f"{part}_proj": nn.Linear(width, width) for part in "qkvo"}),
                "layernorm_after": self.norm(),
                "mlp": nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)}),
            }
        )

    def forward(self, pixels: Tensor, interpolate_pos_encoding: bool) -> Any:
        patches = self.embeddings.patch_embeddings["projection"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.embeddings.cls_token.expand(len(pixels), -1, -1), patches], 1)
        x = x + self.embeddings.position_embeddings
        for layer in self.layers:
            normed, part = layer["layernorm_before"](x), layer["attention"]
            seen = attend(*(part[f"{p}_proj"](normed) for p in "qkv"), self.config.num_attention_heads, causal=False)
            x = x + part["o_proj"](seen)
            x = x + layer["mlp"]["fc2"](F.gelu(layer["mlp"]["fc1"](layer["layernorm_after"](x))))
        return SimpleNamespace(last_hidden_state=self.layernorm(x))


# stable_worldmodel.wm.lewm


class MLP(nn.Module):
    """Linear, norm, GELU, Linear."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, norm_fn: Any) -> None:
        super().__init__()
        layers = (nn.Linear(input_dim, hidden_dim), norm_fn(hidden_dim), nn.GELU(), nn.Linear(hidden_dim, output_dim))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found


class Embedder(nn.Module):
    """Action blocks to conditions."""

    def __init__(self, input_dim: int, smoothed_dim: int, emb_dim: int, mlp_scale: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Conv1d(input_dim, smoothed_dim, 1)
        self.embed = nn.Sequential(
            nn.Linear(smoothed_dim, mlp_scale * emb_dim), nn.SiLU(), nn.Linear(mlp_scale * emb_dim, emb_dim)
        )

    def forward(self, action: Tensor) -> Tensor:
        found: Tensor = self.embed(self.patch_embed(action.float().transpose(1, 2)).transpose(1, 2))
        return found


class Predictor(nn.Module):
    """Causal AdaLN-zero transformer over `num_frames` learned positions."""

    def __init__(
        self,
        num_frames: int,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_dim: int,
        dropout: float,
        emb_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert input_dim == hidden_dim == output_dim
        self.num_frames, self.heads = num_frames, heads
        self.pos_embedding = nn.Parameter(torch.zeros(1, num_frames, input_dim))
        inner = heads * dim_head
        layers = [
            nn.ModuleDict(
                {
                    "attn": nn.ModuleDict(
                        {
                            "norm": nn.LayerNorm(input_dim),
                            "to_qkv": nn.Linear(input_dim, 3 * inner, bias=False),
                            "to_out": nn.Sequential(nn.Linear(inner, input_dim), nn.Dropout(dropout)),
                        }
                    ),
                    "mlp": nn.ModuleDict(
                        {
                            "net": nn.Sequential(
                                nn.LayerNorm(input_dim),
                                nn.Linear(input_dim, mlp_dim),
                                nn.GELU(),
                                nn.Dropout(dropout),
                                nn.Linear(mlp_dim, input_dim),
                                nn.Dropout(dropout),
                            )
                        }
                    ),
                    "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(input_dim, 6 * input_dim)),
                }
            )
            for _ in range(depth)
        ]
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(layers), "norm": nn.LayerNorm(input_dim)})

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = x + self.pos_embedding[:, : x.shape[1]]
        for layer in self.transformer["layers"]:
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = layer["adaLN_modulation"](condition).chunk(6, -1)
            attn = layer["attn"]
            normed = attn["norm"](F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
            x = x + gate * attn["to_out"](attend(*attn["to_qkv"](normed).chunk(3, -1), self.heads, causal=True))
            normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + mlp_scale) + mlp_shift
            x = x + mlp_gate * layer["mlp"]["net"](normed)
        found: Tensor = self.transformer["norm"](x)
        return found


class LeWM(nn.Module):
    """Everything is a dictionary of tensors with problems first, then, in planning, candidates."""

    def __init__(
        self, encoder: ViTModel, predictor: Predictor, action_encoder: Embedder, projector: MLP, pred_proj: MLP
    ) -> None:
        super().__init__()
        self.encoder, self.predictor, self.action_encoder = encoder, predictor, action_encoder
        self.projector, self.pred_proj = projector, pred_proj

    def encode(self, info: dict[str, Any]) -> dict[str, Any]:
        frames = info["pixels"]
        seen = self.encoder(frames.flatten(0, 1), interpolate_pos_encoding=True).last_hidden_state[:, 0]
        info["emb"] = self.projector(seen).unflatten(0, frames.shape[:2])
        if "action" in info:
            info["act_emb"] = self.action_encoder(info["action"])
        return info

    def predict(self, latent: Tensor, condition: Tensor) -> Tensor:
        found = self.predictor(latent, condition)
        predicted: Tensor = self.pred_proj(found.flatten(0, 1)).unflatten(0, found.shape[:2])
        return predicted

    def rollout(self, info: dict[str, Any], action: Tensor) -> dict[str, Any]:
        problems, candidates = action.shape[:2]
        if "emb" not in info:
            first = self.encode({"pixels": info["pixels"][:, 0]})["emb"]
            info["emb"] = first[:, None].expand(-1, candidates, -1, -1)
        latent, condition = info["emb"].flatten(0, 1), self.action_encoder(action.flatten(0, 1))
        for now in range(latent.shape[1], action.shape[2] + 1):
            window = slice(max(0, now - self.predictor.num_frames), now)
            latent = torch.cat([latent, self.predict(latent[:, window], condition[:, window])[:, -1:]], 1)
        info["predicted_emb"] = latent.unflatten(0, (problems, candidates))
        return info

    def get_cost(self, info: dict[str, Any], action: Tensor) -> Tensor:
        info["action"]  # as the original, it wants one
        if "goal_emb" not in info:
            info["goal_emb"] = self.encode({"pixels": info["goal"][:, 0]})["emb"][:, None]
        last = self.rollout(info, action)["predicted_emb"][:, :, -1]
        cost: Tensor = (last - info["goal_emb"][:, :, -1]).square().sum(-1)
        return cost


# stable_worldmodel.solver and .policy


class CEMSolver:
    """CEM over scaled blocks, without bounds; one generator for whoever asks."""

    def __init__(
        self,
        model: LeWM,
        batch_size: int = 1,
        num_samples: int = 300,
        n_steps: int = 30,
        topk: int = 30,
        device: str = "cpu",
        seed: int = 1234,
        callbacks: Any = None,
    ) -> None:
        self.model, self.device, self.callbacks = model, device, callbacks or []
        self.num_samples, self.n_steps, self.topk = num_samples, n_steps, topk
        self.torch_gen = torch.Generator(device).manual_seed(seed)

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        self.entries, self.config = action_space.shape[-1] * config.action_block, config

    def solve(self, info: dict[str, Any], init_action: Tensor | None = None) -> dict[str, Tensor]:
        print("what it prints must not reach the pipe")
        problems, horizon = len(info["pixels"]), self.config.horizon
        mean = torch.zeros(problems, horizon, self.entries)
        if init_action is not None:
            mean[:, : init_action.shape[1]] = init_action
        std = torch.ones_like(mean)
        info = {k: v.float()[:, None].expand(-1, self.num_samples, *v.shape[1:]) for k, v in info.items()}
        for _ in range(self.n_steps):
            shape = (problems, self.num_samples, horizon, self.entries)
            noise = torch.randn(*shape, generator=self.torch_gen, device=self.device, dtype=torch.float32)
            tried = noise * std[:, None] + mean[:, None]
            tried[:, 0] = mean
            cost = self.model.get_cost(info, tried)
            best = tried[torch.arange(problems)[:, None], cost.topk(self.topk, 1, largest=False).indices]
            mean, std = best.mean(1), best.std(1)
            for callback in self.callbacks:
                callback(candidates=tried, costs=cost)
        return {"actions": mean}


@dataclass(frozen=True)
class PlanConfig:
    """Blocks planned and executed."""

    horizon: int
    receding_horizon: int
    history_len: int = 1
    action_block: int = 1
    warm_start: bool = True


class WorldModelPolicy:
    """One environment's: plans when its buffer is empty, from what was left of the last plan."""

    def __init__(self, solver: CEMSolver, config: PlanConfig, process: Any, transform: Any) -> None:
        self.solver, self.config, self.process, self.transform = solver, config, process, transform
        self.flatten_receding_horizon = config.receding_horizon * config.action_block
        self.buffer: deque[Tensor] = deque()
        self.rest: Tensor | None = None

    def set_env(self, env: Any) -> None:
        self.env = env
        self.solver.configure(action_space=env.action_space, n_envs=env.num_envs, config=self.config)

    def get_action(self, info: dict[str, Any]) -> np.ndarray:
        if not self.buffer:
            seen = {"action": torch.from_numpy(self.process["action"].transform(info["action"]))}
            for name, transform in self.transform.items():
                seen[name] = transform(torch.from_numpy(info[name][0, 0]).movedim(-1, 0))[None, None]
            plan = self.solver.solve(seen, self.rest)["actions"]
            self.rest = plan[:, self.config.receding_horizon :] if self.config.warm_start else None
            executed = plan[0, : self.config.receding_horizon]
            self.buffer.extend(executed.reshape(-1, self.env.single_action_space.shape[-1]))
        acted: np.ndarray = self.process["action"].inverse_transform(self.buffer.popleft()[None].float().numpy())
        return acted
