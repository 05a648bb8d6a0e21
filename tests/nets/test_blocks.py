"""BatchNorm equals torch's, alone and over processes; rotary scores see distances only; masks and modulation."""

from typing import Any

import pytest
import torch
from parallel import OnTwoRanks
from torch import Tensor, nn

from lewm.distributed import average_gradients
from lewm.nets.blocks import (
    MLP,
    Attention,
    BatchNorm,
    Block,
    CausalTransformer,
    frame_causal_mask,
    rotary_table,
    rotate,
)
from lewm.nets.heads import Projector


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill_norm(norm: nn.Module) -> None:
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * normal(len(norm.weight), seed=8))  # type: ignore[arg-type]
        norm.bias.copy_(normal(len(norm.bias), seed=9))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (BatchNorm(6, axis=1), nn.BatchNorm2d(6), (5, 6, 4, 3)),
        (BatchNorm(6), nn.BatchNorm1d(6), (9, 6)),
    ],
)
def test_batch_norm_is_torchs(ours: BatchNorm, theirs: nn.Module, shape: tuple[int, ...]) -> None:
    fill_norm(ours)
    theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        x = 3 + 2 * normal(*shape, seed=step)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = ours(a), theirs(b)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=0, atol=0)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_batch_norm_with_features_last_flattens_every_other_axis() -> None:
    ours, theirs = BatchNorm(6), nn.BatchNorm1d(6)
    x = normal(4, 3, 2, 6)
    torch.testing.assert_close(ours(x), theirs(x.reshape(24, 6)).view_as(x), rtol=0, atol=0)


def test_batch_norm_golden_numbers() -> None:
    norm = BatchNorm(1)
    out = norm(torch.tensor([[1.0], [2.0], [6.0]]))  # mean 3, variance 14/3, unbiased 7
    torch.testing.assert_close(out[:, 0], torch.tensor([-0.9258191, -0.4629095, 1.3887286]), rtol=1e-6, atol=1e-6)
    assert norm.running_mean.item() == pytest.approx(0.3)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.7)
    assert norm.num_batches_tracked.item() == 1


def test_batch_norm_refuses_one_value_per_feature_in_training_only() -> None:
    norm = BatchNorm(4)
    with pytest.raises(ValueError, match=r"shape \(1, 4\) has one value per feature.*\.eval\(\)"):
        norm(torch.zeros(1, 4))
    assert norm.num_batches_tracked.item() == 0
    assert torch.isfinite(norm.eval()(torch.zeros(1, 4))).all()


def test_batch_norm_refuses_an_unknown_axis() -> None:
    with pytest.raises(ValueError, match=r"axis is 2; it must be 1"):
        BatchNorm(4, axis=2)


class Probe(nn.Module):
    """A network with both kinds of BatchNorm, whose loss is a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.image_norm = BatchNorm(5, axis=1)
        self.projector = Projector(5, 16, 4)
        fill_norm(self.image_norm)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        features = self.image_norm(self.conv(pixels_BCYX)).tanh().mean((2, 3))
        return self.projector(features)


def run_probe(frames: Tensor, weights_B: Tensor) -> dict[str, Any]:
    """Two steps of statistics, then outputs, gradients (averaged over ranks) and running statistics."""
    torch.manual_seed(0)
    probe = Probe().to(frames.dtype)
    with torch.no_grad():
        probe(frames.flip(0))
    frames = frames.clone().requires_grad_()
    out = probe(frames)
    (out.square().sum(-1) * weights_B).mean().backward()
    average_gradients(probe)
    grads = {name: p.grad for name, p in probe.named_parameters()}
    return {"out": out.detach(), "input_grad": frames.grad, "grads": grads, "buffers": dict(probe.named_buffers())}


def share_of(rank: int, data: dict[str, Tensor]) -> dict[str, Any]:
    """What a process makes of its share of the data."""
    frames, weights_B = data["frames"].chunk(2)[rank], data["weights"].chunk(2)[rank]
    result: dict[str, Any] = {"double": run_probe(frames.double(), weights_B.double())}
    result["single"] = run_probe(frames, weights_B)
    norm, part = BatchNorm(3), data["uneven"].split((2, 7))[rank]
    result["uneven"], result["uneven_var"] = norm(part).detach(), norm.running_var
    result["half"] = BatchNorm(3)(data["uneven"][:8].chunk(2)[rank].sub(100).bfloat16()).detach()
    return result


def assert_close_on_scale(actual: Tensor, expected: Tensor, tolerance: float, scale: float | None = None) -> None:
    """Equal to `tolerance` times the largest entry (or `scale`): entries that cancel to zero carry only rounding."""
    scale = expected.abs().max().item() if scale is None else scale
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=0, atol=tolerance * scale)


@pytest.fixture(scope="module")
def two_processes(on_two_ranks: OnTwoRanks) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The data, and what each of two processes makes of its share."""
    # A mean far from zero in `uneven`: a variance taken as E[x^2] - E[x]^2 would lose its digits.
    data = {
        "frames": 1 + normal(8, 3, 6, 6),
        "weights": 1 + normal(8, seed=1).abs(),
        "uneven": 100 + normal(9, 3, seed=2),
    }
    return data, on_two_ranks(share_of, data)


