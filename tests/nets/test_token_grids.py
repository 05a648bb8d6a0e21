"""Predictors of token grids: rotations in three axes, no large mask, what is measured, what is normalised."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lewm.bench.measure import peak_mb
from lewm.nets.axial import axial_table, grid_positions
from lewm.nets.blocks import MLP, Attention, Block, CausalTransformer, attend_frames, frame_causal_mask, rotate
from lewm.nets.predictors import ACConfig, DinoWMConfig, PredictorConfig, RotaryConfig, build_predictor
from lewm.nets.predictors.ac import ACPredictor

CPU = torch.device("cpu")
AC = ACConfig(context=4, width=28, layers=2, heads=2, mlp_ratio=2)
AXIAL = RotaryConfig(context=4, width=16, layers=2, heads=2, mlp_ratio=2, positions="axial")
DINO_WM = DinoWMConfig(layers=2, heads=2, head_dim=4, mlp_hidden=16)
D, A = 6, 3


def built(config: PredictorConfig, tokens: int = 4, measured: int = 0) -> torch.nn.Module:
    """Every parameter moved off its initial value."""
    torch.manual_seed(0)
    net = build_predictor(config, D + measured, A, tokens, measured)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


def window(tokens: int = 4, frames: int = 3, measured: int = 0) -> tuple[Tensor, Tensor]:
    """Latents whose last entries are the same in every token of a frame."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, frames, tokens, D + measured, generator=generator)
    latent[..., D:] = latent[..., :1, D:]
    return latent, torch.randn(2, frames, A, generator=generator)


def test_positions_of_a_grid() -> None:
    """One leading token per frame, rows and columns of a 2 x 2 grid counted as in one of 16 x 16."""
    time, row, column = grid_positions(2, 2, 1, start=5, scale=8.0, device=CPU).tolist()
    assert time == [5.0] * 5 + [6.0] * 5
    assert row == [0, 0, 0, 8, 8] * 2 and column == [0, 0, 8, 0, 8] * 2


def test_axial_angles_by_hand() -> None:
    """Heads of 14: 2 pairs per axis, one left over. At time 3, row 2, column 1 and base 100 the angles are 3, 3 / 10,
    2, 2 / 10, 1, 1 / 10, 0; in the released form the features of a pair take angles 0, 1 (both pairs alike)."""
    position = torch.tensor([[3.0], [2.0], [1.0]])
    angles = torch.tensor([3.0, 0.3, 2.0, 0.2, 1.0, 0.1, 0.0])
    torch.testing.assert_close(axial_table(position, 14, 100.0)[:, 0], torch.stack([angles.cos(), angles.sin()]))
    first = torch.tensor([3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 0.0])
    second = torch.tensor([0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0])
    expected = torch.stack([first.cos(), first.sin(), second.cos(), second.sin()])
    torch.testing.assert_close(axial_table(position, 14, 100.0, repeated=True)[:, 0], expected)


def products(repeated: bool, shift: tuple[float, float, float]) -> Tensor:
    """Of one query and key at two places, both moved."""
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 24, generator=draw, dtype=torch.float64)
    places = torch.tensor([[1.0, 4.0], [2.0, 0.0], [3.0, 5.0]]) + torch.tensor(shift)[:, None]
    table = axial_table(places, 24, 10_000.0, repeated)
    return rotate(query[None], table[:, :1]) @ rotate(key[None], table[:, 1:]).T


def test_only_distances_matter_but_not_in_the_released_form() -> None:
    for shift in ((7.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 2.0)):
        torch.testing.assert_close(products(False, shift), products(False, (0.0, 0.0, 0.0)), rtol=1e-5, atol=1e-5)
        assert (products(True, shift) - products(True, (0.0, 0.0, 0.0))).abs() > 1e-3


@pytest.mark.parametrize("config", [AC, AXIAL], ids=["ac", "rotary"])
def test_predictions_do_not_depend_on_where_a_window_starts(config: PredictorConfig) -> None:
    net = built(config)
    here = net(*window())
    torch.testing.assert_close(net(*window(), start=9), here, rtol=1e-4, atol=1e-4)


def test_the_released_rotations_are_others() -> None:
    plain, released = built(AC), built(replace(AC, compat=True))
    assert (plain(*window()) - released(*window())).abs().max() > 1e-3
    assert (released(*window(), start=9) - released(*window())).abs().max() > 1e-3
    assert (built(replace(AC, grid=16))(*window()) - plain(*window())).abs().max() > 1e-3


@pytest.mark.parametrize("config", [AC, AXIAL, DINO_WM], ids=["ac", "rotary", "dino_wm"])
def test_a_patch_knows_its_place(config: PredictorConfig) -> None:
    """What is seen in one patch and in another is not the other way round: an answer that could not tell them apart
    would only be swapped."""
    net, (latent, action) = built(config), window()
    order = [1, 0, 2, 3]
    swapped = net(latent[:, :, order], action)[:, :, order]
    assert (swapped - net(latent, action)).abs().max() > 1e-3


def test_predicted_patches_are_normalised() -> None:
    out = built(AC)(*window())
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, 3, 4), rtol=0, atol=1e-3)
    free = built(replace(AC, normalise=False))(*window())
    torch.testing.assert_close(torch.nn.functional.layer_norm(free, (D,)), out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 3])
def test_attention_frame_by_frame_is_that_of_the_mask(frames: int) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, frames * 5, 8, generator=draw)
    mask = frame_causal_mask(frames, 5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attend_frames(query, key, value, frames), expected, rtol=1e-5, atol=1e-5)


