"""Risk: arithmetic by hand, failures, gradients, and a trap that only caution avoids."""

import pytest
import torch
from torch import Tensor

from planners import CEM, ActionBox, noise_table
from planners.risk import KINDS, Risk, RiskCost, RiskKind

INF, NAN = torch.inf, torch.nan
MEMBERS = torch.tensor([[[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]]])
"""Two plans, four members: mean 3 and 5, population variance (4 + 1 + 0 + 9) / 4 = 3.5 and 0."""


@pytest.mark.parametrize(
    ("risk", "expected"),
    [
        (Risk("mean"), [3.0, 5.0]),
        (Risk("best"), [1.0, 5.0]),
        (Risk("worst"), [6.0, 5.0]),
        (Risk("pessimistic"), [3 + 3.5**0.5, 5.0]),
        (Risk("pessimistic", caution=2.0), [3 + 2 * 3.5**0.5, 5.0]),
        (Risk("cvar", tail=0.5), [4.5, 5.0]),
        (Risk("cvar", tail=0.3), [4.5, 5.0]),  # 1.2 members are two
        (Risk("cvar", tail=0.25), [6.0, 5.0]),
        (Risk("cvar", tail=1.0), [3.0, 5.0]),
    ],
)
def test_by_hand(risk: Risk, expected: list[float]) -> None:
    assert risk.combine(MEMBERS)[0].tolist() == pytest.approx(expected)
    assert risk.combine(MEMBERS.flip(-1))[0].tolist() == pytest.approx(expected), "members have no order"


def test_whole_tails_are_not_rounded_up() -> None:
    """0.07 x 100 is 7.000000000000001 in floating point, and still 7 members: 93 to 99 have the mean 96."""
    assert Risk("cvar", tail=0.07).combine(torch.arange(100.0)).item() == 96


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_failed_member_makes_the_plan_fail_except_for_the_best(kind: RiskKind, bad: float) -> None:
    cost_BN = Risk(kind).combine(torch.tensor([[[1.0, bad, 3.0], [bad, bad, bad], [2.0, 2.0, 2.0]]]))
    assert cost_BN[0].tolist() == ([1.0, INF, 2.0] if kind == "best" else [INF, INF, 2.0])


@pytest.mark.parametrize("kind", KINDS)
def test_one_member_is_itself(kind: RiskKind) -> None:
    assert Risk(kind).combine(torch.tensor([[[7.0], [-2.0]]])).tolist() == [[7.0, -2.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_and_stay_finite_beside_failures_and_agreement(kind: RiskKind) -> None:
    cost = torch.tensor([[[1.0, 2.0, 6.0], [4.0, 4.0, 4.0], [1.0, NAN, INF]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Risk(kind).combine(cost).nan_to_num(posinf=0.0).sum(), cost)
    assert gradient.isfinite().all()
    assert gradient[0, :2].sum(-1).tolist() == pytest.approx([1, 1]), "adding 1 to all members adds 1"
    # d/dc of mean + std: 1/3 + (c - 3) / (3 std), std = sqrt(14 / 3).
    std = (14 / 3) ** 0.5
    slopes = {
        "mean": [1 / 3] * 3,
        "best": [1, 0, 0],
        "worst": [0, 0, 1],
        "pessimistic": [1 / 3 + gap / (3 * std) for gap in (-2, -1, 3)],
        "cvar": [0, 0, 1],
    }
    assert gradient[0, 0].tolist() == pytest.approx(slopes[kind])


def test_caution_avoids_the_trap_that_the_mean_walks_into() -> None:
    """Cost 0.3 away from +1, certain. At -1 the truth is 3, but one of three members promises a treasure there.

    Members at -1: 3, 3 and -12, so their mean is -2 and their std 7.1; near +1 they agree.
    """

    def member(treasure: float) -> object:
        def cost(action_BNHA: Tensor) -> Tensor:
            position_BN = action_BNHA.sum((2, 3))
            at_the_trap = torch.exp(-((position_BN + 1) / 0.3).square())
            return 0.3 * (position_BN - 1).abs() + treasure * at_the_trap

        return cost

    members = [member(2.4), member(2.4), member(-12.6)]
    box = ActionBox.from_bounds(torch.tensor([-1.5]), torch.tensor([1.5]))
    planner = CEM(horizon=1, candidates=128, iterations=6, elites=10)
    noise = noise_table([(0,), (1,)], planner, 1)
    position = {kind: planner.plan(RiskCost(members, Risk(kind)), noise, box).action_BHA.flatten() for kind in KINDS}
    for kind in ("mean", "best"):
        assert ((position[kind] + 1).abs() < 0.1).all(), kind
    for kind in ("worst", "pessimistic", "cvar"):
        assert ((position[kind] - 1).abs() < 0.1).all(), kind


def test_faults_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="Risk: kind is 'median'; it must be one of mean, best, worst, pessim"):
        Risk("median")  # type: ignore[arg-type]
    for caution in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match=rf"Risk: caution is {caution}; it must be positive"):
            Risk(caution=caution)
    for tail in (0.0, 1.1, NAN):
        with pytest.raises(ValueError, match=rf"Risk: tail is {tail}; it must lie in \(0, 1\]"):
            Risk(tail=tail)
    with pytest.raises(ValueError, match="RiskCost has no members"):
        RiskCost([], Risk())
    wrong = RiskCost([lambda a: a.sum((2, 3)), lambda a: a.sum((1, 2, 3))], Risk())
    with pytest.raises(ValueError, match=r"member 1 of RiskCost returned shape \(2,\); .* shape \(2, 5\)"):
        wrong(torch.zeros(2, 5, 1, 1))
