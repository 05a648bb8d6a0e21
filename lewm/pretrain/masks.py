"""Which tokens the student sees and which it predicts: blocks (I-JEPA), tubes (V-JEPA), block masks (data2vec), random
patches (MAE).

All are drawn from a generator for a whole batch. Every sample of a batch gets equally many tokens; where the draw gave
some more than others, the surplus is dropped at random (the published code drops what lies last, bottom right). Block
size and aspect are drawn once per batch and on their own (the published code of I-JEPA takes both from one number).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lewm import distributed
from lewm.nets.token_vit import Grid

TRIES = 20
"""Draws of a sample's blocks before one that leaves too few visible tokens is accepted."""


@dataclass(frozen=True)
class Masks:
    """Token numbers of a batch, in the order of `token_vit.grid_positions`; no token is in both."""

    context_BN: Tensor
    """What the student sees."""
    target_BMP: Tensor
    """What it predicts: M groups of P tokens, each predicted on its own. Groups may overlap."""


@dataclass(frozen=True)
class BlockConfig:
    """I-JEPA's multi-block masks, on the patches of a picture."""

    targets: int = 4
    """Target blocks per picture."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Smallest and largest share of the picture that a target block covers."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest height over width of a target block."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Share of the picture that the square context block covers before the targets are cut out of it."""
    min_context: int = 6
    """Fewest tokens to leave visible; blocks are drawn again otherwise (I-JEPA: 10, on finer grids)."""
    maskings: int = 1
    """Maskings of every picture per step, each with a context and targets of its own."""

    def __post_init__(self) -> None:
        for name in ("targets", "min_context", "maskings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is {(low, high)}; it must be two rising shares in (0, 1]")
        if not 0 < self.target_aspect[0] <= self.target_aspect[1]:
            raise ValueError(f"target_aspect is {self.target_aspect}; it must be two positive rising numbers")


@dataclass(frozen=True)
class TubeConfig:
    """One kind of V-JEPA's masks: blocks of patches, hidden in all frames of a clip; the rest is seen."""

    blocks: int = 8
    """Blocks per clip; what any of them covers is hidden."""
    scale: float = 0.15
    """Share of a frame that one block covers."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest height over width of a block."""

    def __post_init__(self) -> None:
        if self.blocks < 1 or not 0 < self.scale < 1:
            raise ValueError(f"blocks is {self.blocks} and scale {self.scale}; use 1 or more and a share in (0, 1)")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is {self.aspect}; it must be two positive rising numbers")


def draw_for_rank(draw: Callable[[int], Masks], clip_BTCYX: Tensor) -> Masks:
    """Masks of this process's clips, on their device, drawn as one process would draw those of all."""
    masks = draw(len(clip_BTCYX) * distributed.world_size())
    return Masks(own_share(masks.context_BN, clip_BTCYX), own_share(masks.target_BMP, clip_BTCYX))