# float64 shows that the formula is exact. float32 is held against the float64 truth, not against one float32 process,
# because torch's own kernel is the less accurate of the two here (3e-5 of the largest gradient where ours has 1e-6).
@pytest.mark.parametrize(("precision", "tolerance"), [("double", 1e-9), ("single", 1e-5)])
def test_two_processes_are_one(two_processes: Any, precision: str, tolerance: float) -> None:
    data, ranks = two_processes
    alone = run_probe(data["frames"].double(), data["weights"].double())
    results = [rank[precision] for rank in ranks]
    assert_close_on_scale(torch.cat([r["out"] for r in results]), alone["out"], tolerance)
    assert_close_on_scale(torch.cat([r["input_grad"] for r in results]) / 2, alone["input_grad"], tolerance)
    largest = max(grad.abs().max().item() for grad in alone["grads"].values())
    for result in results:
        for name, grad in alone["grads"].items():
            assert_close_on_scale(result["grads"][name], grad, tolerance, largest)
        for name, buffer in alone["buffers"].items():
            assert_close_on_scale(result["buffers"][name], buffer, tolerance)


def test_two_processes_agree_with_one_in_float32_forward(two_processes: Any) -> None:
    data, ranks = two_processes
    alone = run_probe(data["frames"], data["weights"])
    assert_close_on_scale(torch.cat([r["single"]["out"] for r in ranks]), alone["out"], 1e-5)
    for result in ranks:
        for name, buffer in alone["buffers"].items():
            assert_close_on_scale(result["single"]["buffers"][name], buffer, 1e-5)


def test_processes_may_hold_unequal_shares(two_processes: Any) -> None:
    data, ranks = two_processes
    norm = BatchNorm(3).double()
    expected = norm(data["uneven"].double()).detach()
    assert_close_on_scale(torch.cat([r["uneven"] for r in ranks]), expected, 1e-5)
    for result in ranks:
        assert_close_on_scale(result["uneven_var"], norm.running_var, 1e-5)


def test_half_precision_is_normalised_in_float32(two_processes: Any) -> None:
    data, ranks = two_processes
    half = torch.cat([r["half"] for r in ranks])
    assert half.dtype == torch.bfloat16
    expected = BatchNorm(3)((data["uneven"][:8] - 100).bfloat16().float()).detach()
    torch.testing.assert_close(half, expected.bfloat16(), rtol=2**-7, atol=1e-5)


def test_rotary_scores_depend_only_on_the_distance() -> None:
    query, key = normal(1, 16, seed=1), normal(1, 16, seed=2)
    position = torch.arange(12)
    rotated_query = rotate(query.expand(12, -1), rotary_table(position, 16))
    rotated_key = rotate(key.expand(12, -1), rotary_table(position, 16))
    scores = rotated_query @ rotated_key.T
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert scores[0].std() > 0.01  # and on the distance it does depend
    torch.testing.assert_close(rotated_query.norm(dim=-1), query.norm(dim=-1).expand(12))


def test_rotary_golden_numbers() -> None:
    table = rotary_table(torch.tensor([0, 1]), 4)  # base 100: angles 1 and 0.1 at position 1
    turned = rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(2, -1), table)
    torch.testing.assert_close(turned[0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    expected = torch.tensor([-1.98411065, 1.59067466, 2.46237790, 4.17968349])
    torch.testing.assert_close(turned[1], expected)


def test_rotary_refuses_an_odd_head() -> None:
    with pytest.raises(ValueError, match=r"head_dim is 7, it must be even"):
        rotary_table(torch.arange(3), 7)


def test_frame_causal_mask() -> None:
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert frame_causal_mask(2, 2).int().tolist() == expected


def test_attention_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(8, heads=2, head_dim=3)
    x = normal(2, 5, 8)
    mask = frame_causal_mask(5, 1)
    query, key, value = attention.qkv(x).view(2, 5, 3, 2, 3).permute(2, 0, 3, 1, 4)
    scores = (query @ key.mT / 3**0.5).masked_fill(~mask, -torch.inf)
    expected = attention.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 5, 6))
    torch.testing.assert_close(attention(x, mask), expected)
    grouped = x[:, :4].unflatten(1, (2, 2))
    torch.testing.assert_close(attention(grouped).flatten(1, 2), attention(x[:, :4]))


def test_attention_and_mlp_drop_out_in_training_only() -> None:
    torch.manual_seed(0)
    block = Block(Attention(8, 2, 4, dropout=0.5), MLP(8, 16, dropout=0.5), 8)
    x = normal(2, 5, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_causal_transformer_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    blocks = [Block(Attention(8, 2, 4), MLP(8, 16), 8) for _ in range(2)]
    stack = CausalTransformer(blocks, 8, context=4, tokens=3)
    x_BTKD, condition_BTD = normal(2, 4, 3, 8), normal(2, 4, 8, seed=1)
    torch.testing.assert_close(stack(x_BTKD, condition_BTD), stack.norm(x_BTKD), rtol=0, atol=0)


def test_modulation_is_per_frame_and_in_the_stated_order() -> None:
    torch.manual_seed(0)
    block = Block(Attention(4, 1, 4), MLP(4, 8), 4, norm=False)
    x_BTKD = normal(1, 2, 3, 4)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation = tuple(normal(6, 1, 2, 1, 4, seed=1))
    normed = nn.functional.layer_norm(x_BTKD, (4,), eps=1e-6)
    after = x_BTKD + gate * block.attention(normed * (1 + scale) + shift)
    normed = nn.functional.layer_norm(after, (4,), eps=1e-6)
    expected = after + mlp_gate * block.mlp(normed * (1 + mlp_scale) + mlp_shift)
    torch.testing.assert_close(block(x_BTKD, modulation=modulation), expected)


def test_projector_is_linear_batch_norm_gelu_linear() -> None:
    torch.manual_seed(0)
    projector = Projector(4, 8, 3).eval()
    x = normal(2, 3, 1, 4)
    expected = projector.down(nn.functional.gelu(projector.up(x) / (1 + 1e-5) ** 0.5))
    torch.testing.assert_close(projector(x), expected)