def test_a_stack_for_grids_has_no_mask_and_gives_the_same() -> None:
    torch.manual_seed(0)
    blocks = [Block(Attention(8, 2, 4), MLP(8, 16), 8, norm=False)]
    few, many = (CausalTransformer(blocks, 8, context=4, tokens=tokens) for tokens in (3, 49))
    assert few.mask is not None and many.mask is None
    torch.nn.init.normal_(many.modulation.weight)
    x, condition = torch.randn(2, 3, 49, 8), torch.randn(2, 3, 8)
    found = many(x, condition)
    many.mask = frame_causal_mask(4, 49)
    torch.testing.assert_close(found, many(x, condition), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [ACConfig(context=512, width=12, layers=1, heads=2, mlp_ratio=1), DinoWMConfig(16, layers=1, heads=1, head_dim=4)],
)
def test_nothing_the_size_of_a_mask_is_ever_built(config: PredictorConfig) -> None:
    """A mask over 512 frames of 257 tokens would hold 17 GB; over the 16 frames seen here 17 MB. What a window of 16
    frames takes is less than that, and a predictor holds its weights and nothing else."""
    if isinstance(config, DinoWMConfig):
        config = DinoWMConfig(history=16, layers=1, heads=1, head_dim=4, mlp_hidden=8)
    net = build_predictor(config, 4, 2, 256).eval()
    held = sum(x.numel() * x.element_size() for x in (*net.parameters(), *net.buffers()))
    assert held < 1e6 and not list(net.buffers())
    latent, action = torch.zeros(1, 16, 256, 4), torch.zeros(1, 16, 2)
    with torch.no_grad():
        taken = peak_mb(lambda: net(latent, action), CPU)
    assert taken < 0.5 * (16 * 256) ** 2 / 1e6


def test_measurements_are_a_token_and_predicted() -> None:
    """The same in every token; from the state token, so they see the picture, and the picture sees them."""
    net = built(AC, measured=3)
    latent, action = window(measured=3)
    out = net(latent, action)
    assert out.shape == latent.shape
    assert (out[..., D:] == out[..., :1, D:]).all()
    moved = latent.clone()
    moved[:, 0, :, D:] += 1.0
    assert ((net(moved, action) - out)[..., :D].abs().amax((0, 2, 3)) > 1e-4).all()
    other = latent.clone()
    other[:, 0, :, :D] *= -1
    assert ((net(other, action) - out)[:, :, 0, D:].abs().amax((0, 2)) > 1e-5).all()


def test_integrated_measurements_add_what_the_action_says() -> None:
    net = built(replace(AC, state="integrated"), measured=3)
    assert isinstance(net, ACPredictor) and net.change is not None and net.state_out is None
    latent, action = window(measured=3)
    expected = latent[:, :, 0, D:] + net.change(action)
    torch.testing.assert_close(net(latent, action)[:, :, 0, D:], expected)


def test_a_camera_stays_where_it_is_and_is_seen() -> None:
    net = built(replace(AC, extrinsics=2), measured=5)
    latent, action = window(measured=5)
    out = net(latent, action)
    torch.testing.assert_close(out[..., D + 3 :], latent[..., D + 3 :])
    moved = latent.clone()
    moved[..., D + 3 :] += 1.0
    assert (net(moved, action) - out)[..., :D].abs().max() > 1e-4


def test_gradients_reach_every_weight_of_the_measurements() -> None:
    for state in ("predicted", "integrated"):
        net = built(replace(AC, state=state, extrinsics=1), measured=3).requires_grad_(True)
        (net(*window(measured=3)) ** 3).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_later_blocks_start_smaller() -> None:
    """Output maps are divided by the root of twice the block's number, as V-JEPA does."""
    torch.manual_seed(0)
    net = build_predictor(ACConfig(width=96, layers=8, heads=4), D, A, 4)
    assert isinstance(net, ACPredictor)
    for number in (1, 8):
        block = net.blocks[number - 1]
        for weight in (block.attention.out.weight, block.mlp.down.weight):  # type: ignore[union-attr]
            assert weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.05)  # type: ignore[operator]


def test_dino_wm_has_twenty_million_parameters_and_knows_the_action_in_every_patch() -> None:
    """On 196 patches of 384 entries with 10 measured, as in DINO-WM: 404 wide, 6 blocks."""
    net = build_predictor(DinoWMConfig(), 394, 10, 196)
    w = 404
    block = 3 * w * 1024 + 1024 * w + w + 4 * w + 2 * w * 2048 + w + 2048
    expected = 6 * block + 2 * w + 3 * 196 * w + 110
    assert sum(p.numel() for p in net.parameters()) == expected == 20_122_710
    latent, action = window(frames=1)
    small = built(DINO_WM)
    assert ((small(latent, action) - small(latent, -action)).abs().amax((0, 1, 3)) > 1e-4).all()


def test_bad_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="ac predictor: 3 tokens per frame are no square grid"):
        build_predictor(AC, D, A, 3)
    with pytest.raises(ValueError, match="rotary predictor: 8 tokens per frame are no square grid"):
        build_predictor(AXIAL, D, A, 8)
    with pytest.raises(ValueError, match="extrinsics is 6, but only 2 entries are measured"):
        build_predictor(replace(AC, extrinsics=6), D + 2, A, 4, 2)
    for changes, expected in (
        ({"heads": 4, "width": 16}, "width is 16 and heads 4; the width of a head must be whole, even and at least 6"),
        ({"width": 21, "heads": 3}, "width is 21 and heads 3"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"extrinsics": -1}, "extrinsics is -1"),
        ({"grid": 0}, "grid is 0"),
    ):
        with pytest.raises(ValueError, match=expected):
            replace(AC, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the width of a head must be"):
        RotaryConfig(width=16, heads=4, positions="axial")
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        DinoWMConfig(dropout=1.0)
    with pytest.raises(ValueError, match="action_width is 0"):
        DinoWMConfig(action_width=0)
