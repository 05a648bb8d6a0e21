"""V-JEPA 2-AC's predictor written out from its formulas, token by token, in the layout of the released weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS, LAYERS, WIDTH, PICTURE, ACTIONS, SIDE = 2, 2, 28, 6, 3, 2


def released(seed: int = 0, states: int = 3, extrinsics: bool = True) -> dict[str, Tensor]:
    """A small predictor with random weights, none of them near where training would start."""
    generator = torch.Generator().manual_seed(seed)
    linear = {
        "predictor_embed": (WIDTH, PICTURE),
        "action_encoder": (WIDTH, ACTIONS),
        "predictor_proj": (PICTURE, WIDTH),
    }
    if states:
        linear["state_encoder"] = (WIDTH, states)
    if extrinsics:
        linear["extrinsics_encoder"] = (WIDTH, 6)
    norms = ["predictor_norm"]
    for i in range(LAYERS):
        block = f"predictor_blocks.{i}"
        linear |= {f"{block}.attn.qkv": (3 * WIDTH, WIDTH), f"{block}.attn.proj": (WIDTH, WIDTH)}
        linear |= {f"{block}.mlp.fc1": (2 * WIDTH, WIDTH), f"{block}.mlp.fc2": (WIDTH, 2 * WIDTH)}
        norms += [f"{block}.norm1", f"{block}.norm2"]
    found = {}
    for name, (rows, columns) in linear.items():
        found[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        found[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)
    for name in norms:
        found[f"{name}.weight"] = 1 + 0.2 * torch.randn(WIDTH, generator=generator)
        found[f"{name}.bias"] = 0.1 * torch.randn(WIDTH, generator=generator)
    return found


def turned(x_h: Tensor, position: tuple[float, float, float] | tuple[float], repeated: bool) -> Tensor:
    """One head's vector at (time, row, column), or at a time alone."""
    out, size = x_h.clone(), 2 * ((len(x_h) // 3) // 2)
    for axis, where in enumerate(position):
        part = x_h[axis * size : (axis + 1) * size]
        angle = where * 10_000.0 ** (-torch.arange(size // 2) / (size / 2))
        angle = angle.repeat(2) if repeated else angle.repeat_interleave(2)
        swapped = torch.stack([-part[1::2], part[0::2]], -1).flatten()
        out[axis * size : (axis + 1) * size] = part * angle.cos() + swapped * angle.sin()
    return out


def forward(
    w: dict[str, Tensor],
    latent_TKD: Tensor,
    action_TA: Tensor,
    state_TS: Tensor | None = None,
    camera_TE: Tensor | None = None,
    repeated: bool = True,
    grid: int = SIDE,
) -> Tensor:
    """Predicted and layer-normed patches of one clip, (T, K, D)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    tokens: list[Tensor] = []
    places: list[tuple] = []
    patch: list[bool] = []
    for t in range(len(latent_TKD)):
        lead = [linear("action_encoder", action_TA[t])]
        lead += [] if state_TS is None else [linear("state_encoder", state_TS[t])]
        lead += [] if camera_TE is None else [linear("extrinsics_encoder", camera_TE[t])]
        tokens += lead + list(linear("predictor_embed", latent_TKD[t]))
        places += [(float(t),)] * len(lead)
        places += [(float(t), r * grid / SIDE, c * grid / SIDE) for r in range(SIDE) for c in range(SIDE)]
        patch += [False] * len(lead) + [True] * SIDE**2
    x = torch.stack(tokens)
    head_dim = WIDTH // HEADS
    for i in range(LAYERS):
        block = f"predictor_blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).view(len(x), 3, HEADS, head_dim)
        mixed = torch.zeros(len(x), HEADS, head_dim)
        for h in range(HEADS):
            query, key = (
                torch.stack([turned(v, p, repeated) for v, p in zip(qkv[:, j, h], places, strict=True)]) for j in (0, 1)
            )
            score = query @ key.T / head_dim**0.5
            for asking, seen in ((a, b) for a in range(len(x)) for b in range(len(x))):
                if places[seen][0] > places[asking][0]:
                    score[asking, seen] = -torch.inf
            mixed[:, h] = score.softmax(-1) @ qkv[:, 2, h]
        x = x + linear(f"{block}.attn.proj", mixed.flatten(1))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    out = linear("predictor_proj", norm("predictor_norm", x))[torch.tensor(patch)]
    out = out - out.mean(-1, keepdim=True)
    return (out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(latent_TKD.shape)
