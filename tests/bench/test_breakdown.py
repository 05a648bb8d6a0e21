"""`lewm bench plan --breakdown` and `--scaling`: operations counted by hand, parts that add up; no time is asserted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_models import FACTS, toy_head, toy_model

from lewm.bench import breakdown, scaling
from lewm.bench.breakdown import PARTS, WHOLE, Meter, PlanOnce, bench_breakdown, count_flops, metered
from lewm.bench.plan import fresh_model
from lewm.bench.scaling import AXES, Point, planning_at, points, with_predictor
from lewm.cli import main
from lewm.nets.encoders import ViTConfig
from lewm.nets.predictors import ACConfig, AdaLNConfig, DinoWMConfig, MLPConfig, PredictorConfig, RotaryConfig
from lewm.planning.costs import CostConfig, GoalCost
from lewm.planning.fast_rollout import FastModel, prepare
from lewm.world_model import ModelConfig, WorldModel
from planners import CEM

CPU = torch.device("cpu")
SEARCH = CEM(candidates=20, iterations=3, elites=5, horizon=4, execute="best")
N, ITERATIONS, H = 20, 3, 4
L2 = CostConfig({"latent_l2": 1.0}, "terminal")


def once(predictor: PredictorConfig, planner: CEM = SEARCH, cost: CostConfig = L2) -> PlanOnce:
    model = toy_model(predictor)
    head = toy_head(model)
    return PlanOnce(model, head, prepare(model, head), planner, cost)


@torch.no_grad()
def test_operations_of_an_mlp_plan_by_hand() -> None:
    """Two per multiplication. D = 4, A = 4 (2 steps of 2 entries), predictor width W = 16 and one hidden layer, head
    width 8 with layers as the toy head has them; an encoder of three convolutions 3 x 3 on 32 x 32 pixels."""
    plan = once(MLPConfig(width=16), cost=CostConfig())
    flops = count_flops(plan)
    D, A, W = 4, 4, 16
    assert plan.model.action_dim == A
    assert flops["conditioning"] == ITERATIONS * 2 * N * H * A * W
    shared = 2 * D * W  # the present, once per plan
    assert flops["steps"] == shared + ITERATIONS * 2 * N * (H * (W * W + W * D) + (H - 1) * D * W)
    layers = [layer for layer in plan.head.net if isinstance(layer, torch.nn.Linear)]
    later = sum(layer.in_features * layer.out_features for layer in layers[1:])
    first = D * layers[0].out_features
    assert flops["distance"] == 2 * first + ITERATIONS * 2 * N * H * (first + later)  # the goal once per plan
    convolutions = sum(9 * before * 4 * side**2 for before, side in ((3, 16), (4, 8), (4, 4)))
    assert flops["encode"] == 2 * (convolutions + 4 * 4**2 * D)
    assert flops["search"] == flops["noise, copies"] == 0


@torch.no_grad()
def test_operations_of_a_vit_by_hand() -> None:
    """16 patches of 8 x 8 and a CLS token, two layers of width 8; attention is two products of 17 x 17 x 8 a layer.
    At the size of LeWM the same sum is 3.40 GFLOP."""

    def by_hand(tokens: int, patch: int, width: int, layers: int, hidden: int, latent: int) -> int:
        embed = (tokens - 1) * 3 * patch**2 * width
        layer = tokens * (4 * width**2 + 8 * width**2) + 2 * tokens**2 * width
        return 2 * (embed + layers * layer + width * hidden + hidden * latent)

    assert by_hand(257, 14, 192, 12, 2048, 192) == pytest.approx(3.40e9, rel=0.002)
    vit = ViTConfig(latent_dim=4, patch=8, layers=2, heads=2, width=8, projector_hidden=16)
    model = WorldModel(ModelConfig(vit, MLPConfig(width=16)), FACTS).eval()
    assert count_flops(PlanOnce(model, None, prepare(model), SEARCH, L2))["encode"] == by_hand(17, 8, 8, 2, 16, 4)


@torch.no_grad()
def test_the_final_mean_is_scored_too() -> None:
    """execute=mean asks for the cost of one more plan; latent L2 multiplies no matrices."""
    best = count_flops(once(MLPConfig(width=16)))
    mean = count_flops(once(MLPConfig(width=16), replace(SEARCH, execute="mean")))
    assert mean["conditioning"] - best["conditioning"] == 2 * H * 4 * 16
    assert mean["distance"] == best["distance"] == 0


@torch.no_grad()
@pytest.mark.parametrize("predictor", [RotaryConfig(context=8, width=8, layers=2, heads=2), AdaLNConfig(layers=2)])
def test_conditioning_of_a_transformer_by_hand(predictor: PredictorConfig) -> None:
    """Action maps, then six modulations per block and entry of the width, for every action of every candidate."""
    flops = count_flops(once(predictor))
    if isinstance(predictor, RotaryConfig):
        width, maps = 8, 4 * 8 + 8 * 8
    else:  # its first two maps are one after folding; it is as wide as the latent
        width, maps = 4, 4 * 768 + 768 * 4
    assert flops["conditioning"] == ITERATIONS * 2 * N * H * (maps + 2 * 6 * width * width)
    assert flops["steps"] > 0


@torch.no_grad()
@pytest.mark.parametrize(
    "predictor",
    [
        MLPConfig(width=16),
        RotaryConfig(width=8, heads=2),
        AdaLNConfig(layers=1),
        ACConfig(width=12, heads=2, layers=1),
        DinoWMConfig(layers=1),
    ],
)
def test_a_meter_changes_no_cost(predictor: PredictorConfig) -> None:
    plan = once(predictor)
    latent, past = torch.randn(1, 1, 1, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 0, 4)
    action = torch.randn(1, 6, 3, 4, generator=torch.Generator().manual_seed(1))
    meter = Meter(lambda: 0.0)
    plain = plan.fast.rollout.begin(latent, past)(action)
    watched = metered(plan.fast, meter).rollout.begin(latent, past)(action)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert {"rollout", "conditioning"} <= meter.total.keys()


def test_nested_parts_are_taken_apart() -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])

    def spend(part: str, before: float, inside: float) -> None:
        with meter.part(part):
            now[0] += before
            if part in nested:
                spend(nested[part], *times[nested[part]])
            now[0] += inside

    nested = {"plan": "cost", "cost": "rollout", "rollout": "conditioning"}
    times = {"cost": (1.0, 10.0), "rollout": (2.0, 20.0), "conditioning": (3.0, 30.0)}
    spend("encode", 5.0, 0.0)
    spend("plan", 100.0, 0.5)
    spend("noise, copies", 7.0, 0.0)
    expected = {"encode": 5, "conditioning": 33, "steps": 22, "distance": 11, "search": 100.5, "noise, copies": 7}
    assert meter.parts() == expected and meter.parts().keys() == PARTS.keys()


def test_an_unknown_predictor_is_named() -> None:
    class Strange:
        pass

    with pytest.raises(TypeError, match="does not know Strange; say in `metered`"):
        metered(FastModel(Strange(), None), Meter(lambda: 0.0))


def test_rows_of_a_breakdown(tiny_checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "SEARCHES", ((SEARCH, CostConfig()), (SEARCH, L2)))
    monkeypatch.setitem(breakdown.GEMM, "cpu", 64)
    rows = bench_breakdown(tiny_checkpoint_path, "two_room", 1, 2, "cpu")
    assert [r.part for r in rows] == [*PARTS, WHOLE] * 2
    for block in (rows[:7], rows[7:]):
        parts, whole = block[:-1], block[-1]
        assert sum(r.share for r in parts) == pytest.approx(1)
        assert whole.mflop == pytest.approx(sum(r.mflop for r in parts)) and whole.mflop > 0
        for r in block:
            assert r.ms_p50 > 0 and r.gflop_per_s == r.mflop / r.ms_p50
            assert r.of_peak == r.gflop_per_s / r.gemm_gflop_per_s
            assert (r.candidates, r.iterations, r.horizon, r.plans, r.threads) == (20, 3, 4, 2, 1)
    assert {r.cost for r in rows} == {"cost_to_go (sum)", "latent_l2 (terminal)"}
    text = breakdown.table(rows).splitlines()
    assert len(text) == len(rows) + 2 * 2 + 3 and "a 64 x 64 float32 product" in text[-2]


def test_axes_grow_alone() -> None:
    base = Point()
    for axis, values in AXES.items():
        for point, value in zip(points(axis, single_token=False), values, strict=True):
            assert replace(point, **{axis: getattr(base, axis)}) == base and getattr(point, axis) == value
    assert points("tokens", single_token=True) == []
    assert max(AXES["horizon"]) <= RotaryConfig().context


@torch.no_grad()
def test_a_point_is_planned_at_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates a plan scores have the shape of the point, and its latents the tokens."""
    seen = []
    score = GoalCost.__call__

    def spy(cost: GoalCost, action: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(action.shape), cost.situation.latent_BTKD.shape[2], cost.fast is not None))
        return score(cost, action)

    monkeypatch.setattr(GoalCost, "__call__", spy)
    model, _ = fresh_model("two_room")
    point = Point(candidates=7, horizon=2, batch=3, tokens=5)
    planning_at(with_predictor(model, RotaryConfig(width=8, heads=2, layers=1), 5), point)()
    assert seen == [((3, 7, 2, 10), 5, True)] * scaling.ITERATIONS + [((3, 1, 2, 10), 5, True)]
    assert model.tokens == 1 and model.config.predictor.name == "mlp"  # the model given stays as it is


