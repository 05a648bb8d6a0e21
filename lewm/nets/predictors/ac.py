"""V-JEPA 2-AC's predictor: actions and measurements are tokens of their own in front of the patches of their frame.

Section 3 of V-JEPA 2 (arXiv 2506.09985): per frame [action, state, patches], every token sees those of its own frame
and of the frames before, positions are rotations in time, height and width, predicted patches are layer-normed. The
defaults are the size of JEPA-WMs's small recipe; the released one is `RELEASED`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.axial import axial_table, check_head_dim, grid_positions, grid_side
from lewm.nets.blocks import MLP, NORM_EPS, Attention, Block, check_window, frame_causal, init_linear
from lewm.nets.heads import LINKS, LinkName, check_link

AXIAL_BASE = 10_000.0
"""Of V-JEPA 2."""
OUTPUT_EPS = 1e-5
"""Added to the variance where predicted patches are normalised, as torch's layer norm does by default."""


@dataclass(frozen=True)
class ACConfig:
    """Action-conditioned predictor on square grids of patches.

    Measurements (`model.proprio`) become the state token. What they are one block later is predicted, since nothing
    here knows what an action means for them; `state: integrated` is for actions that are their change.
    """

    name: Literal["ac"] = "ac"
    context: int = 8
    """Most frames it sees; choose at least history + planning horizon, so that a plan visits every frame once."""
    width: int = 384
    """Width of a token inside."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 16
    """Attention heads; they share the width."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP over its width."""
    state: Literal["predicted", "integrated"] = "predicted"
    """Measurements after a block: predicted by the state token from all that is seen; or their sum with a learned
    linear map of the action block, as V-JEPA 2-AC adds pose differences to poses outside its network."""
    extrinsics: int = 0
    """How many of the last entries of `model.proprio` say where the camera stands; they get a token of their own and do
    not change. V-JEPA 2-AC's are 6. Needs model.proprio_width null."""
    normalise: bool = True
    """Whether predicted patches are layer-normed, without weights, at every step; for encoders whose patches are."""
    compat: bool = False
    """Rotations as the released weights of V-JEPA 2-AC need them, which are none strictly: see `axial_table`."""
    grid: int | None = None
    """Patches along a side that rows and columns are counted in, as in the grid the weights were trained on (16 for the
    released ones); null: those of the encoder."""
    link: LinkName = "identity"
    """Last step: `relu` and `rep_relu` set negative entries to zero, for objective rdmreg with rectified targets; give
    the encoder the same."""

    def __post_init__(self) -> None:
        check_link(self.link)
        for name in ("context", "width", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.extrinsics < 0:
            raise ValueError(f"extrinsics is {self.extrinsics}; it must be 0 or more")
        if self.grid is not None and self.grid < 1:
            raise ValueError(f"grid is {self.grid}; it must be at least 1, or null")
        check_head_dim(self.width, self.heads)


RELEASED = ACConfig(context=64, width=1024, layers=24, heads=16, state="integrated", compat=True, grid=16)
"""The layout of the weights that V-JEPA 2-AC was released with: 24 blocks, 305 million parameters."""


class ACPredictor(nn.Module):
    """latent_BTKD and action_BTA to predicted_BTKD; the last `measured` entries of every token are the measurements.

    Attention over many tokens runs frame by frame, without a mask (`lewm.nets.blocks.frame_causal`); neither weights
    nor memory know `context`.
    """

    def __init__(self, config: ACConfig, latent_dim: int, action_dim: int, tokens: int, measured: int = 0) -> None:
        super().__init__()
        if config.extrinsics > measured:
            raise ValueError(
                f"ac predictor: extrinsics is {config.extrinsics}, but only {measured} entries are measured; name the "
                "camera's in model.proprio, last, or set extrinsics to 0"
            )
        self.context: int = config.context
        self.tokens, self.side = tokens, grid_side(tokens, "ac")
        self.scale = 1.0 if config.grid is None else config.grid / self.side
        self.normalised, self.compat, self.link = config.normalise, config.compat, LINKS[config.link]
        self.head_dim = config.width // config.heads
        self.picture_dim, self.measured = latent_dim - measured, measured
        self.states = measured - config.extrinsics
        width = config.width
        self.embed = nn.Linear(self.picture_dim, width)
        self.action = nn.Linear(action_dim, width)
        self.state = nn.Linear(self.states, width) if self.states else None
        self.extrinsics = nn.Linear(config.extrinsics, width) if config.extrinsics else None
        self.leading = 1 + (self.state is not None) + (self.extrinsics is not None)
        self.blocks = nn.ModuleList(
            Block(Attention(width, config.heads, self.head_dim), MLP(width, config.mlp_ratio * width), width)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.out = nn.Linear(width, self.picture_dim)
        predicted = self.states and config.state == "predicted"
        self.state_out = nn.Linear(width, self.states) if predicted else None
        self.change = nn.Linear(action_dim, self.states) if self.states and not predicted else None
        self.apply(init_linear)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, 1):
                for last in (block.attention.out, block.mlp.down):  # type: ignore[union-attr]
                    last.weight.div_((2 * number) ** 0.5)  # type: ignore[union-attr, operator]

    def forward(self, latent_BTKD: Tensor, action_BTA: Tensor, start: int = 0) -> Tensor:
        """Entry t is the latent that follows frame t when action block t leaves it. Raises ValueError for T > context.

        start: time of the first frame; without `compat` only distances matter, so it changes nothing but rounding.
        """
        check_window(latent_BTKD, action_BTA, self.tokens, self.context)
        frames = latent_BTKD.shape[1]
        action_BT1W = self.action(action_BTA)[:, :, None]
        x_BTLW = torch.cat([action_BT1W, self.embed_frame(latent_BTKD)], 2)
        table, mask = self.table(frames, start), frame_causal(frames, x_BTLW.shape[2], x_BTLW.device)
        for block in self.blocks:
            x_BTLW = block(x_BTLW, mask, table)
        x_BTLW = self.norm(x_BTLW)
        picture_BTKD = self.out(x_BTLW[:, :, self.leading :])
        if self.normalised:
            picture_BTKD = F.layer_norm(picture_BTKD, picture_BTKD.shape[-1:], eps=OUTPUT_EPS)
        picture_BTKD = self.link(picture_BTKD)
        if not self.measured:
            return picture_BTKD
        measured_BTM = latent_BTKD[:, :, 0, self.picture_dim :]
        state_BTS, camera_BTE = measured_BTM[..., : self.states], measured_BTM[..., self.states :]
        if self.state_out is not None:
            state_BTS = state_BTS + self.state_out(x_BTLW[:, :, 1])
        elif self.change is not None:
            state_BTS = state_BTS + self.change(action_BTA)
        return join_measured(picture_BTKD, torch.cat([state_BTS, camera_BTE], -1))

    def embed_frame(self, latent: Tensor) -> Tensor:
        """Latents (..., K, D) to the tokens of their frames without the action: state, camera, patches."""
        first = latent[..., :1, self.picture_dim :]  # every token carries the same
        tokens = [] if self.state is None else [self.state(first[..., : self.states])]
        if self.extrinsics is not None:
            tokens.append(self.extrinsics(first[..., self.states :]))
        return torch.cat([*tokens, self.embed(latent[..., : self.picture_dim])], -2)

    def table(self, frames: int, start: int = 0) -> Tensor:
        """The rotations of all tokens of `frames` frames, as `rotate` takes them; leading tokens turn in time only."""
        device = self.embed.weight.device
        positions = grid_positions(frames, self.side, self.leading, start, self.scale, device)
        return axial_table(positions, self.head_dim, AXIAL_BASE, repeated=self.compat)


def join_measured(picture: Tensor, measured: Tensor) -> Tensor:
    """Patches (..., K, D) and measurements (..., M) to latents (..., K, D + M)."""
    return torch.cat([picture, measured[..., None, :].expand(*picture.shape[:-1], -1)], -1)
