import pytest
import torch

from planners import ActionBox, WarmStart, shift

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


def test_a_discrete_box_goes_from_0_to_choices_minus_1() -> None:
    box = ActionBox.discrete((2, 5), steps=2)
    assert (box.low_A.tolist(), box.high_A.tolist(), box.choices_A, box.steps) == ([0, 0], [1, 4], (2, 5), 2)
    with pytest.raises(ValueError, match=r"from 0 to choices - 1, but low_A is \[-1.0, 0.0\].*ActionBox.discrete"):
        ActionBox(LOW, HIGH, torch.zeros(2), torch.ones(2), choices_A=(2, 5))
    for choices in ((3,), (3, 1)):
        with pytest.raises(ValueError, match=rf"choices_A is \({choices[0]}.*2 or more, for each of its 2 entries"):
            ActionBox(LOW, HIGH, torch.zeros(2), torch.ones(2), choices_A=choices)


def test_a_block_is_whole_raw_actions() -> None:
    assert ActionBox.from_bounds(LOW, HIGH, steps=2).to("cpu").steps == 2
    for steps in (0, 3):
        with pytest.raises(ValueError, match=rf"steps is {steps}; a block of 2 entries must be that many raw actions"):
            ActionBox.from_bounds(LOW, HIGH, steps)


def test_warm_starts_of_several_problems_join_and_part() -> None:
    parts = [WarmStart(torch.full((1, 3, 2), i), None, torch.full((1, 4, 3, 2), i)) for i in (1.0, 2.0)]
    joined = WarmStart.join(parts)
    assert joined.mean_BHA[:, 0, 0].tolist() == [1, 2] and joined.std_BHA is None
    assert joined.seeds_BSHA is not None and joined.seeds_BSHA.shape == (2, 4, 3, 2)
    assert joined.problems(slice(1, 2)).mean_BHA.unique().tolist() == [2]


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