def test_scaling_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "AXES", {"candidates": (4, 8), "horizon": (1, 2), "batch": (1, 2), "tokens": (1, 2)})
    file, picture = tmp_path / "deep" / "scaling.json", tmp_path / "plots" / "scaling.png"
    words = ["--scaling", "--plans", "1", "--device", "cpu", "--json", str(file), "--plot", str(picture)]
    main(["bench", "plan", *words])
    assert f"plot {picture}" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    axes = [(row["predictor"], row["axis"]) for row in rows]
    assert axes.count(("mlp", "batch")) == axes.count(("rotary", "tokens")) == 2 and ("mlp", "tokens") not in axes
    assert [row["growth"] for row in rows[::2]] == [1.0] * 7
    assert all(row["ms_per_problem"] == row["ms_p50"] / row["batch"] for row in rows)
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--breakdown", "--plans", "0"], "--plans is 0"),
        (["--scaling", "--plans", "0"], "--plans is 0"),
        (["--scaling", "--checkpoint", "x"], "leave --checkpoint out"),
        (["--breakdown", "--plot", "x.png"], "only --scaling draws a picture"),
        (["--breakdown", "--scaling"], "not allowed with"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "plan", "--device", "cpu", *words])
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and "Traceback" not in error


def test_breakdown_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(breakdown, "SEARCHES", ((SEARCH, CostConfig()),))
    monkeypatch.setitem(breakdown.GEMM, "cpu", 64)
    file = tmp_path / "breakdown.json"
    main(["bench", "plan", "--breakdown", "--plans", "1", "--device", "cpu", "--json", str(file)])
    assert "whole plan" in capsys.readouterr().out
    assert [row["part"] for row in json.loads(file.read_text())] == [*PARTS, WHOLE]