def own_share(drawn: Tensor, clip_BTCYX: Tensor) -> Tensor:
    """This process's rows of what was drawn for the clips of all, on the device of its clips."""
    return drawn[distributed.rank() :: distributed.world_size()].to(clip_BTCYX.device)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def block_size(
    rows: int, columns: int, scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> tuple[int, int]:
    """Height and width in patches of a block of a drawn share and aspect, from 1 x 1 up to the whole picture."""
    area, ratio = rows * columns * uniform(*scale, generator), uniform(*aspect, generator)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(max(height, 1), rows), min(max(width, 1), columns)


def _below(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    return max(1, min(size[0], rows - 1)), max(1, min(size[1], columns - 1))


def place_blocks(
    rows: int, columns: int, size: tuple[int, int], count: int, blocks: int, generator: torch.Generator
) -> Tensor:
    """Bool covered_BMYX: `blocks` blocks of one size at random places, for each of `count` samples."""
    height, width = size
    corner = torch.rand(count, blocks, 2, generator=generator, dtype=torch.float64)
    top = (corner[..., 0] * (rows - height + 1)).long()[..., None]
    left = (corner[..., 1] * (columns - width + 1)).long()[..., None]
    y, x = torch.arange(rows), torch.arange(columns)
    inside_y, inside_x = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return inside_y[..., :, None] & inside_x[..., None, :]


def choose_equally(allowed_BS: Tensor, generator: torch.Generator, most: int | None = None) -> Tensor:
    """Sorted token numbers index_BN of a bool mask: as many of every sample as the poorest one has, at most `most`."""
    count = int(allowed_BS.sum(-1).min())
    count = count if most is None else min(count, most)
    order = torch.rand(allowed_BS.shape, generator=generator, dtype=torch.float64) + (~allowed_BS).double()
    return order.argsort(-1)[..., :count].sort(-1).values


def multi_block(grid: Grid, config: BlockConfig, count: int, generator: torch.Generator) -> Masks:
    """I-JEPA's masks of `count` pictures: a large context block without what the target blocks cover (section 3).

    Where 20 draws leave fewer than `min_context` visible tokens, the draw that leaves most is taken. Raises ValueError
    where none leaves any.
    """
    _, rows, columns = grid
    size = block_size(rows, columns, config.target_scale, config.target_aspect, generator)
    around = block_size(rows, columns, config.context_scale, (1.0, 1.0), generator)
    # As published, no block is as high or as wide as the picture: even the largest context has to be placed.
    size, around = (_below(side, rows, columns) for side in (size, around))
    best_BMS = torch.zeros(count, config.targets, rows * columns, dtype=torch.bool)
    seen_BS = torch.zeros(count, rows * columns, dtype=torch.bool)
    for _ in range(TRIES):
        target_BMS = place_blocks(rows, columns, size, count, config.targets, generator).flatten(2)
        context_BS = place_blocks(rows, columns, around, count, 1, generator).flatten(2)[:, 0] & ~target_BMS.any(1)
        more_B = context_BS.sum(-1) > seen_BS.sum(-1)
        more_B &= seen_BS.sum(-1) < config.min_context
        seen_BS[more_B], best_BMS[more_B] = context_BS[more_B], target_BMS[more_B]
        if bool((seen_BS.sum(-1) >= config.min_context).all()):
            break
    if not bool(seen_BS.any(-1).all()):
        raise ValueError(
            f"{config.targets} target blocks of {size[0]} x {size[1]} patches hide all of a {rows} x {columns} picture "
            f"in each of {TRIES} draws; lower method.masks.targets or target_scale, or use smaller patches"
        )
    return Masks(choose_equally(seen_BS, generator), choose_equally(best_BMS, generator))


def tubes(grid: Grid, config: TubeConfig, count: int, generator: torch.Generator) -> Masks:
    """V-JEPA's masks of `count` clips: blocks hidden through all frames, as one group of targets; the rest is seen.

    Tubes span the clip, because the content of a shorter one could be copied from another frame. Raises ValueError
    where some clip would have nothing to see in 20 draws.
    """
    _, rows, columns = grid
    size = block_size(rows, columns, (config.scale, config.scale), config.aspect, generator)
    hidden_BS = torch.ones(count, rows * columns, dtype=torch.bool)
    for _ in range(TRIES):
        again_B = hidden_BS.all(-1)
        drawn_BS = place_blocks(rows, columns, size, count, config.blocks, generator).any(1).flatten(1)
        hidden_BS[again_B] = drawn_BS[again_B]
        if not bool(hidden_BS.all(-1).any()):
            break
    else:
        raise ValueError(
            f"{config.blocks} blocks of {size[0]} x {size[1]} patches hide all of a {rows} x {columns} frame in each "
            f"of {TRIES} draws; lower blocks or scale in method.masks, or use smaller patches"
        )
    # Chosen in space and then repeated in time: what is dropped to make counts equal is a whole tube.
    context_BN, target_BP = choose_equally(~hidden_BS, generator), choose_equally(hidden_BS, generator)
    return Masks(_through_time(context_BN, grid), _through_time(target_BP, grid)[:, None])


def _through_time(cell_BN: Tensor, grid: Grid) -> Tensor:
    frames, rows, columns = grid
    first_T = torch.arange(frames)[:, None] * rows * columns
    return (first_T + cell_BN[:, None]).flatten(1)


def block_mask(
    grid: Grid, share: float, min_block: int, aspect: float, count: int, generator: torch.Generator
) -> Tensor:
    """data2vec's (BEiT's) masks: bool hidden_BS with exactly round(share x patches) set per picture.

    Blocks of at least `min_block` patches and of log-uniform aspect in [1 / aspect, aspect] are laid over each other
    until they cover that many; the surplus of the last is dropped at random.
    """
    _, rows, columns = grid
    wanted = round(share * rows * columns)
    hidden_BS = torch.zeros(count, rows * columns, dtype=torch.bool)
    while bool((short_B := hidden_BS.sum(-1) < wanted).any()):
        low = min(min_block, wanted) / (rows * columns)
        log_aspect = uniform(-math.log(aspect), math.log(aspect), generator)
        size = block_size(rows, columns, (low, max(low, share)), (math.exp(log_aspect),) * 2, generator)
        drawn_BS = place_blocks(rows, columns, size, count, 1, generator).flatten(1)
        hidden_BS |= drawn_BS & short_B[:, None]
    index_BN = choose_equally(hidden_BS, generator, wanted)
    return torch.zeros_like(hidden_BS).scatter_(1, index_BN, True)


def random_patches(grid: Grid, hidden: float, count: int, generator: torch.Generator) -> Masks:
    """MAE's masks: int(patches x (1 - hidden)) random patches of every picture are seen, the rest is one group."""
    tokens = math.prod(grid)
    order_BS = torch.rand(count, tokens, generator=generator, dtype=torch.float64).argsort(-1)
    seen = int(tokens * (1 - hidden) + 1e-9)
    return Masks(order_BS[:, :seen].sort(-1).values, order_BS[:, None, seen:].sort(-1).values)
