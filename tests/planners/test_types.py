import pytest
import torch

from planners import ActionBox, shift

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])


def test_from_bounds_searches_from_the_centre() -> None:
    box = ActionBox.from_bounds(LOW, HIGH)
    assert box.mean_A.tolist() == [0.0, 2.0]
    assert box.std_A.tolist() == [1.0, 2.0]


def test_open_box_needs_a_stated_centre() -> None:
    inf = torch.full((2,), torch.inf)
    assert ActionBox(-inf, inf, torch.zeros(2), torch.ones(2)).high_A.isposinf().all()
    with pytest.raises(ValueError, match=r"mean_A .* must be finite"):
        ActionBox.from_bounds(-inf, inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low_A": torch.tensor([-1.0, 4.0])}, "low_A .* must be below high_A"),
        ({"low_A": torch.tensor([-1.0, torch.nan])}, "low_A .* must be below high_A"),
        ({"std_A": torch.tensor([1.0, 0.0])}, "std_A .* must be finite and positive"),
        ({"std_A": torch.tensor([1.0, torch.inf])}, "std_A .* must be finite and positive"),
        ({"mean_A": torch.tensor([torch.nan, 0.0])}, "mean_A .* must be finite"),
        ({"mean_A": torch.zeros(3)}, r"four vectors of one length.*'mean_A': \(3,\)"),
        ({"std_A": torch.ones(())}, "four vectors of one length"),
    ],
)
def test_bad_box_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    good = {"low_A": LOW, "high_A": HIGH, "mean_A": torch.zeros(2), "std_A": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        ActionBox(**{**good, **change})


def test_bounds_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low_A has shape \(2,\), high_A \(3,\)"):
        ActionBox.from_bounds(LOW, torch.ones(3))


def test_to_keeps_values() -> None:
    box = ActionBox.from_bounds(LOW, HIGH).to("cpu")
    assert box.high_A.tolist() == [1.0, 4.0]


def test_shift_drops_executed_blocks_and_fills_with_the_centre() -> None:
    box = ActionBox.from_bounds(LOW, HIGH)
    mean_BHA = torch.arange(12.0).reshape(2, 3, 2)
    assert shift(mean_BHA, 1, box).tolist() == [[[2, 3], [4, 5], [0, 2]], [[8, 9], [10, 11], [0, 2]]]
    assert torch.equal(shift(mean_BHA, 0, box), mean_BHA)
    for blocks in (3, 7):
        assert torch.equal(shift(mean_BHA, blocks, box), box.mean_A.expand(2, 3, 2))
    with pytest.raises(ValueError, match=r"blocks is -1; .* 0 or more"):
        shift(mean_BHA, -1, box)
